"""Sums of small messages through symmetric memory: a buffer of each rank that every other rank can read and write.

NCCL moves large messages as fast as the links allow, but a small one takes it 20 microseconds. Three ways are faster:

    push      each rank writes to all others what they wait for (`kernels.push_sum`); the least latency
    one shot  a barrier, then each rank reads all parts and adds them up, then a barrier
    two shot  the same, but each rank adds up its share and writes it to all

The last two are torch's (`torch.ops.symm_mem`), whose kernels with multicast are not used. All work inside CUDA graphs.
"""

from __future__ import annotations

import warnings
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nanoinfer.execution.group import GroupCollectives

Result = TypeVar("Result")

PUSH_BYTES = 1 << 16  # every byte travels as two, to every rank
PUSHED = (torch.float32, torch.float16, torch.bfloat16)
PUSH_RANKS = (2, 4, 8)
WORD_BYTES = 4
ONE_SHOT_BYTES = 1 << 17  # below it one shot takes no longer, above it two shots send less
SHARED_BYTES = 1 << 22  # beyond, links are full either way
SHARED = (torch.float32, torch.bfloat16)  # what torch's kernels are compiled for
ALIGNMENT_BYTES = 16  # of their widest loads
PROBE_S = 30.0
PROBE_LOOKS = 1 << 20  # for words that are missing: about a second


