"""Every line of a report by the rule of its place: a row of a table, a line under a label, a formula, or any other."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import TYPE_CHECKING

from touchstone.ledger import LEDGER_NAME
from touchstone.verify.cells import compare
from touchstone.verify.digits import numbers, plain, share, significant
from touchstone.verify.outcome import Fault
from touchstone.verify.places import CODE, GLOSSARY, cells, is_head, is_item
from touchstone.verify.printed_machine import MachineRules, roofline_in
from touchstone.verify.printed_metrics import MetricRules
from touchstone.verify.printed_series import SeriesRules
from touchstone.verify.printed_sweeps import SweepRules
from touchstone.verify.quotable import STRUCTURAL, Quotable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from touchstone.verify.places import Place, Report
    from touchstone.verify.shown import Case

_WHERE = re.compile(r"- (\d+\.\d+) [^*]*?(?:: |：)(\*\*.*)")
_HASH = re.compile(r"`[0-9a-f]{64}`")


class LineRules:
    """Applies to every line of one report the rule of its place."""

    def __init__(self, case: Case, report: Report, quotable: Quotable) -> None:
        glossary, language = tomllib.loads(GLOSSARY.read_text(encoding="utf-8")), report.language
        self._case, self._report, self._quotable, self._arm = case, report, quotable, ""
        self._verdicts = {key: word[language] for key, word in (glossary["effects"] | glossary["verdicts"]).items()}
        self._words = {key: term[language].strip() for key, term in glossary["terms"].items()}
        self._further = _lines_of_further_runs(case.evidence.folder, report.file)
        self._sweeps = SweepRules(case, report, self._words, self._verdicts)
        self._tables: dict[tuple[str, ...], Callable[[Place, list[str]], Iterator[str]]] = {
            **self._sweeps.tables,
            **MetricRules(case, report, self._words, self._verdicts, quotable).tables,
            **MachineRules(case, language).tables,
            **SeriesRules(case, language, self._words, self._verdicts).tables,
        }

    def faults(self) -> Iterator[Fault]:
        """Check line by line."""
        for place in self._report.places:
            for detail in self._line(place):
                yield Fault(self._report.file, detail, place.number)

    def _line(self, place: Place) -> Iterator[str]:
        text = place.text
        if place.chapter == "summary" and text in self._further:
            return
        if place.formula > 1 and place.metric is not None:
            yield from self._worked(place)
        elif text.startswith("|") and place.columns in self._tables and not is_head(place, self._words):
            yield from self._row(place, cells(text))
        elif self._sweeps.is_sentence(place):
            yield from self._sweeps.sentence(place)
        elif place.metric is not None and place.label == "data" and is_item(text):
            yield from self._data(place)
        elif place.metric is not None and text.startswith(f"**{self._words['roofline']}**"):
            yield from self._roofline_line(place)
        else:
            yield from self._told_line(place)

    def _told_line(self, place: Place) -> Iterator[str]:
        """Check a line that is neither a table's nor a metric's data: an example, the first page, the provenance."""
        text = place.text
        if text.startswith(self._words["worked_example"]) and (code := CODE.search(text)):
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
        for number in self._quotable.strange(place, own | self._quotable_of_metric(place)):
            yield f"{number} follows from nothing in the ledger"

    def _quotable_of_metric(self, place: Place) -> frozenset[str]:
        if place.metric is None:
            return frozenset()
        arms = (self._arm, *self._case.arms(place.test_id))
        found = (self._case.shown(place.test_id, place.metric, arm) for arm in arms)
        return frozenset().union(*(shown.quotable for shown in found if shown is not None))

    def _example_numbers(self, place: Place) -> frozenset[str]:
        shown = self._case.shown(place.test_id, place.metric, self._arm)
        return frozenset(() if shown is None else shown.example) | frozenset(numbers(self._arm))

    def _data(self, place: Place) -> Iterator[str]:
        code = CODE.search(place.text) if place.text.startswith("- ") else None
        arm = code.group(1) if code is not None else next(iter(self._case.arms(place.test_id)), "")
        arm = arm if code is not None or place.test_id != "4.1" else self._tree()
        shown = self._case.shown(place.test_id, place.metric, arm)
        if shown is None:
            yield from self._explained(place, frozenset())
            return
        text = place.text.removeprefix("- ").removeprefix(f"`{arm}`")
        wanted = [*shown.value, *shown.interval, *shown.level, *(shown.range if shown.quotes_range else [])]
        if shown.withheld is None:
            yield from compare(text, wanted)
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
        wanted = [measured, len(tests) - measured, points, entries, len(attempts), valid]
        wanted += [len(keys), settled] if keys else []
        if Counter(numbers(text)) != Counter(map(str, wanted)):
            yield f"the counts are {', '.join(map(str, wanted))}"

    def _roofline_line(self, place: Place) -> Iterator[str]:
        code = CODE.search(place.text)
        roof = roofline_in(self._case, place.test_id, place.metric, "" if code is None else code.group(1))
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


def _lines_of_further_runs(folder: Path, file: str) -> frozenset[str]:
    """Rows that the first page may quote from the reports of runs beside this one, which are verified by themselves."""
    reports = (ledger.parent / file for ledger in folder.glob(f"*/{LEDGER_NAME}"))
    texts = [report.read_text(encoding="utf-8") for report in reports if report.is_file()]
    return frozenset(line for text in texts for line in text.split("\n") if line.startswith("|"))


def _hash_faults(cell: str) -> Iterator[str]:
    """Require a hash where the words' own stands; `made_again` says whether these are the words of today."""
    if _HASH.fullmatch(cell) is None:
        yield f"{cell} is no SHA-256"
