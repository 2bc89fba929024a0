"""Every number of the sweeps in a report: tables along an axis, the sentences on who is better, and the paybacks."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from touchstone.coordinates import COORDINATES
from touchstone.verify import arithmetic as own
from touchstone.verify.digits import (
    Notation,
    effect_notation,
    first_place,
    notation_of,
    numbers,
    p_value,
    plain,
    signed_numbers,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from touchstone.experiment import Experiment
    from touchstone.verify.gathered import TestEvidence

Json: TypeAlias = "dict[str, Any]"
Rule: TypeAlias = "Callable[[Any, list[str]], Iterator[str]]"

HIGHER_IS_BETTER = frozenset(
    {
        "e2e_throughput",
        "output_throughput",
        "prefill_throughput",
        "decode_throughput",
        "device_busy_share",
        "cache_hit_rate",
        "cached_tokens",
    }
)
NEITHER_IS_BETTER = frozenset({"predicted_cached_tokens", "cached_tokens_bound", "num_cuda_graphs"})
_WINNERS = re.compile(r"^- \*\*[^*]+\*\* `(\w+)`")
_CODE = re.compile(r"`([^`]+)`")
_DIGITS = 3


class Place(Protocol):
    """A line of a report and the test whose chapter it stands in."""

    @property
    def number(self) -> int:
        """Line number, from 1."""
        ...

    @property
    def text(self) -> str:
        """The line as it stands."""
        ...

    @property
    def test_id(self) -> str | None:
        """The test in whose chapter it stands."""
        ...


class Report(Protocol):
    """A report, line by line."""

    @property
    def language(self) -> str:
        """`en` or `zh`."""
        ...

    @property
    def places(self) -> Sequence[Place]:
        """Every line in its order."""
        ...


class Case(Protocol):
    """What a report is held against."""

    @property
    def tests(self) -> Mapping[str, TestEvidence]:
        """What the ledger holds of each planned test."""
        ...

    @property
    def experiments(self) -> Mapping[str, Experiment]:
        """What the bench files declare."""
        ...

    @property
    def results(self) -> Mapping[str, Json]:
        """The results, found to follow from the ledger."""
        ...


def coordinate_of(axis: str, planned: Json) -> float | None:
    """Read where a planned test lies on an axis; None for a test that has no place on it."""
    workload, options = planned["workload"], planned["engine_options"]
    if axis == "shared":
        return float(100 * workload["shared_fraction"] * workload["prefix_fraction"])
    if axis == "load":
        return None if workload["load"] is None else float(100 * workload["load"])
    if axis == "token_budget":
        return None if options.get("max_num_batched_tokens") is None else float(options["max_num_batched_tokens"])
    return float(workload["num_requests"] if axis == "batch" else workload["input_tokens"]["high"])


def _along(axis: str, planned: Json, name: str) -> tuple[bool, float, str]:
    coordinate = coordinate_of(axis, planned)
    return coordinate is None, coordinate or 0.0, name


def winner(effect: Json) -> str | None:
    """Name the side that a verdict gives a metric to, `treatment` or `baseline`; None where it decides for none."""
    if effect["metric"] in NEITHER_IS_BETTER:
        return None
    exact = effect["verdict"] == "EXACT"
    rises = effect["verdict"] == "HIGHER" or (exact and effect["ratio"] > 1)
    falls = effect["verdict"] == "LOWER" or (exact and effect["ratio"] < 1)
    if not rises and not falls:
        return None
    return "treatment" if rises == (effect["metric"] in HIGHER_IS_BETTER) else "baseline"


class SweepRules:
    """The rules for a report's places that belong to sweeps. `words` and `verdicts` are those of its language."""

    def __init__(self, case: Case, report: Report, words: Mapping[str, str], verdicts: Mapping[str, str]) -> None:
        self._case, self._language, self._verdicts, self._words = case, report.language, verdicts, words
        self._axis_of = self._find_axes(report)
        self.tables: dict[tuple[str, ...], Rule] = {
            (
                *("metric", "test", "place", "baseline", "treatment", "ratio", "interval"),
                *("p_sign_flip", "p_holm", "verdict", "better_arm"),
            ): self._cell_row,
            (
                *("test", "place", "ledger_lines", "attempts", "valid_attempts", "checks_passed", "checks"),
            ): self._point_row,
            ("test", "check", "check_result", "detail"): self._check_row,
            ("test", "reason"): self._reason_row,
            (
                *("test", "place", "capture_time", "capture_memory", "saved_a_token", "tokens_to_earn_back"),
                *("interval", "verdict"),
            ): self._payback_row,
        }

    def _find_axes(self, report: Report) -> dict[int, str]:
        """Note for every line under the heading of a sweep which axis it belongs to."""
        names = {getattr(axis.name, report.language): key for key, axis in COORDINATES.items()}
        axes: dict[int, str] = {}
        current: str | None = None
        for place in report.places:
            if place.text.startswith("#"):
                title = place.text.lstrip("# ").removeprefix(self._words["sweep"])
                is_sweep = place.text.startswith(f"#### {self._words['sweep']}")
                current = names.get(title.lstrip(":： ").strip()) if is_sweep else None
            if current is not None:
                axes[place.number] = current
        return axes

    # --- the evidence

    def _told(self, test_id: str) -> Json:
        return self._case.results.get(test_id, {"statistics": [], "effects": [], "checks": [], "evidence": None})

    def _effect(self, test_id: str, metric: str) -> Json | None:
        return next((effect for effect in self._told(test_id)["effects"] if effect["metric"] == metric), None)

    def _members(self, family: str, axis: str) -> list[str]:
        """List the measured tests on an axis in its order; those without a coordinate come last."""
        experiment = self._case.experiments.get(family)
        sweep = () if experiment is None else experiment.sweep
        included = any(one.id == axis and one.includes_test for one in sweep)
        names = [
            name
            for name, test in self._case.tests.items()
            if name.split("@")[0] == family and self._told(name).get("status") == "measured"
            if (test.planned.get("axis") == axis if "@" in name else included)
        ]
        return sorted(names, key=lambda name: _along(axis, self._case.tests[name].planned, name))

    def _place(self, axis: str | None, test_id: str) -> list[str]:
        test = self._case.tests.get(test_id)
        value = None if axis is None or test is None else coordinate_of(axis, test.planned)
        return [] if value is None else [plain(value)]

    # --- sentences

    def is_sentence(self, place: Place) -> bool:
        """Whether a line says which arm is better where."""
        return place.number in self._axis_of and _WINNERS.match(place.text) is not None

    def sentence(self, place: Place) -> Iterator[str]:
        """Hold the sentence against the verdicts: the places on each side, in their order, with ratio and interval."""
        found = _WINNERS.match(place.text)
        metric = "" if found is None else found.group(1)
        rest = place.text if found is None else place.text[found.end() :]
        sides: dict[str, list[str]] = {"treatment": [], "baseline": [], "equivalent": [], "undecided": []}
        axis = self._axis_of[place.number]
        for name in self._members(place.test_id or "", axis):
            if (effect := self._effect(name, metric)) is not None:
                sides[_side(effect)] += [*self._place(axis, name), *_ratio(effect), *_interval(effect)]
        wanted = [number.replace(",", "") for side in sides.values() for number in side]
        if numbers(rest) != wanted:
            yield f"says {', '.join(numbers(rest))}, by the verdicts it is {', '.join(wanted)}"
        yield from self._parts_faults(rest, sides)

    def _parts_faults(self, text: str, sides: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Look at each side by itself, so that no place changes sides between two that hold the same numbers."""
        parts = re.split("[;；]", text)
        if len(parts) != len(sides):
            yield f"has {len(parts)} parts, and there are {len(sides)} sides"
            return
        for part, (side, wanted) in zip(parts, sides.items(), strict=True):
            if numbers(part) != [number.replace(",", "") for number in wanted]:
                yield f"the side {side!r} says {', '.join(numbers(part)) or 'no number'}"

    # --- tables

    def _cell_row(self, place: Place, row: list[str]) -> Iterator[str]:
        code = _CODE.search(row[0])
        metric, test_id = "" if code is None else code.group(1), row[1]
        statistics = {item["arm"]: item for item in self._told(test_id)["statistics"] if item["metric"] == metric}
        if not statistics:
            yield f"the results hold no {metric} of {test_id}"
            return
        yield from _compare(row[2], self._place(self._axis_of.get(place.number), test_id))
        for cell, arm in zip(row[3:5], self._case.tests[test_id].arms, strict=False):
            yield from self._value_faults(cell, statistics.get(arm))
        yield from self._effect_faults(row, self._effect(test_id, metric), self._case.tests[test_id].arms)

    def _value_faults(self, cell: str, told: Json | None) -> Iterator[str]:
        if told is not None and told["verdict"] == "INVALID":
            yield from _compare(cell, [])
        elif told is not None and told["median"] is None:
            reason = told["withheld_zh" if self._language == "zh" else "withheld"] or told["withheld"]
            if numbers(cell) != numbers(reason or ""):
                yield f"{cell!r} is withheld for another reason"
        else:
            yield from _compare(cell, [] if told is None else notation_of(told)(told["median"]))

    def _effect_faults(self, row: list[str], effect: Json | None, arms: Sequence[str]) -> Iterator[str]:
        wanted: tuple[list[str], ...] = ([], [], [], [])
        if effect is not None:
            wanted = (_ratio(effect), _interval(effect), p_value(effect["p_sign_flip"]), p_value(effect["p_holm"]))
        for cell, expected in zip(row[5:9], wanted, strict=True):
            yield from _compare(cell, expected)
        verdict = "—" if effect is None else self._verdicts[effect["verdict"]]
        if row[9] != verdict:
            yield f"the verdict is {verdict}, not {row[9]}"
        side = None if effect is None else winner(effect)
        better = "—" if side is None else arms[1 if side == "treatment" else 0]
        if row[10].strip("`") != better:
            yield f"the better arm is {better}, not {row[10]}"

    def _point_row(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._told(row[0])
        evidence, checks = told["evidence"], told["checks"]
        if evidence is None:
            yield f"the results hold no evidence of {row[0]}"
            return
        yield from _compare(row[1], self._place(self._axis_of.get(place.number), row[0]))
        if not _covers(row[2], [entry + 1 for entry in evidence["entries"]]):
            yield f"the ledger lines are not those of {row[0]}"
        counts = (evidence["attempts"], evidence["valid_attempts"], sum(c["passed"] for c in checks), len(checks))
        for cell, count in zip(row[3:], counts, strict=True):
            yield from _compare(cell, [written(count, 0)])

    def _check_row(self, _: Place, row: list[str]) -> Iterator[str]:
        check = next((check for check in self._told(row[0])["checks"] if check["id"] == row[1].strip("`")), None)
        if check is None:
            yield f"the results hold no check {row[1]} of {row[0]}"
            return
        if numbers(row[3]) != numbers(check["detail_zh" if self._language == "zh" else "detail"]):
            yield f"the numbers of check {row[1]} of {row[0]} are not those of the results"
        if row[2].strip("*") != self._words["passed" if check["passed"] else "failed"]:
            yield f"check {row[1]} of {row[0]} is said to have {row[2]}"

    def _reason_row(self, _: Place, row: list[str]) -> Iterator[str]:
        """Hold a test that was not measured against its reason; its id comes first, a title may follow."""
        told = self._told(row[0].split(" ", maxsplit=1)[0])
        reason = told.get("reason_zh" if self._language == "zh" else "reason")
        if reason is None or numbers(row[1]) != numbers(reason):
            yield f"the results give another reason for {row[0]}"

    def _payback_row(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._told(row[0]).get("payback")
        if told is None:
            yield f"the results hold no payback of {row[0]}"
            return
        axis = next((axis for axis in COORDINATES if row[0] in self._members(place.test_id or "", axis)), None)
        capture, memory = own.median(told["captures_s"]), told["capture_bytes"] / 1e9
        ends = [told["low"], told["high"]]
        wanted = (
            self._place(axis, row[0]),
            _short(capture * (1 if capture >= 0.1 else 1e3)),  # noqa: PLR2004  as seconds turn into ms
            _short(memory * (1 if memory >= 1 else 1e3 if memory >= 1e-3 else 1e6)),  # noqa: PLR2004  GB, MB, kB
            _short(own.mean(told["saved_s"]) * 1e6),
            [] if told["tokens"] is None else _short(told["tokens"]),
            [number for end in ends if end is not None for number in _short(end)],
        )
        for cell, expected in zip(row[1:7], wanted, strict=True):
            yield from _compare(cell, expected)
        if row[7] != self._verdicts[told["verdict"]]:
            yield f"the verdict is {self._verdicts[told['verdict']]}, not {row[7]}"


def _side(effect: Json) -> str:
    return winner(effect) or ("equivalent" if effect["verdict"] in {"EQUIVALENT", "EXACT"} else "undecided")


def _notation(effect: Json) -> Notation:
    return effect_notation(effect, [math.exp(block) for block in effect["blocks"]])


def _ratio(effect: Json) -> list[str]:
    return _notation(effect)(effect["ratio"])


def _interval(effect: Json) -> list[str]:
    interval = effect["interval"]
    return [] if interval is None else _notation(effect)(interval["low"], interval["high"])


def _short(value: float) -> list[str]:
    return [written(value, first_place(value, _DIGITS))]


def _covers(cell: str, lines: Sequence[int]) -> bool:
    """Whether a list of lines and of ranges with an en dash names exactly these lines."""
    named: set[int] = set()
    for part in cell.split(","):
        ends = [int(number) for number in numbers(part)]
        named.update(range(ends[0], ends[-1] + 1) if ends else ())
    return named == set(lines)


def _compare(cell: str, wanted: list[str]) -> Iterator[str]:
    found = [number.replace(",", "") for number in signed_numbers(cell)]
    bare = [number.replace(",", "") for number in wanted]
    if found != bare:
        yield f"says {', '.join(found) or 'no number'}, worked out again it is {', '.join(bare) or 'no number'}"