class SymmetricCollectives:
    """Sums the fastest way that is open to them; `library` does the rest."""

    def __init__(self, library: GroupCollectives, pushes: Pushes | None, shares: Shares | None) -> None:
        self._library = library
        self._pushes = pushes
        self._shares = shares

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """Return a place (num_rows, width) in shared memory, where a sum of that size goes through it."""
        num_bytes = num_rows * width * dtype.itemsize
        if self._shares is None or (self._pushes and self._pushes.takes(num_bytes, dtype)):
            return None
        return self._shares.place((num_rows, width), dtype) if self._shares.takes(num_bytes, dtype) else None

    def all_reduce(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Sum x over the ranks. Unless `keep`, the sum may lie in shared memory, where the next one overwrites it."""
        num_bytes = x.numel() * x.itemsize
        if self._pushes is not None and self._pushes.takes(num_bytes, x.dtype):
            return self._pushes.sum(x)
        if self._shares is not None and self._shares.takes(num_bytes, x.dtype):
            return self._shares.sum(x, keep=keep)
        return self._library.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Stack x of all ranks: (ranks, ...)."""
        return self._library.all_gather(x)


class Pushes:
    """Sums of up to PUSH_BYTES by `kernels.push_sum`. Making one is a collective call; `reset` comes before its use."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        from nanoinfer.kernels import push_sum  # noqa: PLC0415  Triton is there with CUDA only

        if size not in PUSH_RANKS:
            raise ValueError(f"{size} ranks cannot push, {', '.join(map(str, PUSH_RANKS))} can")
        self._rank = rank
        self._kernel = push_sum.push_sum
        num_words = PUSH_BYTES // WORD_BYTES
        self._received, handle = _shared((2, size, num_words), torch.int64, device)
        buffers = [handle.get_buffer(peer, self._received.shape, torch.int64) for peer in range(size)]
        self._addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], device=device)
        self._counts = torch.zeros(num_words // push_sum.WORDS, dtype=torch.int32, device=device)
        self._buffers = buffers  # keep the peers' memory mapped
        for dtype in PUSHED:  # compiled apart, so that no rank waits for another's compiler
            self.sum(torch.zeros(2, dtype=dtype, device=device), looks=1)
        torch.cuda.synchronize(device)

    def reset(self) -> None:
        """Forget all sums; every rank does so after none pushes any more and before one pushes again."""
        self._received.zero_()
        self._counts.zero_()

    def takes(self, num_bytes: int, dtype: torch.dtype) -> bool:
        """Whether a message goes this way."""
        return dtype in PUSHED and 0 < num_bytes <= PUSH_BYTES and num_bytes % WORD_BYTES == 0

    def sum(self, x: Tensor, *, looks: int | None = None) -> Tensor:
        """Sum x over the ranks; with `looks` the result is wrong if the others take longer than so many looks."""
        if looks is None:
            return self._kernel(x, self._received, self._addresses, self._counts, rank=self._rank)
        return self._kernel(x, self._received, self._addresses, self._counts, rank=self._rank, patience=looks)


class Shares:
    """Sums of up to SHARED_BYTES by torch's kernels. Making one is a collective call."""

    def __init__(self, device: torch.device) -> None:
        self._buffer, _ = _shared((SHARED_BYTES // WORD_BYTES,), torch.float32, device)
        self._group_name = _world().group_name
        self._ops: Any = torch.ops.symm_mem

    def takes(self, num_bytes: int, dtype: torch.dtype) -> bool:
        """Whether a message goes this way."""
        return dtype in SHARED and 0 < num_bytes <= SHARED_BYTES and num_bytes % ALIGNMENT_BYTES == 0

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the buffer's beginning in a shape; a sum of what was written there needs no copy."""
        return self._buffer.view(dtype)[: torch.Size(shape).numel()].view(shape)

    def sum(self, x: Tensor, *, keep: bool) -> Tensor:
        """Sum x over the ranks; unless `keep`, the sum may lie in the buffer."""
        part = self.place(tuple(x.shape), x.dtype)
        if x.data_ptr() != part.data_ptr():
            part.copy_(x)
        if keep or x.numel() * x.itemsize <= ONE_SHOT_BYTES:
            total: Tensor = self._ops.one_shot_all_reduce(part, "sum", self._group_name)
            return total
        self._ops.two_shot_all_reduce_(part, "sum", self._group_name)
        return part


# --- setting it up ----------------------------------------------------------------------------------------------------


def symmetric_collectives(
    library: GroupCollectives, rank: int, device: torch.device, dtype: torch.dtype
) -> SymmetricCollectives | None:
    """Open what ways there are, step by step and only as long as every rank succeeds; None, with warnings, if none.

    Each way is tried with known numbers of `dtype` and float32 before it is used.
    """
    agreed = _Agreement(library, rank, device)
    if agreed.on("symmetric memory", lambda: _check_access(device)) is None:
        return None
    pushes = _agreed_pushes(agreed, rank, device, dtype)
    shares = _agreed_shares(agreed, rank, device, dtype) if dtype in SHARED else None
    return None if pushes is None and shares is None else SymmetricCollectives(library, pushes, shares)


def _agreed_pushes(agreed: _Agreement, rank: int, device: torch.device, dtype: torch.dtype) -> Pushes | None:
    pushes = agreed.on("push", lambda: Pushes(rank, dist.get_world_size(), device))
    if pushes is None:
        return None
    tried = pushes
    agreed.on("push", tried.reset)
    return agreed.on("push", lambda: _proved_pushes(tried, rank, device, dtype))


def _agreed_shares(agreed: _Agreement, rank: int, device: torch.device, dtype: torch.dtype) -> Shares | None:
    shares = agreed.on("one shot", lambda: Shares(device))
    if shares is None:
        return None
    tried = shares
    return agreed.on("one shot", lambda: _proved_shares(tried, rank, device, dtype))


def _check_access(device: torch.device) -> bool:
    """Refuse a device that can read the memory of no other; whether it can read its peers' is found out later."""
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    if others and not any(torch.cuda.can_device_access_peer(device, other) for other in others):
        raise RuntimeError(f"{device} cannot read the memory of any other device")
    return True


def _shared(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Any]:
    """Allocate memory that all ranks can reach, and torch's handle for it; a collective call."""
    import torch.distributed._symmetric_memory as symmetric_memory  # noqa: PLC0415  torch names it so; GPUs alone have it

    buffer = symmetric_memory.empty(*shape, dtype=dtype, device=device)
    return buffer, symmetric_memory.rendezvous(buffer, _world())


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("this process has joined no group")
    return group


def _proved_pushes(pushes: Pushes, rank: int, device: torch.device, dtype: torch.dtype) -> Pushes:
    for num_bytes in (ALIGNMENT_BYTES, PUSH_BYTES, 1 << 11, PUSH_BYTES, 1 << 11):
        _prove(lambda part: pushes.sum(part, looks=PROBE_LOOKS), num_bytes, rank, device, dtype)
    return pushes


def _proved_shares(shares: Shares, rank: int, device: torch.device, dtype: torch.dtype) -> Shares:
    for num_bytes in (ALIGNMENT_BYTES, ONE_SHOT_BYTES, 2 * ONE_SHOT_BYTES, SHARED_BYTES):
        _prove(lambda part: shares.sum(part, keep=False), num_bytes, rank, device, dtype)
    return shares


def _prove(
    add_up: Callable[[Tensor], Tensor], num_bytes: int, rank: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Add up known numbers; a wrong sum is a RuntimeError, a kernel that does not come back a SystemError."""
    size = dist.get_world_size()
    expected = size * (size + 1) / 2
    for kind in (torch.float32, dtype):  # in one order on every rank
        total = add_up(torch.full((num_bytes // kind.itemsize,), rank + 1.0, dtype=kind, device=device))
        _wait_for(device)
        if not bool((total == expected).all()):
            raise RuntimeError(f"a sum of {num_bytes} bytes came out wrong")


def _wait_for(device: torch.device) -> None:
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    deadline_s = monotonic() + PROBE_S
    while not done.query():  # type: ignore[no-untyped-call]
        if monotonic() > deadline_s:
            raise SystemError(
                f"{device} waits for ever in a sum through symmetric memory; set all_reduce='nccl' to do without"
            )
        sleep(0.0002)


class _Agreement:
    """Goes on only where every rank has succeeded, so that none waits for one that has given up."""

    def __init__(self, library: GroupCollectives, rank: int, device: torch.device) -> None:
        self._library = library
        self._rank = rank
        self._device = device

    def on(self, name: str, step: Callable[[], Result]) -> Result | None:
        """Do a step and vote; None, with a warning where it failed, unless it succeeded everywhere."""
        result, failures = None, 0.0
        try:
            result = step()
        except SystemError:  # the device is lost: no vote can be taken on it
            raise
        except Exception as error:  # noqa: BLE001  any reason is one to do without
            failures = 1.0
            warnings.warn(
                f"rank {self._rank}: sums go another way than by {name}, through NCCL in the end: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
        votes = self._library.all_reduce(torch.tensor([failures], device=self._device))
        return result if float(votes) == 0 else None
