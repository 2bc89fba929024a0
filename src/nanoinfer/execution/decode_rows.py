"""The rows of a decode step on their way to the device: four integers each, one copy.

A step that only decodes changes so little that nothing else has to be uploaded: the tokens, settings and block tables
of the rows are on the device already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nanoinfer.scheduling.plan import ScheduledRequest

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
FIELDS = 4


class PaddingRow(NamedTuple):
    """What a padded row is: it writes to a slot and a block that no request ever holds."""

    slot: int
    block: int

    def rows(self, size: int) -> Tensor:
        """Return staged rows (4, size) that are padding alone."""
        return torch.tensor([[self.slot], [0], [self.block], [0]]).repeat(1, size)


class LastBlocks:
    """The last block of each slot's table, as the plans told it: the one that a decoded token goes to."""

    def __init__(self, num_slots: int) -> None:
        self._blocks = [0] * num_slots

    def note(self, rows: Sequence[ScheduledRequest]) -> None:
        """Take in the blocks that a step appends."""
        for row in rows:
            if row.new_blocks:
                self._blocks[row.slot] = row.new_blocks[-1]

    def of(self, rows: Sequence[ScheduledRequest]) -> list[int]:
        """Return the last block of each row's slot."""
        return [self._blocks[row.slot] for row in rows]


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Rows laid out for the device, and where they came from.

    rows   (4, size) int64 on the host, padded at the end: slots, positions, blocks that the positions lie in, and the
           indices of the sampled tokens among the outputs
    order  (B,) which row of the plan stands at each place
    """

    rows: Tensor
    order: IntArray

    def in_plan_order(self, token_ids: Tensor) -> list[int]:
        """Put ids, sampled in the order of the staged rows, back into the order of the plan."""
        found = np.empty(len(self.order), np.int64)
        found[self.order] = token_ids.numpy()
        ids: list[int] = found.tolist()
        return ids


def stage_rows(
    rows: Sequence[ScheduledRequest], last_blocks: LastBlocks, *, size: int, padding: PaddingRow, pin_memory: bool
) -> StagedRows:
    """Lay rows out for the device, the longest context first: what starts last on the device is then soon done."""
    staged = torch.empty((FIELDS, size), dtype=torch.int64, pin_memory=pin_memory)
    host, num_rows = staged.numpy(), len(rows)
    order = np.argsort([-row.start for row in rows], kind="stable")
    host[0, :num_rows] = [row.slot for row in rows]
    host[1, :num_rows] = [row.start for row in rows]
    host[2, :num_rows] = last_blocks.of(rows)
    host[3, :num_rows] = [row.num_outputs for row in rows]
    host[:, :num_rows] = host[:, order]
    if size > num_rows:
        host[:, num_rows:] = [[padding.slot], [0], [padding.block], [0]]
    return StagedRows(staged, order)
