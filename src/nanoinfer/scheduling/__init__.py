"""Which request computes what in the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoinfer.scheduling.mixed import MixedScheduler
from nanoinfer.scheduling.separated import SeparatedScheduler

if TYPE_CHECKING:
    from nanoinfer.config import SchedulingPolicy
    from nanoinfer.kvcache.cache import KVCache
    from nanoinfer.scheduling.scheduler import Scheduler

_POLICIES: dict[SchedulingPolicy, type[Scheduler]] = {"separated": SeparatedScheduler, "mixed": MixedScheduler}


def make_scheduler(
    policy: SchedulingPolicy,
    cache: KVCache,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    eos_token_ids: frozenset[int],
) -> Scheduler:
    """Build the scheduler of a policy; see `Scheduler` for the settings."""
    return _POLICIES[policy](
        cache,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        eos_token_ids=eos_token_ids,
    )
