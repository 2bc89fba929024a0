"""Small element-wise kernels in Triton, fused so that each intermediate crosses device memory once.

All arithmetic is done in float32 and rounded once, as in `reference`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import early_launch
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

SILU_TILE = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x (..., H), contiguous, to unit root mean square, then by weight (H,)."""
    out = torch.empty_like(x)
    _launch_norm(x, x, out, out, weight, eps, num_parts=0)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x (T, H), or the sum of its parts (P, T, H), to the residual stream (T, H) and normalize; all contiguous.

    Returns (normalized, new residual). The sum is rounded to the residual's dtype before it is normalized, and is
    written over `residual`.
    """
    out = torch.empty_like(residual)
    _launch_norm(x, residual, out, residual, weight, eps, num_parts=1 if x.dim() == residual.dim() else x.shape[0])
    return out, residual


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up for gate_up (T, 2 I), contiguous, gate first; shape (T, I)."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_tokens, width))
    _silu_variant(width).launch((num_tokens, -(-width // SILU_TILE), 1), (gate_up, out))
    return out


def _launch_norm(
    x: Tensor, residual: Tensor, out: Tensor, total: Tensor, weight: Tensor, eps: float, *, num_parts: int
) -> None:
    width = out.shape[-1]
    variant = _norm_variant(width, num_parts, x.device)
    variant.launch((out.numel() // width, 1, 1), (x, residual, out, total, weight), (eps,))


@cache
def _norm_variant(width: int, num_parts: int, device: torch.device) -> Variant:
    padded = triton.next_power_of_2(width)
    return Variant(
        _norm_kernel,
        WIDTH=width,
        PADDED_WIDTH=padded,
        NUM_PARTS=num_parts,
        num_warps=min(16, max(1, padded // 256)),
        **early_launch(device),
    )


@cache
def _silu_variant(width: int) -> Variant:
    return Variant(_silu_kernel, WIDTH=width, TILE=SILU_TILE, num_warps=4)


@triton.jit
def _norm_kernel(
    x,
    residual,
    out,
    total,
    weight,
    eps,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, PADDED_WIDTH)
    is_column = column < WIDTH
    scale = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row + column, mask=is_column, other=0.0).to(tl.float32)
    if NUM_PARTS > 0:
        part_size = tl.num_programs(0).to(tl.int64) * WIDTH
        for part in tl.static_range(1, NUM_PARTS):
            values += tl.load(x + part * part_size + row + column, mask=is_column, other=0.0)
        values += tl.load(residual + row + column, mask=is_column, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=is_column)
        values = rounded.to(tl.float32)
    mean_square = tl.sum(values * values, 0) / WIDTH
    values = values * tl.rsqrt(mean_square + eps) * scale
    tl.store(out + row + column, values.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def _silu_kernel(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_column = column < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * WIDTH + column, result.to(out.dtype.element_ty), mask=is_column)
