"""Every number of both reports, found at its place and held against the number that the evidence gives there.

A place is a cell of a table, which is known by its column titles (the glossary turns them back into terms, so that one
set of rules reads both languages), or a line under a bold label, or a formula. What is not measured may be quoted, and
only from where `_quotable` says: the environment, the plan, and the texts of the test's own result.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.experiment import INSTRUMENT_TEST
from touchstone.verify import peers, scaling_tables
from touchstone.verify.digits import (
    Notation,
    effect_notation,
    exact_place,
    noise_of,
    notation_of,
    numbers,
    p_value,
    place_of,
    plain,
    share,
    signed_numbers,
    significant,
    written,
)
from touchstone.verify.expected import compared_metric
from touchstone.verify.observed import COMPARISONS, DISTRIBUTIONS
from touchstone.verify.outcome import Fault
from touchstone.verify.printed_sweeps import SweepRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from touchstone.experiment import Experiment
    from touchstone.verify.custody import Evidence
    from touchstone.verify.gathered import TestEvidence

Json: TypeAlias = "dict[str, Any]"

GLOSSARY = Path(__file__).resolve().parents[3] / "templates" / "terms.toml"
# Digits of formulas and of names such as p50 and 10^9; the template lint holds that no result is among them.
STRUCTURAL = frozenset({"0", "1", "2", "9", "10", "100", "50", "90", "99", "0.5", "0.9", "0.99"})
# Limits that the text states: the band, the drift, the levels, the smallest n for an interval, the invalid share.
LIMITS = frozenset({"5", "2.5", "95.0", "95", "6", "3", "20"})
_TEST = re.compile(r"^### \S+ (\d+\.\d+)[:：]")
_METRIC = re.compile(r"^#### (.*?) `(\w+)`$")
_LABEL = re.compile(r"^\*\*([^*]+)\*\*(?::|：)")
_WHERE = re.compile(r"- (\d+\.\d+) [^*]*?(?:: |：)(\*\*.*)")
_BORDER = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`([^`]+)`")
_HASH = re.compile(r"`[0-9a-f]{64}`")


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a report and where it stands."""

    number: int
    text: str
    chapter: str | None
    test_id: str | None
    metric: str | None
    label: str | None
    columns: tuple[str, ...]
    formula: int


@dataclass(frozen=True, slots=True)
class Report:
    """One report, line by line."""

    language: str
    file: str
    text: str
    places: tuple[Place, ...]
    names: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, language: str) -> Report:
        """Read a report and find the place of every line."""
        text = path.read_text(encoding="utf-8")
        reader = _Reader(_terms(language))
        places = tuple(reader.place(number, line) for number, line in enumerate(text.split("\n"), start=1))
        return cls(language, path.name, text, places, reader.names)


def _terms(language: str) -> dict[str, str]:
    """Glossary terms by their words."""
    terms = tomllib.loads(GLOSSARY.read_text(encoding="utf-8"))["terms"]
    return {term[language].strip(): key for key, term in terms.items()}


@dataclass(slots=True)
class _Reader:
    """Keeps in mind in which chapter, test, metric, table and formula a line stands."""

    terms: Mapping[str, str]
    names: dict[str, str] = field(default_factory=dict)
    chapter: str | None = None
    test_id: str | None = None
    metric: str | None = None
    label: str | None = None
    columns: tuple[str, ...] = ()
    formulas: int = 0
    fenced: bool = False

    def place(self, number: int, line: str) -> Place:
        """Note what a line changes, and say where it stands."""
        if line.startswith("```"):
            self.fenced = not self.fenced
            self.formulas += self.fenced
        elif not self.fenced:
            self._read(line)
        formula = self.formulas if self.fenced and not line.startswith("```") else 0
        return Place(number, line, self.chapter, self.test_id, self.metric, self.label, self.columns, formula)

    def _read(self, line: str) -> None:
        if line.startswith("#"):
            self._heading(line)
        elif not line.startswith("|"):
            self.columns = ()
        elif not self.columns:
            self.columns = tuple(self.terms.get(cell, cell) for cell in cells(line))
        if found := _LABEL.match(line):
            self.label = self.terms.get(found.group(1), found.group(1))

    def _heading(self, line: str) -> None:
        self.columns, self.label, self.metric, self.formulas = (), None, None, 0
        if line.startswith(("# ", "## ")):
            self.chapter, self.test_id = self.terms.get(line.lstrip("# ")), None
        elif found := _TEST.match(line):
            self.test_id = found.group(1)
        elif found := _METRIC.match(line):
            self.metric = found.group(2)
            self.names[found.group(1).casefold()] = self.metric


def cells(row: str) -> list[str]:
    """Split a table row."""
    return [cell.strip() for cell in _BORDER.split(row.strip())[1:-1]]


# --- what the numbers have to be --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """One metric of one arm as it has to be printed: lists of numbers, empty for a dash."""

    value: list[str]
    interval: list[str]
    level: list[str]
    range: list[str]
    quotes_range: bool
    verdict: str
    rows: tuple[tuple[list[str], list[str]], ...]
    counts: list[str]
    spread: list[str]
    drift: list[str]
    log_interval: list[str]
    quotable: frozenset[str]
    withheld: list[str] | None
    formula: dict[str, float]
    outcome: float | None
    example: list[str]

    @property
    def interval_or_range(self) -> list[str]:
        """What stands beside the value."""
        return self.range if self.quotes_range else self.interval


