"""Choose one token a row from its logits, in Triton: argmax of logits / temperature + Gumbel noise.

The noise is a function of (seed, token index, vocabulary index), drawn where it is used and never stored; its bits are
defined in `reference.gumbel_noise`. Two stages: many programs find the best of a slice of the vocabulary, then one
program a row finds the best of the slices.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

NOISE_LANES = 256  # reference.gumbel_noise: one Philox call serves v, v + 256, v + 512, v + 768
NOISE_TILES = 4  # tiles of 4 x 256 vocabulary entries that one program looks at
SERIES_END = tl.constexpr(0.125)  # six terms are exact to float32 rounding up to here
MAX_INDEX = tl.constexpr(2**31 - 1)


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, token_indices: Tensor) -> Tensor:
    """Choose one token a row: argmax of logits / temperature + Gumbel noise, which draws from the softmax.

    logits (S, V) any float dtype, -inf where a token is excluded, rows contiguous; temperatures (S,) float32, 0 is
    greedy: no noise, and the logits as they are; seeds (S,) int64; token_indices (S,) int32 or int64. Returns (S,)
    int64; of equal scores the lowest index wins.
    """
    return sample_shard(logits, temperatures, seeds, token_indices, 0)[1]


def sample_shard(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, token_indices: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Do what `sample` does for the part of a vocabulary that begins at `first`; logits (S, V) are that part.

    Returns each row's best score (S,) float32 and its token (S,) int64, counted in the whole vocabulary.
    """
    num_rows, size = logits.shape
    # Slices begin at a multiple of what one Philox call serves, so a shard's first one may begin before the shard.
    first_lane = first // (4 * NOISE_LANES) * (4 * NOISE_LANES)
    num_slices = -(-(first + size - first_lane) // (NOISE_TILES * 4 * NOISE_LANES))
    scores = torch.empty((num_rows, num_slices), dtype=torch.float32, device=logits.device)
    winners = torch.empty((num_rows, num_slices), dtype=torch.int32, device=logits.device)
    best = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _slice_variant(logits.is_cuda).launch(
        (num_slices, num_rows, 1),
        (logits, temperatures, seeds, token_indices, scores, winners),
        (logits.stride(0), first, size),
    )
    _row_variant(num_slices).launch((num_rows, 1, 1), (scores, winners, best, out), (num_slices, first + size))
    return best, out


@cache
def _slice_variant(fast: bool) -> Variant:
    """Return the kernel of the first stage; `fast` where there are machine instructions, not in the interpreter."""
    return Variant(_slice_kernel, LANES=NOISE_LANES, TILES=NOISE_TILES, FAST=fast, num_warps=2)


@cache
def _row_variant(num_slices: int) -> Variant:
    return Variant(_row_kernel, PADDED_SLICES=triton.next_power_of_2(num_slices), num_warps=1)


@triton.jit
def _log(x, FAST: tl.constexpr):
    """Natural logarithm; FAST takes the hardware's approximation, whose error near x = 1 is absolute: about 2**-22."""
    if FAST:
        log2 = tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        log = log2 * 0.6931471805599453
    else:
        log = tl.log(x)
    return log


@triton.jit
def _gumbel(word, FAST: tl.constexpr):
    """Map a random word to standard Gumbel noise -log(-log(u)): u = ((word >> 9) + 0.5) / 2**23 is exact, never 0 or 1.

    The noise that wins has u near 1, where the approximate logarithm is bad: -log(1 - v) = v + v^2 / 2 + ... there.
    """
    bits = word >> 9
    uniform = (bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07
    rest = ((8388607 - bits).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    series = rest * (1.0 + rest * (1 / 2 + rest * (1 / 3 + rest * (1 / 4 + rest * (1 / 5 + rest * (1 / 6))))))
    return -_log(tl.where(rest < SERIES_END, series, -_log(uniform, FAST)), FAST)


@triton.jit
def _fold(best, winner, score, index):
    """Fold in scores whose indices are above all before: of equal scores the lower index stays."""
    higher = score > best
    return tl.where(higher, score, best), tl.where(higher, index, winner)


@triton.jit
def _first_of_highest(score, index):
    """Reduce a tile to its highest score and the lowest index that has it."""
    top_score = tl.max(score, 0)
    return top_score, tl.min(tl.where(score == top_score, index, MAX_INDEX), 0)


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=["temperatures", "seeds", "token_indices"])
def _slice_kernel(
    logits,
    temperatures,
    seeds,
    token_indices,
    scores,
    winners,
    stride_logits,
    first,
    size,
    LANES: tl.constexpr,
    TILES: tl.constexpr,
    FAST: tl.constexpr,
):
    slice_index = tl.program_id(0)
    row = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    lane = tl.arange(0, LANES)
    first_tile = first // (4 * LANES)
    begin = first_tile * 4 * LANES + slice_index * TILES * 4 * LANES
    end = first + size
    row_logits = logits + row.to(tl.int64) * stride_logits
    best = tl.full((LANES,), float("-inf"), tl.float32)
    winner = begin + lane
    if temperature == 0.0:
        for step in range(4 * TILES):
            index = begin + step * LANES + lane
            is_ours = (index >= first) & (index < end)
            score = tl.load(row_logits + (index - first), mask=is_ours, other=float("-inf")).to(tl.float32)
            best, winner = _fold(best, winner, score, index)
    else:
        inverse = 1.0 / temperature
        seed = tl.load(seeds + row)
        token_index = tl.load(token_indices + row).to(tl.uint32)
        zero = tl.zeros((LANES,), tl.uint32)
        for tile in range(TILES):
            counter = ((first_tile + slice_index * TILES + tile) * LANES + lane).to(tl.uint32)
            words = tl.philox(seed, counter, zero + token_index, zero, zero)
            for part in tl.static_range(4):
                index = begin + (tile * 4 + part) * LANES + lane
                is_ours = (index >= first) & (index < end)
                logit = tl.load(row_logits + (index - first), mask=is_ours, other=float("-inf")).to(tl.float32)
                best, winner = _fold(best, winner, logit * inverse + _gumbel(words[part], FAST), index)
    top_score, top_index = _first_of_highest(best, winner)
    target = row * tl.num_programs(0) + slice_index
    tl.store(scores + target, top_score)
    tl.store(winners + target, top_index)


@triton.jit
def _row_kernel(scores, winners, best, out, num_slices, end, PADDED_SLICES: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, PADDED_SLICES)
    is_slice = column < num_slices
    score = tl.load(scores + row * num_slices + column, mask=is_slice, other=float("-inf"))
    index = tl.load(winners + row * num_slices + column, mask=is_slice, other=MAX_INDEX)
    top_score, top_index = _first_of_highest(score, index)
    tl.store(best + row, top_score)
    # a row of NaN has no winner; its token must still be one that an embedding can look up
    tl.store(out + row, tl.minimum(top_index, end - 1).to(tl.int64))
