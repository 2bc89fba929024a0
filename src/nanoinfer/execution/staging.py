"""StepPlan -> the integers that every rank needs to compute it; all that the host has to remember for that.

One process stages: the one that schedules. Whoever computes the step gets the integers, whether that is the same
process or, for several ranks, others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoinfer.execution.batch import BatchShape, FlatPlan, Flattener
from nanoinfer.execution.cuda_graphs import graph_size
from nanoinfer.execution.decode_rows import LastBlocks, PaddingRow, StagedRows, stage_rows

if TYPE_CHECKING:
    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.request import SamplingParams
    from nanoinfer.scheduling.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StagedDecodes:
    """A step that only decodes; `replay` says whether a CUDA graph of exactly so many rows does it."""

    staged: StagedRows
    restricted: bool
    replay: bool


@dataclass(frozen=True, slots=True)
class StagedPrefills:
    """A step with prefill, and decodes beside it where the policy mixes them.

    `replay` says whether a CUDA graph of exactly its shape does it.
    """

    flat: FlatPlan
    restricted: bool
    replay: bool


StagedStep = StagedDecodes | StagedPrefills


class Stager:
    """Stages plans in their order.

    num_slots   requests that run at the same time; the slot after them belongs to padded rows
    num_blocks  blocks that requests can hold; the block after them belongs to padded rows
    pin_memory  whether the integers go to a GPU from this process
    """

    def __init__(self, seeds: Seeds, *, num_slots: int, num_blocks: int, vocab_size: int, pin_memory: bool) -> None:
        self.padding = PaddingRow(slot=num_slots, block=num_blocks)
        self.flattener = Flattener(seeds, self.padding, vocab_size=vocab_size, pin_memory=pin_memory)
        self._pin_memory = pin_memory
        self._last_blocks = LastBlocks(num_slots)
        self._restricted_slots: set[int] = set()

    def stage(
        self, plan: StepPlan, decode_sizes: tuple[int, ...] = (), prefill_shapes: tuple[BatchShape, ...] = ()
    ) -> StagedStep:
        """Lay a step out, padded to the smallest size for which there is a CUDA graph; both lists ascend."""
        restricted = self._note(plan)
        if plan.prefills:
            shapes = () if restricted else prefill_shapes
            flat = self.flattener.flatten(plan, shapes)
            return StagedPrefills(flat, restricted, replay=flat.shape in shapes)
        size = None if restricted else graph_size(decode_sizes, len(plan.decodes))
        staged = stage_rows(
            plan.decodes,
            self._last_blocks,
            size=size or len(plan.decodes),
            padding=self.padding,
            pin_memory=self._pin_memory,
        )
        return StagedDecodes(staged, restricted, replay=size is not None)

    def _note(self, plan: StepPlan) -> bool:
        """Keep account of the slots' last blocks and limits; whether a row of the step samples with top_k or top_p."""
        self._last_blocks.note(plan.decodes)
        self._last_blocks.note(plan.prefills)
        for row in plan.prefills:
            if row.sampling is not None:
                self._note_sampling(row.slot, row.sampling)
        if not self._restricted_slots:
            return False
        return any(row.samples and row.slot in self._restricted_slots for row in plan.scheduled)

    def _note_sampling(self, slot: int, sampling: SamplingParams) -> None:
        if sampling.is_greedy or (sampling.top_k is None and sampling.top_p is None):
            self._restricted_slots.discard(slot)
        else:
            self._restricted_slots.add(slot)
