"""Write new keys and values into their blocks, in Triton, where no other kernel does it on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor


def store_kv(key: Tensor, value: Tensor, key_blocks: Tensor, value_blocks: Tensor, slot_mapping: Tensor) -> None:
    """Write key and value (T, Hkv, D) into the blocks (N, block_size, Hkv, D) at slot_mapping (T,) int64.

    A token's heads are contiguous in all four tensors, as slices of a fused projection are; key and value have equal
    strides, and so have the blocks.
    """
    num_tokens, num_kv_heads, head_dim = key.shape
    width = num_kv_heads * head_dim
    _store_kernel[(num_tokens, 2)](
        key,
        value,
        key_blocks,
        value_blocks,
        slot_mapping,
        key.stride(0),
        key_blocks.stride(1),
        WIDTH=width,
        PADDED_WIDTH=triton.next_power_of_2(width),
        num_warps=min(8, max(1, width // 256)),
    )


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def _store_kernel(
    key,
    value,
    key_blocks,
    value_blocks,
    slot_mapping,
    stride_source,
    stride_slot,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    column = tl.arange(0, PADDED_WIDTH)
    is_column = column < WIDTH
    if tl.program_id(1) == 0:
        row = tl.load(key + token * stride_source + column, mask=is_column)
        tl.store(key_blocks + slot * stride_slot + column, row.to(key_blocks.dtype.element_ty), mask=is_column)
    else:
        row = tl.load(value + token * stride_source + column, mask=is_column)
        tl.store(value_blocks + slot * stride_slot + column, row.to(value_blocks.dtype.element_ty), mask=is_column)
