"""How each metric of each arm, and each comparison, has to be printed: the right numbers cut to the right digit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import (
    Notation,
    effect_notation,
    exact_place,
    noise_of,
    notation_of,
    numbers,
    p_value,
    place_of,
    share,
    written,
)
from touchstone.verify.expected import compared_metric
from touchstone.verify.observed import COMPARISONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.experiment import Experiment
    from touchstone.verify.custody import Evidence
    from touchstone.verify.gathered import TestEvidence

Json: TypeAlias = "dict[str, Any]"

_TURNED = {"HIGHER": "LOWER", "LOWER": "HIGHER"}


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


def span(notation: Notation, interval: Json | None) -> list[str]:
    """Write the ends of an interval; nothing where there is none."""
    return [] if interval is None else notation(interval["low"], interval["high"])


def _shown(told: Json) -> Shown:
    notation, values, verdict = notation_of(told), told["values"], told["verdict"]
    noisy, given = verdict != "EXACT", told["withheld"] is None and told["median"] is not None
    interval = told["interval"] if noisy and given else None
    example = told["example"]
    size = [] if told["sample_size"] is None else [written(told["sample_size"], 0)]
    return Shown(
        value=notation(told["median"]) if given else [],
        interval=span(notation, interval),
        level=[] if interval is None else share(interval["level"]),
        range=notation(min(values), max(values)) if len(values) > 1 else [],
        quotes_range=len(values) > 1 and (verdict in {"UNSTABLE", "DRIFTING"} or (noisy and interval is None)),
        verdict=verdict,
        rows=tuple((notation(score), notation(*row)) for score, row in zip(values, told["repetitions"], strict=True)),
        counts=[str(told["n"]), str(told["k"]), *size],
        spread=share(told["max_deviation"]),
        drift=share(told["drift"]),
        log_interval=span(notation, told["log_t_interval"] if noisy and given else None),
        quotable=frozenset((str(told["n"]), str(told["k"]), *(s.lstrip("-") for s in share(told["max_deviation"])))),
        withheld=None if told["withheld"] is None else numbers(told["withheld"]),
        formula={} if example is None else example["terms"],
        outcome=None if example is None else example["value"],
        example=[] if example is None else [*numbers(example["unit_id"]), str(example["position"] + 1)],
    )


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
        interval=span(notation, ends),
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

    def arms(self, test_id: str | None) -> tuple[str, ...]:
        """Name the arms of a test; none for a test that was not planned."""
        test = self.tests.get(test_id or "")
        return () if test is None else test.arms

    def _shown(self, test_id: str | None, metric: str | None, arm: str) -> Shown | None:
        result = self.results.get(test_id or "", {"statistics": [], "effects": []})
        if metric is not None and metric in COMPARISONS:
            name = compared_metric(metric)
            effects = [effect for effect in result["effects"] if effect["metric"] == name]
            return _shown_comparison(metric, effects[0]) if effects else None
        chosen = [item for item in result["statistics"] if (item["metric"], item["arm"]) == (metric, arm)]
        return _shown(chosen[0]) if chosen else None