def _span(notation: Notation, interval: Json | None) -> list[str]:
    return [] if interval is None else notation(interval["low"], interval["high"])


def _shown(told: Json) -> Shown:
    notation, values, verdict = notation_of(told), told["values"], told["verdict"]
    noisy, given = verdict != "EXACT", told["withheld"] is None and told["median"] is not None
    interval = told["interval"] if noisy and given else None
    example = told["example"]
    size = [] if told["sample_size"] is None else [written(told["sample_size"], 0)]
    return Shown(
        value=notation(told["median"]) if given else [],
        interval=_span(notation, interval),
        level=[] if interval is None else share(interval["level"]),
        range=notation(min(values), max(values)) if len(values) > 1 else [],
        quotes_range=len(values) > 1 and (verdict in {"UNSTABLE", "DRIFTING"} or (noisy and interval is None)),
        verdict=verdict,
        rows=tuple((notation(score), notation(*row)) for score, row in zip(values, told["repetitions"], strict=True)),
        counts=[str(told["n"]), str(told["k"]), *size],
        spread=share(told["max_deviation"]),
        drift=share(told["drift"]),
        log_interval=_span(notation, told["log_t_interval"] if noisy and given else None),
        quotable=frozenset((str(told["n"]), str(told["k"]), *(s.lstrip("-") for s in share(told["max_deviation"])))),
        withheld=None if told["withheld"] is None else numbers(told["withheld"]),
        formula={} if example is None else example["terms"],
        outcome=None if example is None else example["value"],
        example=[] if example is None else [*numbers(example["unit_id"]), str(example["position"] + 1)],
    )


_TELEMETRY = (
    "load_average_max",
    "throttled_s",
    "involuntary_switches",
    "other_busy_cores_max",
    "sm_clock_min_mhz",
    "temperature_max_c",
    "power_mean_w",
    "other_gpu_processes",
)
_TURNED = {"HIGHER": "LOWER", "LOWER": "HIGHER"}


def _shown_comparison(name: str, effect: Json) -> Shown:
    _, _, made = COMPARISONS[name]
    ratios = [math.exp(block) for block in effect["blocks"]]
    values, value = [made(ratio) for ratio in ratios], made(effect["ratio"])
    interval = effect["interval"]
    ends = (
        None
        if interval is None
        else dict(zip(("low", "high"), sorted(map(made, (interval["low"], interval["high"]))), strict=True))
    )
    exact = effect["verdict"] == "EXACT"
    notation = Notation(1.0, exact_place([value]) if exact else place_of(value, noise_of(values, ends)))
    verdict = str(effect["verdict"])
    verdict = _TURNED.get(verdict, verdict) if made(2.0) < made(1.0) else verdict
    ratio = effect_notation(effect, ratios)
    return Shown(
        value=notation(value),
        interval=_span(notation, ends),
        level=[] if interval is None else share(interval["level"]),
        range=notation(min(values), max(values)) if len(values) > 1 else [],
        quotes_range=len(values) > 1 and verdict == "INSUFFICIENT" and interval is None,
        verdict=verdict,
        rows=tuple((notation(one), ratio(r)) for one, r in zip(values, ratios, strict=True)),
        counts=[],
        spread=[],
        drift=[],
        log_interval=[],
        quotable=frozenset((str(len(ratios)), *p_value(effect["p_sign_flip"]))),
        withheld=None,
        formula={"r": effect["ratio"]},
        outcome=value,
        example=[],
    )


# --- checking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """What the reports are held against: the evidence, and the results that were found to follow from it."""

    evidence: Evidence
    tests: Mapping[str, TestEvidence]
    experiments: Mapping[str, Experiment]
    results: Mapping[str, Json]
    known: dict[tuple[str | None, str | None, str], Shown | None] = field(default_factory=dict)

    def shown(self, test_id: str | None, metric: str | None, arm: str) -> Shown | None:
        """Work out how a metric of an arm, or a comparison, has to be printed; None for what no result holds."""
        place = (test_id, metric, arm)
        if place not in self.known:
            self.known[place] = self._shown(test_id, metric, arm)
        return self.known[place]

    def _shown(self, test_id: str | None, metric: str | None, arm: str) -> Shown | None:
        result = self.results.get(test_id or "", {"statistics": [], "effects": []})
        if metric is not None and metric in COMPARISONS:
            name = compared_metric(metric)
            effects = [effect for effect in result["effects"] if effect["metric"] == name]
            return _shown_comparison(metric, effects[0]) if effects else None
        chosen = [item for item in result["statistics"] if (item["metric"], item["arm"]) == (metric, arm)]
        return _shown(chosen[0]) if chosen else None


