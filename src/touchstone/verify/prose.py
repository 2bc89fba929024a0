"""Numbers in the sentences of a result: they may only be counts and spreads of the test itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import numbers, share
from touchstone.verify.quotable import LIMITS, STRUCTURAL, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from touchstone.verify.gathered import TestEvidence
    from touchstone.verify.shown import Case

Json: TypeAlias = "dict[str, Any]"


def prose_faults(case: Case, told: Json) -> Iterator[str]:
    """Numbers in a result's own sentences that are no count or spread of this test."""
    test, experiment = case.tests.get(told["test_id"]), case.experiments.get(told["test_id"])
    if told["status"] != "measured" or test is None or experiment is None:
        return
    allowed = STRUCTURAL | LIMITS | _names(test) | {*_counts(test, told["checks"]), *_spreads(told)}
    for name, text in _sentences(told):
        if strange := [number for number in numbers(text) if number not in allowed]:
            yield f"{name} says {strange[0]}, which is no count or spread of this test"


def _names(test: TestEvidence) -> frozenset[str]:
    """Numbers in the names of arms and in the names and versions of engines."""
    engines = [attempt["engine"] for attempt in test.attempts if attempt["engine"] is not None and attempt["valid"]]
    return tokens([(engine["name"], engine["version"]) for engine in engines], list(test.arms))


def _counts(test: TestEvidence, checks: Sequence[Json]) -> Iterator[str]:
    yield from map(str, (len(test.processes), sum(map(len, test.processes)), len(test.attempts), test.num_valid))
    yield from map(str, (len(checks), sum(check["passed"] for check in checks), test.planned["num_warmups"]))
    if test.planned.get("warmup_output_tokens"):
        yield str(test.planned["warmup_output_tokens"])


def _spreads(told: Json) -> Iterator[str]:
    for item in told["statistics"]:
        yield from (*share(item["max_deviation"]), str(item["n"]))


def _sentences(told: Json) -> Iterable[tuple[str, str]]:
    for name in ("how_obtained", "verification"):
        yield name, told[name]
        yield f"zh.{name}", told["zh"][name]
