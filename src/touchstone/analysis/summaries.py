"""From the timed runs of one test to its metric statistics, its paired effects and the plan's result fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

from touchstone.analysis import statistics
from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.analysis.quantities import NotAvailable, Quantity
from touchstone.analysis.roofline import roofline_of
from touchstone.analysis.runs import MAX_INVALID_SHARE
from touchstone.experiment import Bilingual, Design
from touchstone.records import Effect, MetricStatistics, Verdict, WorkedExample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.analysis.metrics import MetricDefinition
    from touchstone.analysis.roofline import Peaks
    from touchstone.analysis.runs import Process, Run, TestRuns
    from touchstone.experiment import Experiment, Measure
    from touchstone.records import Scalar

NUM_PAIRED_ARMS = 2
TOO_MANY_INVALID = Bilingual(
    f"more than {MAX_INVALID_SHARE:.0%} of the attempts were invalid", f"无效尝试超过 {MAX_INVALID_SHARE:.0%}"
)


class MeasureError(ValueError):
    """An experiment that asks for what cannot be derived; the message names it and what exists."""


def check_experiment(experiment: Experiment) -> None:
    """Refuse unknown metrics, comparisons without pairs, and pairs that are not two arms."""
    known = {*DICTIONARY, *COMPARISONS}
    paired = experiment.design is Design.PAIRED_BLOCKS
    for measure in experiment.measures:
        if measure.metric not in known:
            names = ", ".join(sorted(known))
            raise MeasureError(f"test {experiment.plan_id}: unknown metric {measure.metric!r}; known are {names}")
        if measure.metric in COMPARISONS and not paired:
            raise MeasureError(f"test {experiment.plan_id}: {measure.metric!r} compares arms; use paired blocks")
    arms, filled = len(experiment.arms), any(measure.result for measure in experiment.measures)
    if paired and (arms < NUM_PAIRED_ARMS or (arms > NUM_PAIRED_ARMS and filled)):
        raise MeasureError(f"test {experiment.plan_id}: paired blocks need 2 arms, {arms} are given")


def metric_statistics(
    test: TestRuns, experiment: Experiment, peaks: Peaks | None, device: str
) -> tuple[MetricStatistics, ...]:
    """Describe every metric that the experiment reports or compares, arm by arm, in the experiment's order.

    With the machine's `peaks` each speed gets its physical floor.
    """
    keys: dict[str, bool] = {}
    for measure in experiment.measures:
        name = base_metric(measure)
        keys[name] = keys.get(name, False) or measure.key
    described = (_describe(test, DICTIONARY[name], arm, key=key) for name, key in keys.items() for arm in test.arms)
    return tuple(described) if peaks is None else tuple(_roofed(test, item, peaks, device) for item in described)


def withhold(item: MetricStatistics, reason: Bilingual) -> MetricStatistics:
    """Take a number back: no value, the verdict INVALID and the reason; the roofline stays to be looked at."""
    bare = _withheld(DICTIONARY[item.metric], item.arm, reason, Verdict.INVALID, key=item.key)
    return bare.model_copy(update={"roofline": item.roofline})


def base_metric(measure: Measure) -> str:
    """Name the metric of single runs behind a measure: itself, or what the comparison compares."""
    comparison = COMPARISONS.get(measure.metric)
    return measure.metric if comparison is None else comparison.metric


def paired_effects(members: Sequence[tuple[TestRuns, Experiment]]) -> dict[str, tuple[Effect, ...]]:
    """Estimate treatment / baseline from one log-ratio a process, for a test and the points of its sweep, by test id.

    A metric is left out where a run does not give it or gives a value that is not positive. A count with the same ratio
    in every block is EXACT and not tested; Holm's adjustment runs over all the others of a treatment, in the test and
    in all of its points together: they are one experiment, and whoever looks at so many ratios sees chance in some.
    """
    compared = [
        (test, experiment)
        for test, experiment in members
        if experiment.design is Design.PAIRED_BLOCKS and not test.too_many_invalid and test.processes
    ]
    treatments = dict.fromkeys(arm for test, _ in compared for arm in test.arms[1:])
    by_treatment = [_effects_of(compared, arm) for arm in treatments]
    return {
        test.planned.test_id: tuple(
            effect for effects in by_treatment for effect in effects.get(test.planned.test_id, ())
        )
        for test, _ in compared
    }


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The log-ratios of one metric of one test."""

    test: TestRuns
    metric: str
    ratios: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """Whether it is a count that came out alike in every block."""
        return DICTIONARY[self.metric].counted and len(set(self.ratios)) == 1


