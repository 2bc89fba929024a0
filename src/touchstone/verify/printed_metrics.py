"""The tables of metrics in a report: key numbers, spreads, processes, supporting metrics, effects and checks."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.experiment import INSTRUMENT_TEST
from touchstone.verify.cells import compare, compare_row
from touchstone.verify.digits import effect_notation, numbers, p_value, share
from touchstone.verify.observed import COMPARISONS
from touchstone.verify.places import CODE, bare
from touchstone.verify.printed_machine import roofline_in
from touchstone.verify.quotable import STRUCTURAL
from touchstone.verify.shown import span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from touchstone.verify.places import Place, Report
    from touchstone.verify.quotable import Quotable
    from touchstone.verify.shown import Case, Shown

Json: TypeAlias = "dict[str, Any]"


class MetricRules:
    """The rules for tables of metrics. `words` and `verdicts` are those of the report's language."""

    def __init__(
        self, case: Case, report: Report, words: Mapping[str, str], verdicts: Mapping[str, str], quotable: Quotable
    ) -> None:
        self._case, self._report, self._words, self._verdicts = case, report, words, verdicts
        self._quotable = quotable
        self._block_rows: Counter[tuple[str | None, str]] = Counter()
        self.tables: dict[tuple[str, ...], Callable[[Place, list[str]], Iterator[str]]] = {
            ("test", "metric", "arm", "value", "interval", "verdict", "share_of_bound"): self._key_number,
            ("test", "metric", "arm", "value", "interval", "verdict", "does_it_pay"): self._idea,
            (
                *("arm", "processes", "repetitions_a_process", "sample_size"),
                *("range", "maximum_deviation", "drift", "log_interval"),
            ): self._spread,
            ("arm", "process", "score", "repetitions"): self._repetition,
            ("metric", "arm", "process", "score", "repetitions"): self._supporting_repetition,
            ("metric", "arm", "value", "interval", "verdict", "maximum_deviation"): self._supporting,
            ("metric", "baseline", "treatment", "ratio", "interval", "p_sign_flip", "p_holm", "verdict"): self._effect,
            ("metric", "block_ratios"): self._blocks,
            ("check", "check_result", "detail"): self._check,
        }

    def _judged(self, shown: Shown, value: str, beside: str, verdict: str) -> Iterator[str]:
        if shown.withheld is None:
            yield from compare(value, shown.value)
            yield from compare(beside, shown.interval_or_range)
        elif Counter(numbers(value)) != Counter(shown.withheld):
            yield f"{value!r} is withheld for another reason"
        if not verdict.startswith(self._verdicts[shown.verdict]):
            yield f"the verdict is {self._verdicts[shown.verdict]}, not {verdict}"

    def _headline(self, place: Place, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(row[0], self._report.names.get(row[1].casefold()), bare(row[2]))
        if shown is None:
            yield from self._without(place, row[0])
        elif shown.withheld is None:
            yield from self._judged(shown, row[3], row[4], row[5])
        elif row[3:5] != [self._words["withheld"], "—"] or not row[5].startswith(self._verdicts[shown.verdict]):
            yield f"{row[1]} is withheld, and the verdict is {self._verdicts[shown.verdict]}"

    def _key_number(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._headline(place, row)
        roof = roofline_in(self._case, row[0], self._report.names.get(row[1].casefold()), bare(row[2]))
        is_withheld = row[3] == self._words["withheld"]
        yield from compare(row[6], [] if roof is None or is_withheld else share(roof["share"]))

    def _idea(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._headline(place, row)
        word = self._words[_does_it_pay(self._case, row[0], self._report.names.get(row[1].casefold()))]
        if row[6].strip("*") != word:
            yield f"whether it pays: {word}, not {row[6]}"

    def _without(self, place: Place, test_id: str | None) -> Iterator[str]:
        """Refuse numbers in a row about what the results do not hold: a comparison that could not be made."""
        allowed = STRUCTURAL | self._quotable.of_test(test_id) | {test_id}
        if strange := [number for number in numbers(place.text) if number not in allowed]:
            yield f"{strange[0]} stands for a metric that the results do not hold"

    def _spread(self, place: Place, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(place.test_id, place.metric, bare(row[0]))
        if shown is None:
            yield from self._without(place, place.test_id)
            return
        yield from compare(" ".join(row[1:4]), shown.counts)
        wanted = (shown.range, shown.spread, shown.drift, shown.log_interval)
        yield from compare_row(row[4:], wanted)

    def _repetition(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._process_row(place, place.metric, row)

    def _supporting_repetition(self, place: Place, row: list[str]) -> Iterator[str]:
        yield from self._process_row(place, bare(row[0]), row[1:])

    def _process_row(self, place: Place, metric: str | None, row: list[str]) -> Iterator[str]:
        shown = self._case.shown(place.test_id, metric, bare(row[0]))
        index = int(row[1]) - 1 if row[1].isdecimal() else -1
        if shown is None or not 0 <= index < len(shown.rows):
            yield f"there is no process {row[1]} of this arm"
            return
        score, repetitions = shown.rows[index]
        yield from compare(row[2], score)
        yield from compare(row[3], repetitions)

    def _supporting(self, place: Place, row: list[str]) -> Iterator[str]:
        code = CODE.search(row[0])
        shown = self._case.shown(place.test_id, code and code.group(1), bare(row[1]))
        if shown is None:
            yield from self._without(place, place.test_id)
            return
        yield from self._judged(shown, row[2], row[3], row[4])
        yield from compare(row[5], shown.spread)

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
        effect = self._effect_of(place, row[0], bare(row[2]))
        if effect is None:
            yield f"the results hold no effect on {row[0]}"
            return
        notation = effect_notation(effect, [math.exp(block) for block in effect["blocks"]])
        wanted = (
            notation(effect["ratio"]),
            span(notation, effect["interval"]),
            p_value(effect["p_sign_flip"]),
            p_value(effect["p_holm"]),
        )
        yield from compare_row(row[3:7], wanted)
        if not row[7].startswith(self._verdicts[effect["verdict"]]):
            yield f"the verdict is {self._verdicts[effect['verdict']]}, not {row[7]}"

    def _blocks(self, place: Place, row: list[str]) -> Iterator[str]:
        """Hold a row against the effect whose turn it is: a metric has one row for each treatment."""
        key = (place.test_id, row[0])
        treatments = self._case.arms(place.test_id)[1:]
        turn, self._block_rows[key] = self._block_rows[key], self._block_rows[key] + 1
        effect = self._effect_of(place, row[0], treatments[turn]) if turn < len(treatments) else None
        ratios = [] if effect is None else [math.exp(block) for block in effect["blocks"]]
        yield from compare(row[1], [] if effect is None else effect_notation(effect, ratios)(*ratios))

    def _check(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(place.test_id or INSTRUMENT_TEST, {"checks": []})["checks"]
        check = next((check for check in told if check["id"] == bare(row[0])), None)
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
