"""Ranks that read and write each other's memory: two processes with shared memory stand for two GPUs."""

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter's turn; several GPUs are tested as engines", allow_module_level=True)
from nanoinfer.execution.symmetric import Pushes, Shares, _own_memory
from nanoinfer.kernels.share_sum import PROGRAMS, TILE_BYTES, share_sum
from tests.nanoinfer.kernels.two_ranks import RANKS, assert_sums, sums_of_both

BYTES = (32, 5 * TILE_BYTES + 48, 16, 5 * TILE_BYTES + 48)  # one unit leaves the second rank no share


def part(rank, num_bytes, dtype):
    numbers = torch.randn(num_bytes // dtype.itemsize, generator=torch.Generator().manual_seed(1000 * rank + num_bytes))
    return numbers.to(dtype)


def place(buffer, num_bytes, dtype):
    return buffer[:num_bytes].view(dtype)


def add_up(rank, buffers, flags, dtype):
    addresses = torch.tensor([one.data_ptr() for one in buffers])
    flag_addresses = torch.tensor([one.data_ptr() for one in flags])
    counts = torch.zeros(flags[rank].shape[1], dtype=torch.int32)
    for num_bytes in BYTES:
        x = place(buffers[rank], num_bytes, dtype)
        x.copy_(part(rank, num_bytes, dtype))
        share_sum(x, addresses, flags[rank], flag_addresses, counts, rank=rank)
        yield x


@pytest.mark.parametrize("programs", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_rank_finds_the_same_sum_of_all_parts_in_place(dtype, programs):
    buffers = [torch.zeros(max(BYTES), dtype=torch.uint8).share_memory_() for _ in range(RANKS)]
    flags = [torch.zeros(RANKS, programs, dtype=torch.int32).share_memory_() for _ in range(RANKS)]
    assert_sums(sums_of_both(add_up, buffers, flags, dtype), part, BYTES, dtype)


def alone(x):
    """Arguments of a rank whose peer never comes."""
    flags = torch.zeros(RANKS, PROGRAMS, dtype=torch.int32)
    other, other_flags = torch.zeros_like(x), torch.zeros_like(flags)
    addresses = torch.tensor([x.data_ptr(), other.data_ptr()])
    flag_addresses = torch.tensor([flags.data_ptr(), other_flags.data_ptr()])
    counts = torch.zeros(PROGRAMS, dtype=torch.int32)
    return (x, addresses, flags, flag_addresses, counts), other, other_flags


def test_a_message_that_no_wide_load_can_read_is_refused():
    arguments, _, _ = alone(torch.zeros(5))
    with pytest.raises(ValueError, match="20 bytes is no multiple of 16"):
        share_sum(*arguments, rank=0)


def test_a_rank_without_patience_goes_on_alone():
    arguments, other, other_flags = alone(torch.tensor([1.0, 2.0, 3.0, 4.0] * 2))
    share_sum(*arguments, rank=0, patience=3)
    assert other.tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]  # its own share, to everybody
    assert other_flags[0, 0] == 2  # it has come twice
    assert arguments[-1][0] == 1


def test_a_rank_that_plays_all_ranks_runs_the_kernels_once_and_can_forget_it(monkeypatch):
    """So they are compiled before the others are there."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    dtypes, device = (torch.float32, torch.float16), torch.device("cpu")
    pushes = Pushes(0, RANKS, device, dtypes, _own_memory)
    shares = Shares(0, RANKS, device, dtypes, _own_memory, num_bytes=16)
    assert int(pushes._counts[0]) == int(shares._counts[0]) == len(dtypes)
    for way in (pushes, shares):
        way.reset()
        assert not way._counts.any()
