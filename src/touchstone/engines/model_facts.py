"""What a model folder's config.json says of the model, in the words in which every adapter tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from touchstone.engines.base import EngineError

if TYPE_CHECKING:
    from touchstone.engines.base import EngineSpec
    from touchstone.records import Scalar

_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}


def read_config(folder: str) -> dict[str, Any]:
    """Read config.json of a model folder; EngineError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise EngineError(f"the model folder holds no {path.name}; give a folder in the hub's layout")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise EngineError(f"{path.name} of the model folder holds no JSON object; give a model's config.json")
    return config


def model_facts(config: dict[str, Any], dtype: str) -> dict[str, Scalar]:
    """Name the shape of a decoder as `EngineFacts.model` holds it."""
    heads = config["num_attention_heads"]
    facts: dict[str, Scalar] = {name: config.get(key) for name, key in _NAMES.items()}
    return facts | {
        "architecture": ", ".join(config.get("architectures") or ()) or None,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "dtype": dtype,
    }


def checkpoint_folder(spec: EngineSpec) -> str:
    """Return the folder to load weights from; EngineError for an engine that cannot draw synthetic ones itself."""
    if spec.synthetic_seed is not None or not any(Path(spec.model).glob("*.safetensors")):
        raise EngineError(
            f"engine {spec.engine!r} loads weights from safetensors, and the model folder has none; give --model a "
            "folder that has, or let `touchstone run` write a synthetic checkpoint"
        )
    return spec.model
