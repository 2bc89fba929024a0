"""Decode attention over a paged KV cache, in Triton: one query token per sequence.

Decoding is bound by memory: every cached key and value is read once and used for `group` query heads only. So the
kernel is built to keep loads in flight: small tiles of keys, deep software pipelining, few warps, many programs.

Large batches fill the device with one program per (sequence, KV head). Small batches split each context over several
programs (flash-decoding, Dao et al., 2023); the program that arrives last at a counter merges the parts, so that a
split costs no second launch. The grid depends on host-known sizes alone, lengths are read on the device: a captured
CUDA graph stays valid while contexts grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

MAX_SPLITS = 32
PROGRAMS_PER_MULTIPROCESSOR = 4
FULL_PROGRAMS = 8
LEAST_SPLITS = 8
MAX_SPLIT_PAIRS = 4096  # (sequence, KV head) pairs of a split launch; no device has that many multiprocessors
MIN_DOT_ROWS = 16  # the smallest number of rows that a tensor-core product takes


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How a program is shaped: keys of one tile (a power of two, at least 16), warps, pipeline stages."""

    tile_keys: int
    num_warps: int
    num_stages: int


def decode_tuning(dtype: torch.dtype, num_splits: int) -> DecodeTuning:
    """Return a tile shape; tools/kernel_speed.py times its rivals.

    Exact float32 products use no tensor cores and need registers instead; merging splits needs a second warp's.
    """
    if dtype == torch.float32:
        return DecodeTuning(tile_keys=16, num_warps=4, num_stages=2)
    return DecodeTuning(tile_keys=32, num_warps=1, num_stages=2) if num_splits == 1 else DecodeTuning(32, 2, 3)


