"""Speed-up, efficiency, intervals and fits of the scaling tests, worked out again from the process scores.

What differs from the way in which the results were made: Welch's interval comes from its textbook formula and the
continued fraction of `arithmetic`, and a fit is the mean of the single points' serial fractions, weighted by the square
of what each is divided by. The denominator is looked up in the baseline's own result and nowhere else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.experiment import Law
from touchstone.verify import arithmetic as own
from touchstone.verify.comparing import differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.experiment import Experiment, Scaling, Series
    from touchstone.verify.gathered import TestEvidence, TimedRun

Json: TypeAlias = "dict[str, Any]"

LEVEL = 0.95
MAX_EFFICIENCY, MAX_POOL_DIFFERENCE, MIN_FOR_FIT = 1.05, 0.01, 2
ROUNDING = 1e-9
PARALLEL = ("tensor_parallel_size", "data_parallel_size")


def scaling_faults(
    tests: Mapping[str, TestEvidence], experiment: Experiment | None, told: Json, results: Mapping[str, Json]
) -> Iterator[str]:
    """Say where the scaling part of a result is not what its own statistics and the baseline's give."""
    scaling = None if experiment is None else experiment.scaling
    if scaling is None or experiment is None:
        if told["scaling"]:
            yield "holds a scaling part, and this test declares none"
        return
    test, one = tests.get(experiment.plan_id), tests.get(scaling.baseline_test)
    if test is None and one is None:
        if told["scaling"]:
            yield "holds a scaling part, and the run planned neither this test nor its baseline"
        return
    if [row["id"] for row in told["scaling"]] != [series.id for series in scaling.series]:
        yield f"the series are not {', '.join(series.id for series in scaling.series)}"
        return
    work = _Work(experiment, scaling, test, one, told, results.get(scaling.baseline_test))
    for series, row in zip(scaling.series, told["scaling"], strict=True):
        yield from _series_faults(work, series, row)
    mine = fields(scaling, told["scaling"])
    yield from differences(mine, {name: told["results"].get(name) for name in mine}, "results of scaling")


def fields(scaling: Scaling, rows: Sequence[Json]) -> Json:
    """Fill the plan's fields from series that were found right."""
    found: Json = {}
    for series, row in zip(scaling.series, rows, strict=True):
        ending = "" if series is scaling.series[0] else f"_{series.id}"
        for point in row["points"]:
            p, share = point["num_gpus"], point["efficiency"]
            found[f"{p}gpu_throughput{ending}"] = point["throughput"]
            if p != 1:
                found[f"{p}gpu_efficiency{ending}"] = None if share is None else share * 100
    return found


class _Work:
    """What one scaling test is held against."""

    def __init__(
        self,
        experiment: Experiment,
        scaling: Scaling,
        test: TestEvidence | None,
        one: TestEvidence | None,
        told: Json,
        told_of_one: Json | None,
    ) -> None:
        self.experiment, self.scaling, self.test, self.one = experiment, scaling, test, one
        self.scores = _scores(told, scaling.metric)
        self.scores_of_one = {} if told_of_one is None else _scores(told_of_one, scaling.metric)
        self.gpus = {arm.name: arm.num_gpus for arm in experiment.arms}
        self.refused = not self._comparable()

    def _comparable(self) -> bool:
        """Whether all arms did the baseline's work with its KV pool on the devices they claim, and none too fast."""
        if self.test is None or self.one is None:
            return not self._too_fast()
        ones = [run for series in self.scaling.series for run in _runs(self.one, series.baseline_arm)]
        if self._too_fast() and not any(_short(run) for run in ones):
            return False
        same_work = _same_prompts if self.scaling.law is Law.STRONG else _in_proportion
        return all(
            _on_their_devices(run, p, ones) and (not ones or (same_work(run, p, ones) and _same_pool(run, ones)))
            for run, p, ones in self._against_one(self.test, self.one)
        )

    def _too_fast(self) -> bool:
        """Whether an arm is faster than its devices can explain."""
        return any(
            ratio / self.gpus[arm] > MAX_EFFICIENCY
            for series in self.scaling.series
            for arm in series.arms
            if (ratio := self.speedup(arm, series.baseline_arm)) is not None
        )

    def _against_one(self, test: TestEvidence, one: TestEvidence) -> Iterator[tuple[TimedRun, int, Sequence[TimedRun]]]:
        """Each run on several devices, their number, and the baseline's runs."""
        for series in self.scaling.series:
            ones = _runs(one, series.baseline_arm)
            for arm in (arm for arm in series.arms if arm in test.arms):
                yield from ((run, self.gpus[arm], ones) for run in _runs(test, arm))

    def speedup(self, arm: str, baseline_arm: str) -> float | None:
        """Ratio of the geometric means of both arms' process scores; None where either has none."""
        above, below = self.scores.get(arm, []), self.scores_of_one.get(baseline_arm, [])
        return math.exp(_mean_log(above) - _mean_log(below)) if above and below else None