def _effects_of(compared: Sequence[tuple[TestRuns, Experiment]], treatment: str) -> dict[str, list[Effect]]:
    """Judge a treatment in all tests of a family, by test id."""
    found = [blocks for test, experiment in compared for blocks in _blocks_of(test, experiment, treatment)]
    tested = [blocks for blocks in found if not blocks.exact]
    margins = {statistics.MARGIN if test.planned.margin is None else test.planned.margin for test, _ in compared}
    estimates = statistics.ablation_effects([blocks.ratios for blocks in tested], min(margins))
    by_place = {(one.test.planned.test_id, one.metric): made for one, made in zip(tested, estimates, strict=True)}
    effects: dict[str, list[Effect]] = {}
    for one in found:
        test_id, baseline = one.test.planned.test_id, one.test.arms[0]
        effects.setdefault(test_id, []).append(
            _exact_effect(one.test.processes[0], one.metric, baseline, treatment, one.ratios)
            if one.exact
            else _tested_effect(one.metric, baseline, treatment, by_place[test_id, one.metric])
        )
    return effects


def _blocks_of(test: TestRuns, experiment: Experiment, treatment: str) -> Iterator[_Blocks]:
    for name in dict.fromkeys(base_metric(measure) for measure in experiment.measures):
        ratios = block_log_ratios(test.processes, DICTIONARY[name], test.arms[0], treatment)
        if ratios is not None:
            yield _Blocks(test, name, ratios)


def block_log_ratios(
    processes: Sequence[Process], definition: MetricDefinition, baseline: str, treatment: str
) -> tuple[float, ...] | None:
    """Take one log-ratio a process: mean log of its treatment runs less mean log of its baseline runs."""
    ratios = []
    for process in processes:
        logs = [_mean_log(process.of_arm(arm), definition) for arm in (treatment, baseline)]
        if logs[0] is None or logs[1] is None:
            return None
        ratios.append(logs[0] - logs[1])
    return tuple(ratios)


def plan_results(
    experiment: Experiment, described: Sequence[MetricStatistics], effects: Sequence[Effect]
) -> dict[str, Scalar]:
    """Fill the plan's result fields; None where a value is withheld.

    A single arm gives the field itself. Of a pair the treatment gives it, and of several unpaired arms the first; each
    other arm gives `<field>_<arm>`.
    """
    medians = {(item.metric, item.arm): item.median for item in described}
    ratios = {effect.metric: effect.ratio for effect in effects}
    results: dict[str, Scalar] = {}
    for measure in experiment.measures:
        if measure.result is None:
            continue
        comparison = COMPARISONS.get(measure.metric)
        if comparison is not None:
            ratio = ratios.get(comparison.metric)
            results[measure.result] = None if ratio is None else comparison.transform(ratio)
        else:
            results |= _arm_fields(experiment, measure.metric, measure.result, medians)
    return results


def _arm_fields(
    experiment: Experiment, metric: str, field: str, medians: Mapping[tuple[str, str], float | None]
) -> dict[str, Scalar]:
    arms = [arm.name for arm in experiment.arms]
    if len(arms) == 1:
        return {field: medians.get((metric, arms[0]))}
    if experiment.design is Design.PAIRED_BLOCKS:
        baseline, treatment = arms
        return {field: medians.get((metric, treatment)), f"{field}_{baseline}": medians.get((metric, baseline))}
    return {f"{field}_{arm}" if index else field: medians.get((metric, arm)) for index, arm in enumerate(arms)}


def _roofed(test: TestRuns, item: MetricStatistics, peaks: Peaks, device: str) -> MetricStatistics:
    """Set a metric's worked example beside its physical floor, where it has one."""
    shown, spec = item.example, test.planned.workload
    if shown is None or (spec is not None and spec.load is not None):
        return item  # a run that waits for arrivals is not slow: nothing bounds it from below
    run = next(run for run in test.runs if (run.unit_id, run.position) == (shown.unit_id, shown.position))
    alone = spec is not None and spec.concurrency == 1
    found = roofline_of(item.metric, run.facts, shown.value, peaks, device, alone=alone)
    return item if found is None else item.model_copy(update={"roofline": found})


# --- one metric of one arm ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Value:
    run: Run
    quantity: Quantity


