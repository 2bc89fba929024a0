"""The kernel that gathers a decode step's rows, against its reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import decode_inputs, reference

NUM_SLOTS = 12


@pytest.mark.parametrize(("num_rows", "num_columns", "block_size"), [(1, 3, 2), (5, 700, 16), (9, 256, 4)])
def test_rows_are_gathered_as_in_the_reference_and_tables_updated(device, num_rows, num_columns, block_size):
    torch.manual_seed(num_rows)
    tables = torch.randint(0, 1000, (NUM_SLOTS + 1, num_columns), dtype=torch.int32, device=device)
    state = (
        torch.randint(0, 99, (NUM_SLOTS + 1,), device=device),
        torch.rand(NUM_SLOTS + 1, device=device),
        torch.randint(0, 2**62, (NUM_SLOTS + 1,), device=device),
    )
    slots = torch.randperm(NUM_SLOTS)[:num_rows]
    positions = torch.randint(0, num_columns * block_size, (num_rows,))
    if num_rows > 1:
        slots[-1], positions[-1] = NUM_SLOTS, 0  # a padded row
    rows = torch.stack([slots, positions, torch.randint(0, 1000, (num_rows,))]).to(device)
    expected_tables = tables.clone()
    expected = reference.decode_inputs(rows, expected_tables, *state, block_size)
    found = decode_inputs.decode_inputs(rows, tables, *state, block_size)
    assert torch.equal(tables, expected_tables)
    for name in ("token_ids", "slot_mapping", "context_lens", "temperatures", "seeds"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for row, position in enumerate(positions.tolist()):  # what lies behind the context is undefined
        used = slice(position // block_size + 1)
        assert torch.equal(found.block_table[row, used], expected.block_table[row, used])
