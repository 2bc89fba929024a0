"""What happens to a query or key head between projection and attention: normalization, then rotation."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_rotary(heads, weight, is_head, eps, cos_sin, position, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Load heads (pointers to their first elements, (R,)), normalize them and rotate the pairs (i, i + D/2).

    position is (R,), or (1,) for all. Returns (R, D) float32. The other half of each pair is loaded beside it, so that
    nothing has to change places.
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
    angles = cos_sin + position[:, None] * HEAD_DIM + (dim % HALF)[None, :]
    cos = tl.load(angles)
    sin = tl.load(angles + HALF)
    return values * cos + others * tl.where(dim < HALF, -sin, sin)
