"""Sums through symmetric memory: buffers of each rank that every other rank can read and write.

    push   each rank writes to all others what they wait for (`kernels.push_sum`); the least latency
    share  each rank adds up a share, reading it from all, and writes it to all (`kernels.share_sum`); the most bytes
           a second

NCCL stands back behind both: for small sums in latency, for large ones in the bytes a second between two GPUs. Both
work inside CUDA graphs, and neither uses multicast.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoinfer.execution.group import GroupCollectives

Result = TypeVar("Result")
Sharing = Callable[[tuple[int, ...], torch.dtype, torch.device], tuple[Tensor, list[Tensor], Tensor]]
Way = TypeVar("Way", "Pushes", "Shares")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RANKS = (2, 4, 8)
PUSHED_BYTES = 1 << 20  # of messages to all peers together: every byte travels as two, to every one of them
WORD_BYTES = 4
MOST_SHARED_BYTES = 1 << 26  # at once; what is longer goes in pieces
UNIT_BYTES = 16  # of the widest loads
# A rank may be late because the host is busy, and other engines on the same devices take turns with this one.
PROBE_S = 60.0
PROBE_LOOKS = 1 << 23  # for words that are missing: seconds
SOCKET_FOLDERS = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # where torch opens the sockets that handles travel over, or /tmp
LONGEST_SOCKET_PATH = 107  # bytes that an address has room for, which torch does not check


class SymmetricCollectives:
    """Sums the fastest way that is open to them; `library` does the rest."""

    def __init__(self, library: GroupCollectives, pushes: Pushes | None, shares: Shares | None) -> None:
        self._library = library
        self._pushes = pushes
        self._shares = shares

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """Return a place (num_rows, width) in shared memory, where a sum of that size goes through it at once."""
        num_bytes = num_rows * width * dtype.itemsize
        if self._shares is None or num_bytes > self._shares.num_bytes:
            return None
        if self._pushes is not None and self._pushes.takes(num_bytes, dtype):
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
    """Sums of up to `num_bytes` by `kernels.push_sum`. Making one is a collective call, and so is `shared`.

    Compiled here for `dtypes`, so that no rank waits for another's compiler; `reset` comes before its use.
    """

    def __init__(
        self, rank: int, size: int, device: torch.device, dtypes: Sequence[torch.dtype], shared: Sharing
    ) -> None:
        from nanoinfer.kernels import push_sum  # noqa: PLC0415  Triton is there with CUDA only

        self._rank = rank
        self._kernel = push_sum.push_sum
        num_words = PUSHED_BYTES // (size - 1) // WORD_BYTES // push_sum.WORDS * push_sum.WORDS
        self.num_bytes = num_words * WORD_BYTES
        self.probes = (UNIT_BYTES, self.num_bytes, 1 << 11, self.num_bytes, 1 << 11)
        self._received, self._peers, self._addresses = shared((2, size, num_words), torch.int64, device)
        self._counts = torch.zeros(num_words // push_sum.WORDS, dtype=torch.int32, device=device)
        for dtype in dtypes:
            self.sum(torch.zeros(2, dtype=dtype, device=device), looks=1)
        torch.cuda.synchronize(device)

    def reset(self) -> None:
        """Forget all sums; every rank does so after none pushes any more and before one pushes again."""
        self._received.zero_()
        self._counts.zero_()

    def takes(self, num_bytes: int, dtype: torch.dtype) -> bool:
        """Whether a message goes this way."""
        return dtype in DTYPES and 0 < num_bytes <= self.num_bytes and num_bytes % WORD_BYTES == 0

    def sum(self, x: Tensor, *, looks: int | None = None) -> Tensor:
        """Sum x over the ranks; with `looks` the result is wrong if the others take longer than so many looks."""
        patience = {} if looks is None else {"patience": looks}
        return self._kernel(x, self._received, self._addresses, self._counts, rank=self._rank, **patience)


class Shares:
    """Sums by `kernels.share_sum` in a buffer of `num_bytes`; all else as above."""

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        dtypes: Sequence[torch.dtype],
        shared: Sharing,
        *,
        num_bytes: int,
    ) -> None:
        from nanoinfer.kernels import share_sum  # noqa: PLC0415  as above

        self.num_bytes = num_bytes
        self.probes = (UNIT_BYTES, num_bytes, UNIT_BYTES, num_bytes)
        self._rank = rank
        self._kernel = share_sum.share_sum
        self._buffer, self._peers, self._addresses = shared((num_bytes,), torch.uint8, device)
        self._flags, self._peers_flags, self._flag_addresses = shared((size, share_sum.PROGRAMS), torch.int32, device)
        self._counts = torch.zeros(share_sum.PROGRAMS, dtype=torch.int32, device=device)
        for dtype in dtypes:
            self.sum(self.place((UNIT_BYTES // dtype.itemsize,), dtype), looks=1)
        torch.cuda.synchronize(device)

    def reset(self) -> None:
        """Forget all sums; every rank does so after none adds up any more and before one does again."""
        self._flags.zero_()
        self._counts.zero_()

    def takes(self, num_bytes: int, dtype: torch.dtype) -> bool:
        """Whether a message goes this way."""
        return dtype in DTYPES and num_bytes > 0 and num_bytes % UNIT_BYTES == 0

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the buffer's beginning in a shape; a sum of what was written there needs no copy."""
        num_elements = torch.Size(shape).numel()
        return self._buffer[: num_elements * dtype.itemsize].view(dtype).view(shape)

    def sum(self, x: Tensor, *, keep: bool = False, looks: int | None = None) -> Tensor:
        """Sum x over the ranks; unless `keep`, the sum may lie in the buffer. `looks` as for a push."""
        if x.numel() * x.itemsize > self.num_bytes:
            return self._in_pieces(x, looks)
        part = self.place(tuple(x.shape), x.dtype)
        if x.data_ptr() != part.data_ptr():
            part.copy_(x)
        patience = {} if looks is None else {"patience": looks}
        self._kernel(
            part, self._addresses, self._flags, self._flag_addresses, self._counts, rank=self._rank, **patience
        )
        return part.clone() if keep else part

    def _in_pieces(self, x: Tensor, looks: int | None) -> Tensor:
        out, step = torch.empty_like(x), self.num_bytes // x.itemsize
        for begin in range(0, x.numel(), step):
            piece = slice(begin, begin + step)
            out.view(-1)[piece] = self.sum(x.view(-1)[piece], looks=looks)
        return out


