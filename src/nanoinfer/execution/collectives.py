"""How ranks add up their parts: torch's process group, and for small sums on GPUs symmetric memory.

NCCL moves large messages as fast as the links allow, but a small one takes it 20 microseconds. Where every device can
read every other's memory, one kernel that waits for its peers, reads their parts and adds them is two to three times
as fast: `one_shot` reads everything everywhere, `two_shot` adds a share on each rank and hands the sums round. Both
are torch's (`torch.ops.symm_mem`), and both work inside CUDA graphs. Its kernels that use multicast are not used.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from nanoinfer.model.parallel import TensorParallel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

    from nanoinfer.config import AllReduce

Result = TypeVar("Result")

# Peers are watched by the front door, which ends all ranks at once; the library's own limit only has to be longer.
GROUP_TIMEOUT = timedelta(hours=2)
ONE_SHOT_BYTES = 1 << 17  # on four H200s both take 7 us for 32 KiB, and for 512 KiB one shot 13, two shots 9.5
SYMMETRIC_BYTES = 1 << 22  # beyond, links are full either way
ALIGNMENT_BYTES = 16  # of the widest loads
PROBE_S = 30.0
_SUPPORTED = (torch.float32, torch.bfloat16)  # what torch's kernels are compiled for


class LostPeerError(RuntimeError):
    """A collective failed because another rank is gone: that rank's own error explains it."""


class GroupCollectives:
    """Collectives of the process group: NCCL between GPUs, gloo between CPUs."""

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:  # noqa: ARG002  the protocol's parameters
        """Return None: the library reads sums from anywhere."""
        return None

    def all_reduce(self, x: Tensor, *, keep: bool = False) -> Tensor:  # noqa: ARG002  a sum over x stays with its caller
        """Sum x over the ranks, in place."""
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            raise LostPeerError(str(error)) from error
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Stack x of all ranks: (ranks, ...)."""
        gathered = x.new_empty((dist.get_world_size(), *x.shape))
        try:
            dist.all_gather(list(gathered.unbind()), x.contiguous())
        except RuntimeError as error:
            raise LostPeerError(str(error)) from error
        return gathered


class SymmetricCollectives:
    """Sums of up to SYMMETRIC_BYTES through a buffer that every rank of the group can read; the rest by `library`."""

    def __init__(self, library: GroupCollectives, buffer: Tensor, group_name: str) -> None:
        self._library = library
        self._buffer = buffer
        self._group_name = group_name
        self._ops: Any = torch.ops.symm_mem

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """Return the buffer's beginning as (num_rows, width), where a sum of that size goes through it."""
        num_bytes = num_rows * width * dtype.itemsize
        return self._view((num_rows, width), dtype) if self._fits(num_bytes, dtype) else None

    def all_reduce(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Sum x over the ranks. Unless `keep`, the sum may lie in the buffer, where the next one overwrites it."""
        num_bytes = x.numel() * x.itemsize
        if not self._fits(num_bytes, x.dtype):
            return self._library.all_reduce(x)
        part = self._view(tuple(x.shape), x.dtype)
        if x.data_ptr() != part.data_ptr():
            part.copy_(x)
        if keep or num_bytes <= ONE_SHOT_BYTES:
            total: Tensor = self._ops.one_shot_all_reduce(part, "sum", self._group_name)
            return total
        self._ops.two_shot_all_reduce_(part, "sum", self._group_name)
        return part

    def all_gather(self, x: Tensor) -> Tensor:
        """Stack x of all ranks: (ranks, ...)."""
        return self._library.all_gather(x)

    def _fits(self, num_bytes: int, dtype: torch.dtype) -> bool:
        return dtype in _SUPPORTED and 0 < num_bytes <= SYMMETRIC_BYTES and num_bytes % ALIGNMENT_BYTES == 0

    def _view(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        return self._buffer.view(dtype)[:count].view(shape)


def join(
    store: Store, *, rank: int, size: int, device: torch.device, dtype: torch.dtype, all_reduce: AllReduce
) -> TensorParallel:
    """Meet the other ranks and decide how sums travel; a collective call."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=GROUP_TIMEOUT, device_id=device
        )
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=GROUP_TIMEOUT)
    library = GroupCollectives()
    library.all_reduce(torch.zeros(1, device=device))  # connections are made by the first collective, not in a graph
    if device.type != "cuda" or all_reduce == "nccl":
        return TensorParallel(rank, size, library)
    return TensorParallel(rank, size, _symmetric(library, rank, device, dtype) or library)


