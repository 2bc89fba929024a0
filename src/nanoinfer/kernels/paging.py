"""How kernels find keys and values in the paged cache: block ids ahead of their tiles, offsets from block ids."""

from __future__ import annotations

import triton
import triton.language as tl

MIN_DOT_ROWS = 16  # the smallest number of rows that a tensor-core product takes


@triton.jit
def _load_block_ids(table_row, start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Return the blocks of keys `start .. start + TILE - 1`: one id if a block holds a tile, else one a key (TILE,).

    `start` is a multiple of TILE; ids at and beyond `end` are not read, 0 stands for them. Loops carry the ids one tile
    ahead: with this load in the same iteration, Triton would share its pipeline stages between two levels of loads, and
    fewer keys would be in flight.
    """
    if BLOCK_SIZE >= TILE:
        blocks = tl.load(table_row + start // BLOCK_SIZE, mask=start < end, other=0)
    else:
        position = start + tl.arange(0, TILE)
        blocks = tl.load(table_row + position // BLOCK_SIZE, mask=position < end, other=0)
    return blocks


@triton.jit
def load_blocks(table_row, start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Do as `_load_block_ids`; where two blocks make a tile, return both ids, for `tile_blocks` to spread.

    Two scalars are then enough, where one id a key would have to be moved between threads in every tile.
    """
    if 2 * BLOCK_SIZE == TILE:
        entry = table_row + start // BLOCK_SIZE
        first = tl.load(entry, mask=start < end, other=0)
        second = tl.load(entry + 1, mask=start + BLOCK_SIZE < end, other=0)
    else:
        first = _load_block_ids(table_row, start, end, BLOCK_SIZE, TILE)
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
