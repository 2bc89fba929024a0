"""How many bytes and weights a model has, from its config.json alone: what plans are sized by."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Count the bytes of one token's keys and values over all layers."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * _head_dim(config) * DTYPE_BYTES[dtype])


def num_parameters(config: Mapping[str, Any]) -> int:
    """Count the weights of a dense decoder from its config.json: projections and embeddings; norms are left out."""
    hidden, head = config["hidden_size"], _head_dim(config)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    layer = attention + 3 * hidden * config["intermediate_size"]
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(config["num_hidden_layers"] * layer + embeddings)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
