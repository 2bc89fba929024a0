"""torch's process group: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor


class LostPeerError(RuntimeError):
    """A collective failed because another rank is gone: that rank's own error explains it."""


class GroupCollectives:
    """Collectives of the process group that this process has joined."""

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


def smallest(value: int, device: torch.device) -> int:
    """Return the least value of all ranks; a collective call."""
    found = torch.tensor(value, device=device)
    try:
        dist.all_reduce(found, dist.ReduceOp.MIN)
    except RuntimeError as error:
        raise LostPeerError(str(error)) from error
    return int(found)
