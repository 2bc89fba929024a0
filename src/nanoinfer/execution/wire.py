"""A staged step as one array of integers, and back: what travels to the ranks in every step.

decodes:   0, restricted, replay, rows, padded rows;             then slots, positions, blocks, output indices
prefills:  1, restricted, longest decode context, longest prefill, sizes of the fields;      then the fields
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from nanoinfer.execution.batch import NUM_FIELDS, FlatPlan
from nanoinfer.execution.decode_rows import FIELDS, StagedRows
from nanoinfer.execution.staging import StagedDecodes, StagedPrefills

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.execution.staging import StagedStep

_DECODES, _PREFILLS = 0, 1
_DECODE_HEAD = 5
_PREFILL_HEAD = 4 + NUM_FIELDS


def encode(step: StagedStep) -> Tensor:
    """Lay a step out as integers (n,) int64."""
    if isinstance(step, StagedDecodes):
        rows = step.staged.rows
        head = [_DECODES, step.restricted, step.replay, len(step.staged.order), rows.shape[1]]
        return torch.cat((torch.tensor(head), rows.flatten()))
    flat = step.flat
    head = [_PREFILLS, step.restricted, flat.max_decode_context, flat.max_prefill_len, *flat.sizes]
    return torch.cat((torch.tensor(head), flat.integers))


def decode(integers: Tensor) -> StagedStep:
    """Read a step back as views of its integers; the order of its rows stays with who encoded it."""
    if int(integers[0]) == _DECODES:
        _, restricted, replay, num_rows, size = integers[:_DECODE_HEAD].tolist()
        rows = integers[_DECODE_HEAD:].view(FIELDS, size)
        return StagedDecodes(StagedRows(rows, np.arange(num_rows)), bool(restricted), bool(replay))
    _, restricted, max_decode_context, max_prefill_len, *sizes = integers[:_PREFILL_HEAD].tolist()
    flat = FlatPlan(integers[_PREFILL_HEAD:], tuple(sizes), max_decode_context, max_prefill_len)
    return StagedPrefills(flat, bool(restricted))
