"""New keys and values on their way to their blocks, in Triton: keys are normalized and rotated, values copied."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from nanoinfer.kernels.rotation import norm_rotary
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor


TILE_ROWS = 16  # heads of all tokens that one program takes


def norm_rotary_store(
    qkv: Tensor,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
) -> None:
    """Store the keys and values of a fused projection; the queries in it are another kernel's to use.

    qkv (T, (Hq + 2 Hkv) * D): all query heads, then all key heads, then all value heads; Hkv and D are those of the
    blocks, whose heads are contiguous. k_norm (D,) normalizes each key head before the rotation (Qwen3), None leaves
    that out. positions (T,) int64; cos_sin (max_position, D) float32 holds D/2 cosines, then D/2 sines; slot_mapping
    (T,) int64.
    """
    num_kv_heads, head_dim = key_blocks.shape[2:]
    num_tokens = qkv.shape[0]
    tile_tokens, variant = _store_variant(num_kv_heads, head_dim, k_norm is not None)
    key_values = qkv[:, -2 * num_kv_heads * head_dim :]
    variant.launch(
        (-(-num_tokens // tile_tokens), 2, 1),
        (key_values, key_blocks, value_blocks, qkv if k_norm is None else k_norm, cos_sin, positions, slot_mapping),
        (eps, num_tokens, qkv.stride(0), key_blocks.stride(1)),
    )


@cache
def _store_variant(num_kv_heads: int, head_dim: int, normalized: bool) -> tuple[int, Variant]:
    """Return the tokens that a program takes, and the variant."""
    tile_heads = triton.next_power_of_2(num_kv_heads)
    tile_tokens = max(1, TILE_ROWS // tile_heads)
    return tile_tokens, Variant(
        _store_kernel,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        TILE_HEADS=tile_heads,
        TILE_TOKENS=tile_tokens,
        NORM=normalized,
        num_warps=min(8, max(1, tile_tokens * tile_heads * head_dim // 1024)),
    )


# Steps differ in tokens, and slices of per-step inputs begin anywhere: neither may ask for another compilation.
@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["positions", "slot_mapping"])
def _store_kernel(
    key_values,
    key_blocks,
    value_blocks,
    k_norm,
    cos_sin,
    positions,
    slot_mapping,
    eps,
    num_tokens,
    stride_token,
    stride_slot,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    NORM: tl.constexpr,
):
    # One program takes the key heads or the value heads of a few tokens.
    row = tl.arange(0, TILE_TOKENS * TILE_HEADS)
    head = row % TILE_HEADS
    token = tl.program_id(0).to(tl.int64) * TILE_TOKENS + row // TILE_HEADS
    is_head = (token < num_tokens) & (head < NUM_KV_HEADS)
    dim = tl.arange(0, HEAD_DIM)[None, :]
    slot = tl.load(slot_mapping + token, mask=is_head, other=0)
    place = (slot * stride_slot + head * HEAD_DIM)[:, None] + dim
    source = key_values + token * stride_token + head * HEAD_DIM
    if tl.program_id(1) == 0:
        position = tl.load(positions + token, mask=is_head, other=0)
        keys = norm_rotary(source, k_norm, is_head, eps, cos_sin, position, HEAD_DIM, NORM)
        tl.store(key_blocks + place, keys.to(key_blocks.dtype.element_ty), mask=is_head[:, None])
    else:
        values = tl.load(source[:, None] + NUM_KV_HEADS * HEAD_DIM + dim, mask=is_head[:, None])
        tl.store(value_blocks + place, values.to(value_blocks.dtype.element_ty), mask=is_head[:, None])
