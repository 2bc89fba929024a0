"""How the ranks of one engine meet, and which way their sums take."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from nanoinfer.execution.group import GroupCollectives
from nanoinfer.execution.symmetric import compile_sums, symmetric_collectives
from nanoinfer.model.parallel import TensorParallel

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from nanoinfer.config import AllReduce

# Peers are watched by the front door, which ends all ranks at once; the library's own limit only has to be longer.
GROUP_TIMEOUT = timedelta(hours=2)


def join(
    store: Store,
    *,
    rank: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    all_reduce: AllReduce,
    largest_bytes: int,
) -> TensorParallel:
    """Meet the other ranks and decide how sums, of up to `largest_bytes`, travel; a collective call."""
    if device.type != "cuda":
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=GROUP_TIMEOUT)
        return TensorParallel(rank, size, GroupCollectives())
    torch.cuda.set_device(device)
    with ThreadPoolExecutor(1) as thread:  # compilers work while the ranks meet
        if all_reduce == "auto":
            thread.submit(compile_sums, size, device, dtype)
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=GROUP_TIMEOUT, device_id=device
        )
        library = GroupCollectives()
        library.all_reduce(torch.zeros(1, device=device))  # the first collective connects, which no graph can record
    if all_reduce == "nccl":
        return TensorParallel(rank, size, library)
    symmetric = symmetric_collectives(library, rank, device, dtype, largest_bytes=largest_bytes)
    return TensorParallel(rank, size, symmetric or library)
