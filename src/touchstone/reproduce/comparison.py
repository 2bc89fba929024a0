"""`touchstone compare`: two runs of one machine, metric by metric, paired where their prompts were the same."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy import stats

from touchstone.analysis.statistics import (
    ALPHA,
    LEVEL,
    MARGIN,
    MIN_FOR_INTERVAL,
    EffectVerdict,
    ablation_effects,
    compare_with_paper,
    holm,
)
from touchstone.analysis.statistics import Reproduction as TwoSided
from touchstone.records import Interval, Record, Verdict
from touchstone.reproduce.errors import ComparisonError
from touchstone.reproduce.machines import environment_differences, other_machine
from touchstone.reproduce.measured import load_measured
from touchstone.reproduce.work import model_differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from touchstone.analysis.runs import Process, TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import MetricStatistics, Trace
    from touchstone.reproduce.measured import MeasuredRun


class MetricComparison(Record):
    """One metric of one arm: the ratio second / first.

    `n` is the number of pairs, or the smaller number of processes. `p` is adjusted by Holm over the metrics of the
    test; None for a count and for too few values.
    """

    test_id: str
    metric: str
    arm: str
    unit: str
    first: float
    second: float
    ratio: float | None
    interval: Interval | None
    p: float | None
    n: int
    design: Literal["paired", "unpaired", "count"]
    verdict: str


class Refusal(Record):
    """A test that is not compared, and why."""

    test_id: str
    reason: str


class RunComparison(Record):
    """Two runs of one machine against each other; ratios within 1 / (1 + margin) .. 1 + margin count as equivalent."""

    first_root_sha256: str
    second_root_sha256: str
    margin: float
    level: float
    metrics: tuple[MetricComparison, ...]
    refused: tuple[Refusal, ...]
    differences: tuple[str, ...]


def compare_runs(first_dir: Path, second_dir: Path, experiments: Mapping[str, Experiment]) -> RunComparison:
    """Compare the tests that both runs measured; ComparisonError where they were not made on one machine."""
    first, second = (load_measured(path, experiments) for path in (first_dir, second_dir))
    if others := other_machine(first.environment, second.environment):
        raise ComparisonError(
            f"{first_dir} and {second_dir} are not runs of one machine: {'; '.join(map(str, others))}; across machines "
            "use `touchstone reproduce`"
        )
    reasons = {test_id: _why_not(test_id, first, second) for test_id in first.results}
    return RunComparison(
        first_root_sha256=first.ledgered.root_sha256,
        second_root_sha256=second.ledgered.root_sha256,
        margin=MARGIN,
        level=LEVEL,
        metrics=tuple(
            metric
            for test_id, reason in reasons.items()
            if reason is None
            for metric in _compare_test(test_id, first, second)
        ),
        refused=tuple(Refusal(test_id=test_id, reason=reason) for test_id, reason in reasons.items() if reason),
        differences=tuple(map(str, environment_differences(first.environment, second.environment))),
    )


# --- the same work --------------------------------------------------------------------------------------------------


def _why_not(test_id: str, first: MeasuredRun, second: MeasuredRun) -> str | None:
    """Say why a test cannot be compared: not measured, a failed check, or other work; None where it can."""
    for run in (first, second):
        result = run.results.get(test_id)
        if result is None:
            return f"not planned in {run.directory}"
        if result.status != "measured":
            return f"not measured in {run.directory}: {result.reason}"
        if failed := next((check for check in result.checks if not check.passed), None):
            return f"{run.directory} does not pass the check {failed.id}: {failed.detail}"
    one, other = first.test(test_id), second.test(test_id)
    if one is None or other is None:
        return None
    return _other_work(test_id, first, second, one, other)


def _other_work(test_id: str, first: MeasuredRun, second: MeasuredRun, one: TestRuns, other: TestRuns) -> str | None:
    if one.planned.workload != other.planned.workload:
        left, right = (test.planned.workload.model_dump() if test.planned.workload else {} for test in (one, other))
        names = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        listed = "; ".join(f"{name}: {left.get(name)} / {right.get(name)}" for name in names)
        return f"the workloads differ in {listed}"
    if one.arms != other.arms:
        return f"the arms differ: {', '.join(one.arms)} / {', '.join(other.arms)}"
    if models := model_differences(test_id, first, second):
        return f"the models differ in {'; '.join(map(str, models))}"
    return _other_tokens(one, other)


def _other_tokens(one: TestRuns, other: TestRuns) -> str | None:
    """Hold the token counts of each timed run against each other: run by run with equal seeds, else as a whole."""
    if _is_paired(one, other):
        work = [{(run.unit_id, run.position): _tokens(run.facts.trace) for run in test.runs} for test in (one, other)]
        unequal = sorted(key for key in work[0].keys() & work[1].keys() if work[0][key] != work[1][key])
        if not unequal:
            return None
        unit, position = unequal[0]
        sums = " / ".join(str(sum(map(sum, side[unequal[0]]))) for side in work)
        return f"{len(unequal)} runs have other token counts; first {unit}, run {position}: {sums} tokens"
    totals = [{sum(map(sum, _tokens(run.facts.trace))) for run in test.runs} for test in (one, other)]
    if totals[0] == totals[1]:
        return None
    left, right = (", ".join(map(str, sorted(side))) for side in totals)
    return f"the token counts of a run differ: {left} / {right}; measure both with the same --seed"


def _tokens(trace: Trace) -> tuple[tuple[int, int], ...]:
    return tuple((request.prompt_tokens, len(request.emissions)) for request in trace.requests)


def _is_paired(one: TestRuns, other: TestRuns) -> bool:
    """Whether both runs have the same processes with the same seeds, so that their prompts are the same."""
    return _seeds(one) == _seeds(other)


def _seeds(test: TestRuns) -> dict[str, int]:
    return {process.unit.unit_id: process.unit.seed for process in test.processes}


# --- the numbers ----------------------------------------------------------------------------------------------------


_Pair: TypeAlias = "tuple[MetricStatistics, MetricStatistics]"


@dataclass(frozen=True, slots=True)
class _Estimate:
    ratio: float
    interval: Interval | None
    p: float | None
    verdict: str


def _compare_test(test_id: str, first: MeasuredRun, second: MeasuredRun) -> Iterator[MetricComparison]:
    pairs = [*_shared(first.results[test_id].statistics, second.results[test_id].statistics)]
    one, other = first.test(test_id), second.test(test_id)
    design, estimates = _estimates([pair for pair in pairs if _is_timed(pair)], one, other)
    of_times = iter(estimates)
    for pair in pairs:
        if _is_count(pair):
            yield _compared(test_id, pair, _count(*pair), "count")
        elif _is_timed(pair):
            yield _compared(test_id, pair, next(of_times), design)


def _is_count(pair: _Pair) -> bool:
    return all(numbers.verdict is Verdict.EXACT for numbers in pair)


def _is_timed(pair: _Pair) -> bool:
    """Whether both sides have nothing but positive values, of which logarithms exist, and they are no counts."""
    return not _is_count(pair) and min(*pair[0].values, *pair[1].values) > 0


def _estimates(
    timed: Sequence[_Pair], one: TestRuns | None, other: TestRuns | None
) -> tuple[Literal["paired", "unpaired"], list[_Estimate]]:
    """Compare times process by process where both runs had the same prompts, else as independent samples."""
    if one is None or other is None or not _is_paired(one, other):
        return "unpaired", _unpaired([(left.values, right.values) for left, right in timed])
    scores = [(_by_unit(one.processes, left), _by_unit(other.processes, right)) for left, right in timed]
    return "paired", _paired([[math.log(right[unit] / left[unit]) for unit in left] for left, right in scores])


def _shared(
    first: Iterable[MetricStatistics], second: Iterable[MetricStatistics]
) -> Iterator[tuple[MetricStatistics, MetricStatistics]]:
    """Pair up the numbers that both runs give."""
    others = {(numbers.metric, numbers.arm): numbers for numbers in second}
    for numbers in first:
        other = others.get((numbers.metric, numbers.arm))
        if other is not None and numbers.values and other.values:
            yield numbers, other


def _by_unit(processes: Sequence[Process], numbers: MetricStatistics) -> dict[str, float]:
    """Score of each process by its name: the scores stand in the order of the processes that ran this arm."""
    units = [process.unit.unit_id for process in processes if process.of_arm(numbers.arm)]
    return dict(zip(units, numbers.values, strict=True))


def _count(first: MetricStatistics, second: MetricStatistics) -> _Estimate:
    one, other = first.values[0], second.values[0]
    ratio = 1.0 if one == other else other / one if one else math.inf
    return _Estimate(ratio, None, None, Verdict.EXACT)


def _paired(families: Sequence[Sequence[float]]) -> list[_Estimate]:
    """Judge log-ratios, one a process, by the rules of an ablation."""
    return [
        _Estimate(effect.ratio, effect.interval, effect.p_holm, effect.verdict) for effect in ablation_effects(families)
    ]


def _unpaired(samples: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[_Estimate]:
    """Judge independent values by Welch's tests on logarithms, Holm over the family; the rules are as for pairs."""
    testable = [index for index, pair in enumerate(samples) if min(map(len, pair)) >= MIN_FOR_INTERVAL]
    adjusted = dict(zip(testable, holm([_welch_p(*samples[index]) for index in testable]), strict=True))
    return [_unpaired_estimate(first, second, adjusted.get(index)) for index, (first, second) in enumerate(samples)]


