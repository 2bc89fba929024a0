"""One metric as the report shows it: value, interval, verdict, all repetitions, the formula with this run's values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.analysis.statistics import TOLERANCE, EffectVerdict
from touchstone.experiment import Bilingual
from touchstone.records import Verdict
from touchstone.reporting.formatting import (
    Notation,
    Scale,
    exact,
    fixed,
    last_place,
    noise_of,
    notation_for,
    percent,
    place_of_exact,
    significant_place,
)
from touchstone.reporting.machine import RooflineView, roofline_view
from touchstone.reporting.values import NOTHING, Amount, Definition, Printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.analysis.metrics import ComparisonDefinition
    from touchstone.records import Effect, Interval, MetricStatistics, Result, WorkedExample

P_VALUE_DECIMALS = 3
DIGITS_OF_EXACT_RATIO = 4
LINES_LISTED_AS_RANGE = 3
_LATEX_UNITS = {"%": r"\%", "×": r"\times"}


class UnknownMetricError(KeyError):
    """A result names a metric that no dictionary defines; the message names the metric."""


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """The score of one process and the timed repetitions behind it."""

    process: int
    score: str
    repetitions: str


@dataclass(frozen=True, slots=True)
class ArmView:
    """One metric of one arm."""

    arm: str
    value: Amount
    interval: Amount
    log_interval: Amount
    level: Amount
    range: Amount
    verdict: str
    indicative: bool
    withheld: Bilingual | None
    num_processes: int
    num_repetitions: int
    sample_size: Printable
    max_deviation: Amount
    drift: Amount
    rows: tuple[ProcessRow, ...]
    unit: Amount
    worked: str | None
    example: Bilingual | None
    verification: Bilingual
    compared: bool = False
    roofline: RooflineView | None = None
    void: Bilingual | None = None

    @property
    def is_single(self) -> bool:
        """Whether one value was taken once, so that nothing can be said of its spread."""
        return self.num_processes == 1 and self.num_repetitions == 1

    @property
    def quotes_range(self) -> bool:
        """Whether the range has to be printed beside the value."""
        without_interval = self.interval == NOTHING and self.verdict in set(Verdict) - {Verdict.EXACT}
        return self.range != NOTHING and (self.verdict in {Verdict.UNSTABLE, Verdict.DRIFTING} or without_interval)


@dataclass(frozen=True, slots=True)
class NumberView:
    """One metric of a test in all its arms; `fields` are the fields of the plan that it fills."""

    metric: str
    fields: tuple[str, ...]
    key: bool
    definition: Definition
    arms: tuple[ArmView, ...]

    @property
    def several_arms(self) -> bool:
        """Whether the arm has to be named beside each value."""
        return len(self.arms) > 1


@dataclass(frozen=True, slots=True)
class EffectView:
    """The paired effect of a switch on one metric."""

    metric: str
    definition: Definition
    baseline: str
    treatment: str
    ratio: str
    interval: Amount
    p_sign_flip: Printable
    p_holm: Printable
    blocks: str
    verdict: str


def definition_of(metric: str, extra: Mapping[str, Definition]) -> Definition:
    """Look a metric up in the dictionaries; UnknownMetricError names one that stands in none."""
    found = DICTIONARY.get(metric) or COMPARISONS.get(metric)
    if found is not None:
        return Definition(found.name, found.formula, found.how)
    try:
        return extra[metric]
    except KeyError:
        raise UnknownMetricError(
            f"metric {metric!r} is in no dictionary; add it to touchstone.analysis.metrics"
        ) from None


# --- building -------------------------------------------------------------------------------------------------------


def number_views(
    result: Result,
    fields: Mapping[str, tuple[str, ...]],
    definitions: Mapping[str, Definition],
    counts: Mapping[str, Mapping[str, float]],
) -> tuple[NumberView, ...]:
    """Show a result's comparisons and then its metrics, in the order in which they stand.

    `fields` names, for each metric or comparison, the fields of the plan that it fills; `definitions` adds to the
    dictionaries, and `counts` gives the terms of formulas that no timed run fills.
    """
    grouped: dict[str, list[MetricStatistics]] = {}
    for statistics in result.statistics:
        grouped.setdefault(statistics.metric, []).append(statistics)
    lines = "" if result.evidence is None else line_ranges(result.evidence.entries)
    compared = [name for name in fields if name in COMPARISONS and result.status == "measured"]
    return (
        *(_comparison_view(COMPARISONS[name], fields[name], result, lines) for name in compared),
        *(
            _number_view(metric, group, fields.get(metric, ()), definition_of(metric, definitions), lines, counts)
            for metric, group in grouped.items()
        ),
    )


def _number_view(
    metric: str,
    group: Sequence[MetricStatistics],
    fields: tuple[str, ...],
    definition: Definition,
    lines: str,
    counts: Mapping[str, Mapping[str, float]],
) -> NumberView:
    arms = tuple(
        _arm_view(statistics, worked_formula(statistics, definition.formula, counts), lines) for statistics in group
    )
    return NumberView(metric, fields, any(statistics.key for statistics in group), definition, arms)


def _arm_view(statistics: MetricStatistics, worked: str | None, lines: str) -> ArmView:
    noisy = statistics.verdict is not Verdict.EXACT
    notation = notation_for(statistics, exact_value=not noisy)
    shown = statistics.withheld is None and statistics.median is not None
    return ArmView(
        arm=statistics.arm,
        value=_amount(notation, statistics.median) if shown and statistics.median is not None else NOTHING,
        interval=_interval(notation, statistics.interval) if shown and noisy else NOTHING,
        log_interval=_interval(notation, statistics.log_t_interval) if shown and noisy else NOTHING,
        level=_level(statistics.interval) if noisy else NOTHING,
        range=_range(notation, statistics.values),
        verdict=statistics.verdict.value,
        indicative=statistics.indicative and noisy and shown,
        withheld=_withheld(statistics),
        num_processes=statistics.n,
        num_repetitions=statistics.k,
        sample_size=NOTHING if statistics.sample_size is None else statistics.sample_size,
        max_deviation=_share(statistics.max_deviation),
        drift=_share(statistics.drift),
        rows=_process_rows(notation, statistics),
        unit=Amount("", notation.scale.symbol),
        worked=worked,
        example=None if statistics.example is None else _example(statistics.example),
        verification=_verification(statistics, lines),
        roofline=roofline_view(statistics),
    )


def _example(example: WorkedExample) -> Bilingual:
    """Name the run that a worked formula is about; timed runs are counted from 1."""
    unit, run = example.unit_id, example.position + 1
    return Bilingual(f"unit {unit}, timed run {run}", f"运行单元 {unit}，第 {run} 次计时")


def line_ranges(entries: Sequence[int]) -> str:
    """Name ledger entries by line, counted from 1; three or more in a row are a range: 0, 1, 2, 6 give 1–3, 7."""
    ranges: list[list[int]] = []
    for line in sorted({entry + 1 for entry in entries}):
        if ranges and line == ranges[-1][-1] + 1:
            ranges[-1].append(line)
        else:
            ranges.append([line])
    return ", ".join(
        f"{lines[0]}–{lines[-1]}" if len(lines) >= LINES_LISTED_AS_RANGE else ", ".join(map(str, lines))
        for lines in ranges
    )


def _verification(statistics: MetricStatistics, lines: str) -> Bilingual:
    """Say by what the value was tested, and from which ledger lines it can be computed again."""
    n, k = statistics.n, statistics.k
    again = Bilingual(
        f"ledger lines {lines} suffice to compute it again",
        f"可由账本第 {lines} 行独立重算",
    )
    if statistics.verdict is Verdict.EXACT and n == 1:
        return Bilingual(f"a count, not a timing; {again.en}", f"计数而非计时；{again.zh}")
    if statistics.verdict is Verdict.EXACT:
        return Bilingual(
            f"the count is the same in all {n} processes of {k} timed repetitions; {again.en}",
            f"{n} 个进程（每个计时重复 {k} 次）的计数完全相同；{again.zh}",
        )
    if statistics.max_deviation is None:
        return Bilingual(
            f"{n} processes of {k} timed repetitions; {again.en}", f"{n} 个进程，每个计时重复 {k} 次；{again.zh}"
        )
    spread, limit = percent(statistics.max_deviation), percent(TOLERANCE, 0)
    return Bilingual(
        f"{n} fresh processes of {k} timed repetitions; largest deviation from the median {spread}, allowed ±{limit}; "
        f"{again.en}",
        f"{n} 个全新进程，每个计时重复 {k} 次；相对中位数的最大偏差 {spread}，允许 ±{limit}；{again.zh}",
    )


def _comparison_view(
    comparison: ComparisonDefinition, fields: tuple[str, ...], result: Result, lines: str
) -> NumberView:
    definition = Definition(comparison.name, comparison.formula, comparison.how)
    effect = next((effect for effect in result.effects if effect.metric == comparison.metric), None)
    arm = _absent_comparison(comparison, result) if effect is None else _compared_arm(comparison, effect, lines)
    return NumberView(comparison.id, fields, key=True, definition=definition, arms=(arm,))


def _compared_arm(comparison: ComparisonDefinition, effect: Effect, lines: str) -> ArmView:
    """Show what a comparison makes of the effect's ratio, its interval and each block's ratio."""
    value = comparison.transform(effect.ratio)
    blocks = tuple(comparison.transform(math.exp(block)) for block in effect.blocks)
    interval = effect.interval and _transformed(effect.interval, comparison)
    exact_value = effect.verdict == Verdict.EXACT
    place = place_of_exact([value]) if exact_value else last_place(value, noise_of(blocks, interval))
    notation = Notation(Scale(1.0, comparison.unit), place)
    ratios = notation_of_effect(effect)
    return ArmView(
        arm=f"{effect.treatment} / {effect.baseline}",
        value=_amount(notation, value),
        interval=_interval(notation, interval),
        log_interval=NOTHING,
        level=_level(interval),
        range=_range(notation, blocks),
        verdict=_verdict_of_comparison(effect, comparison),
        indicative=False,
        withheld=None,
        num_processes=len(blocks),
        num_repetitions=1,
        sample_size=NOTHING,
        max_deviation=NOTHING,
        drift=NOTHING,
        rows=tuple(
            ProcessRow(number, notation.write(block), f"r = {ratios.write(math.exp(log_ratio))}")
            for number, (block, log_ratio) in enumerate(zip(blocks, effect.blocks, strict=True), start=1)
        ),
        unit=Amount("", comparison.unit),
        worked=_equation(comparison.formula, {"r": effect.ratio}, value, comparison.unit),
        example=None,
        verification=_effect_verification(effect, lines),
        compared=True,
        void=None if effect.void is None else Bilingual(effect.void, effect.void_zh or effect.void),
    )


def _verdict_of_comparison(effect: Effect, comparison: ComparisonDefinition) -> str:
    """Turn HIGHER and LOWER round where a smaller ratio makes a larger value, as for a speed-up of a time."""
    turned = {
        EffectVerdict.HIGHER.value: EffectVerdict.LOWER.value,
        EffectVerdict.LOWER.value: EffectVerdict.HIGHER.value,
    }
    falling = comparison.transform(2.0) < comparison.transform(1.0)
    return turned.get(effect.verdict, effect.verdict) if falling else effect.verdict


def _transformed(interval: Interval, comparison: ComparisonDefinition) -> Interval:
    low, high = sorted((comparison.transform(interval.low), comparison.transform(interval.high)))
    return interval.model_copy(update={"low": low, "high": high})


def _effect_verification(effect: Effect, lines: str) -> Bilingual:
    n = len(effect.blocks)
    p = "" if effect.p_sign_flip is None else p_value(effect.p_sign_flip)
    return Bilingual(
        f"{n} paired blocks" + (f", exact sign flip test p: {p}" if p else "") + f"; ledger lines {lines} suffice "
        "to compute it again",
        f"{n} 个配对区组" + (f"，精确符号翻转检验 p: {p}" if p else "") + f"；可由账本第 {lines} 行独立重算",
    )


def _absent_comparison(comparison: ComparisonDefinition, result: Result) -> ArmView:
    """Say why a comparison has no value: as a rule because a run did not give its metric."""
    found = [_withheld(statistics) for statistics in result.statistics if statistics.metric == comparison.metric]
    reasons = [reason for reason in found if reason is not None]
    nothing = Bilingual("the runs gave no pairs of this metric", "本次运行没有得到该指标的配对取值")
    return ArmView(
        arm="—",
        value=NOTHING,
        interval=NOTHING,
        log_interval=NOTHING,
        level=NOTHING,
        range=NOTHING,
        verdict=Verdict.INSUFFICIENT.value,
        indicative=False,
        withheld=reasons[0] if reasons else nothing,
        num_processes=0,
        num_repetitions=0,
        sample_size=NOTHING,
        max_deviation=NOTHING,
        drift=NOTHING,
        rows=(),
        unit=Amount("", comparison.unit),
        worked=None,
        example=None,
        verification=nothing,
        compared=True,
    )


def _withheld(statistics: MetricStatistics) -> Bilingual | None:
    if statistics.withheld is None:
        return None
    return Bilingual(statistics.withheld, statistics.withheld_zh or statistics.withheld)


def _amount(notation: Notation, value: float) -> Amount:
    return Amount(notation.write(value), notation.scale.symbol)


def _interval(notation: Notation, interval: Interval | None) -> Amount:
    if interval is None:
        return NOTHING
    return Amount(f"[{notation.write(interval.low)}, {notation.write(interval.high)}]", notation.scale.symbol)


def _level(interval: Interval | None) -> Amount:
    return NOTHING if interval is None else Amount(percent(interval.level))


def _range(notation: Notation, values: Sequence[float]) -> Amount:
    if len(values) < 2:  # noqa: PLR2004  a range needs two values
        return NOTHING
    return Amount(f"[{notation.write(min(values))}, {notation.write(max(values))}]", notation.scale.symbol)


def _share(value: float | None) -> Amount:
    return NOTHING if value is None else Amount(percent(value))


def _process_rows(notation: Notation, statistics: MetricStatistics) -> tuple[ProcessRow, ...]:
    pairs = zip(statistics.values, statistics.repetitions, strict=True)
    return tuple(
        ProcessRow(process, notation.write(score), notation.listing(row))
        for process, (score, row) in enumerate(pairs, start=1)
    )


def effect_views(result: Result, definitions: Mapping[str, Definition]) -> tuple[EffectView, ...]:
    """Show the effects of a result as ratios, cut to the noise of their interval."""
    return tuple(_effect_view(effect, definitions) for effect in result.effects)


def _effect_view(effect: Effect, definitions: Mapping[str, Definition]) -> EffectView:
    notation = notation_of_effect(effect)
    return EffectView(
        metric=effect.metric,
        definition=definition_of(effect.metric, definitions),
        baseline=effect.baseline,
        treatment=effect.treatment,
        ratio=notation.write(effect.ratio),
        interval=_interval(notation, effect.interval),
        p_sign_flip=_p_value(effect.p_sign_flip),
        p_holm=_p_value(effect.p_holm),
        blocks=notation.listing(math.exp(block) for block in effect.blocks),
        verdict=effect.verdict,
    )


def notation_of_effect(effect: Effect) -> Notation:
    """Write ratios on the digits that the interval, or else the range of the blocks, allows."""
    if effect.verdict == Verdict.EXACT:
        return Notation(Scale(1.0, ""), significant_place(effect.ratio, DIGITS_OF_EXACT_RATIO))
    noise = noise_of([math.exp(block) for block in effect.blocks], effect.interval)
    return Notation(Scale(1.0, ""), last_place(effect.ratio, noise))


def _p_value(p: float | None) -> Printable:
    return NOTHING if p is None else Amount(p_value(p))


def p_value(p: float) -> str:
    """Write a p-value to three decimals; a smaller one as below the last of them."""
    smallest = 10.0**-P_VALUE_DECIMALS
    return fixed(p, -P_VALUE_DECIMALS) if p >= smallest else f"< {fixed(smallest, -P_VALUE_DECIMALS)}"


# --- formulas with values -------------------------------------------------------------------------------------------


def worked_formula(statistics: MetricStatistics, formula: str, counts: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return the metric's formula with the values of one run, or what was counted, put in; None without either."""
    if (example := statistics.example) is not None:
        return _equation(formula, example.terms, example.value, statistics.unit)
    terms = counts.get(statistics.metric)
    if terms is None or statistics.median is None:
        return None
    return _equation(formula, terms, statistics.median, statistics.unit)