# --- setting it up ----------------------------------------------------------------------------------------------------


def symmetric_collectives(
    library: GroupCollectives, rank: int, device: torch.device, dtype: torch.dtype, *, largest_bytes: int
) -> SymmetricCollectives | None:
    """Open what ways there are, step by step and only as long as every rank succeeds; None, with warnings, if none.

    Each way is tried with known numbers of `dtype` and float32 before it is used. `largest_bytes` has the largest
    message that is worth a place of its own.
    """
    agreed = _Agreement(library, rank, device)
    if agreed.on("symmetric memory", lambda: _check_access(device)) is None:
        return None
    size, dtypes = dist.get_world_size(), _probed(dtype)
    num_bytes = min(MOST_SHARED_BYTES, -(-largest_bytes // UNIT_BYTES) * UNIT_BYTES)
    pushes = _proved(agreed, "push", lambda: Pushes(rank, size, device, dtypes, _shared), rank, device, dtypes)
    make_shares = partial(Shares, rank, size, device, dtypes, _shared, num_bytes=num_bytes)
    shares = _proved(agreed, "share", make_shares, rank, device, dtypes)
    return None if pushes is None and shares is None else SymmetricCollectives(library, pushes, shares)


def compile_sums(size: int, device: torch.device, dtype: torch.dtype) -> None:
    """Let Triton compile what `symmetric_collectives` will use; this rank plays all ranks. Errors show up there."""
    torch.cuda.set_device(device)  # every thread has a current device of its own
    if size not in RANKS:
        return
    from nanoinfer.model import kernel_cache  # noqa: PLC0415  Triton is there with CUDA only

    kernel_cache.install()
    ways = [
        partial(make, 0, size, device, (one,), _own_memory)
        for make in (Pushes, partial(Shares, num_bytes=UNIT_BYTES))
        for one in _probed(dtype)
    ]
    with suppress(Exception), ThreadPoolExecutor(len(ways), thread_name_prefix="compile") as threads:
        list(threads.map(lambda make: _on(device, make), ways))


def _on(device: torch.device, make: Callable[[], object]) -> None:
    with torch.cuda.device(device):
        make()


def _probed(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return the types that sums will have, in one order on every rank."""
    return tuple(dict.fromkeys((torch.float32, dtype)))


def _own_memory(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Stand in for `_shared` on one device, with as many ranks as the kernels have."""
    own = torch.zeros(shape, dtype=dtype, device=device)
    return own, [own], torch.full((max(RANKS),), own.data_ptr(), device=device)


def _proved(
    agreed: _Agreement,
    name: str,
    make: Callable[[], Way],
    rank: int,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
) -> Way | None:
    """Make a way and try it with known numbers, after which a rank has waited for every other one."""
    made = agreed.on(name, make)
    if made is None:
        return None
    way: Way = made
    agreed.on(name, way.reset)

    def prove() -> Way:
        for num_bytes in way.probes:
            for dtype in dtypes:
                _prove(lambda part: way.sum(part, looks=PROBE_LOOKS), num_bytes, rank, device, dtype)
        return way

    return agreed.on(name, prove)


def _check_access(device: torch.device) -> bool:
    """Refuse a device that can read the memory of no other; whether it can read its peers' is found out later."""
    size = dist.get_world_size()
    if size not in RANKS:
        raise ValueError(f"the kernels add up over {', '.join(map(str, RANKS))} ranks, not {size}")
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    if others and not any(torch.cuda.can_device_access_peer(device, other) for other in others):
        raise RuntimeError(f"{device} cannot read the memory of any other device")
    _free_socket()
    return True


def _free_socket() -> None:
    """Remove what a killed process of this number has left where torch will open this process's socket.

    Found out there, it would be an error of one rank alone, which the others wait minutes for. One that still answers
    belongs to a process of the same number in another container with the same folder.
    """
    folder = next((os.environ[name] for name in SOCKET_FOLDERS if name in os.environ), "/tmp")  # noqa: S108  torch's choice
    path = Path(f"{folder}/symm_mem-{os.getpid()}")
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise RuntimeError(f"a socket's path may have {LONGEST_SOCKET_PATH} bytes, {path} has more; shorten TMPDIR")
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise RuntimeError(f"{path} is another container's; give each container a TMPDIR of its own")


def _shared(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
    """Allocate memory that all ranks can reach; a collective call.

    Returns this rank's, that of all ranks as it is mapped here (for as long as these are kept), and where that begins:
    (ranks,) int64 on the device.
    """
    import torch.distributed._symmetric_memory as symmetric_memory  # noqa: PLC0415  torch names it so; GPUs alone have it

    own = symmetric_memory.empty(*shape, dtype=dtype, device=device)
    own.zero_()
    handle: Any = symmetric_memory.rendezvous(own, _world())
    peers = [handle.get_buffer(rank, own.shape, dtype) for rank in range(dist.get_world_size())]
    return own, peers, torch.tensor([peer.data_ptr() for peer in peers], device=device)


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("this process has joined no group")
    return group


def _prove(
    add_up: Callable[[Tensor], Tensor], num_bytes: int, rank: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Add up known numbers; a wrong sum is a RuntimeError, a kernel that does not come back a SystemError."""
    size = dist.get_world_size()
    total = add_up(torch.full((num_bytes // dtype.itemsize,), rank + 1.0, dtype=dtype, device=device))
    _wait_for(device)
    if not bool((total == size * (size + 1) / 2).all()):
        raise RuntimeError(f"a sum of {num_bytes} bytes of {dtype} came out wrong")


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
