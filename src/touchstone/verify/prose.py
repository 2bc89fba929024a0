"""Numbers in the sentences of a result: they may only be counts and spreads of the test itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import numbers, share
from touchstone.verify.quotable import LIMITS, STRUCTURAL, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from touchstone.verify.shown import Case

Json: TypeAlias = "dict[str, Any]"


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
    names = tokens([(engine["name"], engine["version"]) for engine in engines], list(test.arms))
    allowed = STRUCTURAL | LIMITS | names | {*map(str, counts), str(len(told["checks"])), *spreads}
    for name, text in _sentences(told):
        if strange := [number for number in numbers(text) if number not in allowed]:
            yield f"{name} says {strange[0]}, which is no count or spread of this test"


def _sentences(told: Json) -> Iterable[tuple[str, str]]:
    for name in ("how_obtained", "verification"):
        yield name, told[name]
        yield f"zh.{name}", told["zh"][name]