def _unpaired_estimate(first: Sequence[float], second: Sequence[float], p: float | None) -> _Estimate:
    if p is None:
        ratio = math.exp(float(np.mean(np.log(second)) - np.mean(np.log(first))))
        return _Estimate(ratio, None, None, EffectVerdict.INSUFFICIENT)
    compared = compare_with_paper(first, second)
    if p <= ALPHA:
        verdict = EffectVerdict.HIGHER if compared.ratio > 1 else EffectVerdict.LOWER
    else:
        same = compared.verdict is TwoSided.REPRODUCED
        verdict = EffectVerdict.EQUIVALENT if same else EffectVerdict.INCONCLUSIVE
    return _Estimate(compared.ratio, _welch_interval(first, second), p, verdict)


def _welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's test that the mean logarithms are equal."""
    if len(set(first)) == len(set(second)) == 1:
        return 1.0 if first[0] == second[0] else 0.0
    return float(stats.ttest_ind(np.log(second), np.log(first), equal_var=False).pvalue)


def _welch_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Welch's interval of the ratio of the geometric means; a point where neither side has any spread."""
    if len(set(first)) == len(set(second)) == 1:
        low = high = second[0] / first[0]
    else:
        ends = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval(LEVEL)
        low, high = math.exp(float(ends.low)), math.exp(float(ends.high))
    return Interval(low=low, high=high, level=LEVEL, method="Welch t on logarithms")


def _compared(
    test_id: str,
    pair: tuple[MetricStatistics, MetricStatistics],
    estimate: _Estimate,
    design: Literal["paired", "unpaired", "count"],
) -> MetricComparison:
    first, second = pair
    return MetricComparison(
        test_id=test_id,
        metric=first.metric,
        arm=first.arm,
        unit=first.unit,
        first=float(np.median(first.values)),
        second=float(np.median(second.values)),
        ratio=estimate.ratio if math.isfinite(estimate.ratio) else None,
        interval=estimate.interval,
        p=estimate.p,
        n=min(len(first.values), len(second.values)),
        design=design,
        verdict=estimate.verdict,
    )


def verdict_counts(comparison: RunComparison) -> Counter[str]:
    """Count how often each verdict was given."""
    return Counter(metric.verdict for metric in comparison.metrics)
