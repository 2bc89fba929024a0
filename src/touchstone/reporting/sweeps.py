"""The sweeps of a test as its chapter shows them: a table an axis, who is better where, what each point rests on."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

from touchstone.analysis.metrics import DICTIONARY, Better
from touchstone.analysis.statistics import EffectVerdict
from touchstone.coordinates import COORDINATES
from touchstone.experiment import AT, Bilingual, family_of, is_point
from touchstone.records import Verdict
from touchstone.reporting.formatting import exact, fixed, notation_for, scale_for, significant_place
from touchstone.reporting.numbers import line_ranges, notation_of_effect, p_value
from touchstone.reporting.values import NOTHING, Amount, Code, Definition, FigureView, Printable, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from touchstone.experiment import Axis
    from touchstone.records import Check, Effect, MetricStatistics, Payback, PlannedTest, Result
    from touchstone.reporting.run_folder import Run

# Checks that say whether a point's comparison is one: printed for each point, with every check that failed.
COMPARED = frozenset(
    {"same_work", "same_answer", "passes_agree", "cache_hits_as_predicted", "arrivals_as_drawn", "graphs_as_asked"}
)
DIGITS = 3
US_PER_S = 1e6


@dataclass(frozen=True, slots=True)
class CellRow:
    """One metric at one place of an axis: both arms' medians, and their ratio where there is one."""

    test_id: str
    place: Printable
    definition: Definition
    metric: str
    baseline: Printable
    treatment: Printable
    ratio: Printable
    interval: Printable
    p_sign_flip: Printable
    p_holm: Printable
    verdict: str | None
    better: Printable


@dataclass(frozen=True, slots=True)
class Where:
    """A ratio at a place, as the sentences quote it."""

    place: Printable
    ratio: Printable
    interval: Printable