def _equation(formula: str, terms: Mapping[str, float], value: float, unit: str) -> str:
    """Put the terms into the formula; terms that do not stand in it are named after it."""
    filled, used = substitute(formula, terms)
    rest = "".join(rf", \quad {symbol} = {_latex_number(terms[symbol])}" for symbol in terms if symbol not in used)
    return rf"{filled} = {_latex_number(value)}\ {_latex_unit(unit)}{rest}"


def substitute(formula: str, terms: Mapping[str, float]) -> tuple[str, frozenset[str]]:
    """Replace each LaTeX symbol of `terms` in a formula by its number; also return the symbols that were found.

    A symbol counts only where it is not a piece of a longer word, command or subscripted name.
    """
    if not terms:
        return formula, frozenset()
    symbols = "|".join(re.escape(symbol) for symbol in sorted(terms, key=len, reverse=True))
    used: set[str] = set()

    def number_for(match: re.Match[str]) -> str:
        used.add(match.group())
        return _latex_number(terms[match.group()])

    # One pass, so that a number put in is never taken for a symbol.
    filled = re.sub(rf"(?<![A-Za-z_\\])(?:{symbols})(?![A-Za-z_])", number_for, formula)
    return filled, frozenset(used)


def _latex_number(value: float) -> str:
    """Write a number for a formula: to six digits, so that the arithmetic can be followed, and without separators."""
    text = exact(value).replace(",", "")
    return f"({text})" if value < 0 else text


def _latex_unit(unit: str) -> str:
    return _LATEX_UNITS.get(unit) or rf"\text{{{unit}}}"
