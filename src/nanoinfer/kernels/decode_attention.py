"""Decode attention from the fused projection on, in Triton: normalize, rotate, store, attend in one kernel.

Decoding is bound by memory: every cached key and value is read once and used for `group` query heads only. So the
kernel is built to keep loads in flight: small tiles of keys, software pipelining, few warps, many programs. The new
token never travels through memory: its key and value join the softmax from registers, while they are written to the
cache for the steps to come.

A large batch fills the device with one program per (sequence, KV head). A small one has its contexts cut into parts of
about the same length (flash-decoding, Dao et al., 2023), the longest into most; the program that arrives last at the
counter of its context merges the parts. The grid depends on the batch size and the device alone, lengths are read on
the device: a captured CUDA graph stays valid while contexts grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import LINE_BYTES, early_launch, num_multiprocessors, prefetch
from nanoinfer.kernels.paging import MIN_DOT_ROWS, key_offsets, load_blocks, tile_blocks
from nanoinfer.kernels.rotation import norm_rotary
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

FULL_PROGRAMS = 8  # whole contexts a multiprocessor; beyond, cutting them only costs
PROGRAMS_PER_MULTIPROCESSOR = 18  # parts: three times as many as run at the same time, so that they end together
SPREAD_PROGRAMS = 4  # what a few contexts are cut for, where equal ends matter less than few parts
LEAST_CUTS, MOST_CUTS = 8, 32  # bounds of how often a context may be cut
SMALL_PROGRAMS = 2  # whole contexts a multiprocessor; up to here parts are few and long ...
PROGRAMS_AT_ONCE = 6  # ... as many as run at the same time
PRELOADING_ROWS = 16  # up to here the device has registers to spare for a part's first tile
ROWS_AT_ONCE = 256  # contexts that a program looks at together
COUNTERS = 2**17  # (sequence, KV head) pairs of a launch
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How a program is shaped: keys of one tile (a power of two, at least 16), warps, pipeline stages.

    preload  whether the first tile of a part waits in registers for the projection of the new token
    """

    tile_keys: int
    num_warps: int
    num_stages: int
    preload: bool = False


def decode_tuning(dtype: torch.dtype, batch_size: int, *, whole: bool) -> DecodeTuning:
    """Return a tile shape for whole contexts or parts; tools/kernel_speed.py times its rivals.

    Exact float32 products use no tensor cores and need registers instead.
    """
    preload = not whole and batch_size <= PRELOADING_ROWS
    if dtype == torch.float32:
        return DecodeTuning(16, 4, 2, preload)
    return DecodeTuning(32, 1, 2) if whole else DecodeTuning(32, 2, 3, preload)


class Cuts(NamedTuple):
    """How contexts are cut: into about `even_parts` in all, for each KV head, and one into at most `most`."""

    even_parts: int
    most: int

    def num_programs(self, batch_size: int) -> int:
        """Return a bound of the number of parts: every context has one, and one more for each whole length of one."""
        return batch_size if self.most == 1 else min(batch_size + self.even_parts, batch_size * self.most)


WHOLE = Cuts(even_parts=1, most=1)


