"""Whether repeats on the same prompts are faster, by arithmetic of its own: every process's repeat against its arm.

A process's ratio is the repeat over the geometric mean of its like runs; the interval is that of the mean logarithm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from touchstone.verify import arithmetic as own
from touchstone.verify.digits import signed_numbers, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.verify.gathered import TestEvidence, TimedRun
    from touchstone.verify.observed import Observation

Json: TypeAlias = "dict[str, Any]"

CHECK = "repeated_prompts_not_faster"
MAX_SAVED, LEVEL = 0.1, 0.99


def repeat_faults(tests: Mapping[str, TestEvidence], told: Json) -> Iterator[str]:
    """Say where a result tells of repeats otherwise than the traces do."""
    test = tests.get(told["test_id"])
    found = next((check for check in told["checks"] if check["id"] == CHECK), None)
    rows = [] if test is None or told["status"] != "measured" else _rows(test)
    if len(rows) < 2:  # noqa: PLR2004  a spread needs two values
        yield from () if found is None else (f"{CHECK} is told of too few repeats",)
    elif found is None:
        yield f"{CHECK} is missing"
    else:
        yield from _check_faults(found, rows)


def _check_faults(found: Json, rows: Sequence[tuple[float, int]]) -> Iterator[str]:
    low, high = own.mean_interval([ratio for ratio, _ in rows], LEVEL)
    centre, least, most = (-math.expm1(end) for end in (own.mean([ratio for ratio, _ in rows]), high, low))
    if found["passed"] == (least > MAX_SAVED):
        yield f"{CHECK} {'passed' if found['passed'] else 'failed'}, and the interval begins at {least:.3f}"
    counts = [len(rows), sum(count for _, count in rows)]
    wanted = [*counts, *(_per_cent(value) for value in (centre, LEVEL, least, most, MAX_SAVED))]
    for name in ("detail", "detail_zh"):
        if (said := _signed(found[name])) != wanted:
            yield f"{CHECK}: {name} says {said}, worked out again it is {wanted}"


def _per_cent(value: float) -> float:
    """Cut a share to the digits that are printed."""
    return float(written(100 * value, -1).replace(",", ""))


def _signed(text: str) -> list[float]:
    """Read the numbers of a sentence with their signs."""
    return [float(number.replace(",", "")) for number in signed_numbers(text)]


def _rows(test: TestEvidence) -> list[tuple[float, int]]:
    """For each process with a repeat: log of repeat over its arm's like runs, and how many these are."""
    return [
        _row([run for run in process if run.arm == process[-1].arm], again)
        for process in test.processes
        if process and process[-1].facts.complete
        if (again := test.repeated.get(process[-1].unit_id)) is not None and again.complete
    ]


def _row(runs: Sequence[TimedRun], again: Observation) -> tuple[float, int]:
    last = runs[-1].facts
    alike = [run.facts for run in runs if _same_work(run.facts, last)]
    ratios = [math.log(again.window_ns / facts.window_ns) for facts in alike]
    return own.mean(ratios), len(alike)


def _same_work(one: Observation, other: Observation) -> bool:
    return np.array_equal(one.prompt, other.prompt) and np.array_equal(one.output, other.output)