def _scores(told: Json, metric: str) -> dict[str, list[float]]:
    return {item["arm"]: item["values"] for item in told["statistics"] if item["metric"] == metric}


def _mean_log(values: Sequence[float]) -> float:
    return own.mean([math.log(value) for value in values])


# --- is it the same work --------------------------------------------------------------------------------------------


def _runs(test: TestEvidence, arm: str) -> list[TimedRun]:
    return [run for row in test.of_arm(arm) for run in row]


def _same_prompts(run: TimedRun, _: int, ones: Sequence[TimedRun]) -> bool:
    facts = run.facts
    return any(
        one.seed == run.seed
        and one.facts.prompt.tolist() == facts.prompt.tolist()
        and one.facts.output.tolist() == facts.output.tolist()
        for one in ones
    )


def _in_proportion(run: TimedRun, p: int, ones: Sequence[TimedRun]) -> bool:
    return all(_counts(run) == [p * count for count in _counts(one)] for one in ones)


def _counts(run: TimedRun) -> list[int]:
    return [len(run.facts.prompt), int(run.facts.prompt.sum()), int(run.facts.output.sum())]


def _pools(run: TimedRun) -> list[int]:
    memory = run.facts.memory
    if memory is None:
        return []
    return [device["kv_pool_bytes"] for device in memory.get("devices") or [memory]]


def _short(run: TimedRun) -> bool:
    """Whether requests lost their blocks, or waited though the engine's limit on sequences let more of them run."""
    facts, limit = run.facts, run.settings.get("max_num_seqs")
    if facts.preemptions is not None and facts.preemptions.any():
        return True
    most = min(len(facts.output), limit) if isinstance(limit, int) and limit > 0 else len(facts.output)
    return facts.peak_concurrency is not None and facts.peak_concurrency < most


def _same_pool(run: TimedRun, ones: Sequence[TimedRun]) -> bool:
    theirs = [pool for one in ones for pool in _pools(one)]
    return not theirs or all(abs(pool - min(theirs)) <= MAX_POOL_DIFFERENCE * min(theirs) for pool in _pools(run))


def _on_their_devices(run: TimedRun, p: int, ones: Sequence[TimedRun]) -> bool:
    return _on(run, p) and all(_on(one, 1) for one in ones)


def _on(run: TimedRun, p: int) -> bool:
    """Whether all that tells a number of devices tells `p`."""
    memory, telemetry = run.facts.memory, run.facts.telemetry
    told = [] if memory is None else [len(memory.get("devices") or [memory])]
    told += [len(telemetry["gpus"])] if telemetry is not None and telemetry["gpus"] else []
    sizes = [run.settings[name] for name in PARALLEL if isinstance(run.settings.get(name), int)]
    return {*told, *([math.prod(sizes)] if sizes else [])} <= {p}


# --- one series -----------------------------------------------------------------------------------------------------


def _series_faults(work: _Work, series: Series, row: Json) -> Iterator[str]:
    head = {"law": work.scaling.law.value, "metric": work.scaling.metric, "name": series.name.en}
    yield from differences(head, row, f"scaling {series.id}")
    arms = [series.baseline_arm, *series.arms]
    if [point["arm"] for point in row["points"]] != arms:
        yield f"scaling {series.id}: the points are not {', '.join(arms)}"
        return
    first, *others = row["points"]
    yield from differences(_baseline(work, series), first, f"scaling {series.id}, {first['arm']}")
    for point in others:
        where = f"scaling {series.id}, {point['arm']}"
        yield from differences(_point(work, series, point["arm"]), point, where)
        if (point["speedup"] is None) != (point["reason"] is not None):
            yield f"{where}: a point has a speed-up or a reason why not, and not both"
    yield from _fit_faults(work.scaling.law, series.id, others, row["fit"])


