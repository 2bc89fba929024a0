"""StepPlan -> device tensors, with one upload a step.

The plan is flattened into a handful of integer arrays, these are laid end to end in one buffer, and the device tensors
are views of its copy. What the device can work out for itself (slot mapping, context lengths) is not uploaded. The
flat plan is also what travels to the ranks of a tensor-parallel engine.

A plan may be padded to a larger shape, so that a CUDA graph of that shape computes it: padding is written to a slot
and a block that no request ever holds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from nanoinfer.execution.decode_rows import PaddingRow
    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.scheduling.plan import ScheduledRequest, StepPlan

Int64Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class BatchShape(NamedTuple):
    """How many there are of what a batch lists.

    tokens         T, decode rows first, then prefill tokens
    decodes        how many of the first tokens may be decode rows
    prefills       P, prefill rows
    sampled        S, rows that are sampled
    table_updates  U, entries of block tables that change
    new_slots      W, slots that get new sampling settings
    """

    tokens: int
    decodes: int
    prefills: int
    sampled: int
    table_updates: int
    new_slots: int

    def holds(self, other: BatchShape) -> bool:
        """Whether a batch of the other shape can be padded to this one."""
        return all(own >= needed for own, needed in zip(self, other, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of Batch's tensors, in the order of their declaration."""
        updates, slots = (self.table_updates,) * 3, (self.new_slots,) * 5
        return (*updates, *slots, 1, *(self.tokens,) * 3, self.prefills, self.prefills + 1, self.prefills) + (
            self.sampled,
        ) * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step on the device. Every tensor is int64 (float64 where named) and lives on the device.

    table_slots, table_columns, table_blocks  (U,) write `block` at [slot, column] of the block tables
    new_slots, new_seeds, new_top_ks          (W,) settings of slots that change hands
    new_temperatures, new_top_ps              (W,) float64
    num_decodes                               (1,) how many of the first tokens are those sampled last for their slots
    token_ids, positions, token_slots         (T,) ids of decode rows are of no meaning
    prefill_slots                             (P,)
    query_starts                              (P + 1,) first token of each prefill row, then the end of the last
    context_lens                              (P,)
    sample_tokens                             (S,) which token's hidden state is sampled
    sample_slots                              (S,)
    sample_indices                            (S,) index of the sampled token among its request's outputs

    `shape` counts them. max_decode_context and max_prefill_len are bounds known to the host.
    """

    table_slots: Tensor
    table_columns: Tensor
    table_blocks: Tensor
    new_slots: Tensor
    new_seeds: Tensor
    new_top_ks: Tensor
    new_temperatures: Tensor
    new_top_ps: Tensor
    num_decodes: Tensor
    token_ids: Tensor
    positions: Tensor
    token_slots: Tensor
    prefill_slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    sample_tokens: Tensor
    sample_slots: Tensor
    sample_indices: Tensor
    shape: BatchShape
    max_decode_context: int
    max_prefill_len: int

    @classmethod
    def of(cls, integers: Tensor, shape: BatchShape, *, max_decode_context: int, max_prefill_len: int) -> Batch:
        """View the integers of a flat plan as what they mean."""
        tensors = dict(zip(_TENSORS, torch.split(integers, list(shape.sizes)), strict=True))
        for name in ("new_temperatures", "new_top_ps"):
            tensors[name] = tensors[name].view(torch.float64)
        return cls(**tensors, shape=shape, max_decode_context=max_decode_context, max_prefill_len=max_prefill_len)


_TENSORS = tuple(field.name for field in fields(Batch))[:-3]


@dataclass(frozen=True, slots=True)
class FlatPlan:
    """A plan as integers on the host, end to end.

    integers     (n,) int64, the tensors of Batch in the order of their declaration
    shape        how many of them there are, padding included
    num_sampled  how many of the sampled rows are no padding: the first ones
    max_decode_context, max_prefill_len  as in Batch
    """

    integers: Tensor
    shape: BatchShape
    num_sampled: int
    max_decode_context: int
    max_prefill_len: int

    def upload(self, device: torch.device) -> Batch:
        """Bring the plan to the device with one copy, which does not wait for work already queued there."""
        return Batch.of(
            self.integers.to(device, non_blocking=True),
            self.shape,
            max_decode_context=self.max_decode_context,
            max_prefill_len=self.max_prefill_len,
        )


class Flattener:
    """Lays plans out as integers, in pinned memory where they go to a GPU of this process."""

    def __init__(self, seeds: Seeds, padding: PaddingRow, *, vocab_size: int, pin_memory: bool) -> None:
        self._seeds = seeds
        self._padding = padding
        self._vocab_size = vocab_size
        self._pin_memory = pin_memory

    def flatten(self, plan: StepPlan, shapes: Sequence[BatchShape] = ()) -> FlatPlan:
        """Lay a plan out, padded to the first of the shapes that holds it; as it is where none does."""
        arrays = (
            _table_updates(plan.scheduled)
            | _sampling_updates(plan.scheduled, self._seeds, self._vocab_size)
            | _tokens(plan)
            | _prefill_rows(plan)
            | _sampled_rows(plan)
        )
        own = BatchShape(
            tokens=len(arrays["token_ids"]),
            decodes=len(plan.decodes),
            prefills=len(plan.prefills),
            sampled=len(arrays["sample_tokens"]),
            table_updates=len(arrays["table_slots"]),
            new_slots=len(arrays["new_slots"]),
        )
        shape = next((shape for shape in shapes if shape.holds(own)), own)
        return FlatPlan(
            self._lay_out(arrays, shape),
            shape,
            own.sampled,
            max_decode_context=max((row.context_len for row in plan.decodes), default=0),
            max_prefill_len=max((row.num_tokens for row in plan.prefills), default=0),
        )

    def _lay_out(self, arrays: dict[str, Int64Array], shape: BatchShape) -> Tensor:
        """Put the arrays end to end, each padded to its size."""
        padding = dict.fromkeys(
            ("table_slots", "new_slots", "token_slots", "prefill_slots", "sample_slots"), self._padding.slot
        ) | {"table_blocks": self._padding.block, "query_starts": int(arrays["query_starts"][-1])}
        integers = torch.empty(sum(shape.sizes), dtype=torch.int64, pin_memory=self._pin_memory)
        host, begin = integers.numpy(), 0
        for name, size in zip(_TENSORS, shape.sizes, strict=True):
            end = begin + len(arrays[name])
            host[begin:end] = arrays[name]
            host[end : begin + size] = padding.get(name, 0)
            begin += size
        return integers


def _table_updates(rows: Sequence[ScheduledRequest]) -> dict[str, Int64Array]:
    changed = [row for row in rows if row.new_blocks]
    counts = [len(row.new_blocks) for row in changed]
    return {
        "table_slots": _repeat([row.slot for row in changed], counts),
        "table_columns": _ranges([row.num_old_blocks for row in changed], counts),
        "table_blocks": _integers(chain.from_iterable(row.new_blocks for row in changed)),
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


def _tokens(plan: StepPlan) -> dict[str, Int64Array]:
    rows, num_decodes = plan.scheduled, len(plan.decodes)
    counts = [row.num_tokens for row in rows]
    prompts = chain.from_iterable(row.token_ids or () for row in plan.prefills)
    return {
        "num_decodes": _integers([num_decodes]),
        "token_ids": _integers(chain((0,) * num_decodes, prompts)),
        "positions": _ranges([row.start for row in rows], counts),
        "token_slots": _repeat([row.slot for row in rows], counts),
    }


def _prefill_rows(plan: StepPlan) -> dict[str, Int64Array]:
    rows = plan.prefills
    return {
        "prefill_slots": _integers(row.slot for row in rows),
        "query_starts": np.cumsum([len(plan.decodes), *(row.num_tokens for row in rows)], dtype=np.int64),
        "context_lens": _integers(row.context_len for row in rows),
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