def language_faults(reports: Mapping[str, Report]) -> tuple[Fault, ...]:
    """Numbers that stand in one report more often than in the other."""
    if len(reports) < 2:  # noqa: PLR2004  two languages
        return ()
    first, second = (Counter(numbers(report.text)) for report in reports.values())
    names = [report.file for report in reports.values()]
    return tuple(
        Fault(names[0], f"{number} stands {first[number]} times here, {second[number]} times in {names[1]}")
        for number in sorted(first.keys() | second.keys())
        if first[number] != second[number]
    )


def root_hash_faults(
    evidence: Evidence, reports: Mapping[str, Report], results: Mapping[str, Json]
) -> tuple[Fault, ...]:
    """Results and reports that were made from another state of the ledger."""
    root = evidence.root_sha256
    stale = [
        Fault(file, f"made from a ledger whose root hash is {told['evidence']['ledger_root_sha256']}, not {root}")
        for file, told in results.items()
        if told["evidence"] is not None and told["evidence"]["ledger_root_sha256"] != root
    ]
    for report in reports.values():
        rows = [p for p in report.places if p.chapter == "provenance" and cells(p.text)[1:] == [f"`{root}`"]]
        if not rows:
            stale.append(Fault(report.file, f"does not carry the ledger's root hash {root}"))
    return tuple(stale)


def number_faults(case: Case, reports: Mapping[str, Report]) -> tuple[int, tuple[Fault, ...]]:
    """Check every line of every report; return how many numbers there are, and what is wrong."""
    faults = [fault for report in reports.values() for fault in _Checker(case, report).faults()]
    return sum(len(numbers(report.text)) for report in reports.values()), tuple(faults)


