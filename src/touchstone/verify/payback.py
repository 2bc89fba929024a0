"""Whether captured graphs are earned back when the results say so: the claim is tested, not worked out the same way.

At each end of a Fieller interval, zero lies exactly on the edge of the t interval of cost - tokens x saving.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify import arithmetic as own
from touchstone.verify.expected import is_void

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.verify.gathered import TestEvidence, TimedRun

Json: TypeAlias = "dict[str, Any]"

LEVEL, EDGE = 0.95, 1e-6


def faults_of(tests: Mapping[str, TestEvidence], told: Json) -> Iterator[str]:
    """Say what is wrong with the payback of any result."""
    test = tests.get(told["test_id"])
    if told["status"] == "measured" and test is not None and test.processes:
        yield from payback_faults(test, told, void=is_void(tests))
    elif told["payback"] is not None:
        yield "payback: given, and the ledger holds no valid process of this test"


def payback_faults(test: TestEvidence, told: Json, *, void: bool) -> Iterator[str]:
    """Say what is wrong with the payback of a result."""
    payback = told["payback"]
    costs = None if void or len(test.arms) != 2 or not test.published else _costs(test)  # noqa: PLR2004  off and on
    shown = any(item["metric"] == "decode_throughput" and item["verdict"] != "INVALID" for item in told["statistics"])
    if costs is None or not shown:
        if payback is not None:
            yield "payback: given, and the runs do not allow one"
        return
    if payback is None:
        yield "payback: missing"
        return
    captures, saved, sizes, num_graphs = costs
    for name, mine in (("captures_s", captures), ("saved_s", saved)):
        if len(mine) != len(payback[name]) or not all(map(_close, mine, payback[name])):
            yield f"payback: {name} is {payback[name]}, worked out again it is {mine}"
            return
    if payback["num_graphs"] != num_graphs or payback["capture_bytes"] != round(own.median(sizes)):
        yield f"payback: {num_graphs} graphs keep {round(own.median(sizes))} bytes"
    yield from _verdict_faults(payback, captures, saved)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15)


def _costs(test: TestEvidence) -> tuple[list[float], list[float], list[float], int] | None:
    """Capture and saving of each process; None where one has none, or captured graphs for both arms."""
    captures, saved = [], []
    for off, on in zip(test.of_arm(test.arms[0]), test.of_arm(test.arms[1]), strict=True):
        times = [_token_s(runs) for runs in (off, on)]
        graphs = on[0].facts.graphs if on else None
        if times[0] is None or times[1] is None or graphs is None or any(run.facts.graphs for run in off):
            return None
        captures.append(graphs)
        saved.append(times[0] - times[1])
    if len(saved) < 2:  # noqa: PLR2004  a spread needs two
        return None
    seconds, sizes = [one["capture_s"] for one in captures], [float(one["capture_bytes"]) for one in captures]
    return seconds, saved, sizes, int(captures[0]["num_graphs"])


def _token_s(runs: Sequence[TimedRun]) -> float | None:
    rates = [run.value("decode_throughput") for run in runs]
    if not rates or any(rate is None for rate in rates):
        return None
    return own.mean([1 / rate.value for rate in rates if rate is not None])


def _verdict_faults(payback: Json, captures: Sequence[float], saved: Sequence[float]) -> Iterator[str]:
    low, high = own.mean_interval(saved, LEVEL)
    verdict = "EARNED BACK" if low > 0 else "NEVER" if high < 0 else "UNDECIDED"
    if payback["verdict"] != verdict:
        yield f"payback: the verdict is {payback['verdict']}, worked out again it is {verdict}"
        return
    mean = own.mean(saved)
    tokens = own.mean(captures) / mean if mean > 0 else None
    if (tokens is None) != (payback["tokens"] is None) or (
        tokens is not None and not _close(tokens, payback["tokens"])
    ):
        yield f"payback: tokens is {payback['tokens']}, worked out again it is {tokens}"
    if (payback["low"] is not None, payback["high"] is not None) != (verdict != "NEVER", verdict == "EARNED BACK"):
        yield f"payback: the verdict {verdict} has other ends"
        return
    for name in ("low", "high"):
        if payback[name]:
            yield from _end_faults(name, payback[name], captures, saved)


def _end_faults(name: str, tokens: float, captures: Sequence[float], saved: Sequence[float]) -> Iterator[str]:
    left = [capture - tokens * one for capture, one in zip(captures, saved, strict=True)]
    edges = own.mean_interval(left, LEVEL)
    width = max(edges[1] - edges[0], abs(own.mean(captures)))
    if min(abs(edge) for edge in edges) > EDGE * width:
        yield f"payback: {name} is {tokens}, at which zero is not on the edge of the interval {edges}"
