"""Which part of which tensor of a checkpoint goes where in a rank's decoder.

Loading and drawing weights both go through this one table, so both split a model the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from nanoinfer.model.config import ModelConfig
    from nanoinfer.model.decoder import Decoder, DecoderLayer
    from nanoinfer.model.layers import Linear, RowParallelLinear
    from nanoinfer.model.parallel import TensorParallel

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, slots=True)
class Destination:
    """A place in the model for a part of a checkpoint's tensor.

    view    what is filled: contiguous, or a slice of rows
    shape   the whole tensor's
    axis    along which `view` is a part of it
    start   first index of the part; the part may be empty
    """

    view: Tensor
    shape: tuple[int, ...]
    axis: int = ROWS
    start: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the tensor is left to other ranks."""
        return tuple(self.view.shape) == self.shape

    @property
    def part(self) -> range:
        """The indices along `axis` that `view` takes."""
        return range(self.start, self.start + self.view.shape[self.axis])

    def part_of(self, whole: Tensor) -> Tensor:
        """Return the part of a whole tensor, as a view."""
        return whole.narrow(self.axis, self.start, len(self.part))


def destinations(model: Decoder, config: ModelConfig) -> dict[str, Destination]:
    """Map every name that a checkpoint must hold to its place; `config` is the whole model's."""
    vocabulary = model.parallel.part(config.vocab_size)
    shape = (config.vocab_size, config.hidden_size)
    table = {
        "model.embed_tokens.weight": Destination(model.embedding.weight.detach(), shape, ROWS, vocabulary.start),
        "model.norm.weight": _whole(model.norm.weight),
    }
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Destination(model.head.weight.detach(), shape, ROWS, vocabulary.start)
    for index, layer in enumerate(model.decoder_layers()):
        for name, destination in _of_layer(layer, config, model.parallel):
            table[f"model.layers.{index}.{name}"] = destination
    return table


def _of_layer(layer: DecoderLayer, config: ModelConfig, parallel: TensorParallel) -> Iterator[tuple[str, Destination]]:
    attention, mlp, width = layer.attention, layer.mlp, config.head_dim
    query = _Rows(config.num_heads * width, _widened(parallel.part(config.num_heads), width))
    key = _Rows(config.num_kv_heads * width, _widened(parallel.kv_heads(config.num_kv_heads), width))
    inner = _Rows(config.intermediate_size, parallel.part(config.intermediate_size))
    yield "input_layernorm.weight", _whole(layer.attention_norm.weight)
    yield "post_attention_layernorm.weight", _whole(layer.mlp_norm.weight)
    yield from _columns(attention.qkv_proj, "self_attn.", {"q_proj": query, "k_proj": key, "v_proj": key})
    yield from _row(attention.o_proj, "self_attn.o_proj", query, has_bias=config.output_bias)
    if attention.q_norm is not None and attention.k_norm is not None:
        yield "self_attn.q_norm.weight", _whole(attention.q_norm)
        yield "self_attn.k_norm.weight", _whole(attention.k_norm)
    yield from _columns(mlp.gate_up_proj, "mlp.", {"gate_proj": inner, "up_proj": inner})
    yield from _row(mlp.down_proj, "mlp.down_proj", inner, has_bias=config.mlp_bias)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A rank's own indices among `total`."""

    total: int
    own: range


def _widened(heads: range, width: int) -> range:
    return range(heads.start * width, heads.stop * width)


def _whole(parameter: Tensor) -> Destination:
    return Destination(parameter.detach(), tuple(parameter.shape))


def _columns(linear: Linear, prefix: str, parts: dict[str, _Rows]) -> Iterator[tuple[str, Destination]]:
    """Name the row ranges of a fused column-parallel layer, weights and biases."""
    begin, weight, bias = 0, linear.weight.detach(), linear.bias
    for name, rows in parts.items():
        place = slice(begin, begin + len(rows.own))
        yield f"{prefix}{name}.weight", Destination(weight[place], (rows.total, weight.shape[1]), ROWS, rows.own.start)
        if bias is not None:
            yield f"{prefix}{name}.bias", Destination(bias.detach()[place], (rows.total,), ROWS, rows.own.start)
        begin += len(rows.own)


def _row(linear: RowParallelLinear, name: str, inputs: _Rows, *, has_bias: bool) -> Iterator[tuple[str, Destination]]:
    """Name a row-parallel layer; a rank that does not hold the bias takes an empty part of it."""
    weight = linear.weight.detach()
    yield f"{name}.weight", Destination(weight, (len(weight), inputs.total), COLUMNS, inputs.own.start)
    if has_bias:
        bias = weight.new_empty(0) if linear.bias is None else linear.bias.detach()
        yield f"{name}.bias", Destination(bias, (len(weight),))