def smallest(value: int, device: torch.device) -> int:
    """Return the least value of all ranks; a collective call."""
    found = torch.tensor(value, device=device)
    try:
        dist.all_reduce(found, dist.ReduceOp.MIN)
    except RuntimeError as error:
        raise LostPeerError(str(error)) from error
    return int(found)


# --- symmetric memory -------------------------------------------------------------------------------------------------


def _symmetric(
    library: GroupCollectives, rank: int, device: torch.device, dtype: torch.dtype
) -> SymmetricCollectives | None:
    """Set symmetric memory up, step by step and only as long as every rank succeeds; None, with a warning, if not."""
    if dtype not in _SUPPORTED:
        _warn(rank, f"torch's kernels do not add up {str(dtype).removeprefix('torch.')}; use bfloat16 for them")
        return None
    agreed = _Agreement(library, rank, device)
    buffer = agreed.on(lambda: _allocate(device))
    if buffer is None:
        return None
    collectives = agreed.on(lambda: _share(library, buffer))
    if collectives is None:
        return None
    return agreed.on(lambda: _proved(collectives, rank, device, dtype))


def _allocate(device: torch.device) -> Tensor:
    import torch.distributed._symmetric_memory as symmetric_memory  # noqa: PLC0415  torch names it so; GPUs alone have it

    peers = [index for index in range(torch.cuda.device_count()) if index != device.index]
    closed = [peer for peer in peers if not torch.cuda.can_device_access_peer(device, peer)]
    if closed and len(closed) == len(peers):
        raise RuntimeError(f"{device} cannot read the memory of any other device")
    return symmetric_memory.empty(SYMMETRIC_BYTES // 4, dtype=torch.float32, device=device)


def _share(library: GroupCollectives, buffer: Tensor) -> SymmetricCollectives:
    import torch.distributed._symmetric_memory as symmetric_memory  # noqa: PLC0415  as above

    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("there is no process group")
    symmetric_memory.rendezvous(buffer, group)
    return SymmetricCollectives(library, buffer, group.group_name)


def _proved(
    collectives: SymmetricCollectives, rank: int, device: torch.device, dtype: torch.dtype
) -> SymmetricCollectives:
    """Add up known numbers both ways and compare; a kernel that does not come back is an error of its own."""
    size = dist.get_world_size()
    expected = size * (size + 1) / 2
    for num_bytes in (ALIGNMENT_BYTES, ONE_SHOT_BYTES, 2 * ONE_SHOT_BYTES, SYMMETRIC_BYTES):
        for kind in (torch.float32, dtype):  # in one order on every rank
            part = torch.full((num_bytes // kind.itemsize,), rank + 1.0, dtype=kind, device=device)
            total = collectives.all_reduce(part)
            _wait_for_device(device)
            if not bool((total == expected).all()):
                raise RuntimeError(f"a sum of {num_bytes} bytes through symmetric memory came out wrong")
    return collectives


def _wait_for_device(device: torch.device) -> None:
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    deadline_s = monotonic() + PROBE_S
    while not done.query():  # type: ignore[no-untyped-call]
        if monotonic() > deadline_s:
            raise SystemError(
                f"{device} waits for ever in a sum through symmetric memory; set all_reduce='nccl' to do without"
            )
        sleep(0.0005)


class _Agreement:
    """Goes on only where every rank has succeeded, so that none waits for one that has given up."""

    def __init__(self, library: GroupCollectives, rank: int, device: torch.device) -> None:
        self._library = library
        self._rank = rank
        self._device = device

    def on(self, step: Callable[[], Result]) -> Result | None:
        """Do a step and vote; None, with a warning where it failed, unless it succeeded everywhere."""
        result, failures = None, 0
        try:
            result = step()
        except SystemError:  # the device is lost: no vote can be taken on it
            raise
        except Exception as error:  # noqa: BLE001  any reason is one to do without
            failures = 1
            _warn(self._rank, f"{type(error).__name__}: {error}")
        votes = self._library.all_reduce(torch.tensor([float(failures)], device=self._device))
        return result if float(votes) == 0 else None


def _warn(rank: int, reason: str) -> None:
    warnings.warn(f"rank {rank}: sums go through NCCL, not symmetric memory: {reason}", stacklevel=2)
