"""StepPlan -> device tensors, with one upload a step.

The plan is flattened into a handful of integer arrays, these are laid end to end in one buffer, and the device tensors
are views of its copy. What the device can work out for itself (slot mapping, context lengths) is not uploaded. The
flat plan is also what travels to the ranks of a tensor-parallel engine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.scheduling.plan import ScheduledRequest, StepPlan

Int64Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step on the device. Every tensor is int64 (float64 where named) and lives on the device.

    Shapes: Bd decode rows, Bp prefill rows, Tp prefill tokens, S sampled rows, U block table entries that change,
    W slots that get new sampling settings. Tokens of a step are numbered decode rows first, then prefill tokens.

    table_slots, table_columns, table_blocks  (U,) write `block` at [slot, column] of the block tables
    new_slots, new_seeds, new_top_ks          (W,) settings of slots that change hands
    new_temperatures, new_top_ps              (W,) float64
    decode_slots, decode_positions            (Bd,)
    prefill_slots                             (Bp,)
    prefill_starts                            (Bp + 1,) first prefill token of each row, then Tp
    prefill_context_lens                      (Bp,)
    prefill_token_ids, prefill_positions, prefill_token_slots  (Tp,)
    sample_tokens                             (S,) which token's hidden state is sampled
    sample_slots                              (S,)
    sample_indices                            (S,) index of the sampled token among its request's outputs

    max_decode_context and max_prefill_len are bounds known to the host, 0 where there is no such row.
    """

    table_slots: Tensor
    table_columns: Tensor
    table_blocks: Tensor
    new_slots: Tensor
    new_seeds: Tensor
    new_top_ks: Tensor
    new_temperatures: Tensor
    new_top_ps: Tensor
    decode_slots: Tensor
    decode_positions: Tensor
    prefill_slots: Tensor
    prefill_starts: Tensor
    prefill_context_lens: Tensor
    prefill_token_ids: Tensor
    prefill_positions: Tensor
    prefill_token_slots: Tensor
    sample_tokens: Tensor
    sample_slots: Tensor
    sample_indices: Tensor
    max_decode_context: int
    max_prefill_len: int


_TENSORS = tuple(field.name for field in fields(Batch) if not field.name.startswith("max_"))
NUM_FIELDS = len(_TENSORS)


@dataclass(frozen=True, slots=True)
class FlatPlan:
    """A plan as integers on the host, end to end.

    integers  (n,) int64, the fields of Batch in the order of their declaration
    sizes     how many of them belong to each field
    max_decode_context, max_prefill_len  as in Batch
    """

    integers: Tensor
    sizes: tuple[int, ...]
    max_decode_context: int
    max_prefill_len: int


def flatten(plan: StepPlan, seeds: Seeds, vocab_size: int, *, pin_memory: bool) -> FlatPlan:
    """Lay a plan out as integers, in pinned memory where it goes to a GPU of this process."""
    arrays = (
        _table_updates(plan.scheduled)
        | _sampling_updates(plan.scheduled, seeds, vocab_size)
        | _decode_rows(plan.decodes)
        | _prefill_rows(plan.prefills)
        | _sampled_rows(plan)
    )
    ordered = [arrays[name] for name in _TENSORS]
    sizes = tuple(len(array) for array in ordered)
    integers = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=pin_memory)
    np.concatenate(ordered, out=integers.numpy())
    return FlatPlan(
        integers,
        sizes,
        max_decode_context=max((row.context_len for row in plan.decodes), default=0),
        max_prefill_len=max((row.num_tokens for row in plan.prefills), default=0),
    )


def upload(flat: FlatPlan, device: torch.device) -> Batch:
    """Bring a flat plan to the device with one copy, which does not wait for work already queued there."""
    on_device = flat.integers.to(device, non_blocking=True)
    tensors = dict(zip(_TENSORS, torch.split(on_device, list(flat.sizes)), strict=True))
    for name in ("new_temperatures", "new_top_ps"):
        tensors[name] = tensors[name].view(torch.float64)
    return Batch(**tensors, max_decode_context=flat.max_decode_context, max_prefill_len=flat.max_prefill_len)


def _table_updates(rows: Sequence[ScheduledRequest]) -> dict[str, Int64Array]:
    changed = [row for row in rows if row.new_blocks]
    counts = [len(row.new_blocks) for row in changed]
    return {
        "table_slots": _repeat([row.slot for row in changed], counts),
        "table_columns": _ranges([row.num_old_blocks for row in changed], counts),
        "table_blocks": _integers(block for row in changed for block in row.new_blocks),
    }


def _sampling_updates(rows: Sequence[ScheduledRequest], seeds: Seeds, vocab_size: int) -> dict[str, Int64Array]:
    new = [(row, row.sampling) for row in rows if row.sampling is not None]
    return {
        "new_slots": _integers(row.slot for row, _ in new),
        "new_seeds": _integers(seeds.of(row.request_id, sampling) for row, sampling in new),
        "new_top_ks": _integers(min(sampling.top_k or vocab_size, vocab_size) for _, sampling in new),
        "new_temperatures": _float_bits(sampling.temperature for _, sampling in new),
        "new_top_ps": _float_bits(1.0 if sampling.top_p is None else sampling.top_p for _, sampling in new),
    }


def _decode_rows(rows: Sequence[ScheduledRequest]) -> dict[str, Int64Array]:
    return {
        "decode_slots": _integers(row.slot for row in rows),
        "decode_positions": _integers(row.start for row in rows),
    }


def _prefill_rows(rows: Sequence[ScheduledRequest]) -> dict[str, Int64Array]:
    counts = [row.num_tokens for row in rows]
    slots = [row.slot for row in rows]
    return {
        "prefill_slots": _integers(slots),
        "prefill_starts": np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        "prefill_context_lens": _integers(row.context_len for row in rows),
        "prefill_token_ids": _integers(chain.from_iterable(row.token_ids or () for row in rows)),
        "prefill_positions": _ranges([row.start for row in rows], counts),
        "prefill_token_slots": _repeat(slots, counts),
    }


def _sampled_rows(plan: StepPlan) -> dict[str, Int64Array]:
    rows = plan.scheduled
    last_tokens = np.cumsum([row.num_tokens for row in rows], dtype=np.int64) - 1
    sampled = [index for index, row in enumerate(rows) if row.samples]
    return {
        "sample_tokens": last_tokens[sampled],
        "sample_slots": _integers(rows[index].slot for index in sampled),
        "sample_indices": _integers(rows[index].num_outputs for index in sampled),
    }


def _integers(values: Iterable[int]) -> Int64Array:
    return np.fromiter(values, np.int64)


def _float_bits(values: Iterable[float]) -> Int64Array:
    return np.fromiter(values, np.float64).view(np.int64)


def _repeat(values: list[int], counts: list[int]) -> Int64Array:
    """values[i] for counts[i] times, one after the other."""
    return np.repeat(np.array(values, np.int64), counts)


def _ranges(starts: list[int], counts: list[int]) -> Int64Array:
    """starts[i] .. starts[i] + counts[i] - 1, one range after the other."""
    laid_before = np.cumsum(counts, dtype=np.int64) - np.array(counts, np.int64)
    return np.arange(sum(counts)) + np.repeat(np.array(starts, np.int64) - laid_before, counts)
