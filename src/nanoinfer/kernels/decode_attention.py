"""Decode attention from the fused projection on, in Triton: normalize, rotate, store, attend in one kernel.

Decoding is bound by memory: every cached key and value is read once and used for `group` query heads only. So the
kernel is built to keep loads in flight: small tiles of keys, deep software pipelining, few warps, many programs. The
new token never travels through memory: its key and value join the softmax from registers, while they are written to
the cache for the steps to come.

Large batches fill the device with one program per (sequence, KV head). Small batches split each context over several
programs (flash-decoding, Dao et al., 2023); the program that arrives last at a counter merges the parts, so that a
split costs no second launch. The grid depends on host-known sizes alone, lengths are read on the device: a captured
CUDA graph stays valid while contexts grow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import early_launch
from nanoinfer.kernels.paged_decode import (
    MAX_SPLITS,
    MIN_DOT_ROWS,
    DecodeTuning,
    _arrivals,
    _merge_splits,
    decode_tuning,
    key_offsets,
    load_blocks,
    num_context_splits,
    num_multiprocessors,
    tile_blocks,
)

if TYPE_CHECKING:
    from torch import Tensor


FEW_SPLITS = tl.constexpr(8)  # up to so many, a split has to be worth its merging
LEAST_TILES = tl.constexpr(8)


def decode_attention(
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
    context_lens: Tensor,
    scale: float,
    max_context_len: int | None = None,
    num_splits: int | None = None,
    tuning: DecodeTuning | None = None,
) -> Tensor:
    """Store one new token per sequence and attend from it to its sequence.

    qkv (B, (Hq + 2 Hkv) * D), q_norm, k_norm, eps, cos_sin, positions, slot_mapping as in `qk_norm_rotary_store`;
    key/value blocks (N, block_size, Hkv, D) of equal strides; block_table (B, M) int32, entries behind a context are
    not read; context_lens (B,) int32 counts the new token, 0 marks a padded row, whose result is of no use. Returns
    (B, Hq, D) in qkv's dtype; accumulates in float32; float32 products are exact, not tf32. max_context_len is an upper
    bound of the contexts; `num_splits` and `tuning` override what `num_context_splits` and `decode_tuning` choose.
    """
    batch_size = len(qkv)
    _, block_size, num_kv_heads, head_dim = key_blocks.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    splits = num_splits or num_context_splits(
        batch_size,
        num_kv_heads,
        max_context_len or block_table.shape[1] * block_size,
        num_multiprocessors(qkv.device),
    )
    tuning = tuning or decode_tuning(qkv.dtype, splits)
    out = torch.empty((batch_size, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    num_parts = batch_size * num_heads * splits if splits > 1 else 0
    _attention_kernel[(num_kv_heads, splits, batch_size)](
        qkv,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        cos_sin,
        positions,
        key_blocks,
        value_blocks,
        slot_mapping,
        block_table,
        context_lens,
        out,
        torch.empty(num_parts * head_dim, dtype=torch.float32, device=qkv.device),
        torch.empty(num_parts, dtype=torch.float32, device=qkv.device),
        _arrivals(qkv.device),
        scale * math.log2(math.e),
        qkv.stride(0),
        key_blocks.stride(0),
        key_blocks.stride(1),
        key_blocks.stride(2),
        block_table.stride(0),
        GROUP=num_heads // num_kv_heads,
        PADDED_GROUP=triton.next_power_of_2(num_heads // num_kv_heads),
        DOT_ROWS=max(MIN_DOT_ROWS, triton.next_power_of_2(num_heads // num_kv_heads)),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=tuning.tile_keys,
        SPLIT=splits > 1,
        MAX_SPLITS=MAX_SPLITS,
        NORM=q_norm is not None,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
        **(early_launch(qkv.device) if splits > 1 else {"EARLY": False}),  # a full device has no room to begin early
    )
    return out


@triton.jit
def _norm_rotary(heads, weight, is_head, eps, cos_sin, position, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Load heads (pointers to their first elements, (R,)), normalize them and rotate the pairs (i, i + D/2).

    Returns (R, D) float32. The other half of each pair is loaded beside it, so that nothing has to change places.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    dim = tl.arange(0, HEAD_DIM)
    other_dim = (dim + HALF) % HEAD_DIM
    values = tl.load(heads[:, None] + dim[None, :], mask=is_head[:, None], other=0.0).to(tl.float32)
    others = tl.load(heads[:, None] + other_dim[None, :], mask=is_head[:, None], other=0.0).to(tl.float32)
    if NORM:
        inverse = tl.rsqrt(tl.sum(values * values, 1) / HEAD_DIM + eps)[:, None]
        values = values * inverse * tl.load(weight + dim).to(tl.float32)[None, :]
        others = others * inverse * tl.load(weight + other_dim).to(tl.float32)[None, :]
    cos = tl.load(cos_sin + position * HEAD_DIM + dim % HALF)
    sin = tl.load(cos_sin + position * HEAD_DIM + HALF + dim % HALF)
    sin = tl.where(dim < HALF, -sin, sin)
    return values * cos[None, :] + others * sin[None, :]


@triton.jit
def _fold(q, k, v, is_key, maximum, denominator, accumulator, scale_log2):
    """Fold a tile of keys and values into the running softmax."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(is_key[None, :], scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    correction = tl.exp2(maximum - new_maximum)
    weights = tl.exp2(scores - new_maximum[:, None])
    denominator = denominator * correction + tl.sum(weights, 1)
    accumulator = accumulator * correction[:, None]
    accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
    return new_maximum, denominator, accumulator


