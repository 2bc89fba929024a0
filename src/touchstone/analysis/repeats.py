"""Whether an engine answers from what it kept: the last run of each process once more, on the very same prompts.

A single run scatters by a fifth and more on a small processor, so one repeat says nothing against one run. Each process
gives one log-ratio, as a block of an ablation does: the mean logarithm of all its runs of that arm that did the same
work, less the logarithm of the repeat. Student's t interval of their mean (Student 1908) decides. How seldom it errs
stands in `docs/statistics.md`, by simulation of `saved_time`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from touchstone.analysis import samples, statistics
from touchstone.records import Check, Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.analysis.runs import Process, TestRuns
    from touchstone.records import Trace

MAX_SAVED = 0.10  # so much of the time a repeat may save, as warm caches of the processor do, before it is no repeat
# A false alarm takes back the times of a test, and each run makes dozens of checks: one in two hundred at the very
# bound, and in practice one in a thousand.
LEVEL = 0.99


@dataclass(frozen=True, slots=True)
class SavedTime:
    """Which share of the time repeats save, below 0 where they take longer, and the interval of it."""

    share: float
    interval: Interval

    @property
    def shown_cached(self) -> bool:
        """Whether the whole interval lies above what a repeat may save."""
        return self.interval.low > MAX_SAVED


def repeated_prompts_not_faster(test: TestRuns) -> Check | None:
    """Catch cached results; None below two processes with a repeat, which give no interval."""
    pairs = [pair for process in test.processes if (pair := _fresh_and_again(process)) is not None]
    ratios = [_log_ratio(fresh, again) for fresh, again in pairs]
    if len(ratios) < 2:  # noqa: PLR2004  a spread needs two values
        return None
    saved, runs = saved_time(ratios), sum(len(fresh) for fresh, _ in pairs)
    share, low, high = (f"{value:+.1%}" for value in (saved.share, saved.interval.low, saved.interval.high))
    return Check(
        id="repeated_prompts_not_faster",
        passed=not saved.shown_cached,
        detail=f"{len(ratios)} processes, their last run once more on the same prompts, cache off, against all {runs} "
        f"runs of that arm: {share} of the time saved, {LEVEL:.0%} interval {low} to {high}; it may not lie wholly "
        f"above {MAX_SAVED:.0%}",
        detail_zh=f"{len(ratios)} 个进程，关闭缓存，以相同提示重复最后一次运行，与该组全部 {runs} 次运行相比："
        f"节省时间 {share}，{LEVEL:.0%} 区间 {low} 至 {high}；该区间不得整体高于 {MAX_SAVED:.0%}",
    )


def saved_time(log_ratios: Sequence[float]) -> SavedTime:
    """Turn log-ratios fresh / repeat, one a process and at least two, into the share of time that repeats save."""
    interval = statistics.log_t_interval([math.exp(-ratio) for ratio in log_ratios], LEVEL)
    if interval is None:
        raise statistics.StatisticsError(f"{len(log_ratios)} processes with a repeat; an interval needs two")
    turned = interval.model_copy(update={"low": 1 - interval.high, "high": 1 - interval.low})
    return SavedTime(1 - math.exp(-fmean(log_ratios)), turned)


def _fresh_and_again(process: Process) -> tuple[list[Trace], Trace] | None:
    """Pair the repeat with the runs of its arm that had as many tokens to read and to write; None without a repeat."""
    last, again = process.runs[-1], process.repeated
    if again is None or any(samples.unfinished(trace) for trace in (last.facts.trace, again)):
        return None
    traces = (run.facts.trace for run in process.of_arm(last.arm))
    return [trace for trace in traces if _work(trace) == _work(last.facts.trace)], again


def _work(trace: Trace) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, len(request.emissions)) for request in trace.requests]


def _log_ratio(fresh: Sequence[Trace], again: Trace) -> float:
    return fmean(math.log(samples.window_ns(trace)) for trace in fresh) - math.log(samples.window_ns(again))
