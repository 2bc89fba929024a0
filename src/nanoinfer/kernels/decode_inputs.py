"""What a decode step needs to know of its rows, gathered from the slots in one small Triton kernel."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from nanoinfer.kernels.reference import DecodeRows
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

TABLE_TILE = 256


def decode_inputs(
    rows: Tensor, block_tables: Tensor, last_tokens: Tensor, temperatures: Tensor, seeds: Tensor, block_size: int
) -> DecodeRows:
    """Write each row's block into its slot's table and gather what the step reads.

    rows (3, B) int64: slots, positions, and the block that each position lies in. block_tables (S, M) int32 is updated;
    last_tokens, seeds (S,) int64; temperatures (S,) float32. The last slot marks padded rows. Entries of the returned
    block table behind a row's context are undefined, and no kernel reads them.
    """
    num_rows, num_columns = rows.shape[1], block_tables.shape[1]
    integers = torch.empty((3, num_rows), dtype=torch.int64, device=rows.device)
    out = DecodeRows(
        token_ids=integers[0],
        slot_mapping=integers[1],
        block_table=torch.empty((num_rows, num_columns), dtype=torch.int32, device=rows.device),
        context_lens=torch.empty(num_rows, dtype=torch.int32, device=rows.device),
        temperatures=torch.empty(num_rows, dtype=torch.float32, device=rows.device),
        seeds=integers[2],
    )
    _rows_variant(block_size).launch(
        (num_rows, 1, 1),
        (
            rows,
            block_tables,
            last_tokens,
            temperatures,
            seeds,
            integers,
            out.block_table,
            out.context_lens,
            out.temperatures,
        ),
        (block_tables.shape[0] - 1, num_columns),
    )
    return out


@cache
def _rows_variant(block_size: int) -> Variant:
    return Variant(_rows_kernel, BLOCK_SIZE=block_size, TILE=TABLE_TILE, num_warps=2)


# Batches differ in size and tables in width; neither may ask for another compilation.
@triton.jit(
    do_not_specialize=["padding_slot", "num_columns"], do_not_specialize_on_alignment=["rows", "integers", "table"]
)
def _rows_kernel(
    rows,
    block_tables,
    last_tokens,
    temperatures,
    seeds,
    integers,
    table,
    context_lens,
    row_temperatures,
    padding_slot,
    num_columns,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    num_rows = tl.num_programs(0)
    slot = tl.load(rows + row)
    position = tl.load(rows + num_rows + row)
    block = tl.load(rows + 2 * num_rows + row)
    last_column = position // BLOCK_SIZE
    slot_table = block_tables + slot * num_columns
    tl.store(slot_table + last_column, block.to(tl.int32))
    tl.store(integers + row, tl.load(last_tokens + slot))
    tl.store(integers + num_rows + row, block * BLOCK_SIZE + position % BLOCK_SIZE)
    tl.store(integers + 2 * num_rows + row, tl.load(seeds + slot))
    tl.store(row_temperatures + row, tl.load(temperatures + slot))
    tl.store(context_lens + row, tl.where(slot == padding_slot, 0, position + 1).to(tl.int32))
    row_table = table + row.to(tl.int64) * num_columns
    for start in range(0, last_column + 1, TILE):
        column = start + tl.arange(0, TILE)
        ids = tl.load(slot_table + column, mask=column < last_column, other=0)
        # the new entry comes from its register: the store above need not be visible to this load yet
        tl.store(
            row_table + column, tl.where(column == last_column, block.to(tl.int32), ids), mask=column <= last_column
        )