def num_context_splits(batch_size: int, num_kv_heads: int, max_context_len: int, multiprocessors: int) -> int:
    """Choose into how many programs each context is split: a power of two, 1 when the batch fills the device.

    A batch fills the device with `FULL_PROGRAMS` programs a multiprocessor. Smaller ones are split into
    `LEAST_SPLITS`, so that unequal contexts end together, or into so many that there are `PROGRAMS_PER_MULTIPROCESSOR`;
    but no split is left less than one tile of 16 keys at `max_context_len`. All arguments are known when a CUDA graph
    is captured.
    """
    pairs = batch_size * num_kv_heads
    if pairs > multiprocessors * FULL_PROGRAMS:
        return 1
    wanted = max(LEAST_SPLITS, multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // pairs)
    useful = min(wanted, max_context_len // 16, MAX_SPLITS)
    return 1 if useful < 2 else 1 << (useful.bit_length() - 1)  # noqa: PLR2004  fewer than two parts is no split


def paged_decode(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context_len: int | None = None,
    num_splits: int | None = None,
    tuning: DecodeTuning | None = None,
) -> Tensor:
    """Attend one query token per sequence to its own KV blocks.

    query (B, Hq, D); key/value blocks (N, block_size, Hkv, D) of equal strides; block_table (B, M) int32, rows padded
    with any valid id; context_lens (B,) int32 counts the new token, 0 marks a padded row, whose result is zeros.
    max_context_len, an upper bound of the contexts where the host knows one, keeps short contexts from being split too
    finely. Returns (B, Hq, D) in query's dtype; accumulates in float32; float32 products are exact, not tf32.
    `num_splits` and `tuning` override what `num_context_splits` and `decode_tuning` choose.
    """
    batch_size, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = key_blocks.shape
    splits = num_splits or num_context_splits(
        batch_size,
        num_kv_heads,
        max_context_len or block_table.shape[1] * block_size,
        num_multiprocessors(query.device),
    )
    tuning = tuning or decode_tuning(query.dtype, splits)
    out = torch.empty((batch_size, num_heads, head_dim), dtype=query.dtype, device=query.device)
    num_parts = batch_size * num_heads * splits if splits > 1 else 0
    _decode_kernel[(num_kv_heads, splits, batch_size)](
        query,
        key_blocks,
        value_blocks,
        block_table,
        context_lens,
        out,
        torch.empty(num_parts * head_dim, dtype=torch.float32, device=query.device),
        torch.empty(num_parts, dtype=torch.float32, device=query.device),
        _arrivals(query.device),
        scale * math.log2(math.e),
        query.stride(0),
        query.stride(1),
        key_blocks.stride(0),
        key_blocks.stride(1),
        key_blocks.stride(2),
        block_table.stride(0),
        GROUP=num_heads // num_kv_heads,
        DOT_ROWS=max(MIN_DOT_ROWS, triton.next_power_of_2(num_heads // num_kv_heads)),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=tuning.tile_keys,
        SPLIT=splits > 1,
        MAX_SPLITS=MAX_SPLITS,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
    return out


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Count the device's multiprocessors; 1 stands for a CPU, where the interpreter runs one program at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Count finished splits of each (sequence, KV head): int32, zero before and after every launch.

    One for a device, so launches of one device must follow each other on one stream, as an engine's layers do.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "paged_decode was first called while a CUDA graph is captured; run it once before the capture"
        )
    return torch.zeros(MAX_SPLIT_PAIRS, dtype=torch.int32, device=device)


@triton.jit
def load_block_ids(table_row, start, context_len, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Return the blocks of keys `start .. start + TILE - 1`: one id if a block holds a tile, else one a key (TILE,).

    `start` is a multiple of TILE; ids at and beyond `context_len` are not read, 0 stands for them. Loops carry the ids
    one tile ahead: with this load in the same iteration, Triton would share its pipeline stages between two levels of
    loads, and fewer keys would be in flight.
    """
    if BLOCK_SIZE >= TILE:
        blocks = tl.load(table_row + start // BLOCK_SIZE, mask=start < context_len, other=0)
    else:
        position = start + tl.arange(0, TILE)
        blocks = tl.load(table_row + position // BLOCK_SIZE, mask=position < context_len, other=0)
    return blocks


@triton.jit
def load_blocks(table_row, start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Do as `load_block_ids`; where two blocks make a tile, return both ids, for `tile_blocks` to spread.

    Two scalars are then enough, where one id a key would have to be moved between threads in every tile.
    """
    if 2 * BLOCK_SIZE == TILE:
        entry = table_row + start // BLOCK_SIZE
        first = tl.load(entry, mask=start < end, other=0)
        second = tl.load(entry + 1, mask=start + BLOCK_SIZE < end, other=0)
    else:
        first = load_block_ids(table_row, start, end, BLOCK_SIZE, TILE)
        second = 0
    return first, second


@triton.jit
def tile_blocks(first, second, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Return what `key_offsets` takes from what `load_blocks` returned."""
    blocks = first
    if 2 * BLOCK_SIZE == TILE:
        blocks = tl.where(tl.arange(0, TILE) < BLOCK_SIZE, first, second)
    return blocks


@triton.jit
def key_offsets(blocks, start, stride_block, stride_token, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Return where keys `start .. start + TILE - 1` lie: int64 element offsets (TILE,) of their rows in the cache."""
    position = start + tl.arange(0, TILE)
    return blocks.to(tl.int64) * stride_block + (position % BLOCK_SIZE) * stride_token


@triton.jit
def _merge_splits(
    outputs,
    log_sums,
    first_row,
    num_parts,
    out_row,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Weigh the parts of one (sequence, KV head) by their softmax denominators and store the sum, head by head."""
    part = tl.arange(0, MAX_SPLITS)
    dim = tl.arange(0, HEAD_DIM)
    live = part < num_parts
    for head in range(GROUP):
        rows = first_row + part * GROUP + head
        # .cg reads the L2: the parts were written by other multiprocessors, whose L1 is not ours
        log_sum = tl.load(log_sums + rows, mask=live, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp2(log_sum - tl.max(log_sum, 0))
        parts = tl.load(
            outputs + rows[:, None] * HEAD_DIM + dim[None, :], mask=live[:, None], other=0.0, cache_modifier=".cg"
        )
        merged = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
        tl.store(out_row + head * HEAD_DIM + dim, merged.to(out_row.dtype.element_ty))


# Slices of per-step inputs begin anywhere and tables are of any width: neither may ask for another compilation.
@triton.jit(do_not_specialize=["stride_table"], do_not_specialize_on_alignment=["block_table", "context_lens"])
def _decode_kernel(
    query,
    key_blocks,
    value_blocks,
    block_table,
    context_lens,
    out,
    outputs,
    log_sums,
    arrivals,
    scale_log2,
    stride_query_token,
    stride_query_head,
    stride_block,
    stride_token,
    stride_head,
    stride_table,
    GROUP: tl.constexpr,
    DOT_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    # The KV heads of a sequence are neighbours in the grid as they are in memory: they share DRAM pages.
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    seq = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    num_splits = tl.num_programs(1)

    context_len = tl.load(context_lens + seq)
    num_tiles = tl.cdiv(context_len, TILE)
    tiles_per_split = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, tiles_per_split), 1)
    begin = split * tiles_per_split * TILE
    end = tl.minimum(context_len, begin + tiles_per_split * TILE)

    if split < num_parts:
        row = tl.arange(0, DOT_ROWS)
        dim = tl.arange(0, HEAD_DIM)
        is_head = row[:, None] < GROUP
        q_offsets = (kv_head * GROUP + row)[:, None] * stride_query_head + dim[None, :]
        q = tl.load(query + seq.to(tl.int64) * stride_query_token + q_offsets, mask=is_head, other=0.0)

        table_row = block_table + seq.to(tl.int64) * stride_table
        head_offsets = kv_head * stride_head + dim[None, :]
        maximum = tl.full((DOT_ROWS,), float("-inf"), tl.float32)
        denominator = tl.zeros((DOT_ROWS,), tl.float32)
        accumulator = tl.zeros((DOT_ROWS, HEAD_DIM), tl.float32)
        blocks = load_block_ids(table_row, begin, end, BLOCK_SIZE, TILE)
        for start in range(begin, end, TILE):
            offsets = key_offsets(blocks, start, stride_block, stride_token, BLOCK_SIZE, TILE)
            blocks = load_block_ids(table_row, start + TILE, end, BLOCK_SIZE, TILE)
            is_key = start + tl.arange(0, TILE) < end
            kv_offsets = offsets[:, None] + head_offsets
            k = tl.load(key_blocks + kv_offsets, mask=is_key[:, None], other=0.0)
            v = tl.load(value_blocks + kv_offsets, mask=is_key[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            scores = tl.where(is_key[None, :], scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            correction = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(scores - new_maximum[:, None])
            denominator = denominator * correction + tl.sum(weights, 1)
            accumulator = accumulator * correction[:, None]
            accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
            maximum = new_maximum

        # A padded row has no keys: its denominator is 0, its result is defined as zeros.
        accumulator = accumulator / tl.where(denominator == 0.0, 1.0, denominator)[:, None]
        out_row = out + (seq * num_kv_heads + kv_head).to(tl.int64) * (GROUP * HEAD_DIM)
        within = row[:, None] * HEAD_DIM + dim[None, :]
        tl.store(out_row + within, accumulator.to(out.dtype.element_ty), mask=is_head & (num_parts == 1))
        if SPLIT and num_parts > 1:
            pair = seq * num_kv_heads + kv_head
            first_row = pair * num_splits * GROUP
            part_row = first_row + split * GROUP
            tl.store(outputs + part_row * HEAD_DIM + within, accumulator, mask=is_head)
            tl.store(log_sums + part_row + row, maximum + tl.log2(denominator), mask=row < GROUP)
            # All threads' stores come before the one thread's release; the last to arrive acquires them all.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel")
            if arrived == num_parts - 1:
                tl.debug_barrier()
                _merge_splits(outputs, log_sums, first_row, num_parts, out_row, GROUP, HEAD_DIM, MAX_SPLITS)
                tl.store(arrivals + pair, 0)
