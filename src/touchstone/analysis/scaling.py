"""Speed-up and efficiency of arms with several devices, against what the baseline's test measured on one of them.

    speed-up    S(p) = exp(mean ln x_p - mean ln x_1)     x: process scores of a throughput on p devices, and on one
    efficiency  E(p) = S(p) / p

In strong scaling the work stays the same, so S is the ratio of times; in weak scaling it grows with p, and S is
Gustafson's scaled speed-up. The interval is Welch's for the difference of two independent means, on logarithms (Welch
1947). One serial fraction s explains a series as far as it can, by least squares in closed form:

    Amdahl 1967     1 / S = s + (1 - s) / p      s = sum x y / sum x^2,  x = 1 - 1 / p,  y = 1 / S - 1 / p
    Gustafson 1988  S = p - s (p - 1)            s = sum x y / sum x^2,  x = p - 1,      y = p - S

One point alone gives y / x: under Amdahl's law that is the metric of Karp and Flatt (1990), which grows with p where
communication, and not serial work, holds the speed-up down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis import statistics
from touchstone.experiment import Bilingual, Law, Profile
from touchstone.records import ScalingFit, ScalingPoint, ScalingSeries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.analysis.runs import Ledgered, TestRuns
    from touchstone.experiment import Experiment, Scaling, Series
    from touchstone.records import MetricStatistics, PlannedTest, Result, Scalar

MIN_FOR_FIT = 2  # one point is met exactly by any law
PERCENT = 100
_NO_VALID_PROCESS = Bilingual("no process of this arm was valid", "该组没有有效进程")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a scaling test is made from; `test` and `baseline` are None where they were not planned."""

    experiment: Experiment
    profile: Profile
    test: TestRuns | None
    baseline: TestRuns | None
    baseline_result: Result | None

    @property
    def scaling(self) -> Scaling:
        """What the bench file declares; ValueError for a test that declares none."""
        if self.experiment.scaling is None:
            raise ValueError(f"test {self.experiment.plan_id} declares no scaling")
        return self.experiment.scaling


def gather(ledgered: Ledgered, experiment: Experiment | None, results: Mapping[str, Result]) -> Evidence | None:
    """Bring together what a scaling test needs; None for any other test, and where no one-device run was planned."""
    if experiment is None or experiment.scaling is None:
        return None
    name = experiment.scaling.baseline_test
    test, baseline = ledgered.tests.get(experiment.plan_id), ledgered.tests.get(name)
    if test is None and baseline is None:
        return None
    return Evidence(experiment, Profile(ledgered.plan.profile), test, baseline, results.get(name))


# --- series ---------------------------------------------------------------------------------------------------------


def scaling_series(
    evidence: Evidence,
    described: Sequence[MetricStatistics],
    *,
    absence: Bilingual | None = None,
    refusal: Bilingual | None = None,
) -> tuple[ScalingSeries, ...]:
    """Make every declared series, absent arms included.

    `absence` says why the whole test was not measured, if so. `refusal` takes back all speed-ups of the test; the
    throughputs stand for themselves.
    """
    reasons = _reasons(evidence, absence)
    mine = {item.arm: item for item in described if item.metric == evidence.scaling.metric}
    theirs = evidence.baseline_result.statistics if evidence.baseline_result is not None else ()
    ones = {item.arm: item for item in theirs if item.metric == evidence.scaling.metric}
    return tuple(
        _series(evidence, series, mine, ones.get(series.baseline_arm), reasons, refusal)
        for series in evidence.scaling.series
    )


def _reasons(evidence: Evidence, whole: Bilingual | None) -> dict[str, Bilingual]:
    """Why arms have no runs, by their name."""
    names = [arm.name for arm in evidence.experiment.arms]
    found = dict.fromkeys(names, whole or _NO_VALID_PROCESS)
    absent = evidence.test.planned.absent_arms if evidence.test is not None else ()
    return found | {row.arm.name: Bilingual(row.reason, row.reason_zh) for row in absent}


