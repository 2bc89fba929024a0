"""Attention over the paged KV cache: project, rotate, write keys and values, attend, project back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from nanoinfer.kernels.reference import attention_scale
from nanoinfer.model.layers import Layer, Linear, RowParallelLinear, empty_parameter

if TYPE_CHECKING:
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.model.ops import Ops
    from nanoinfer.model.parallel import TensorParallel


KVBlocks = tuple[Tensor, Tensor]  # one layer's blocks of keys and of values, each (N, block_size, Hkv, D)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeInputs:
    """Sequences with one query token each; B of them.

    block_table      (B, M) int32
    context_lens     (B,) int32, the new token included; 0 marks a row that is none
    max_context_len  upper bound of context_lens known to the host
    sparse           whether most rows may be none
    """

    block_table: Tensor
    context_lens: Tensor
    max_context_len: int
    sparse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillInputs:
    """Sequences with several query tokens each, one after the other; B of them.

    block_table    (B, M) int32
    query_starts   (B + 1,) int32, first token of each sequence, then the end of the last one
    context_lens   (B,) int32, cached and new tokens
    max_query_len  longest query, known to the host
    """

    block_table: Tensor
    query_starts: Tensor
    context_lens: Tensor
    max_query_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """What attention needs to know of a step with T tokens: decode rows first, then prefill rows, then padding.

    Where there is padding, `decode` may have more rows than decode: those whose context is 0 are left to `prefill`.
    Without `prefill`, all T are rows of `decode`.

    positions     (T,) int64
    slot_mapping  (T,) int64, where each token's keys and values go
    """

    positions: Tensor
    slot_mapping: Tensor
    decode: DecodeInputs | None
    prefill: PrefillInputs | None


class Attention(Layer):
    """Grouped-query attention with rotary positions and, in Qwen3, normalized heads; `config` is the rank's own."""

    def __init__(self, config: ModelConfig, ops: Ops, parallel: TensorParallel) -> None:
        super().__init__()
        width = config.head_dim
        self.qkv_proj = Linear(config.hidden_size, config.qkv_heads * width, bias=config.qkv_bias)
        self.o_proj = RowParallelLinear(
            config.num_heads * width, config.hidden_size, bias=config.output_bias, parallel=parallel, ops=ops
        )
        self.q_norm = empty_parameter(width) if config.qk_norm else None
        self.k_norm = empty_parameter(width) if config.qk_norm else None
        self.eps = config.rms_norm_eps
        self.scale = attention_scale(width)
        self.heads_shape = config.num_heads, width
        self.ops = ops

    def forward(self, x: Tensor, inputs: AttentionInputs, cos_sin: Tensor, kv_blocks: KVBlocks) -> Tensor:
        """Map x (T, hidden_size) to what `o_proj` takes, (T, Hq * D); kv_blocks is as in `attend`."""
        qkv = self.ops.linear(x, self.qkv_proj.weight, self.qkv_proj.bias)
        return self.attend(qkv, inputs, cos_sin, kv_blocks)

    def attend(self, qkv: Tensor, inputs: AttentionInputs, cos_sin: Tensor, kv_blocks: KVBlocks) -> Tensor:
        """Map the fused projection (T, (Hq + 2 Hkv) * D) to (T, Hq * D), each part of the step by its own kernels.

        kv_blocks is written, then read. Decode rows read what their own requests wrote in earlier steps, so they need
        not wait for the prefill rows. What comes out for padding is undefined.
        """
        out = qkv.new_empty((qkv.shape[0], *self.heads_shape))
        common = self.q_norm, self.k_norm, self.eps, cos_sin
        positions, slot_mapping = inputs.positions, inputs.slot_mapping
        if (decode := inputs.decode) is not None:
            rows = qkv, positions, slot_mapping, out
            if inputs.prefill is not None:
                num_rows = decode.context_lens.shape[0]
                rows = qkv[:num_rows], positions[:num_rows], slot_mapping[:num_rows], out[:num_rows]
            self.ops.decode_attention(
                rows[0],
                *common,
                rows[1],
                *kv_blocks,
                rows[2],
                decode.block_table,
                decode.context_lens,
                self.scale,
                rows[3],
                max_context_len=decode.max_context_len,
                sparse=decode.sparse,
            )
        if (prefill := inputs.prefill) is not None:
            self.ops.prefill_attention(
                qkv,
                *common,
                positions,
                *kv_blocks,
                slot_mapping,
                prefill.block_table,
                prefill.query_starts,
                prefill.context_lens,
                prefill.max_query_len,
                self.scale,
                out,
            )
        return out.flatten(1)