class _Checker:
    """Applies to every line of one report the rule of its place."""

    def __init__(self, case: Case, report: Report) -> None:
        self._case = case
        self._report = report
        glossary = tomllib.loads(GLOSSARY.read_text(encoding="utf-8"))
        language = report.language
        self._verdicts = {key: word[language] for key, word in (glossary["effects"] | glossary["verdicts"]).items()}
        self._words = {key: term[language].strip() for key, term in glossary["terms"].items()}
        self._arm = ""
        self._block_rows: Counter[tuple[str | None, str]] = Counter()
        self._everywhere = _quotable_everywhere(case)
        self._quotable = {test_id: _quotable(case, told) for test_id, told in case.results.items()}
        self._sweeps = SweepRules(case, report, self._words, self._verdicts)
        self._tables: dict[tuple[str, ...], Callable[[Place, list[str]], Iterator[str]]] = {
            **self._sweeps.tables,
            ("test", "metric", "arm", "value", "interval", "verdict", "share_of_bound"): self._key_number,
            ("test", "metric", "arm", "value", "interval", "verdict", "does_it_pay"): self._idea,
            (
                "arm",
                "processes",
                "repetitions_a_process",
                "sample_size",
                "range",
                "maximum_deviation",
                "drift",
                "log_interval",
            ): self._spread,
            ("arm", "process", "score", "repetitions"): self._repetition,
            ("metric", "arm", "process", "score", "repetitions"): self._supporting_repetition,
            ("metric", "arm", "value", "interval", "verdict", "maximum_deviation"): self._supporting,
            ("metric", "baseline", "treatment", "ratio", "interval", "p_sign_flip", "p_holm", "verdict"): self._effect,
            ("metric", "block_ratios"): self._blocks,
            ("check", "check_result", "detail"): self._check,
            scaling_tables.POINTS: self._scaling_point,
            scaling_tables.FITS: self._scaling_fit,
            peers.ROWS: self._peer,
            peers.ENGINES: self._engine,
            (
                "test",
                "metric",
                "arm",
                "physical_bound",
                "share_of_bound",
                "physical_floor",
                "limited_by",
                "explanation",
            ): self._roofline,
            (
                "test",
                "canary_readings",
                "canary_product",
                "canary_copy",
                "canary_operation",
                "canary_move",
                "canary_limit",
            ): self._canary,
            (
                "test",
                "load_average",
                "throttled",
                "involuntary_switches",
                "other_cores",
                "lowest_clock",
                "highest_temperature",
                "mean_power",
                "other_processes",
            ): self._telemetry,
        }

    def faults(self) -> Iterator[Fault]:
        """Check line by line."""
        for place in self._report.places:
            for detail in self._line(place):
                yield Fault(self._report.file, detail, place.number)

    def _line(self, place: Place) -> Iterator[str]:
        text = place.text
        if place.formula > 1 and place.metric is not None:
            yield from self._worked(place)
        elif text.startswith("|") and place.columns in self._tables and not _is_head(place, self._words):
            yield from self._row(place, cells(text))
        elif self._sweeps.is_sentence(place):
            yield from self._sweeps.sentence(place)
        elif place.metric is not None and place.label == "data" and _is_item(text):
            yield from self._data(place)
        elif place.metric is not None and text.startswith(f"**{self._words['roofline']}**"):
            yield from self._roofline_line(place)
        elif text.startswith(self._words["worked_example"]) and (code := _CODE.search(text)):
            self._arm = code.group(1)
            yield from self._explained(place, self._example_numbers(place))
        elif place.chapter == "summary" and "`ledger.jsonl`" in text:
            yield from self._counts(text)
        elif place.chapter == "provenance" and cells(text)[:1] == [self._words["wording_hash"]]:
            yield from _hash_faults(cells(text)[1])
        elif place.chapter == "summary" and (found := _WHERE.match(text)):
            yield from self._quoted(found.group(1), f"- {found.group(2)}")
        else:
            yield from self._explained(place, frozenset())

    def _quoted(self, test_id: str, line: str) -> Iterator[str]:
        """Require the first page to say of a sweep what its chapter says, where it is worked out again."""
        if not any(place.test_id == test_id and place.text == line for place in self._report.places):
            yield f"the chapter of test {test_id} does not say so"

    def _row(self, place: Place, row: list[str]) -> Iterator[str]:
        if len(row) == len(place.columns):
            yield from self._tables[place.columns](place, row)
        else:
            yield f"{len(row)} cells stand under {len(place.columns)} titles"

    def _explained(self, place: Place, own: frozenset[str]) -> Iterator[str]:
        """Require every number of a line to be one that may be quoted there."""
        allowed = own | STRUCTURAL | LIMITS | self._everywhere
        if place.chapter == "checklist":
            allowed |= _checklist_numbers(self._case)
        if place.test_id is not None:
            allowed |= self._quotable.get(place.test_id, frozenset()) | {place.test_id}
        if place.metric is not None:
            for arm in (self._arm, *self._arms(place.test_id)):
                if (shown := self._case.shown(place.test_id, place.metric, arm)) is not None:
                    allowed |= shown.quotable
        for number in numbers(place.text):
            if number not in allowed:
                yield f"{number} follows from nothing in the ledger"

    def _arms(self, test_id: str | None) -> tuple[str, ...]:
        test = self._case.tests.get(test_id or "")
        return () if test is None else test.arms

    def _example_numbers(self, place: Place) -> frozenset[str]:
        shown = self._case.shown(place.test_id, place.metric, self._arm)
        return frozenset(() if shown is None else shown.example) | frozenset(numbers(self._arm))

    # --- lines of a metric's own section

    def _data(self, place: Place) -> Iterator[str]:
        code = _CODE.search(place.text) if place.text.startswith("- ") else None
        arm = code.group(1) if code is not None else next(iter(self._arms(place.test_id)), "")
        arm = arm if code is not None or place.test_id != "4.1" else self._tree()
        shown = self._case.shown(place.test_id, place.metric, arm)
        if shown is None:
            yield from self._explained(place, frozenset())
            return
        text = place.text.removeprefix("- ").removeprefix(f"`{arm}`")
        wanted = [*shown.value, *shown.interval, *shown.level, *(shown.range if shown.quotes_range else [])]
        if shown.withheld is None:
            yield from _compare(text, wanted)
        if f"**{self._verdicts[shown.verdict]}**" not in text:
            yield f"the verdict is {self._verdicts[shown.verdict]}"

    def _tree(self) -> str:
        return str(self._case.evidence.of_kind("quality")[-1].body["code"]["tree"])

    def _worked(self, place: Place) -> Iterator[str]:
        shown = self._case.shown(place.test_id, place.metric, self._arm)
        if shown is None or shown.outcome is None:
            yield from self._explained(place, frozenset())
            return
        terms = {plain(abs(term)) for term in shown.formula.values()}
        found = set(numbers(place.text))
        outcome = re.search(r"= \(?(-?[\d.]+)\)?\\ ", place.text)
        if outcome is None or outcome.group(1) != plain(shown.outcome):
            yield f"the outcome is {outcome and outcome.group(1)}, worked out again it is {plain(shown.outcome)}"
        if left := sorted(terms - found):
            yield f"{left[0]} is missing in the formula"
        if strange := sorted(found - terms - STRUCTURAL - {plain(abs(shown.outcome))}):
            yield f"{strange[0]} is no number of this formula"

    def _counts(self, text: str) -> Iterator[str]:
        case = self._case
        tests = [told for told in case.results.values() if "@" not in told["test_id"]]  # a point is no test of its own
        measured = sum(told["status"] == "measured" for told in tests)
        attempts = case.evidence.attempts()
        valid = sum(attempt["valid"] for attempt in attempts)
        keys = [item["verdict"] for told in case.results.values() for item in told["statistics"] if item["key"]]
        settled = sum(verdict in {"STABLE", "EXACT"} for verdict in keys)
        entries = len(case.evidence.lines)
        points = sum("@" in told["test_id"] and told["status"] == "measured" for told in case.results.values())
        wanted = [measured, len(tests) - measured, points, entries, len(attempts), valid, len(keys), settled]
        if Counter(numbers(text)) != Counter(map(str, wanted)):
            yield f"the counts are {', '.join(map(str, wanted))}"

    # --- tables

    def _judged(self, shown: Shown, value: str, beside: str, verdict: str) -> Iterator[str]:
        if shown.withheld is None:
            yield from _compare(value, shown.value)
            yield from _compare(beside, shown.interval_or_range)
        elif Counter(numbers(value)) != Counter(shown.withheld):
            yield f"{value!r} is withheld for another reason"
        if not verdict.startswith(self._verdicts[shown.verdict]):
            yield f"the verdict is {self._verdicts[shown.verdict]}, not {verdict}"

    def _headline(self, place: Place, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(row[0], self._report.names.get(row[1].casefold()), _bare(row[2]))
        if shown is None:
            yield from self._without(place, row[0])
        elif shown.withheld is None:
            yield from self._judged(shown, row[3], row[4], row[5])
        elif row[3:5] != [self._words["withheld"], "—"] or not row[5].startswith(self._verdicts[shown.verdict]):
            yield f"{row[1]} is withheld, and the verdict is {self._verdicts[shown.verdict]}"

    def _key_number(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._headline(place, row)
        roof = self._roof(row[0], self._report.names.get(row[1].casefold()), _bare(row[2]))
        is_withheld = row[3] == self._words["withheld"]
        yield from _compare(row[6], [] if roof is None or is_withheld else share(roof["share"]))

    def _idea(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._headline(place, row)
        word = self._words[_does_it_pay(self._case, row[0], self._report.names.get(row[1].casefold()))]
        if row[6].strip("*") != word:
            yield f"whether it pays: {word}, not {row[6]}"

    def _without(self, place: Place, test_id: str | None) -> Iterator[str]:
        """Refuse numbers in a row about what the results do not hold: a comparison that could not be made."""
        allowed = STRUCTURAL | self._quotable.get(test_id or "", frozenset()) | {test_id}
        if strange := [number for number in numbers(place.text) if number not in allowed]:
            yield f"{strange[0]} stands for a metric that the results do not hold"

    def _spread(self, place: Place, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(place.test_id, place.metric, _bare(row[0]))
        if shown is None:
            yield from self._without(place, place.test_id)
            return
        yield from _compare(" ".join(row[1:4]), shown.counts)
        wanted = (shown.range, shown.spread, shown.drift, shown.log_interval)
        for cell, expected in zip(row[4:], wanted, strict=True):
            yield from _compare(cell, expected)

    def _repetition(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._process_row(place, place.metric, row)

    def _supporting_repetition(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._process_row(place, _bare(row[0]), row[1:])

    def _process_row(self, place: Place, metric: str | None, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(place.test_id, metric, _bare(row[0]))
        index = int(row[1]) - 1 if row[1].isdecimal() else -1
        if shown is None or not 0 <= index < len(shown.rows):
            yield f"there is no process {row[1]} of this arm"
            return
        score, repetitions = shown.rows[index]
        yield from _compare(row[2], score)
        yield from _compare(row[3], repetitions)

    def _supporting(self, place: Place, row: list[str]) -> Iterator[str]:
        code = _CODE.search(row[0])
        shown = self._case.shown(place.test_id, code and code.group(1), _bare(row[1]))
        if shown is None:
            yield from self._without(place, place.test_id)
            return
        yield from self._judged(shown, row[2], row[3], row[4])
        yield from _compare(row[5], shown.spread)

    def _effect_of(self, place: Place, name: str, treatment: str | None = None) -> Json | None:
        metric = self._report.names.get(name.casefold()) or self._metric_of_supporting(name)
        effects = self._case.results.get(place.test_id or "", {"effects": []})["effects"]
        fitting = (effect for effect in effects if treatment in {None, effect["treatment"]})
        return next((effect for effect in fitting if effect["metric"] == metric), None)

    def _metric_of_supporting(self, name: str) -> str | None:
        """Find a metric by the name that it has in a table of supporting metrics."""
        pattern = re.compile(rf"^\| {re.escape(name)} `(\w+)` \|", re.MULTILINE)
        found = pattern.search(self._report.text)
        return None if found is None else found.group(1)

    def _effect(self, place: Place, row: list[str]) -> Iterator[str]:
        effect = self._effect_of(place, row[0], _bare(row[2]))
        if effect is None:
            yield f"the results hold no effect on {row[0]}"
            return
        notation = effect_notation(effect, [math.exp(block) for block in effect["blocks"]])
        wanted = (
            notation(effect["ratio"]),
            _span(notation, effect["interval"]),
            p_value(effect["p_sign_flip"]),
            p_value(effect["p_holm"]),
        )
        for cell, expected in zip(row[3:7], wanted, strict=True):
            yield from _compare(cell, expected)
        if not row[7].startswith(self._verdicts[effect["verdict"]]):
            yield f"the verdict is {self._verdicts[effect['verdict']]}, not {row[7]}"

    def _blocks(self, place: Place, row: list[str]) -> Iterator[str]:
        """Hold a row against the effect whose turn it is: a metric has one row for each treatment."""
        key = (place.test_id, row[0])
        treatments = self._arms(place.test_id)[1:]
        turn, self._block_rows[key] = self._block_rows[key], self._block_rows[key] + 1
        effect = self._effect_of(place, row[0], treatments[turn]) if turn < len(treatments) else None
        ratios = [] if effect is None else [math.exp(block) for block in effect["blocks"]]
        yield from _compare(row[1], [] if effect is None else effect_notation(effect, ratios)(*ratios))

    # --- several devices against one

    def _scaling_point(self, place: Place, row: list[str]) -> Iterator[str]:
        language, told = self._report.language, self._case.results.get(place.test_id or "", {"scaling": []})
        series = scaling_tables.series_named(told, row[0], language)
        arm = _bare(row[1])
        wanted = None if series is None else scaling_tables.point_cells(series, arm, self._case.results, language)
        if wanted is None:
            yield f"the results hold no arm {arm} of the series {row[0]}"
            return
        for cell, expected in zip(row[2:-1], wanted[:-1], strict=True):
            yield from _compare(cell, expected)
        if numbers(row[-1]) != wanted[-1]:
            yield f"the numbers of the remark on {arm} are not those of the results"

    def _scaling_fit(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(place.test_id or "", {"scaling": []})
        series = scaling_tables.series_named(told, row[0], self._report.language)
        if series is None or series["fit"] is None:
            yield f"the results hold no fit of the series {row[0]}"
            return
        if row[1] != self._words[f"law_{series['fit']['law'].lower()}"]:
            yield f"the law is {series['fit']['law']}'s, not {row[1]}"
        for cell, expected in zip(row[2:], scaling_tables.fit_cells(series), strict=True):
            yield from _compare(cell, expected)

    # --- engines side by side

    def _peer(self, _: Place, row: list[str]) -> Iterator[str]:
        told, arm = self._case.results.get(_bare(row[0]), {"peers": [], "statistics": []}), _bare(row[1])
        wanted = peers.row_cells(told, arm, self._report.language)
        if wanted is None:
            yield f"the results hold no engine {arm} on {row[0]}"
            return
        for cell, expected in zip(row[2:-1], wanted[:-1], strict=True):
            yield from _compare(cell, expected)
        if numbers(row[-1]) != wanted[-1]:
            yield f"the numbers of the remark on {arm} are not those of the results"

    def _engine(self, place: Place, row: list[str]) -> Iterator[str]:
        wanted = peers.engine_cells(self._case.results, place.test_id or "", _bare(row[0]))
        if wanted is None or tuple(_bare(cell).replace(r"\|", "|") for cell in row[1:]) != wanted:
            yield f"version or settings of {row[0]} are not those of the results"

    # --- the machine

    def _roof(self, test_id: str | None, metric: str | None, arm: str) -> Json | None:
        statistics = self._case.results.get(test_id or "", {"statistics": []})["statistics"]
        items = (item for item in statistics if item["metric"] == metric and arm in {"", item["arm"]})
        return next((item["roofline"] for item in items if item["roofline"] is not None), None)

    def _roofline(self, _: Place, row: list[str]) -> Iterator[str]:
        roof = self._roof(row[0], _bare(row[1]), _bare(row[2]))
        if roof is None:
            yield f"the results hold no roofline of {row[1]} in test {row[0]}"
            return
        wanted = (significant(roof["bound"], 3), share(roof["share"]), significant(roof["floor_s"] * 1e3, 3))
        for cell, expected in zip(row[3:6], wanted, strict=True):
            yield from _compare(cell, expected)
        explanation = roof["explanation_zh" if self._report.language == "zh" else "explanation"]
        if numbers(row[7]) != numbers(explanation or ""):
            yield "the numbers of the explanation are not those of the results"

    def _roofline_line(self, place: Place) -> Iterator[str]:
        code = _CODE.search(place.text)
        roof = self._roof(place.test_id, place.metric, "" if code is None else code.group(1))
        if roof is None:
            yield "the results hold no roofline of this metric"
            return
        explanation = roof["explanation_zh" if self._report.language == "zh" else "explanation"]
        wanted = [
            *([] if code is None else numbers(code.group(1))),
            *significant(roof["bound"], 3),
            *share(roof["share"]),
            *significant(roof["num_flops"] / 1e9, 4),
            *significant(roof["flops_per_s"] / 1e9, 3),
            *significant(roof["num_bytes"] / 1e9, 4),
            *significant(roof["bytes_per_s"] / 1e9, 3),
        ]
        bare = [number.replace(",", "").lstrip("-") for number in wanted] + numbers(explanation or "")
        if numbers(place.text) != bare:
            yield f"the roofline is {', '.join(bare)}"

    def _canary(self, _: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(row[0], {"canary": None})["canary"]
        wanted: list[list[str]] = [[]] * 6
        if told is not None:
            wanted = [
                [str(told["num_readings"])],
                significant(told["flops_per_s"] / 1e9, 3),
                significant(told["bytes_per_s"] / 1e9, 3),
                significant(told["operation_s"] * 1e6, 3),
                share(told["largest_move"]),
                share(told["limit"], 0),
            ]
        for cell, expected in zip(row[1:], wanted, strict=True):
            yield from _compare(cell, expected)

    def _telemetry(self, _: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(row[0], {"telemetry": None})["telemetry"] or {}
        for cell, name in zip(row[1:], _TELEMETRY, strict=True):
            yield from _compare(cell, significant(told.get(name), 3))

    def _check(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(place.test_id or INSTRUMENT_TEST, {"checks": []})["checks"]
        check = next((check for check in told if check["id"] == _bare(row[0])), None)
        if check is None:
            yield f"the results hold no check {row[0]}"
            return
        detail = check["detail_zh" if self._report.language == "zh" else "detail"]
        if numbers(row[2]) != numbers(detail):
            yield f"the numbers of check {row[0]} are not those of the results"
        if row[1].strip("*") != self._words["passed" if check["passed"] else "failed"]:
            yield f"check {row[0]} is said to have {row[1]}"


def _does_it_pay(case: Case, test_id: str, comparison: str | None) -> str:
    """Say by a term whether a comparison, all of which are the better the larger, grew, shrank or did neither."""
    metric, _, made = COMPARISONS.get(comparison or "", ("", "", float))
    effects = case.results.get(test_id, {"effects": []})["effects"]
    effect = next((effect for effect in effects if effect["metric"] == metric), None)
    if effect is None or effect["verdict"] not in {"HIGHER", "LOWER", "EXACT", "EQUIVALENT"}:
        return "idea_undecided"
    if effect["verdict"] == "EQUIVALENT" or effect["ratio"] == 1:
        return "idea_no_matter"
    return "idea_pays" if made(effect["ratio"]) > made(1.0) else "idea_costs"


def _hash_faults(cell: str) -> Iterator[str]:
    """Require a hash where the words' own stands; `made_again` says whether these are the words of today."""
    if _HASH.fullmatch(cell) is None:
        yield f"{cell} is no SHA-256"


def _is_head(place: Place, words: Mapping[str, str]) -> bool:
    """Whether a row is the title row or the line under it."""
    row = cells(place.text)
    return row == [words.get(column, column) for column in place.columns] or set("".join(row)) <= {":", "-"}


def _is_item(text: str) -> bool:
    """Whether a line under a label says something: the label alone announces a list, an item a line."""
    return text.startswith("- ") or bool(_LABEL.sub("", text).strip() and _LABEL.match(text))


def _bare(cell: str) -> str:
    return cell.strip("`")


def _compare(cell: str, wanted: list[str]) -> Iterator[str]:
    found = signed_numbers(cell)
    if found != wanted:
        yield f"says {', '.join(found) or 'no number'}, worked out again it is {', '.join(wanted) or 'no number'}"


# --- what may be quoted ----------------------------------------------------------------------------------------------


def _tokens(*contents: object) -> frozenset[str]:
    return frozenset(number for content in contents for number in numbers(json.dumps(content, ensure_ascii=False)))


def _quotable_everywhere(case: Case) -> frozenset[str]:
    """Numbers of the machine, of the plan and of the engine, as they were recorded."""
    evidence = case.evidence
    engines = [attempt["engine"] for attempt in evidence.attempts() if attempt["engine"] is not None][:1]
    gpus = evidence.environment["hardware"]["gpus"]
    sizes = [evidence.environment["hardware"]["memory_bytes"], *(gpu["memory_bytes"] for gpu in gpus)]
    limit = evidence.environment["hardware"]["cgroup_memory_bytes"]
    in_gigabytes = [written(size / 1e9, -1) for size in (*sizes, *([] if limit is None else [limit]))]
    plan = {name: value for name, value in evidence.plan.items() if name != "units"}
    shares = [
        written(100 * test["workload"][name], 0)
        for test in plan["tests"]
        if test["workload"] is not None
        for name in ("shared_fraction", "prefix_fraction", "load")
        if test["workload"][name] is not None
    ]
    titles = [told["test_id"] for told in case.results.values()]
    amounts = [plain(value) for value in _numbers_inside([evidence.environment, plan])]
    return _tokens(evidence.environment, plan, engines, evidence.root_sha256, titles) | {
        *in_gigabytes,
        *shares,
        *amounts,
    }


def _numbers_inside(content: object) -> Iterator[float]:
    if isinstance(content, dict):
        for value in content.values():
            yield from _numbers_inside(value)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers_inside(value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield abs(content)


def _quotable(case: Case, told: Json) -> frozenset[str]:
    """Numbers of the texts of a test's result, of its evidence, and of its figures' captions."""
    texts = ("test_id", "test_date", "test_name", "method", "how_obtained", "verification", "reason", "reason_zh", "zh")
    test = case.tests.get(told["test_id"])
    experiment = case.experiments.get(told["test_id"])
    declared = () if experiment is None else (experiment.question.en, experiment.question.zh)
    own = _tokens(*(told[name] for name in texts), told["parameters"], told["checks"], *declared)
    own |= _tokens(*(effect["void"] for effect in told["effects"]), *(item["withheld"] for item in told["statistics"]))
    evidence = told["evidence"]
    if evidence is not None:
        own |= _tokens(evidence["attempts"], evidence["valid_attempts"], evidence["invalid_reasons"])
        own |= _tokens(*(entry + 1 for entry in evidence["entries"]))
    if told["test_id"] == "4.1" and case.evidence.of_kind("quality"):
        own |= _code_numbers(case.evidence.of_kind("quality")[-1].body["code"])
    return own | _pooled_sizes(test)


def _checklist_numbers(case: Case) -> frozenset[str]:
    """Count again what the checklist is decided from: records, metrics, traces, tests, files, key numbers."""
    evidence, results = case.evidence, case.results.values()
    measured = [told for told in results if told["status"] == "measured"]
    statistics = [item for told in measured for item in told["statistics"]]
    keys = [item for item in statistics if item["key"]]
    chapters = [told for told in measured if "@" not in told["test_id"]]
    metrics = sum(len({item["metric"] for item in told["statistics"]}) for told in chapters)
    compared = [
        measure.metric
        for told in chapters
        if told["test_id"] in case.experiments
        for measure in case.experiments[told["test_id"]].measures
        if measure.result is not None and measure.metric in COMPARISONS
    ]
    templates = GLOSSARY.parent
    counts = (
        len(evidence.attempts()) + len(evidence.of_kind("quality")),
        len(evidence.lines),
        metrics + len(compared),
        sum(len(attempt["measurements"]) for attempt in evidence.attempts() if attempt["valid"]),
        len(measured),
        len(list(templates.glob("*.j2"))),
        *_searched(evidence.environment["source"].get("clock")),
        sum(item["verdict"] in {"STABLE", "EXACT"} for item in keys),
        len(keys),
        min((item["n"] for item in keys), default=0),
    )
    return frozenset(map(str, counts))


def _searched(clock: Json | None) -> tuple[int, ...]:
    """Count what was searched for clocks before the run: files, readers beside the clock's module, unreadable files."""
    if clock is None:
        return ()
    return (clock["num_files"], sum(file != "clock.py" for file in clock["readers"]), len(clock["unreadable"]))


def _pooled_sizes(test: TestEvidence | None) -> frozenset[str]:
    """How many samples a figure of pooled latencies shows, by arm."""
    if test is None:
        return frozenset()
    return frozenset(
        str(
            sum(
                0 if drawn is None else len(drawn)
                for drawn in (draw(run.facts) for row in test.of_arm(arm) for run in row)
            )
        )
        for draw in (DISTRIBUTIONS["ttft"], DISTRIBUTIONS["itl"])
        for arm in test.arms
    )


def _code_numbers(code: Json) -> frozenset[str]:
    """Count the code by package and by tool: sums, means to two decimals, maxima, and the worst functions."""
    groups: dict[str | None, list[Json]] = {None: list(code["files"])}
    for file in code["files"]:
        groups.setdefault(file["package"], []).append(file)
    found = set(_tokens(code["functions"], code["tree"], code["differences"], code["unexplained"]))
    found |= _tokens(code["radon_version"], code["lizard_version"], code["python_version"], code["tree_sha256"])
    for files in groups.values():
        names = {file["file"] for file in files}
        functions = [function for function in code["functions"] if function["file"] in names]
        found |= {str(len(files)), *_sums(files), *_averages(functions)}
    return frozenset(found)


def _sums(files: list[Json]) -> Iterator[str]:
    counted = [name for name in files[0] if name not in {"file", "package", "error"}]
    totals = {name: sum(file[name] or 0 for file in files) for name in counted}
    yield from (str(total) for total in totals.values())
    whole = [file for file in files if file["functions"] is not None]
    for naive, true in (("lines", "physical_lines"), ("functions", "functions"), ("classes", "classes")):
        told, real = (sum(file[name] or 0 for file in whole) for name in (f"naive_{naive}", true))
        yield from (str(told), str(real), str(abs(told - real)))


def _averages(functions: list[Json]) -> Iterator[str]:
    for name in ("complexity_radon", "complexity_lizard", "num_lines"):
        known = [function[name] for function in functions if function[name] is not None]
        if known:
            mean = sum(known) / len(known)
            yield from (str(len(known)), str(sum(known)), str(max(known)), written(mean, -2), plain(mean))


# --- the texts of the results -----------------------------------------------------------------------------------------


def prose_faults(case: Case, told: Json) -> Iterator[str]:
    """Numbers in a result's own sentences that are no count or spread of this test."""
    test, experiment = case.tests.get(told["test_id"]), case.experiments.get(told["test_id"])
    if told["status"] != "measured" or test is None or experiment is None:
        return
    runs = sum(len(process) for process in test.processes)
    passed = sum(check["passed"] for check in told["checks"])
    counts = [len(test.processes), runs, test.planned["num_warmups"], len(test.attempts), test.num_valid, passed]
    counts += [test.planned["warmup_output_tokens"]] if test.planned.get("warmup_output_tokens") else []
    spreads = [number for item in told["statistics"] for number in (*share(item["max_deviation"]), str(item["n"]))]
    engines = [attempt["engine"] for attempt in test.attempts if attempt["engine"] is not None and attempt["valid"]]
    names = _tokens([(engine["name"], engine["version"]) for engine in engines], list(test.arms))
    allowed = STRUCTURAL | LIMITS | names | {*map(str, counts), str(len(told["checks"])), *spreads}
    for name, text in _sentences(told):
        if strange := [number for number in numbers(text) if number not in allowed]:
            yield f"{name} says {strange[0]}, which is no count or spread of this test"


def _sentences(told: Json) -> Iterable[tuple[str, str]]:
    for name in ("how_obtained", "verification"):
        yield name, told[name]
        yield f"zh.{name}", told["zh"][name]
