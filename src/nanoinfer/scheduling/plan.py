"""StepPlan: the immutable answer to who computes which tokens into which blocks in one step.

A plan is small and plain on purpose: it is what tensor-parallel ranks receive. The runner keeps, for each *slot*, the
block table, the sampling settings and the token sampled last; a plan says only what changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nanoinfer.request import SamplingParams


class Phase(Enum):
    """What kind of tokens a step computes."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class ScheduledRequest(NamedTuple):
    """The share of one request in one step.

    A named tuple because one is made for every running request in every step, in a quarter of a dataclass's time.

    slot            row of the runner's per-request state; constant from admission to finish or preemption
    start           position of the first token computed; everything before it is already in the slot's blocks
    num_tokens      positions computed, `start .. start + num_tokens - 1`
    token_ids       their ids; None means "one token: the one sampled last for this slot", still on the device
    new_blocks      blocks appended to the slot's block table in this step
    num_old_blocks  length of the slot's block table before; 0 when the slot is new, and the table starts afresh
    samples         whether the last position's logits are sampled (False inside a chunked prompt)
    num_outputs     output tokens that exist before this step: the index of the token sampled now
    sampling        the request's settings when the slot is new, otherwise None
    """

    request_id: int
    slot: int
    start: int
    num_tokens: int
    token_ids: tuple[int, ...] | None
    new_blocks: tuple[int, ...]
    num_old_blocks: int
    samples: bool
    num_outputs: int
    sampling: SamplingParams | None

    @property
    def context_len(self) -> int:
        """Tokens that the last computed position attends to, itself included."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: decodes first, then prefill chunks, each in a fixed order that sampling and commit share."""

    step: int
    phase: Phase
    decodes: tuple[ScheduledRequest, ...]
    prefills: tuple[ScheduledRequest, ...]

    @property
    def scheduled(self) -> tuple[ScheduledRequest, ...]:
        """All rows, in the order of the sampled tokens."""
        return self.decodes + self.prefills

    @property
    def num_decode_tokens(self) -> int:
        """One for each request that feeds back a sampled token."""
        return len(self.decodes)

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt positions (or positions recomputed after a preemption) in this step."""
        return sum(row.num_tokens for row in self.prefills)
