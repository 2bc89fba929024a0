"""A staged step as one array of integers, and back: what travels to the ranks in every step.

decodes:   0, restricted, replay, rows, padded rows;             then slots, positions, blocks, output indices
prefills:  1, restricted, replay, sampled rows, longest decode context, longest prefill, shape;   then the fields
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from nanoinfer.execution.batch import BatchShape, FlatPlan
from nanoinfer.execution.decode_rows import FIELDS, StagedRows
from nanoinfer.execution.staging import StagedDecodes, StagedPrefills

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.execution.staging import StagedStep

_DECODES, _PREFILLS = 0, 1
_DECODE_HEAD = 5
_PREFILL_HEAD = 6 + len(BatchShape._fields)


def encode(step: StagedStep) -> Tensor:
    """Lay a step out as integers (n,) int64."""
    if isinstance(step, StagedDecodes):
        rows = step.staged.rows
        head = [_DECODES, step.restricted, step.replay, len(step.staged.order), rows.shape[1]]
        return torch.cat((torch.tensor(head), rows.flatten()))
    flat = step.flat
    bounds = flat.num_sampled, flat.max_decode_context, flat.max_prefill_len
    head = [_PREFILLS, step.restricted, step.replay, *bounds, *flat.shape]
    return torch.cat((torch.tensor(head), flat.integers))


def decode(integers: Tensor) -> StagedStep:
    """Read a step back as views of its integers; the order of its rows stays with who encoded it."""
    if int(integers[0]) == _DECODES:
        _, restricted, replay, num_rows, size = integers[:_DECODE_HEAD].tolist()
        rows = integers[_DECODE_HEAD:].view(FIELDS, size)
        return StagedDecodes(StagedRows(rows, np.arange(num_rows)), bool(restricted), bool(replay))
    _, restricted, replay, num_sampled, *bounds_and_shape = integers[:_PREFILL_HEAD].tolist()
    bounds, shape = bounds_and_shape[:2], BatchShape(*bounds_and_shape[2:])
    flat = FlatPlan(integers[_PREFILL_HEAD:], shape, num_sampled, *bounds)
    return StagedPrefills(flat, bool(restricted), bool(replay))
