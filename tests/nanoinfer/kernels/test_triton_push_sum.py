"""Ranks that write into each other's memory: two processes with shared memory stand for two GPUs."""

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter's turn; several GPUs are tested as engines", allow_module_level=True)
from nanoinfer.kernels.push_sum import WORDS, push_sum
from tests.nanoinfer.kernels.two_ranks import RANKS, assert_sums, sums_of_both

SIZES = (6, 2 * WORDS + 90, 2, 2 * WORDS + 90)


def part(rank, size, dtype):
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * rank + size)).to(dtype)


def add_up(rank, received, dtype):
    addresses = torch.tensor([one.data_ptr() for one in received])
    counts = torch.zeros(received[rank].shape[2] // WORDS, dtype=torch.int32)
    for size in SIZES:
        yield push_sum(part(rank, size, dtype), received[rank], addresses, counts, rank=rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_rank_gets_the_same_sum_of_all_parts_whatever_the_sizes_that_follow_each_other(dtype):
    received = [torch.zeros(2, RANKS, 4 * WORDS, dtype=torch.int64).share_memory_() for _ in range(RANKS)]
    assert_sums(sums_of_both(add_up, received, dtype), part, SIZES, dtype)


def test_a_message_beyond_its_place_is_refused():
    received = torch.zeros(2, RANKS, WORDS, dtype=torch.int64)
    with pytest.raises(ValueError, match="257 words does not fit into places of 256"):
        push_sum(torch.zeros(257), received, torch.zeros(2), torch.zeros(1), rank=0)


def test_a_rank_without_patience_gives_up():
    received = torch.zeros(2, RANKS, WORDS, dtype=torch.int64)
    kept = torch.zeros_like(received)
    addresses = torch.tensor([received.data_ptr(), kept.data_ptr()])
    counts = torch.zeros(1, dtype=torch.int32)
    total = push_sum(torch.tensor([3.0, 4.0]), received, addresses, counts, rank=0, patience=3)
    assert total.tolist() == [3.0, 4.0]  # the other's words are missing
    assert kept[1, 0, :2].tolist() == received[1, 0, :2].tolist() != [0, 0]
    assert counts.tolist() == [1]
