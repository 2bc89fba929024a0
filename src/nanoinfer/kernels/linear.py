"""Matrix products of a batch that decodes, in Triton, for one reason: who comes after them may begin before they end.

cuBLAS is as fast or faster by itself, but lets nobody begin early (programmatic dependent launch): the device drains
between two kernels and fills again. Behind the product before attention, attention's programs take their places while
the last of it is computed and ask for their first keys. With few rows all products of a layer are made so: each asks
for its weights while the kernel before it ends, activation and addition happen on the way.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn.functional import linear as any_linear
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.fused import silu_and_mul
from nanoinfer.kernels.launch import LINE_BYTES, early_launch, prefetch
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

MOST_ROWS = 128  # attention of larger batches fills the device and does not begin early
MOST_WEIGHTS = 2**23  # beyond, the product itself is what counts
SMALL_ROWS = 32  # up to here all products of a layer gain
PART_INPUTS = 512  # of narrow outputs, whose programs are few unless each takes only so many inputs


class LinearTuning(NamedTuple):
    """How a program is shaped: rows of x, of W and inner elements of a tile, warps, pipeline stages."""

    tile_rows: int
    tile_outputs: int
    tile_inputs: int
    num_warps: int
    num_stages: int


TUNINGS = {
    16: LinearTuning(16, 64, 256, 4, 3),
    64: LinearTuning(64, 32, 128, 4, 3),
    MOST_ROWS: LinearTuning(128, 64, 128, 8, 3),
}
SMALL = LinearTuning(16, 64, 128, 4, 4)


@cache
def linear_tuning(num_rows: int) -> LinearTuning:
    """Return the tile shape for at most MOST_ROWS rows; tools/kernel_speed.py times its rivals."""
    return TUNINGS[min(most for most in TUNINGS if num_rows <= most)]


def fits(weight: Tensor) -> bool:
    """Whether there is anything to gain from `early_linear` with weights (N, K) on their device."""
    return _fits(*weight.shape, weight.dtype, weight.device)


@cache
def _fits(num_outputs: int, num_inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    is_small = dtype != torch.float32 and num_outputs * num_inputs <= MOST_WEIGHTS
    whole_tiles = all(num_inputs % tuning.tile_inputs == 0 for tuning in TUNINGS.values())
    return is_small and whole_tiles and bool(early_launch(device)["EARLY"])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b for x (T, K), contiguous, W (N, K), b (N,) or None; (T, N) in x's dtype."""
    if x.shape[0] <= MOST_ROWS and fits(weight):
        return early_linear(x, weight, bias, linear_tuning(x.shape[0]))
    return any_linear(x, weight, bias)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return silu(gate) * up with (gate, up) = x W^T + b for x (T, K), contiguous, W (2 N, K), gate first; (T, N)."""
    if x.shape[0] <= SMALL_ROWS and fits(weight):
        return early_linear(x, weight, bias, SMALL, gated=True)
    return silu_and_mul(any_linear(x, weight, bias))


def linear_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Do as `linear`, or return parts (P, T, N) in float32 whose sum it is; `add_rms_norm` takes either."""
    num_parts = x.shape[1] // PART_INPUTS
    if x.shape[0] <= SMALL_ROWS and fits(weight) and num_parts > 1 and x.shape[1] % PART_INPUTS == 0:
        return early_linear(x, weight, bias, SMALL, num_parts=num_parts)
    return any_linear(x, weight, bias)


def early_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, tuning: LinearTuning, *, gated: bool = False, num_parts: int = 1
) -> Tensor:
    """Do as `linear`, `gated_linear` or `linear_parts`, in Triton whatever the shape; a part is a number of tiles."""
    (num_rows, num_inputs), (weight_rows, _) = x.shape, weight.shape
    num_outputs = weight_rows // 2 if gated else weight_rows
    if num_parts == 1:
        out = x.new_empty((num_rows, num_outputs))
    else:
        out = x.new_empty((num_parts, num_rows, num_outputs), dtype=torch.float32)
    variant = _linear_variant(num_inputs, num_parts, tuning, bias is not None, gated, x.device)
    grid = -(-weight_rows // tuning.tile_outputs), -(-num_rows // tuning.tile_rows), num_parts
    variant.launch(grid, (x, weight, out if bias is None else bias, out), (num_rows, num_outputs))
    return out


@cache
def _linear_variant(
    num_inputs: int, num_parts: int, tuning: LinearTuning, has_bias: bool, gated: bool, device: torch.device
) -> Variant:
    return Variant(
        _linear_kernel,
        NUM_INPUTS=num_inputs,
        NUM_PARTS=num_parts,
        ROWS=tuning.tile_rows,
        OUTPUTS=tuning.tile_outputs,
        INPUTS=tuning.tile_inputs,
        BIAS=has_bias,
        GATED=gated,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
        **early_launch(device),
    )


# Batches differ in size; that must not ask for another compilation.
@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x,
    weight,
    bias,
    out,
    num_rows,
    num_outputs,
    NUM_INPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    weight_row = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    if GATED:  # a gate and its up are neighbours in the tile
        column = weight_row // 2
        weight_row = column + weight_row % 2 * num_outputs
    else:
        column = weight_row
    is_row = row < num_rows
    is_column = column < num_outputs
    inner = tl.arange(0, INPUTS)
    part = tl.program_id(2)
    begin = part * (NUM_INPUTS // NUM_PARTS)
    end = begin + NUM_INPUTS // NUM_PARTS
    weight_rows = weight + weight_row[:, None] * NUM_INPUTS
    if EARLY:
        LINE: tl.constexpr = LINE_BYTES // (weight.dtype.element_ty.primitive_bitwidth // 8)
        line = tl.arange(0, INPUTS // LINE)[None, :] * LINE
        for start in range(begin, end, INPUTS):
            prefetch(tl.where(is_column[:, None], weight_rows, weight) + start + line)
        gdc_launch_dependents()
        gdc_wait()
    # Tensor cores take 64 rows of the first operand at a time: few rows of x are the second.
    SWAP: tl.constexpr = ROWS < OUTPUTS
    accumulator = tl.zeros((OUTPUTS, ROWS) if SWAP else (ROWS, OUTPUTS), tl.float32)
    for start in range(begin, end, INPUTS):
        w = tl.load(weight_rows + start + inner[None, :], mask=is_column[:, None], other=0.0)
        values = tl.load(x + row[:, None] * NUM_INPUTS + start + inner[None, :], mask=is_row[:, None], other=0.0)
        if SWAP:  # noqa: SIM108  decided while compiling
            accumulator = tl.dot(w, tl.trans(values), accumulator)
        else:
            accumulator = tl.dot(values, tl.trans(w), accumulator)
    if SWAP:
        accumulator = tl.trans(accumulator)
    if BIAS:
        accumulator += tl.load(bias + weight_row, mask=is_column & (part == 0), other=0.0).to(tl.float32)[None, :]
    if GATED:
        gate, up = tl.split(tl.reshape(accumulator, (ROWS, OUTPUTS // 2, 2)))
        accumulator = gate / (1.0 + tl.exp(-gate)) * up
        column = tl.program_id(0) * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
        is_column = column < num_outputs
    target = out + part * num_rows * num_outputs + row[:, None] * num_outputs + column[None, :]
    tl.store(target, accumulator.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])