def context_cuts(batch_size: int, num_kv_heads: int, multiprocessors: int, *, sparse: bool = False) -> Cuts:
    """Choose how to cut the contexts of a batch; all arguments are known when a CUDA graph is captured.

    Where most rows may be no sequences, those that are may be few: then they have to be cut to fill the device.
    """
    pairs, programs = batch_size * num_kv_heads, PROGRAMS_PER_MULTIPROCESSOR
    if pairs > multiprocessors * FULL_PROGRAMS and not sparse:
        return WHOLE
    if pairs <= multiprocessors * SMALL_PROGRAMS and not sparse:
        programs = PROGRAMS_AT_ONCE
    even_parts = max(1, multiprocessors * programs // num_kv_heads)
    if sparse:
        return Cuts(even_parts, MOST_CUTS)
    spread = multiprocessors * SPREAD_PROGRAMS // pairs
    return Cuts(even_parts, min(max(spread, LEAST_CUTS), MOST_CUTS))


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
    out: Tensor,
    *,
    max_context_len: int | None = None,  # noqa: ARG001  the reference's parameter
    sparse: bool = False,
    cuts: Cuts | None = None,
    tuning: DecodeTuning | None = None,
) -> None:
    """Store one new token per sequence and attend from it to its sequence.

    qkv (B, (Hq + 2 Hkv) * D), q_norm, k_norm, eps, cos_sin, positions, slot_mapping as in `qk_norm_rotary_store`;
    key/value blocks (N, block_size, Hkv, D) of equal strides; block_table (B, M) int32, entries behind a context are
    not read; context_lens (B,) int32 counts the new token, 0 marks a row that is no sequence, for which nothing is
    written. Writes to out (B, Hq, D), contiguous, of qkv's dtype; accumulates in float32; float32 products are exact,
    not tf32. `sparse` says that most rows may be no sequences. `cuts` and `tuning` override what `context_cuts` and
    `decode_tuning` choose.
    """
    batch_size, width = qkv.shape
    _, block_size, num_kv_heads, head_dim = key_blocks.shape
    heads = _Heads(width // head_dim - 2 * num_kv_heads, num_kv_heads, head_dim, normalized=q_norm is not None)
    device = qkv.device
    plan = _plan(batch_size, heads, block_size, qkv.dtype, device, sparse, cuts, tuning)
    parts = plan.parts or _make_parts(plan.num_programs * heads.num_heads, head_dim, device)
    plan.variant.launch(
        (num_kv_heads, plan.num_programs, 1),
        (
            qkv,
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            cos_sin,
            positions,
            key_blocks,
            value_blocks,
            slot_mapping,
            block_table,
            context_lens,
            out,
            *parts,
            _arrivals(device),
        ),
        (
            eps,
            scale * LOG2_E,
            batch_size,
            *plan.cuts,
            qkv.stride(0),
            *key_blocks.stride()[:3],
            block_table.stride(0),
        ),
    )


class _Heads(NamedTuple):
    """What the heads of a projection are like."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    normalized: bool


class _Parts(NamedTuple):
    """Where parts wait to be merged: outputs (rows * head_dim,), log_sums (rows,), both float32, a row a query head."""

    outputs: Tensor
    log_sums: Tensor


class _Plan(NamedTuple):
    """How a batch of one size is attended to; `parts` is the place of its parts where one is kept."""

    variant: Variant
    cuts: Cuts
    num_programs: int
    parts: _Parts | None


@cache
def _plan(
    batch_size: int,
    heads: _Heads,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    sparse: bool,
    cuts: Cuts | None,
    tuning: DecodeTuning | None,
) -> _Plan:
    cuts = cuts or context_cuts(batch_size, heads.num_kv_heads, num_multiprocessors(device), sparse=sparse)
    whole = cuts.most == 1
    tuning = tuning or decode_tuning(dtype, batch_size, whole=whole)
    num_programs = cuts.num_programs(batch_size)
    kept_programs = 0 if whole else _most_programs(heads.num_kv_heads, num_multiprocessors(device))
    keeps = whole or num_programs <= kept_programs
    parts = _kept_parts(kept_programs * heads.num_heads, heads.head_dim, device) if keeps else None
    return _Plan(_variant(heads, block_size, tuning, whole, device), cuts, num_programs, parts)


def _most_programs(num_kv_heads: int, multiprocessors: int) -> int:
    """Bound the programs a KV head of all batches that `context_cuts` cuts, unless they are sparse."""
    return multiprocessors * (FULL_PROGRAMS + PROGRAMS_PER_MULTIPROCESSOR) // num_kv_heads + 1


@cache
def _variant(heads: _Heads, block_size: int, tuning: DecodeTuning, whole: bool, device: torch.device) -> Variant:
    group = heads.num_heads // heads.num_kv_heads
    padded_group = triton.next_power_of_2(group)
    return Variant(
        _attention_kernel,
        GROUP=group,
        PADDED_GROUP=padded_group,
        DOT_ROWS=max(MIN_DOT_ROWS, padded_group),
        HEAD_DIM=heads.head_dim,
        BLOCK_SIZE=block_size,
        TILE=tuning.tile_keys,
        NORM=heads.normalized,
        WHOLE=whole,
        PRELOAD=tuning.preload,
        MOST_PARTS=MOST_CUTS,
        ROWS_AT_ONCE=ROWS_AT_ONCE,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
        **({"EARLY": False} if whole else early_launch(device)),  # a full device has no room to begin early
    )


def _make_parts(num_rows: int, head_dim: int, device: torch.device) -> _Parts:
    make = partial(torch.empty, dtype=torch.float32, device=device)
    return _Parts(make(num_rows * head_dim), make(num_rows))


@cache
def _kept_parts(num_rows: int, head_dim: int, device: torch.device) -> _Parts:
    """Make the place of the parts of all launches but those of large sparse batches; what holds of `_arrivals` does."""
    _refuse_capture(device)
    return _make_parts(num_rows, head_dim, device)


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Count finished parts of each (sequence, KV head): int32, zero before and after every launch.

    One for a device, so launches of one device must follow each other on one stream, as an engine's layers do.
    """
    _refuse_capture(device)
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


def _refuse_capture(device: torch.device) -> None:
    """Raise where memory would be a CUDA graph's that is to outlive it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "decode_attention was first called while a CUDA graph is captured; run it once before the capture"
        )


@triton.jit
def _num_tiles(context_len, TILE: tl.constexpr):
    """Tiles of the cached keys, which exclude the new token; at least one, so that every sequence has a program."""
    return tl.maximum(tl.cdiv(context_len - 1, TILE), 1)


@triton.jit
def _find_part(context_lens, num_seqs, even_parts, most_cuts, index, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """Return (sequence, its first part's index, most tiles of a part); part `index` of the batch is that sequence's.

    Where the index is beyond the last part, the sequence is num_seqs. All contexts are read at once, many to a thread:
    a search would wait for one load after the other.
    """
    row = tl.arange(0, CHUNK)
    total = 0
    for start in range(0, num_seqs, CHUNK):
        is_row = start + row < num_seqs
        context_len = tl.load(context_lens + start + row, mask=is_row, other=0)
        total += tl.sum(tl.where(context_len > 0, _num_tiles(context_len, TILE), 0), 0)
    part_tiles = tl.maximum(tl.cdiv(total, even_parts), 1)
    seq = 0
    first = 0
    before = 0
    for start in range(0, num_seqs, CHUNK):
        is_row = start + row < num_seqs
        context_len = tl.load(context_lens + start + row, mask=is_row, other=0)
        parts = tl.minimum(tl.cdiv(_num_tiles(context_len, TILE), part_tiles), most_cuts)
        parts = tl.where(context_len > 0, parts, 0)
        is_passed = is_row & (before + tl.cumsum(parts, 0) <= index)
        seq += tl.sum(is_passed.to(tl.int32), 0)
        first += tl.sum(tl.where(is_passed, parts, 0), 0)
        before += tl.sum(parts, 0)
    return seq, first, part_tiles


@triton.jit
def _own_part(
    context_lens,
    num_seqs,
    even_parts,
    most_cuts,
    index,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return (sequence, its first part's index, tiles of a part, number of parts, cached tokens) for part `index`.

    What is cached excludes the new token: -1 stands for no sequence.
    """
    if WHOLE:
        seq = index
        first = index
        cached_len = tl.load(context_lens + seq) - 1
        part_tiles = _num_tiles(cached_len + 1, TILE)
        num_parts = 1
    else:
        seq, first, part_tiles = _find_part(context_lens, num_seqs, even_parts, most_cuts, index, TILE, CHUNK)
        cached_len = tl.load(context_lens + seq, mask=seq < num_seqs, other=0) - 1
        num_tiles = _num_tiles(cached_len + 1, TILE)
        part_tiles = tl.cdiv(num_tiles, tl.minimum(tl.cdiv(num_tiles, part_tiles), most_cuts))
        num_parts = tl.cdiv(num_tiles, part_tiles)  # rounding may leave fewer
    return seq, first, part_tiles, num_parts, cached_len


@triton.jit
def _prefetch_rows(rows, HEAD_DIM: tl.constexpr):
    """Bring rows (pointers (R,) to HEAD_DIM values) to the L2 and do not wait for them."""
    LINE: tl.constexpr = LINE_BYTES // (rows.dtype.element_ty.primitive_bitwidth // 8)
    prefetch(rows[:, None] + (tl.arange(0, (HEAD_DIM + LINE - 1) // LINE) * LINE)[None, :])


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


@triton.jit
def _merge_parts(
    outputs,
    log_sums,
    first_row,
    num_parts,
    out_row,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    """Weigh the parts of one (sequence, KV head) by their softmax denominators and store the sum, head by head."""
    part = tl.arange(0, MOST_PARTS)
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


# Batches differ in size, slices of per-step inputs begin anywhere and tables are of any width: none may ask for another
# compilation.
@triton.jit(
    do_not_specialize=["num_seqs", "even_parts", "most_cuts", "stride_table"],
    do_not_specialize_on_alignment=["positions", "slot_mapping", "block_table", "context_lens"],
)
def _attention_kernel(
    qkv,
    q_norm,
    k_norm,
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
    eps,
    scale_log2,
    num_seqs,
    even_parts,
    most_cuts,
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
    NORM: tl.constexpr,
    WHOLE: tl.constexpr,
    PRELOAD: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ROWS_AT_ONCE: tl.constexpr,
    EARLY: tl.constexpr,
):
    # The KV heads of a sequence are neighbours in the grid as they are in memory: they share DRAM pages.
    kv_head = tl.program_id(0)
    index = tl.program_id(1)
    num_kv_heads = tl.num_programs(0)
    num_programs = tl.num_programs(1)
    seq, first_index, part_tiles, num_parts, cached_len = _own_part(
        context_lens, num_seqs, even_parts, most_cuts, index, TILE, ROWS_AT_ONCE, WHOLE
    )
    is_part = (cached_len >= 0) & (index - first_index < num_parts)
    begin = (index - first_index) * part_tiles * TILE
    end = tl.minimum(cached_len, begin + part_tiles * TILE)
    table_row = block_table + seq.to(tl.int64) * stride_table
    blocks, second_blocks = load_blocks(table_row, begin, end, BLOCK_SIZE, TILE)
    key = tl.arange(0, TILE)
    dim = tl.arange(0, HEAD_DIM)
    head_offsets = kv_head * stride_head + dim[None, :]
    loop_begin = begin
    # A part has few tiles, and keys of earlier steps are there: the first tile is asked for before the projection of
    # the new token is waited for, into registers or, where those would cost programs at work, into the L2.
    tile = tile_blocks(blocks, second_blocks, BLOCK_SIZE, TILE)
    offsets = key_offsets(tile, begin, stride_block, stride_token, BLOCK_SIZE, TILE)
    if PRELOAD:
        is_first = (begin + key < end) & is_part
        first_k = tl.load(key_blocks + offsets[:, None] + head_offsets, mask=is_first[:, None], other=0.0)
        first_v = tl.load(value_blocks + offsets[:, None] + head_offsets, mask=is_first[:, None], other=0.0)
        blocks, second_blocks = load_blocks(table_row, begin + TILE, end, BLOCK_SIZE, TILE)
        loop_begin = begin + TILE
    elif EARLY:
        _prefetch_rows(key_blocks + offsets + kv_head * stride_head, HEAD_DIM)
        _prefetch_rows(value_blocks + offsets + kv_head * stride_head, HEAD_DIM)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()

    if is_part:
        row = tl.arange(0, DOT_ROWS)
        is_head = row < GROUP
        position = tl.load(positions + seq + tl.arange(0, 1))
        token = qkv + seq.to(tl.int64) * stride_qkv
        # The heads are made once and repeated: the product takes more rows than a group has heads.
        head = tl.arange(0, PADDED_GROUP)
        q_heads = token + (kv_head * GROUP + head) * HEAD_DIM
        q = norm_rotary(q_heads, q_norm, head < GROUP, eps, cos_sin, position, HEAD_DIM, NORM)
        q = tl.broadcast_to(q.to(qkv.dtype.element_ty)[None], (DOT_ROWS // PADDED_GROUP, PADDED_GROUP, HEAD_DIM))
        q = tl.reshape(q, (DOT_ROWS, HEAD_DIM))

        maximum = tl.full((DOT_ROWS,), float("-inf"), tl.float32)
        denominator = tl.zeros((DOT_ROWS,), tl.float32)
        accumulator = tl.zeros((DOT_ROWS, HEAD_DIM), tl.float32)
        if begin == 0:
            one = tl.arange(0, 1)
            k_head = token + (num_kv_heads * GROUP + kv_head + one) * HEAD_DIM
            new_k = norm_rotary(k_head, k_norm, one == 0, eps, cos_sin, position, HEAD_DIM, NORM)
            new_k = new_k.to(key_blocks.dtype.element_ty)
            v_head = token + (num_kv_heads * (GROUP + 1) + kv_head + one) * HEAD_DIM
            new_v = tl.load(v_head[:, None] + dim[None, :]).to(value_blocks.dtype.element_ty)
            slot = tl.load(slot_mapping + seq)
            place = slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * stride_token + head_offsets
            tl.store(key_blocks + place, new_k)
            tl.store(value_blocks + place, new_v)
            maximum = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1) * scale_log2
            denominator += 1.0
            accumulator += new_v.to(tl.float32)
        if PRELOAD:
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
        pair = seq * num_kv_heads + kv_head
        out_row = out + pair.to(tl.int64) * (GROUP * HEAD_DIM)
        within = row[:, None] * HEAD_DIM + dim[None, :]
        if WHOLE or num_parts == 1:
            tl.store(out_row + within, accumulator.to(out.dtype.element_ty), mask=is_head[:, None])
        else:
            first_row = (kv_head * num_programs + first_index) * GROUP
            part_row = (kv_head * num_programs + index) * GROUP
            tl.store(outputs + part_row * HEAD_DIM + within, accumulator, mask=is_head[:, None])
            tl.store(log_sums + part_row + row, maximum + tl.log2(denominator), mask=is_head)
            # All threads' stores come before the one thread's release; the last to arrive acquires them all.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel")
            if arrived == num_parts - 1:
                tl.debug_barrier()
                _merge_parts(outputs, log_sums, first_row, num_parts, out_row, GROUP, HEAD_DIM, MOST_PARTS)
                tl.store(arrivals + pair, 0)