def _describe(test: TestRuns, definition: MetricDefinition, arm: str, *, key: bool) -> MetricStatistics:
    if test.too_many_invalid_of(arm):
        return _withheld(definition, arm, TOO_MANY_INVALID, Verdict.INVALID, key=key)
    rows = [[(run, definition.compute(run.facts)) for run in process.of_arm(arm)] for process in test.processes]
    for _, measured in (cell for row in rows for cell in row):
        if isinstance(measured, NotAvailable):
            return _withheld(definition, arm, measured.reason, Verdict.INSUFFICIENT, key=key)
    values = [[_Value(run, cell) for run, cell in row if isinstance(cell, Quantity)] for row in rows if row]
    return _described(test, definition, arm, values, key=key)


def _described(
    test: TestRuns, definition: MetricDefinition, arm: str, rows: Sequence[Sequence[_Value]], *, key: bool
) -> MetricStatistics:
    repetitions = tuple(tuple(value.quantity.value for value in row) for row in rows)
    scores = tuple(median(row) for row in repetitions)
    summary = statistics.summarize(scores, planned=num_planned(test, arm), counted=definition.counted)
    sizes = [value.quantity.sample_size for row in rows for value in row if value.quantity.sample_size is not None]
    return MetricStatistics(
        metric=definition.id,
        arm=arm,
        unit=definition.unit,
        key=key,
        repetitions=repetitions,
        values=scores,
        n=summary.n,
        k=min((len(row) for row in repetitions), default=0),
        sample_size=min(sizes, default=None),
        median=summary.median,
        interval=summary.interval,
        log_t_interval=summary.log_t_interval,
        max_deviation=summary.max_deviation,
        drift=summary.drift,
        drift_p=summary.drift_p,
        verdict=summary.verdict,
        indicative=summary.indicative,
        withheld=None,
        example=_example([value for row in rows for value in row], summary.median),
    )


def num_planned(test: TestRuns, arm: str) -> int:
    """Count the processes that were planned for an arm: those of other arms are not its own."""
    return sum(arm in unit.arm_order for unit in test.units)


def _example(values: Sequence[_Value], centre: float | None) -> WorkedExample | None:
    """Show the run whose value lies nearest to the median; the first of them where several do."""
    if centre is None:
        return None
    nearest = min(values, key=lambda value: abs(value.quantity.value - centre))
    return WorkedExample(
        unit_id=nearest.run.unit_id,
        position=nearest.run.position,
        value=nearest.quantity.value,
        terms=dict(nearest.quantity.terms),
    )


def _withheld(
    definition: MetricDefinition, arm: str, reason: Bilingual, verdict: Verdict, *, key: bool
) -> MetricStatistics:
    return MetricStatistics(
        metric=definition.id,
        arm=arm,
        unit=definition.unit,
        key=key,
        repetitions=(),
        values=(),
        n=0,
        k=0,
        sample_size=None,
        median=None,
        interval=None,
        log_t_interval=None,
        max_deviation=None,
        drift=None,
        drift_p=None,
        verdict=verdict,
        indicative=True,
        withheld=reason.en,
        withheld_zh=reason.zh,
    )


# --- one effect -----------------------------------------------------------------------------------------------------


def _mean_log(runs: Sequence[Run], definition: MetricDefinition) -> float | None:
    measured = [definition.compute(run.facts) for run in runs]
    values = [item.value for item in measured if isinstance(item, Quantity) and item.value > 0]
    return fmean(math.log(value) for value in values) if values and len(values) == len(runs) else None


def _exact_effect(process: Process, metric: str, baseline: str, treatment: str, blocks: tuple[float, ...]) -> Effect:
    """Give the ratio of counts as their quotient, which a logarithm there and back would blur in the last digit."""
    above, below = (DICTIONARY[metric].compute(process.of_arm(arm)[0].facts) for arm in (treatment, baseline))
    if not (isinstance(above, Quantity) and isinstance(below, Quantity)):
        raise MeasureError(f"{metric!r} has block ratios and no values; this is an error in the derivation")
    return Effect(
        metric=metric,
        baseline=baseline,
        treatment=treatment,
        blocks=blocks,
        ratio=above.ratio_to(below),
        interval=None,
        p_sign_flip=None,
        p_holm=None,
        verdict=Verdict.EXACT,
    )


def _tested_effect(metric: str, baseline: str, treatment: str, estimate: statistics.AblationEffect) -> Effect:
    return Effect(
        metric=metric,
        baseline=baseline,
        treatment=treatment,
        blocks=estimate.blocks,
        ratio=estimate.ratio,
        interval=estimate.interval,
        p_sign_flip=estimate.p_sign_flip,
        p_holm=estimate.p_holm,
        verdict=estimate.verdict,
    )