def _series(
    evidence: Evidence,
    series: Series,
    mine: Mapping[str, MetricStatistics],
    one: MetricStatistics | None,
    reasons: Mapping[str, Bilingual],
    refusal: Bilingual | None,
) -> ScalingSeries:
    law = evidence.scaling.law
    points = (
        _baseline_point(evidence, series, one),
        *(_point(evidence, name, mine.get(name), one, reasons[name], refusal) for name in series.arms),
    )
    return ScalingSeries(
        id=series.id,
        name=series.name.en,
        name_zh=series.name.zh,
        law=law.value,
        metric=evidence.scaling.metric,
        points=points,
        fit=fit_law(law, [(p.num_gpus, p.speedup) for p in points[1:] if p.speedup is not None]),
    )


def _baseline_point(evidence: Evidence, series: Series, one: MetricStatistics | None) -> ScalingPoint:
    known = one is not None and one.median is not None
    reason = None if known else _why_no_baseline(evidence, one)
    return ScalingPoint(
        test_id=evidence.scaling.baseline_test,
        arm=series.baseline_arm,
        num_gpus=1,
        num_requests=None if evidence.baseline is None else _requests(evidence.baseline.planned, series.baseline_arm),
        throughput=None if one is None else one.median,
        speedup=1.0 if known else None,
        speedup_interval=None,
        efficiency=1.0 if known else None,
        efficiency_interval=None,
        serial_fraction=None,
        reason=None if reason is None else reason.en,
        reason_zh=None if reason is None else reason.zh,
    )


def _why_no_baseline(evidence: Evidence, one: MetricStatistics | None) -> Bilingual:
    if one is not None and one.withheld is not None:
        return Bilingual(one.withheld, one.withheld_zh or one.withheld)
    result = evidence.baseline_result
    if result is not None and result.reason is not None:
        return Bilingual(result.reason, result.reason_zh or result.reason)
    return _NO_VALID_PROCESS


def _requests(planned: PlannedTest, name: str) -> int | None:
    specs = (*planned.arms, *(absent.arm for absent in planned.absent_arms))
    own = next((arm.num_requests for arm in specs if arm.name == name), None)
    return own if own is not None or planned.workload is None else planned.workload.num_requests


def _point(
    evidence: Evidence,
    name: str,
    item: MetricStatistics | None,
    one: MetricStatistics | None,
    absent: Bilingual,
    refusal: Bilingual | None,
) -> ScalingPoint:
    arm = next(arm for arm in evidence.experiment.arms if arm.name == name)
    reason = _why_no_speedup(evidence, item, one, absent, refusal)
    ratio = None
    if reason is None and item is not None and one is not None:
        ratio = statistics.independent_ratio(item.values, one.values)
    p = arm.num_gpus
    return ScalingPoint(
        test_id=evidence.experiment.plan_id,
        arm=name,
        num_gpus=p,
        num_requests=_declared_requests(evidence, name),
        throughput=None if item is None else item.median,
        speedup=None if ratio is None else ratio.ratio,
        speedup_interval=None if ratio is None else ratio.interval,
        efficiency=None if ratio is None else ratio.ratio / p,
        efficiency_interval=None
        if ratio is None or ratio.interval is None
        else ratio.interval.model_copy(update={"low": ratio.interval.low / p, "high": ratio.interval.high / p}),
        serial_fraction=None if ratio is None else serial_fraction(evidence.scaling.law, p, ratio.ratio),
        reason=None if reason is None else reason.en,
        reason_zh=None if reason is None else reason.zh,
    )


def _declared_requests(evidence: Evidence, name: str) -> int | None:
    """Count the requests of an arm: as planned, or as declared where the test was not planned."""
    if evidence.test is not None:
        return _requests(evidence.test.planned, name)
    arm = next(arm for arm in evidence.experiment.arms if arm.name == name)
    if arm.requests_per_gpu is not None:
        return arm.requests_per_gpu[evidence.profile] * arm.num_gpus
    return evidence.experiment.workload[evidence.profile].num_requests


