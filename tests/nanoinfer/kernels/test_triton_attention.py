"""The Triton attention kernels against the PyTorch reference: ragged shapes, block boundaries, dtypes, splits."""

from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import reference
from nanoinfer.kernels.paged_decode import (
    MAX_SPLITS,
    DecodeTuning,
    num_context_splits,
    paged_decode,
)
from nanoinfer.kernels.paged_prefill import PrefillTuning, paged_prefill
from nanoinfer.kernels.store_kv import store_kv

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# ‖out - exact‖ / ‖exact‖: rounding of the result, and of the softmax weights to 16 bit before the second product
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Case:
    """A paged cache with random content, its free places poisoned, and one query row for each new token."""

    query: torch.Tensor
    key_blocks: torch.Tensor
    value_blocks: torch.Tensor
    block_table: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    max_query_len: int
    scale: float

    def decode_arguments(self):
        return (self.query, self.key_blocks, self.value_blocks, self.block_table, self.context_lens, self.scale)

    def prefill_arguments(self):
        return (
            self.query,
            self.key_blocks,
            self.value_blocks,
            self.block_table,
            self.query_starts,
            self.context_lens,
            self.max_query_len,
            self.scale,
        )


def make_case(query_lens, context_lens, *, heads, kv_heads, head_dim, block_size, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks_per_row = [-(-length // block_size) for length in context_lens]
    num_blocks = sum(blocks_per_row) + 1
    order = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    shape = (num_blocks, block_size, kv_heads, head_dim)
    # NaN where no token lies: a kernel that lets an unowned key or value in returns NaN
    key_blocks = torch.full(shape, torch.nan)
    value_blocks = torch.full(shape, torch.nan)
    table = torch.zeros(len(context_lens), max(blocks_per_row) + 1, dtype=torch.int32)
    for row, length in enumerate(context_lens):
        owned = [order.pop() for _ in range(blocks_per_row[row])]
        table[row, : len(owned)] = torch.tensor(owned, dtype=torch.int32)
        for position in range(length):
            place = owned[position // block_size], position % block_size
            key_blocks[place] = torch.randn(kv_heads, head_dim, generator=generator)
            value_blocks[place] = torch.randn(kv_heads, head_dim, generator=generator)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    query = torch.randn(int(starts[-1]), heads, head_dim, generator=generator)
    return Case(
        query=query.to(device, dtype),
        key_blocks=key_blocks.to(device, dtype),
        value_blocks=value_blocks.to(device, dtype),
        block_table=table.to(device),
        query_starts=starts.to(device, torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
        max_query_len=max(query_lens),
        scale=head_dim**-0.5,
    )


def make_decode_case(context_lens, **shape):
    return make_case([1] * len(context_lens), context_lens, **shape)


def exact(case):
    """The reference in float32 on the CPU, with zeros in place of the poison that it would multiply by zero."""
    return reference.paged_prefill(
        case.query.float().cpu(),
        case.key_blocks.nan_to_num().float().cpu(),
        case.value_blocks.nan_to_num().float().cpu(),
        case.block_table.cpu(),
        case.query_starts.cpu(),
        case.context_lens.cpu(),
        case.max_query_len,
        case.scale,
    )


def relative_error(out, expected):
    return ((out.float().cpu() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
def test_decode_equals_reference_for_ragged_contexts(dtype, block_size, device):
    contexts = [1, block_size - 1, block_size, block_size + 1, 40]
    case = make_decode_case(
        contexts, heads=4, kv_heads=2, head_dim=64, block_size=block_size, dtype=dtype, device=device
    )
    assert relative_error(paged_decode(*case.decode_arguments()), exact(case)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (7, 1, 64), (4, 2, 128), (20, 1, 16)])
def test_decode_handles_every_grouping_of_heads(heads, kv_heads, head_dim, device):
    case = make_decode_case(
        [33, 5], heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=16, dtype=torch.float32, device=device
    )
    assert relative_error(paged_decode(*case.decode_arguments()), exact(case)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("tile_keys", [16, 64])
@pytest.mark.parametrize("block_size", [16, 32, 256])
def test_decode_tile_may_be_smaller_or_larger_than_a_block(tile_keys, block_size, device):
    case = make_decode_case(
        [130, 64], heads=2, kv_heads=1, head_dim=64, block_size=block_size, dtype=torch.float16, device=device
    )
    tuning = DecodeTuning(tile_keys=tile_keys, num_warps=2, num_stages=2)
    out = paged_decode(*case.decode_arguments(), tuning=tuning)
    assert relative_error(out, exact(case)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("num_splits", [2, 8, MAX_SPLITS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_split_context_gives_the_result_of_one_program(num_splits, dtype, device):
    case = make_decode_case([1, 17, 129], heads=2, kv_heads=1, head_dim=64, block_size=16, dtype=dtype, device=device)
    for _ in range(2):  # a second launch finds the arrival counters at zero again
        out = paged_decode(*case.decode_arguments(), num_splits=num_splits)
        assert relative_error(out, exact(case)) < TOLERANCE[dtype]


@pytest.mark.parametrize("num_splits", [1, 4])
def test_padded_row_yields_zeros_and_disturbs_no_other_row(num_splits, device):
    case = make_decode_case(
        [20, 33], heads=2, kv_heads=1, head_dim=64, block_size=16, dtype=torch.float32, device=device
    )
    expected = exact(case)
    arguments = list(case.decode_arguments())
    arguments[4] = torch.tensor([20, 0], dtype=torch.int32, device=device)
    out = paged_decode(*arguments, num_splits=num_splits)
    assert relative_error(out[:1], expected[:1]) < TOLERANCE[torch.float32]
    assert torch.equal(out[1], torch.zeros_like(out[1]))


def test_decode_reads_query_rows_that_are_not_contiguous(device):
    case = make_decode_case(
        [20, 33], heads=2, kv_heads=1, head_dim=64, block_size=16, dtype=torch.float32, device=device
    )
    wide = torch.full((2, 5, 64), torch.nan, device=device)
    wide[:, 1:3] = case.query
    out = paged_decode(wide[:, 1:3], *case.decode_arguments()[1:])
    assert relative_error(out, exact(case)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("batch_size", "max_context_len", "expected"),
    [
        (1, 4096, 32),
        (4, 4096, 16),
        (8, 4096, 8),
        (64, 4096, 8),
        (132, 4096, 8),
        (133, 4096, 1),
        (1, 16, 1),
        (1, 100, 4),
    ],
)
def test_contexts_are_split_until_the_device_is_full(batch_size, max_context_len, expected):
    assert num_context_splits(batch_size, 8, max_context_len, 132) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
def test_prefill_equals_reference_for_prompts_chunks_and_prefix_hits(dtype, block_size, device):
    query_lens = [17, 5, 1, 16, 1]
    contexts = [17, 5 + block_size, 33, 48, 1]  # a whole prompt, a prefix hit, a decode, a chunk, a prompt of one token
    case = make_case(
        query_lens, contexts, heads=4, kv_heads=2, head_dim=64, block_size=block_size, dtype=dtype, device=device
    )
    assert relative_error(paged_prefill(*case.prefill_arguments()), exact(case)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (7, 1, 64), (4, 2, 128), (20, 1, 16)])
def test_prefill_handles_every_grouping_of_heads(heads, kv_heads, head_dim, device):
    case = make_case(
        [20, 9],
        [20, 30],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    assert relative_error(paged_prefill(*case.prefill_arguments()), exact(case)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("tile_rows", [16, 64])
@pytest.mark.parametrize("tile_keys", [16, 64])
def test_prefill_result_does_not_depend_on_the_tile(tile_rows, tile_keys, device):
    case = make_case(
        [70, 3], [70, 67], heads=2, kv_heads=1, head_dim=64, block_size=32, dtype=torch.float16, device=device
    )
    tuning = PrefillTuning(tile_rows=tile_rows, tile_keys=tile_keys, num_warps=4, num_stages=2)
    out = paged_prefill(*case.prefill_arguments(), tuning=tuning)
    assert relative_error(out, exact(case)) < TOLERANCE[torch.float16]


def test_decode_kernel_and_prefill_kernel_agree_on_single_tokens(device):
    case = make_decode_case(
        [1, 31, 50], heads=4, kv_heads=2, head_dim=64, block_size=16, dtype=torch.float32, device=device
    )
    decoded = paged_decode(*case.decode_arguments())
    prefilled = paged_prefill(*case.prefill_arguments())
    assert relative_error(decoded, prefilled.cpu()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_keys_and_values_lie_in_their_slots_and_nowhere_else(dtype, device):
    qkv = torch.randn(3, 8, 48, device=device).to(dtype)
    key, value = qkv[:, 4:6], qkv[:, 6:8]
    slots = torch.tensor([17, 0, 9], device=device)
    ours = torch.zeros(2, 4, 8, 2, 48, dtype=dtype, device=device)
    theirs = ours.clone()
    store_kv(key, value, ours[0], ours[1], slots)
    reference.store_kv(key, value, theirs[0], theirs[1], slots)
    assert torch.equal(ours, theirs)
    assert ours.ne(0).any(dim=-1).sum() == 2 * 3 * 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("num_splits", [None, 1, 2, 32])
def test_decode_of_long_ragged_contexts_equals_reference_on_a_gpu(dtype, block_size, num_splits, device):
    generator = torch.Generator().manual_seed(block_size)
    contexts = [1, block_size, *torch.randint(1, 1500, (14,), generator=generator).tolist()]
    case = make_decode_case(
        contexts, heads=16, kv_heads=8, head_dim=128, block_size=block_size, dtype=dtype, device=device
    )
    out = paged_decode(*case.decode_arguments(), num_splits=num_splits)
    assert relative_error(out, exact(case)) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_prefill_of_long_ragged_prompts_equals_reference_on_a_gpu(dtype, block_size, device):
    case = make_case(
        [1000, 1, 129, 512],
        [1000, 700, 1300, 513],
        heads=16,
        kv_heads=8,
        head_dim=128,
        block_size=block_size,
        dtype=dtype,
        device=device,
    )
    assert relative_error(paged_prefill(*case.prefill_arguments()), exact(case)) < TOLERANCE[dtype]


@pytest.mark.gpu
def test_split_decode_repeats_bit_for_bit_in_a_cuda_graph_while_contexts_grow(device):
    case = make_decode_case(
        [700, 90], heads=16, kv_heads=8, head_dim=128, block_size=64, dtype=torch.bfloat16, device=device
    )
    lengths = case.context_lens.clone()
    arguments = (*case.decode_arguments()[:4], lengths, case.scale)
    paged_decode(*arguments, num_splits=16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = paged_decode(*arguments, num_splits=16)
    for shorter in (0, 1, 63, 89):
        lengths.copy_(case.context_lens - shorter)
        expected = paged_decode(*arguments, num_splits=16)
        for _ in range(20):
            captured.fill_(torch.nan)
            graph.replay()
            assert torch.equal(captured, expected)