@dataclass(frozen=True, slots=True)
class Winners:
    """One metric along an axis: where the verdicts give it to which arm."""

    definition: Definition
    metric: str
    treatment: tuple[Where, ...]
    baseline: tuple[Where, ...]
    equivalent: tuple[Where, ...]
    undecided: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class PointRow:
    """What a place on an axis rests on."""

    test_id: str
    place: Printable
    lines: Amount
    attempts: Printable
    valid_attempts: Printable
    passed: Printable
    checks: Printable


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check of a point."""

    test_id: str
    id: str
    passed: bool
    detail: Bilingual


@dataclass(frozen=True, slots=True)
class AbsentRow:
    """A planned point without a valid process, and why."""

    test_id: str
    reason: Bilingual


@dataclass(frozen=True, slots=True)
class SweepView:
    """One axis of a test."""

    name: Bilingual
    baseline: str
    treatment: str
    rows: tuple[CellRow, ...]
    winners: tuple[Winners, ...]
    points: tuple[PointRow, ...]
    checks: tuple[CheckRow, ...]
    absent: tuple[AbsentRow, ...]
    figures: tuple[FigureView, ...]


@dataclass(frozen=True, slots=True)
class PaybackRow:
    """When the capture of CUDA graphs is earned back, at one batch."""

    test_id: str
    place: Printable
    capture: Amount
    memory: Amount
    saved: Amount
    tokens: Printable
    interval: Printable
    verdict: str


@dataclass(frozen=True, slots=True)
class Place:
    """A planned test on an axis, and what came of it; `coordinate` None stands at the end."""

    test: PlannedTest
    result: Result
    coordinate: float | None
    shown: Printable


def places_on(run: Run, test_id: str, axis: Axis) -> tuple[Place, ...]:
    """Order the measured members of an axis by their coordinate; those without one come last."""
    planned = {test.test_id: test for test in run.plan.tests}
    results = {result.test_id: result for result in run.results}
    members = [test for test in planned.values() if family_of(test.test_id) == test_id and _lies_on(test, axis)]
    places = [_place(test, results[test.test_id], axis) for test in members if test.test_id in results]
    measured = (place for place in places if place.result.status == "measured")
    return tuple(sorted(measured, key=_along))


def _along(place: Place) -> tuple[bool, float, str]:
    return place.coordinate is None, place.coordinate or 0.0, place.test.test_id


def _lies_on(test: PlannedTest, axis: Axis) -> bool:
    if axis.id not in COORDINATES:  # points without an order between them, told elsewhere
        return False
    return test.axis == axis.id if is_point(test.test_id) else axis.includes_test


def _place(test: PlannedTest, result: Result, axis: Axis) -> Place:
    coordinate = COORDINATES[axis.id]
    value = coordinate.of(test)
    beyond = coordinate.beyond or Bilingual("none", "无")
    unit = coordinate.one if value == 1 and coordinate.one is not None else coordinate.unit
    return Place(test, result, value, beyond if value is None else Amount(exact(value), unit))


def sweep_views(run: Run, test_id: str, figures: Mapping[str, tuple[FigureView, ...]]) -> tuple[SweepView, ...]:
    """Show every axis of a test that has a measured point; `figures` are keyed by test and axis, `2.1/shared`."""
    experiment = run.experiment(test_id)
    if experiment is None:
        return ()
    return tuple(
        view
        for axis in experiment.sweep
        if (view := _sweep_view(run, test_id, axis, figures.get(f"{test_id}/{axis.id}", ()))) is not None
    )


def _sweep_view(run: Run, test_id: str, axis: Axis, figures: tuple[FigureView, ...]) -> SweepView | None:
    places = places_on(run, test_id, axis)
    if not any(is_point(place.test.test_id) for place in places):
        return None
    metrics = tuple(dict.fromkeys(measure.metric for measure in axis.measures))
    baseline, treatment = (arm.name for arm in places[0].test.arms[:2])
    return SweepView(
        name=COORDINATES[axis.id].name,
        baseline=baseline,
        treatment=treatment,
        rows=tuple(_row(place, metric, baseline, treatment) for metric in metrics for place in places),
        winners=tuple(won for metric in metrics if (won := _winners(places, metric)) is not None),
        points=tuple(_point_row(place) for place in places),
        checks=tuple(_check_rows(places)),
        absent=_absent(run, test_id, axis),
        figures=figures,
    )


def _absent(run: Run, test_id: str, axis: Axis) -> tuple[AbsentRow, ...]:
    names = {f"{test_id}{AT}{point.name}" for point in axis.points}
    return tuple(
        AbsentRow(result.test_id, Bilingual(result.reason or "", result.reason_zh or ""))
        for result in run.results
        if result.test_id in names and result.status != "measured"
    )


# --- the table of an axis -------------------------------------------------------------------------------------------


def _row(place: Place, metric: str, baseline: str, treatment: str) -> CellRow:
    arms = {item.arm: item for item in place.result.statistics if item.metric == metric}
    effect = _effect(place, metric)
    notation = None if effect is None else notation_of_effect(effect)
    return CellRow(
        test_id=place.test.test_id,
        place=place.shown,
        definition=_definition(metric),
        metric=metric,
        baseline=_value(arms.get(baseline)),
        treatment=_value(arms.get(treatment)),
        ratio=NOTHING if effect is None or notation is None else Amount(notation.write(effect.ratio)),
        interval=_interval(effect),
        p_sign_flip=NOTHING if effect is None or effect.p_sign_flip is None else Amount(p_value(effect.p_sign_flip)),
        p_holm=NOTHING if effect is None or effect.p_holm is None else Amount(p_value(effect.p_holm)),
        verdict=None if effect is None else effect.verdict,
        better=NOTHING if effect is None else _better(effect),
    )


def _definition(metric: str) -> Definition:
    found = DICTIONARY[metric]
    return Definition(found.name, found.formula, found.how)


def _effect(place: Place, metric: str) -> Effect | None:
    return next((effect for effect in place.result.effects if effect.metric == metric), None)


def _value(statistics: MetricStatistics | None) -> Printable:
    if statistics is None:
        return NOTHING
    if statistics.verdict is Verdict.INVALID:
        return Term("withheld")  # the failed check stands below, with what it found
    if statistics.median is None:
        return Bilingual(statistics.withheld or "", statistics.withheld_zh or statistics.withheld or "")
    notation = notation_for(statistics, exact_value=statistics.verdict is Verdict.EXACT)
    return Amount(notation.write(statistics.median), notation.scale.symbol)


def _interval(effect: Effect | None) -> Printable:
    if effect is None or effect.interval is None:
        return NOTHING
    notation = notation_of_effect(effect)
    return Amount(f"[{notation.write(effect.interval.low)}, {notation.write(effect.interval.high)}]")


def _better(effect: Effect) -> Printable:
    winner = winner_of(effect)
    return NOTHING if winner is None else Code(winner)


def winner_of(effect: Effect) -> str | None:
    """Name the arm that a verdict gives the metric to; None where it gives it to none, or neither way is better."""
    better = DICTIONARY[effect.metric].better
    rises = effect.verdict == EffectVerdict.HIGHER or (effect.verdict == Verdict.EXACT and effect.ratio > 1)
    falls = effect.verdict == EffectVerdict.LOWER or (effect.verdict == Verdict.EXACT and effect.ratio < 1)
    if better is None or not (rises or falls):
        return None
    return effect.treatment if rises == (better is Better.HIGHER) else effect.baseline


# --- who is better where --------------------------------------------------------------------------------------------


def _winners(places: Sequence[Place], metric: str) -> Winners | None:
    found = [(place, effect) for place in places if (effect := _effect(place, metric)) is not None]
    if DICTIONARY[metric].better is None or not found:
        return None
    sides: dict[str, list[Where]] = {"treatment": [], "baseline": [], "equivalent": [], "undecided": []}
    for place, effect in found:
        sides[_side(effect)].append(_where(place, effect))
    return Winners(_definition(metric), metric, **{side: tuple(listed) for side, listed in sides.items()})


def _side(effect: Effect) -> str:
    winner = winner_of(effect)
    if winner is not None:
        return "treatment" if winner == effect.treatment else "baseline"
    same = effect.verdict in {EffectVerdict.EQUIVALENT, Verdict.EXACT}
    return "equivalent" if same else "undecided"


def _where(place: Place, effect: Effect) -> Where:
    return Where(place.shown, Amount(notation_of_effect(effect).write(effect.ratio)), _interval(effect))


# --- what the points rest on ----------------------------------------------------------------------------------------


def _point_row(place: Place) -> PointRow:
    evidence, checks = place.result.evidence, place.result.checks
    return PointRow(
        test_id=place.test.test_id,
        place=place.shown,
        lines=NOTHING if evidence is None else Amount(line_ranges(evidence.entries)),
        attempts=NOTHING if evidence is None else evidence.attempts,
        valid_attempts=NOTHING if evidence is None else evidence.valid_attempts,
        passed=sum(check.passed for check in checks),
        checks=len(checks),
    )


def _check_rows(places: Iterable[Place]) -> Iterator[CheckRow]:
    """Quote the checks of the points; those of the test itself stand in its own table."""
    for place in places:
        for check in place.result.checks if is_point(place.test.test_id) else ():
            if check.id in COMPARED or not check.passed:
                yield _check_row(place, check)


def _check_row(place: Place, check: Check) -> CheckRow:
    return CheckRow(place.test.test_id, check.id, check.passed, Bilingual(check.detail, check.detail_zh))


# --- when captured graphs are earned back ---------------------------------------------------------------------------


def payback_rows(run: Run, test_id: str) -> tuple[PaybackRow, ...]:
    """Show when graphs are earned back, at the test itself and at its points, along the first axis that has them."""
    experiment = run.experiment(test_id)
    axes = () if experiment is None else experiment.sweep
    rows = (
        tuple(
            _payback_row(place, place.result.payback)
            for place in places_on(run, test_id, axis)
            if place.result.payback is not None
        )
        for axis in axes
    )
    return next((found for found in rows if found), ())


def _payback_row(place: Place, payback: Payback) -> PaybackRow:
    capture = scale_for("s", median(payback.captures_s))
    memory = scale_for("GB", payback.capture_bytes / 1e9)
    return PaybackRow(
        test_id=place.test.test_id,
        place=place.shown,
        capture=Amount(_short(median(payback.captures_s) * capture.factor), capture.symbol),
        memory=Amount(_short(payback.capture_bytes / 1e9 * memory.factor), memory.symbol),
        saved=Amount(_short(fmean(payback.saved_s) * US_PER_S), "µs"),
        tokens=NOTHING if payback.tokens is None else Amount(_short(payback.tokens), "tokens"),
        interval=_ends(payback),
        verdict=payback.verdict,
    )


def _ends(payback: Payback) -> Printable:
    if payback.low is None:
        return NOTHING
    high = "∞)" if payback.high is None else f"{_short(payback.high)}]"
    return Amount(f"[{_short(payback.low)}, {high}", "tokens")


def _short(value: float) -> str:
    return fixed(value, significant_place(value, DIGITS))
