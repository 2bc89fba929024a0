"""Prefill attention from the fused projection on, in Triton: prompts, chunks and prefix hits alike.

New keys and values are stored first, by a kernel of their own, because many programs read them. Queries are normalized
and rotated by the one program that uses them, and never written.

One program holds a tile of queries of one sequence and one KV head. The query heads that share the KV head lie in the
tile side by side, so a key is fetched once for all of them. New keys are in the cache before attention runs; cached and
new tokens are therefore the same thing here, and only the last tiles of keys need the causal mask
(FlashAttention-2, Dao, 2023: work split over queries, one rescaling a tile).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from nanoinfer.kernels.launch import THREE_PROGRAMS
from nanoinfer.kernels.paging import MIN_DOT_ROWS, key_offsets, load_blocks, tile_blocks
from nanoinfer.kernels.rotation import norm_rotary
from nanoinfer.kernels.store_kv import norm_rotary_store
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor


SHORT_QUERY = 2048  # up to here much of a tile is masked, and smaller tiles waste less
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """How a program is shaped: rows (tokens x heads of a group) and keys of a tile, warps, pipeline stages.

    `maxnreg` is the most registers of a thread; None leaves their number to the compiler.
    """

    tile_rows: int
    tile_keys: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


def prefill_tuning(dtype: torch.dtype, group: int, max_query_len: int) -> PrefillTuning:
    """Return a tile shape of few, because each one is compiled when it is first met.

    tools/kernel_speed.py times its rivals. A tile has a row for each head of the group. Exact float32 products use no
    tensor cores and need registers instead.
    """
    least = max(MIN_DOT_ROWS, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return PrefillTuning(tile_rows=least, tile_keys=16, num_warps=4, num_stages=1)
    if group * max_query_len <= least:
        return PrefillTuning(tile_rows=least, tile_keys=64, num_warps=4, num_stages=3)
    rows = max(least, 64)
    if max_query_len > SHORT_QUERY:
        return PrefillTuning(tile_rows=rows, tile_keys=64, num_warps=4, num_stages=3)
    return PrefillTuning(tile_rows=rows, tile_keys=32, num_warps=4, num_stages=3, maxnreg=THREE_PROGRAMS)


def prefill_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
    out: Tensor,
    tuning: PrefillTuning | None = None,
) -> None:
    """Store all T new tokens and attend from those of each sequence, causally, to its cached and new tokens.

    qkv (T, (Hq + 2 Hkv) * D): all query heads, then all key heads, then all value heads; sequences one after the other:
    sequence b owns rows query_starts[b] .. query_starts[b + 1] - 1, which may be none; query_starts (B + 1,) int32.
    Rows before the first sequence and behind the last are stored, and left alone otherwise. q_norm and k_norm (D,)
    normalize each head before the rotation (Qwen3); both None leaves that out. positions and slot_mapping (T,) int64;
    cos_sin (max_position, D) float32 holds D/2 cosines, then D/2 sines. context_lens (B,) int32 counts cached and new
    tokens; key/value blocks (N, block_size, Hkv, D) of equal strides; block_table (B, M) int32, rows padded with any
    valid id. Row i of a sequence stands at position context_len - query_len + i, which positions repeat, and sees
    positions up to its own. max_query_len steers the tile size. Writes to out (T, Hq, D), contiguous, of qkv's dtype;
    accumulates in float32; float32 products are exact float32.
    """
    norm_rotary_store(qkv, k_norm, eps, cos_sin, positions, key_blocks, value_blocks, slot_mapping)
    num_tokens = qkv.shape[0]
    _, block_size, num_kv_heads, head_dim = key_blocks.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    tuning = tuning or prefill_tuning(qkv.dtype, group, max_query_len)
    queries = tuning.tile_rows // group
    num_seqs = context_lens.shape[0]
    _prefill_variant(group, head_dim, block_size, tuning, q_norm is not None).launch(
        (num_kv_heads, num_tokens // queries + num_seqs, 1),
        (
            qkv,
            qkv if q_norm is None else q_norm,
            cos_sin,
            key_blocks,
            value_blocks,
            block_table,
            query_starts,
            context_lens,
            out,
        ),
        (eps, scale * LOG2_E, num_seqs, qkv.stride(0), *key_blocks.stride()[:3], block_table.stride(0)),
    )


@cache
def _prefill_variant(group: int, head_dim: int, block_size: int, tuning: PrefillTuning, normalized: bool) -> Variant:
    return Variant(
        _prefill_kernel,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        ROWS=tuning.tile_rows,
        QUERIES=tuning.tile_rows // group,
        TILE=tuning.tile_keys,
        NORM=normalized,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
        maxnreg=tuning.maxnreg,
    )


@triton.jit
def _find_sequence(query_starts, tile, num_seqs, QUERIES: tl.constexpr):
    """Return the sequence that owns a tile of queries.

    Sequence b's tiles begin at query_starts[b] // QUERIES + b: room for all its tiles whatever the alignment, so the
    number of tiles depends on host-known sizes alone. A tile left over finds itself behind its sequence's end, or
    before its begin, where other tokens come before the first sequence.
    """
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_starts + middle) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _attend(
    accumulator,
    maximum,
    denominator,
    q,
    key_blocks,
    value_blocks,
    table_row,
    head_offsets,
    position,
    begin,
    end,
    scale_log2,
    stride_block,
    stride_token,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Fold keys `begin .. end - 1` into the running softmax; CAUSAL masks keys behind each row's position."""
    blocks, second_blocks = load_blocks(table_row, begin, end, BLOCK_SIZE, TILE)
    for start in range(begin, end, TILE):
        tile = tile_blocks(blocks, second_blocks, BLOCK_SIZE, TILE)
        offsets = key_offsets(tile, start, stride_block, stride_token, BLOCK_SIZE, TILE)
        blocks, second_blocks = load_blocks(table_row, start + TILE, end, BLOCK_SIZE, TILE)
        kv_offsets = offsets[:, None] + head_offsets
        key = start + tl.arange(0, TILE)
        if CAUSAL:
            is_key = (key < end)[:, None]
            k = tl.load(key_blocks + kv_offsets, mask=is_key, other=0.0)
            v = tl.load(value_blocks + kv_offsets, mask=is_key, other=0.0)
        else:
            k = tl.load(key_blocks + kv_offsets)
            v = tl.load(value_blocks + kv_offsets)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if CAUSAL:
            scores = tl.where(key[None, :] <= position[:, None], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_maximum[:, None])
        correction = tl.exp2(maximum - new_maximum)
        denominator = denominator * correction + tl.sum(weights, 1)
        accumulator = accumulator * correction[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
        maximum = new_maximum
    return accumulator, maximum, denominator


# The number of sequences, the table's width and where slices begin change from step to step: none may ask for another
# compilation.
@triton.jit(
    do_not_specialize=["num_seqs", "stride_table"],
    do_not_specialize_on_alignment=["block_table", "query_starts", "context_lens"],
)
def _prefill_kernel(
    qkv,
    q_norm,
    cos_sin,
    key_blocks,
    value_blocks,
    block_table,
    query_starts,
    context_lens,
    out,
    eps,
    scale_log2,
    num_seqs,
    stride_qkv,
    stride_block,
    stride_token,
    stride_head,
    stride_table,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    NORM: tl.constexpr,
):
    kv_head = tl.program_id(0)
    # A sequence's later tiles see more keys: start them first, so that the short ones fill the end.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    seq = _find_sequence(query_starts, tile, num_seqs, QUERIES)
    seq_start = tl.load(query_starts + seq)
    query_len = tl.load(query_starts + seq + 1) - seq_start
    first = (tile - seq_start // QUERIES - seq) * QUERIES
    if (first >= 0) & (first < query_len):
        context_len = tl.load(context_lens + seq)
        row = tl.arange(0, ROWS)
        dim = tl.arange(0, HEAD_DIM)
        token = first + row // GROUP
        is_row = (row < QUERIES * GROUP) & (token < query_len)
        q_token = (seq_start + token).to(tl.int64)
        q_head = kv_head * GROUP + row % GROUP
        first_position = context_len - query_len + first
        position = first_position + row // GROUP
        known_position = tl.minimum(position, context_len - 1)  # rows behind the last one rotate as if they were it
        q_heads = qkv + q_token * stride_qkv + q_head * HEAD_DIM
        q = norm_rotary(q_heads, q_norm, is_row, eps, cos_sin, known_position, HEAD_DIM, NORM)
        q = q.to(qkv.dtype.element_ty)
        unmasked_end = (first_position + 1) // TILE * TILE
        end = tl.minimum(context_len, first_position + QUERIES)
        table_row = block_table + seq.to(tl.int64) * stride_table
        head_offsets = kv_head * stride_head + dim[None, :]
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        denominator = tl.zeros((ROWS,), tl.float32)
        accumulator = tl.zeros((ROWS, HEAD_DIM), tl.float32)
        accumulator, maximum, denominator = _attend(
            accumulator,
            maximum,
            denominator,
            q,
            key_blocks,
            value_blocks,
            table_row,
            head_offsets,
            position,
            0,
            unmasked_end,
            scale_log2,
            stride_block,
            stride_token,
            BLOCK_SIZE,
            TILE,
            CAUSAL=False,
        )
        accumulator, maximum, denominator = _attend(
            accumulator,
            maximum,
            denominator,
            q,
            key_blocks,
            value_blocks,
            table_row,
            head_offsets,
            position,
            unmasked_end,
            end,
            scale_log2,
            stride_block,
            stride_token,
            BLOCK_SIZE,
            TILE,
            CAUSAL=True,
        )
        num_heads = tl.num_programs(0) * GROUP
        out_offsets = ((q_token * num_heads + q_head) * HEAD_DIM)[:, None] + dim[None, :]
        result = accumulator / denominator[:, None]
        tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=is_row[:, None])
