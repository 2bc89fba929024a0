"""What a prefix cache must find: worked out from the prompts, the block size and the order of admission alone.

Nothing of an engine is used. The law is that of caches of whole blocks that share at admission (`EngineFacts`): a
request finds the longest chain of whole blocks with which a prompt admitted before it begins, those admitted in the
same step included, and computes at least its own last token. Requests of one step are admitted in the order in which
they arrived. Nothing is evicted that a later request of the run could find.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from touchstone.workload import build, num_sharing, prefix_length

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.records import RequestTrace, Scalar, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """What one timed run was asked for: the workload of its arm, with its rate, the seed, and the engine's options."""

    workload: WorkloadSpec
    seed: int
    options: Mapping[str, Scalar]


def hit_blocks(prompts: Sequence[Sequence[int]], order: Sequence[int], block_size: int) -> list[int]:
    """Count the blocks that each prompt finds when the prompts are admitted in this order, from a cold start."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}  # number of the block before, own ids -> number of the block
    hits = [0] * len(prompts)
    for index in order:
        prompt, before, found = prompts[index], 0, True
        for begin in range(0, len(prompt) - block_size + 1, block_size):
            block = (before, tuple(prompt[begin : begin + block_size]))
            found = found and block in known and begin + block_size < len(prompt)
            hits[index] += found
            before = known.setdefault(block, len(known) + 1)
    return hits


def admission_order(requests: Sequence[RequestTrace]) -> list[int] | None:
    """Order the requests as they were admitted: by step, then by arrival; None where the engine does not tell."""
    begins = [request.scheduled_ns for request in requests]
    if None in begins:
        return None
    return sorted(range(len(requests)), key=lambda index: (begins[index], requests[index].arrival_ns, index))


@lru_cache(maxsize=32)  # the pairs of all blocks of a test, whose metrics and checks ask for them one after the other
def prompts_of(workload: WorkloadSpec, vocabulary_size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Draw the prompts of a run once more."""
    return tuple(request.prompt_token_ids for request in build(workload, vocabulary_size, seed))


def reusable_tokens(spec: WorkloadSpec, prompt_lengths: Sequence[int], block_size: int) -> list[int]:
    """Count the tokens that each sharing request could find at best, largest first.

    The sharing requests are taken to be those with the longest common part. Each can reuse the whole blocks of its part
    of the prefix, except its last token, which must be computed.
    """
    return sorted(
        (min(prefix_length(spec, length), length - 1) // block_size * block_size for length in prompt_lengths),
        reverse=True,
    )[: num_sharing(spec)]


def hit_upper_bound(spec: WorkloadSpec, prompt_lengths: Sequence[int], block_size: int) -> int:
    """Most prompt tokens that a cold cache of whole blocks can give to requests of these lengths.

    Every block of the longest part must have been computed once by some request: at most the sum less the largest.
    """
    reusable = reusable_tokens(spec, prompt_lengths, block_size)
    return sum(reusable) - max(reusable, default=0)