def _why_no_speedup(
    evidence: Evidence,
    item: MetricStatistics | None,
    one: MetricStatistics | None,
    absent: Bilingual,
    refusal: Bilingual | None,
) -> Bilingual | None:
    if item is None or (item.withheld is None and not item.values):
        return absent
    if item.withheld is not None:
        return Bilingual(item.withheld, item.withheld_zh or item.withheld)
    if one is None or not one.values:
        why = _why_no_baseline(evidence, one)
        return Bilingual(f"no baseline: {why.en}", f"没有基线：{why.zh}")
    return refusal


def serial_fraction(law: Law, num_gpus: int, speedup: float) -> float:
    """Solve the law for the serial fraction at one point; `num_gpus` is at least 2."""
    x, y = _straightened(law, num_gpus, speedup)
    return y / x


def fit_law(law: Law, points: Sequence[tuple[int, float]]) -> ScalingFit | None:
    """Fit one serial fraction to (devices, speed-up); None below two points with several devices."""
    if len(points) < MIN_FOR_FIT:
        return None
    straight = [_straightened(law, p, speedup) for p, speedup in points]
    fraction = sum(x * y for x, y in straight) / sum(x * x for x, _ in straight)
    fitted = tuple(predicted_speedup(law, fraction, p) for p, _ in points)
    return ScalingFit(
        law="Amdahl" if law is Law.STRONG else "Gustafson",
        serial_fraction=fraction,
        num_gpus=tuple(p for p, _ in points),
        fitted=fitted,
        residuals=tuple(speedup / law_says - 1 for (_, speedup), law_says in zip(points, fitted, strict=True)),
    )


def predicted_speedup(law: Law, fraction: float, num_gpus: float) -> float:
    """Speed-up that a law gives for a serial fraction."""
    if law is Law.STRONG:
        return 1 / (fraction + (1 - fraction) / num_gpus)
    return num_gpus - fraction * (num_gpus - 1)


def _straightened(law: Law, num_gpus: int, speedup: float) -> tuple[float, float]:
    """Return x and y of the straight line y = s x through the origin that the law is."""
    if law is Law.STRONG:
        return 1 - 1 / num_gpus, 1 / speedup - 1 / num_gpus
    return num_gpus - 1, num_gpus - speedup


def scaling_fields(experiment: Experiment, series: Sequence[ScalingSeries]) -> dict[str, Scalar]:
    """Fill the plan's fields: `<n>gpu_throughput`, and `<n>gpu_efficiency` in per cent; None for absent numbers.

    The fields of the first series bear the plan's names; those of each other one have its id at the end.
    """
    if experiment.scaling is None:
        return {}
    fields: dict[str, Scalar] = {}
    for index, row in enumerate(series):
        suffix = f"_{row.id}" if index else ""
        for point in row.points:
            fields[f"{point.num_gpus}gpu_throughput{suffix}"] = point.throughput
            if point.num_gpus > 1:
                share = None if point.efficiency is None else PERCENT * point.efficiency
                fields[f"{point.num_gpus}gpu_efficiency{suffix}"] = share
    return fields


def declared_fields(experiment: Experiment) -> tuple[str, ...]:
    """Name the fields that a scaling test fills, also where it was not measured; none for other tests."""
    if experiment.scaling is None:
        return ()
    counts = {arm.name: arm.num_gpus for arm in experiment.arms}
    names = []
    for index, row in enumerate(experiment.scaling.series):
        suffix = f"_{row.id}" if index else ""
        names.append(f"1gpu_throughput{suffix}")
        for count in (counts[arm] for arm in row.arms):
            names += [f"{count}gpu_throughput{suffix}", f"{count}gpu_efficiency{suffix}"]
    return tuple(names)
