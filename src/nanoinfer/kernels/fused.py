"""Small element-wise kernels in Triton, fused so that each intermediate crosses device memory once.

All arithmetic is done in float32 and rounded once, as in `reference`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

SILU_TILE = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x (..., H), contiguous, to unit root mean square, then by weight (H,)."""
    out = torch.empty_like(x)
    _launch_norm(x, x, out, out, weight, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x (T, H) to the residual stream (T, H) and normalize the sum; all contiguous.

    Returns (normalized, new residual). The sum is rounded to the residual's dtype before it is normalized, and is
    written over `residual`.
    """
    out = torch.empty_like(x)
    _launch_norm(x, residual, out, residual, weight, eps, add=True)
    return out, residual


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up for gate_up (T, 2 I), contiguous, gate first; shape (T, I)."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    _silu_kernel[(num_tokens, triton.cdiv(width, SILU_TILE))](gate_up, out, WIDTH=width, TILE=SILU_TILE, num_warps=4)
    return out


def qk_norm_rotary_store(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """Turn the fused projection into a rotated query, and keys and values in their blocks.

    qkv (T, (Hq + 2 Hkv) * D): all query heads, then all key heads, then all value heads; Hkv and D are those of the
    blocks, whose heads are contiguous. q_norm and k_norm (D,) normalize each head before the rotation (Qwen3); both
    None leaves that out. positions (T,) int64; cos_sin (max_position, D) float32 holds D/2 cosines, then D/2 sines;
    slot_mapping (T,) int64. Returns the query (T, Hq, D), contiguous.
    """
    num_kv_heads, head_dim = key_blocks.shape[2:]
    num_tokens = qkv.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    tile_heads = triton.next_power_of_2(num_kv_heads)
    num_query_tiles = triton.cdiv(num_heads, tile_heads)
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    _qkv_kernel[(num_tokens, num_query_tiles + 2)](
        qkv,
        query,
        key_blocks,
        value_blocks,
        query if q_norm is None else q_norm,
        query if k_norm is None else k_norm,
        cos_sin,
        positions,
        slot_mapping,
        eps,
        qkv.stride(0),
        key_blocks.stride(1),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        TILE_HEADS=tile_heads,
        NORM=q_norm is not None,
        num_warps=min(8, max(1, tile_heads * head_dim // 512)),
    )
    return query


def _launch_norm(
    x: Tensor, residual: Tensor, out: Tensor, total: Tensor, weight: Tensor, eps: float, *, add: bool
) -> None:
    width = x.shape[-1]
    padded = triton.next_power_of_2(width)
    _norm_kernel[(x.numel() // width,)](
        x,
        residual,
        out,
        total,
        weight,
        eps,
        WIDTH=width,
        PADDED_WIDTH=padded,
        ADD=add,
        num_warps=min(16, max(1, padded // 256)),
    )


@triton.jit
def _norm_kernel(
    x, residual, out, total, weight, eps, WIDTH: tl.constexpr, PADDED_WIDTH: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, PADDED_WIDTH)
    is_column = column < WIDTH
    values = tl.load(x + row + column, mask=is_column, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    if ADD:
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


@triton.jit
def _norm_rotary(first, second, weight, eps, cos_sin, position, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Normalize heads given as halves (heads, D/2) in float32, then rotate the pairs (i, i + D/2)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dim = tl.arange(0, HALF)
    if NORM:
        mean_square = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD_DIM
        inverse = tl.rsqrt(mean_square + eps)[:, None]
        first = first * inverse * tl.load(weight + dim).to(tl.float32)[None, :]
        second = second * inverse * tl.load(weight + HALF + dim).to(tl.float32)[None, :]
    cos = tl.load(cos_sin + position * HEAD_DIM + dim)[None, :]
    sin = tl.load(cos_sin + position * HEAD_DIM + HALF + dim)[None, :]
    return first * cos - second * sin, second * cos + first * sin


# Slices of per-step inputs begin anywhere; their alignment must not ask for another compilation.
@triton.jit(do_not_specialize_on_alignment=["positions", "slot_mapping"])
def _qkv_kernel(
    qkv,
    query,
    key_blocks,
    value_blocks,
    q_norm,
    k_norm,
    cos_sin,
    positions,
    slot_mapping,
    eps,
    stride_qkv,
    stride_slot,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    NORM: tl.constexpr,
):
    # One program takes one token and some query heads, or all its key heads, or all its value heads.
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    num_query_tiles = tl.num_programs(1) - 2
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.arange(0, TILE_HEADS)
    within = head[:, None] * HEAD_DIM + tl.arange(0, HALF)[None, :]
    source = qkv + token * stride_qkv

    if part < num_query_tiles:
        is_head = (part * TILE_HEADS + head < NUM_HEADS)[:, None]
        offset = part * TILE_HEADS * HEAD_DIM
        first = tl.load(source + offset + within, mask=is_head, other=0.0).to(tl.float32)
        second = tl.load(source + offset + HALF + within, mask=is_head, other=0.0).to(tl.float32)
        position = tl.load(positions + token)
        first, second = _norm_rotary(first, second, q_norm, eps, cos_sin, position, HEAD_DIM, NORM)
        target = query + token * (NUM_HEADS * HEAD_DIM) + offset + within
        tl.store(target, first.to(query.dtype.element_ty), mask=is_head)
        tl.store(target + HALF, second.to(query.dtype.element_ty), mask=is_head)
    else:
        is_head = (head < NUM_KV_HEADS)[:, None]
        offset = (NUM_HEADS + (part - num_query_tiles) * NUM_KV_HEADS) * HEAD_DIM
        first = tl.load(source + offset + within, mask=is_head, other=0.0).to(tl.float32)
        second = tl.load(source + offset + HALF + within, mask=is_head, other=0.0).to(tl.float32)
        slot = tl.load(slot_mapping + token)
        if part == num_query_tiles:
            position = tl.load(positions + token)
            first, second = _norm_rotary(first, second, k_norm, eps, cos_sin, position, HEAD_DIM, NORM)
            target = key_blocks + slot * stride_slot + within
            tl.store(target, first.to(key_blocks.dtype.element_ty), mask=is_head)
            tl.store(target + HALF, second.to(key_blocks.dtype.element_ty), mask=is_head)
        else:
            target = value_blocks + slot * stride_slot + within
            tl.store(target, first.to(value_blocks.dtype.element_ty), mask=is_head)
            tl.store(target + HALF, second.to(value_blocks.dtype.element_ty), mask=is_head)