def _baseline(work: _Work, series: Series) -> Json:
    scores = work.scores_of_one.get(series.baseline_arm, [])
    one = 1.0 if scores else None
    return {
        "test_id": work.scaling.baseline_test,
        "num_gpus": 1,
        "num_requests": None if work.one is None else _planned_requests(work.one, series.baseline_arm),
        "throughput": own.median(scores) if scores else None,
        "speedup": one,
        "efficiency": one,
        "speedup_interval": None,
        "efficiency_interval": None,
        "serial_fraction": None,
    }


def _point(work: _Work, series: Series, arm: str) -> Json:
    scores, p = work.scores.get(arm, []), work.gpus[arm]
    ratio = None if work.refused else work.speedup(arm, series.baseline_arm)
    spread = None if ratio is None else welch(scores, work.scores_of_one[series.baseline_arm])
    mine: Json = {
        "test_id": work.experiment.plan_id,
        "num_gpus": p,
        "throughput": own.median(scores) if scores else None,
        "speedup": ratio,
        "speedup_interval": None if spread is None else _interval(*spread),
        "efficiency": None if ratio is None else ratio / p,
        "efficiency_interval": None if spread is None else _interval(spread[0] / p, spread[1] / p),
        "serial_fraction": None if ratio is None else fraction_of(work.scaling.law, p, ratio),
    }
    return mine if work.test is None else mine | {"num_requests": _planned_requests(work.test, arm)}


def _interval(low: float, high: float) -> Json:
    return {"low": low, "high": high, "level": LEVEL, "method": "Welch t on logarithms"}


def _planned_requests(test: TestEvidence, arm: str) -> int | None:
    specs = [*test.planned["arms"], *(row["arm"] for row in test.planned.get("absent_arms", []))]
    found = next((spec.get("num_requests") for spec in specs if spec["name"] == arm), None)
    requests: int | None = test.planned["workload"]["num_requests"] if found is None else found
    return requests


def welch(above: Sequence[float], below: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the ratio of geometric means; None where a sample holds one value, a point where none spreads.

    Welch 1947: v = s^2 / n of each sample's logarithms, freedom (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)).
    """
    if min(len(above), len(below)) < 2:  # noqa: PLR2004  a spread needs two values
        return None
    parts = [_variance_of_mean(values) for values in (above, below)]
    centre, whole = _mean_log(above) - _mean_log(below), sum(parts)
    if whole == 0:
        return math.exp(centre), math.exp(centre)
    sizes = (len(above), len(below))
    freedom = whole**2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    half = own.t_quantile(LEVEL, freedom) * math.sqrt(whole)
    return math.exp(centre - half), math.exp(centre + half)


def _variance_of_mean(values: Sequence[float]) -> float:
    if len(set(values)) == 1:
        return 0.0
    middle, size = _mean_log(values), len(values)
    return math.fsum((math.log(value) - middle) ** 2 for value in values) / (size - 1) / size


def fraction_of(law: Law, p: int, speedup: float) -> float:
    """Turn a law round for a single point: Karp and Flatt's metric (1990), or Gustafson's law for its fraction."""
    if law is Law.STRONG:
        return (p / speedup - 1) / (p - 1)
    return (p - speedup) / (p - 1)


def _fit_faults(law: Law, name: str, points: Sequence[Json], told: Json | None) -> Iterator[str]:
    known = [(point["num_gpus"], point["speedup"]) for point in points if point["speedup"] is not None]
    if len(known) < MIN_FOR_FIT or told is None:
        if (told is None) == (len(known) >= MIN_FOR_FIT):
            yield f"scaling {name}: {len(known)} points with several devices, {MIN_FOR_FIT} of them make a fit"
        return
    weights = [((p - 1) / p if law is Law.STRONG else p - 1) ** 2 for p, _ in known]
    shares = [weight * fraction_of(law, p, speedup) for weight, (p, speedup) in zip(weights, known, strict=True)]
    s = math.fsum(shares) / math.fsum(weights)
    fitted = [p / (1 + s * (p - 1)) if law is Law.STRONG else p * (1 - s) + s for p, _ in known]
    mine = {
        "law": "Amdahl" if law is Law.STRONG else "Gustafson",
        "serial_fraction": s,
        "num_gpus": [p for p, _ in known],
        "fitted": fitted,
        "residuals": [(speedup - says) / says for (_, speedup), says in zip(known, fitted, strict=True)],
    }
    yield from differences(mine, told, f"scaling {name}, fit")
