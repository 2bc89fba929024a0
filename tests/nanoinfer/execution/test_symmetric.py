"""Which way a sum takes, and that ranks go a way together or not at all."""

import os
import socket

import pytest
import torch

from nanoinfer.execution.symmetric import Pushes, Shares, SymmetricCollectives, _Agreement, _free_socket

PUSH_BYTES, SHARED_BYTES = 1 << 16, 1 << 20


class Recorded:
    """Collectives and ways that only tell who was asked; a sum over these ranks is the part itself."""

    def __init__(self, way, calls, takes=None):
        self.way, self.calls = way, calls
        self.num_bytes = PUSH_BYTES if way == "push" else SHARED_BYTES
        if takes is not None:
            self.takes = lambda num_bytes, dtype: takes(self, num_bytes, dtype)

    def sum(self, x, *, keep=False):
        self.calls.append((self.way, keep))
        return x

    def all_reduce(self, x):
        self.calls.append((self.way, False))
        return x

    def place(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)


def collectives(*, pushes=True, shares=True):
    calls = []
    return calls, SymmetricCollectives(
        Recorded("library", calls),
        Recorded("push", calls, Pushes.takes) if pushes else None,
        Recorded("share", calls, Shares.takes) if shares else None,
    )


def way_of(num_bytes, dtype=torch.bfloat16, **open_ways):
    calls, ways = collectives(**open_ways)
    ways.all_reduce(torch.zeros(num_bytes // dtype.itemsize, dtype=dtype), keep=True)
    return calls[0]


def test_the_smallest_sums_are_pushed_and_larger_ones_shared():
    assert way_of(4) == way_of(PUSH_BYTES) == ("push", False)
    assert way_of(PUSH_BYTES + 16) == way_of(SHARED_BYTES + 16) == ("share", True)
    assert way_of(PUSH_BYTES + 16, torch.float16) == ("share", True)


def test_what_a_way_cannot_do_goes_the_next_one():
    assert way_of(2, torch.float16) == ("library", False)  # half a word
    assert way_of(PUSH_BYTES + 8) == ("library", False)  # half a load
    assert way_of(64, torch.int64) == ("library", False)
    assert way_of(64, shares=False) == ("push", False)
    assert way_of(PUSH_BYTES + 16, shares=False) == ("library", False)
    assert way_of(64, pushes=False) == ("share", True)


def test_only_sums_through_shared_memory_begin_there():
    _, ways = collectives()
    assert ways.workspace(4, 1024, torch.bfloat16) is None
    assert ways.workspace(256, 1024, torch.bfloat16).shape == (256, 1024)
    assert ways.workspace(512, 1024, torch.bfloat16).shape == (512, 1024)
    assert ways.workspace(513, 1024, torch.bfloat16) is None  # goes in pieces
    _, ways = collectives(shares=False)
    assert ways.workspace(256, 1024, torch.bfloat16) is None


def shares_of(num_bytes):
    """Shares of one rank, whose kernel is told to double what it is given, in the buffer."""
    shares = Shares.__new__(Shares)
    shares.num_bytes, shares._rank = num_bytes, 0
    shares._buffer = torch.zeros(num_bytes, dtype=torch.uint8)
    shares._addresses = shares._flags = shares._flag_addresses = shares._counts = None

    def double(part, *_, rank):
        assert rank == 0
        assert part.data_ptr() == shares._buffer.data_ptr()
        part.mul_(2)

    shares._kernel = double
    return shares


def test_a_sum_lies_in_shared_memory_unless_it_is_kept():
    shares, x = shares_of(64), torch.arange(8.0)
    total, kept = shares.sum(x), shares.sum(x, keep=True)
    assert total.data_ptr() == shares._buffer.data_ptr() != kept.data_ptr()
    assert kept.tolist() == total.tolist() == (2 * x).tolist()
    part = shares.place((2, 4), torch.float32)
    part.copy_(x.view(2, 4))
    assert shares.sum(part).tolist() == (2 * x).view(2, 4).tolist()


def test_a_message_longer_than_the_place_goes_in_pieces():
    x = torch.arange(22.0, dtype=torch.float16).view(2, 11)
    assert shares_of(16).sum(x).tolist() == (2 * x).tolist()


class Votes:
    """A library whose other ranks report so many failures."""

    def __init__(self, others):
        self.others = others

    def all_reduce(self, x):
        return x + self.others


def test_a_way_is_taken_where_every_rank_can():
    assert _Agreement(Votes(0), 0, torch.device("cpu")).on("push", lambda: "made") == "made"
    assert _Agreement(Votes(1), 0, torch.device("cpu")).on("push", lambda: "made") is None


def test_a_way_that_is_closed_is_named_with_its_reason():
    with pytest.warns(UserWarning, match=r"rank 2: sums go another way than by push.*OSError: no link"):
        found = _Agreement(Votes(0), 2, torch.device("cpu")).on(
            "push", lambda: (_ for _ in ()).throw(OSError("no link"))
        )
    assert found is None


def test_a_device_that_waits_for_ever_is_an_error_and_no_vote():
    def lost():
        raise SystemError("cuda:0 waits for ever")

    with pytest.raises(SystemError, match="waits for ever"):
        _Agreement(Votes(0), 0, torch.device("cpu")).on("push", lost)


@pytest.fixture
def own_socket(tmp_path, monkeypatch):
    """Where torch would bind this process's socket."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"symm_mem-{os.getpid()}"


def test_the_socket_of_a_killed_process_of_this_number_is_removed(own_socket):
    _free_socket()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(own_socket))
    assert own_socket.exists()
    _free_socket()
    assert not own_socket.exists()


def test_a_socket_that_somebody_listens_on_is_left_to_them(own_socket):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(str(own_socket))
        with pytest.raises(RuntimeError, match=r"another container's; give each container a TMPDIR of its own"):
            _free_socket()
    assert own_socket.exists()


def test_a_folder_too_deep_for_sockets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("deep" * 30)))
    with pytest.raises(RuntimeError, match=r"may have 107 bytes, .* has more; shorten TMPDIR"):
        _free_socket()
