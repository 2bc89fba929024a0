"""Checks of a test's arms: against a prediction, against what was asked for, and of the two passes of a block."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from scipy import stats

from touchstone.analysis import formulas, statistics
from touchstone.analysis.quantities import NotAvailable, Quantity
from touchstone.records import Check
from touchstone.workload import build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.analysis.prediction import Asked
    from touchstone.analysis.runs import Process, Run, TestRuns
    from touchstone.records import Trace

CHANCE = 0.001  # how seldom two passes that agree may be said to contradict each other
_ALIKE = 1e-12  # logarithms that differ by less are of one ratio
ARRIVAL_NS = 1_000  # a second in floating point keeps a nanosecond; a thousand of them are no lie


def arm_checks(test: TestRuns) -> tuple[Check, ...]:
    """Every check of this module that applies to a test."""
    found = (hits_as_predicted(test), arrivals_as_drawn(test), graphs_as_asked(test), passes_agree(test))
    return tuple(check for check in found if check is not None)


def hits_as_predicted(test: TestRuns) -> Check | None:
    """Catch a cache that finds what it should not, or not what it should, token by token.

    None without an arm that asks for a cache, or without prediction.
    """
    if not any(arm.options.get("prefix_cache") is True for arm in test.planned.arms):
        return None
    known = [row for run in test.runs if (row := _predicted_measured_bound(run)) is not None]
    if not known:
        return None
    wrong = sum(measured != predicted or measured > bound for predicted, measured, bound in known)
    predicted, measured, bound = (", ".join(map(str, sorted(set(column)))) for column in zip(*known, strict=True))
    return Check(
        id="cache_hits_as_predicted",
        passed=wrong == 0,
        detail=f"{len(known)} runs of all arms, {wrong} not as predicted; cached prompt tokens in a run: "
        f"predicted {predicted}; measured {measured}; at most {bound}",
        detail_zh=f"各组共 {len(known)} 次运行，{wrong} 次与预测不符；每次运行命中缓存的提示 token 数："
        f"预测 {predicted}；实测 {measured}；上限 {bound}",
    )


def _predicted_measured_bound(run: Run) -> tuple[int, int, int] | None:
    found = (
        formulas.predicted_cached_tokens(run.facts),
        formulas.cached_tokens(run.facts),
        formulas.cached_tokens_bound(run.facts),
    )
    if any(isinstance(value, NotAvailable) for value in found):
        return None
    predicted, measured, bound = (round(value.value) for value in found if isinstance(value, Quantity))
    return predicted, measured, bound


def arrivals_as_drawn(test: TestRuns) -> Check | None:
    """Catch requests that were held back or let in early: both arms must see the arrivals that seed and rate give."""
    loaded = [run for run in test.runs if run.facts.asked is not None and run.facts.asked.workload.request_rate_per_s]
    if not loaded:
        return None
    worst = max(_arrival_error_ns(run.facts.trace, run.facts.asked) for run in loaded if run.facts.asked is not None)
    rates = [run.facts.asked.workload.request_rate_per_s or 0.0 for run in loaded if run.facts.asked is not None]
    low, high = f"{min(rates):.4g}", f"{max(rates):.4g}"
    told, told_zh = (low, low) if low == high else (f"{low} to {high}", f"{low} 至 {high}")
    return Check(
        id="arrivals_as_drawn",
        passed=worst <= ARRIVAL_NS,
        detail=f"{len(loaded)} runs at {told} requests/s: arrivals differ from the drawn ones by at most "
        f"{worst} ns, allowed are {ARRIVAL_NS}",
        detail_zh=f"{len(loaded)} 次运行，每秒 {told_zh} 个请求：到达时刻与抽取值至多相差 {worst} ns，"
        f"允许 {ARRIVAL_NS}",
    )


def _arrival_error_ns(trace: Trace, asked: Asked) -> int:
    """Largest distance between arrivals and their law; the ids of the prompts do not matter to it."""
    drawn = [request.arrival_ns for request in build(asked.workload, 2, asked.seed)]
    first = trace.requests[0].arrival_ns
    pairs = zip(trace.requests, drawn, strict=True)
    return max(abs(request.arrival_ns - first - arrival) for request, arrival in pairs)


def graphs_as_asked(test: TestRuns) -> Check | None:
    """Catch an arm that replays no graphs though it has them, or some though it has none; None without such arms."""
    arms = {arm.name: arm.options["cuda_graphs"] for arm in test.planned.arms if "cuda_graphs" in arm.options}
    if len(set(arms.values())) < 2:  # noqa: PLR2004  on and off
        return None
    steps = {
        arm: [
            step.graph
            for run in test.runs
            if run.arm == arm
            for step in run.facts.trace.steps or ()
            if step.kind == "decode"
        ]
        for arm in arms
    }
    wrong = sum(graph != wanted for arm, wanted in arms.items() for graph in steps[arm])
    total = sum(map(len, steps.values()))
    return Check(
        id="graphs_as_asked",
        passed=wrong == 0 and total > 0,
        detail=f"{total} decode steps, {wrong} of them by a graph where none was asked for, or the other way round",
        detail_zh=f"{total} 个解码步，其中 {wrong} 个与设定不符（应当使用 CUDA 图而未用，或相反）",
    )


# --- the two passes of a block --------------------------------------------------------------------------------------


def passes_agree(test: TestRuns) -> Check | None:
    """Let the two passes of each block verify each other: A then B, and B then A, each on prompts of its own.

    Where all prompts have one length, each arm must compute and find the same numbers of tokens in both. The ratio of
    total times may differ between them by the margin, and beyond it by what chance explains; a difference of pairs that
    is larger, and less likely than a thousandth, is a contradiction.
    """
    rows = [row for process in test.processes if (row := _log_ratios(test, process)) is not None]
    if len(test.arms) != 2 or len(rows) < 2:  # noqa: PLR2004  two arms, and a spread
        return None
    counts = _unequal_counts(test)
    differences = [row[-1] - row[0] for row in rows]
    ratios = [math.exp(fmean(column)) for column in ([row[0] for row in rows], [row[-1] for row in rows])]
    within = abs(fmean(differences)) <= math.log1p(test.planned.margin or statistics.MARGIN)
    p = _p_of_zero(differences)
    first, last = (f"{ratio:.3f}" for ratio in ratios)
    return Check(
        id="passes_agree",
        passed=counts == 0 and (within or p > CHANCE),
        detail=f"{len(rows)} blocks: ratio of total times {first} in the first pass and {last} in the last; "
        f"{counts} unequal token counts",
        detail_zh=f"{len(rows)} 个区组：总耗时之比首轮为 {first}，末轮为 {last}；token 计数不等 {counts} 处",
    )


def _p_of_zero(differences: Sequence[float]) -> float:
    if max(differences) - min(differences) < _ALIKE:
        return 1.0 if abs(differences[0]) < _ALIKE else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _log_ratios(test: TestRuns, process: Process) -> list[float] | None:
    """Log-ratio of the total times, treatment to baseline, for each pass of a process in its order."""
    by_arm = [[_total_time(run) for run in process.of_arm(arm)] for arm in test.arms[:2]]
    if len(by_arm) < 2 or len(by_arm[0]) != len(by_arm[1]) or len(by_arm[0]) < 2:  # noqa: PLR2004  two passes of two
        return None
    pairs = list(zip(*by_arm, strict=True))
    if any(value is None for pair in pairs for value in pair):
        return None
    return [math.log(treatment / baseline) for baseline, treatment in pairs if baseline and treatment]


def _total_time(run: Run) -> float | None:
    time = formulas.total_time(run.facts)
    return time.value if isinstance(time, Quantity) and time.value > 0 else None


def _unequal_counts(test: TestRuns) -> int:
    """Count the passes whose arm computes or finds another number of prompt tokens than the pass before it."""
    spec = test.planned.workload
    if spec is None or spec.input_tokens.low != spec.input_tokens.high:
        return 0
    rows = ([_counts(run) for run in process.of_arm(arm)] for process in test.processes for arm in test.arms)
    return sum(one != other for row in rows for one, other in pairwise(row))


def _counts(run: Run) -> tuple[int, int]:
    requests = run.facts.trace.requests
    computed = sum(step.prefill_tokens for step in run.facts.trace.steps or ())
    again = any(request.preemptions for request in requests)
    return sum(request.cached_tokens or 0 for request in requests), 0 if again else computed