# Slices of per-step inputs begin anywhere and tables are of any width: neither may ask for another compilation.
@triton.jit(
    do_not_specialize=["stride_table"],
    do_not_specialize_on_alignment=["positions", "slot_mapping", "block_table", "context_lens"],
)
def _attention_kernel(
    qkv,
    q_norm,
    k_norm,
    eps,
    cos_sin,
    positions,
    key_blocks,
    value_blocks,
    slot_mapping,
    block_table,
    context_lens,
    out,
    outputs,
    log_sums,
    arrivals,
    scale_log2,
    stride_qkv,
    stride_block,
    stride_token,
    stride_head,
    stride_table,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    DOT_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    # The KV heads of a sequence are neighbours in the grid as they are in memory: they share DRAM pages.
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    seq = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    num_splits = tl.num_programs(1)

    # What is cached excludes the new token.
    cached_len = tl.maximum(tl.load(context_lens + seq) - 1, 0)
    num_tiles = tl.cdiv(cached_len, TILE)
    # Few splits serve many sequences, whose programs fill the device even if some have nothing to do.
    least_tiles = tl.where(num_splits > FEW_SPLITS, 1, LEAST_TILES)
    wanted_parts = tl.minimum(tl.maximum(num_tiles // least_tiles, 1), num_splits)
    tiles_per_split = tl.maximum(tl.cdiv(num_tiles, wanted_parts), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, tiles_per_split), 1)
    begin = split * tiles_per_split * TILE
    end = tl.minimum(cached_len, begin + tiles_per_split * TILE)
    table_row = block_table + seq.to(tl.int64) * stride_table
    position = tl.load(positions + seq)
    slot = tl.load(slot_mapping + seq)
    blocks, second_blocks = load_blocks(table_row, begin, end, BLOCK_SIZE, TILE)
    key = tl.arange(0, TILE)
    dim = tl.arange(0, HEAD_DIM)
    head_offsets = kv_head * stride_head + dim[None, :]
    loop_begin = begin
    if SPLIT:
        # A split has few tiles: the first one is asked for before the projection of the new token is there.
        tile = tile_blocks(blocks, second_blocks, BLOCK_SIZE, TILE)
        first = key_offsets(tile, begin, stride_block, stride_token, BLOCK_SIZE, TILE)[:, None] + head_offsets
        first_k = tl.load(key_blocks + first, mask=(begin + key < end)[:, None], other=0.0)
        first_v = tl.load(value_blocks + first, mask=(begin + key < end)[:, None], other=0.0)
        blocks, second_blocks = load_blocks(table_row, begin + TILE, end, BLOCK_SIZE, TILE)
        loop_begin = begin + TILE
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()

    if split < num_parts:
        row = tl.arange(0, DOT_ROWS)
        is_head = row < GROUP
        token = qkv + seq.to(tl.int64) * stride_qkv
        # The heads are made once and repeated: the product takes more rows than a group has heads.
        head = tl.arange(0, PADDED_GROUP)
        q_heads = token + (kv_head * GROUP + head) * HEAD_DIM
        q = _norm_rotary(q_heads, q_norm, head < GROUP, eps, cos_sin, position, HEAD_DIM, NORM)
        q = tl.broadcast_to(q.to(qkv.dtype.element_ty)[None], (DOT_ROWS // PADDED_GROUP, PADDED_GROUP, HEAD_DIM))
        q = tl.reshape(q, (DOT_ROWS, HEAD_DIM))

        maximum = tl.full((DOT_ROWS,), float("-inf"), tl.float32)
        denominator = tl.zeros((DOT_ROWS,), tl.float32)
        accumulator = tl.zeros((DOT_ROWS, HEAD_DIM), tl.float32)
        if split == 0:
            one = tl.arange(0, 1)
            k_head = token + (num_kv_heads * GROUP + kv_head + one) * HEAD_DIM
            new_k = _norm_rotary(k_head, k_norm, one == 0, eps, cos_sin, position, HEAD_DIM, NORM)
            new_k = new_k.to(key_blocks.dtype.element_ty)
            v_head = token + (num_kv_heads * (GROUP + 1) + kv_head + one) * HEAD_DIM
            new_v = tl.load(v_head[:, None] + dim[None, :]).to(value_blocks.dtype.element_ty)
            place = slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * stride_token + head_offsets
            tl.store(key_blocks + place, new_k)
            tl.store(value_blocks + place, new_v)
            maximum = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1) * scale_log2
            denominator += 1.0
            accumulator += new_v.to(tl.float32)
        if SPLIT:
            maximum, denominator, accumulator = _fold(
                q, first_k, first_v, begin + key < end, maximum, denominator, accumulator, scale_log2
            )
        for start in range(loop_begin, end, TILE):
            tile = tile_blocks(blocks, second_blocks, BLOCK_SIZE, TILE)
            offsets = key_offsets(tile, start, stride_block, stride_token, BLOCK_SIZE, TILE)
            blocks, second_blocks = load_blocks(table_row, start + TILE, end, BLOCK_SIZE, TILE)
            is_key = start + key < end
            kv_offsets = offsets[:, None] + head_offsets
            k = tl.load(key_blocks + kv_offsets, mask=is_key[:, None], other=0.0)
            v = tl.load(value_blocks + kv_offsets, mask=is_key[:, None], other=0.0)
            maximum, denominator, accumulator = _fold(q, k, v, is_key, maximum, denominator, accumulator, scale_log2)

        accumulator = accumulator / denominator[:, None]
        out_row = out + (seq * num_kv_heads + kv_head).to(tl.int64) * (GROUP * HEAD_DIM)
        within = row[:, None] * HEAD_DIM + dim[None, :]
        tl.store(out_row + within, accumulator.to(out.dtype.element_ty), mask=is_head[:, None] & (num_parts == 1))
        if SPLIT and num_parts > 1:
            pair = seq * num_kv_heads + kv_head
            first_row = pair * num_splits * GROUP
            part_row = first_row + split * GROUP
            tl.store(outputs + part_row * HEAD_DIM + within, accumulator, mask=is_head[:, None])
            tl.store(log_sums + part_row + row, maximum + tl.log2(denominator), mask=is_head)
            # All threads' stores come before the one thread's release; the last to arrive acquires them all.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel")
            if arrived == num_parts - 1:
                tl.debug_barrier()
                _merge_splits(outputs, log_sums, first_row, num_parts, out_row, GROUP, HEAD_DIM, MAX_SPLITS)
                tl.store(arrivals + pair, 0)
