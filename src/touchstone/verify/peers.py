"""Engines side by side, worked out again from the traces, and how a row of their table has to be written.

What differs from the way in which the results were made: rounds are matched by the plan's units, times come from arrays
of token times, the interval from the continued fraction of `arithmetic`, and the work of the requests from whole-run
sums over arrays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from touchstone.verify import arithmetic as own
from touchstone.verify.comparing import differences
from touchstone.verify.digits import Notation, notation_of, numbers, place_of, share, written
from touchstone.verify.rooflines import machine_of, ranks_of, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.experiment import Experiment
    from touchstone.verify.custody import Evidence
    from touchstone.verify.gathered import TestEvidence, TimedRun
    from touchstone.verify.rooflines import Machine

Json: TypeAlias = "dict[str, Any]"

METRIC = "total_time"
ROWS = (
    "workload",
    "engine",
    "time_for_all",
    "verdict",
    "time_over_first",
    "interval",
    "share_of_bound",
    "cached_in_all_runs",
    "remark",
)
WORKLOADS = ("workload", "requests_asked_for")
VERSIONS = ("engine", "version")
SETTINGS = ("engine", "engine_settings")
_SHARES = ("shared_fraction", "prefix_fraction")
_EMPTY: Json = {
    "version": None,
    "settings": {},
    "seconds": None,
    "rounds": [],
    "ratio": None,
    "interval": None,
    "share": None,
    "cached_tokens": None,
}


def peer_faults(
    evidence: Evidence, tests: Mapping[str, TestEvidence], experiment: Experiment | None, told: Json
) -> Iterator[str]:
    """Say where the comparison of engines is not what the ledger gives; a test without one must hold none."""
    test = tests.get(told["test_id"])
    if experiment is None or not experiment.compares_engines or test is None or told["status"] != "measured":
        if told["peers"]:
            yield "compares engines, and this test has none to compare"
        return
    absent = {row["arm"]["name"]: row for row in test.planned["absent_arms"]}
    arms = [*test.arms, *absent]
    if [row["arm"] for row in told["peers"]] != arms:
        yield f"the engines are not {', '.join(arms)}"
        return
    work = _Work(evidence, test, told)
    for row in told["peers"]:
        where = f"engine {row['arm']}"
        if row["arm"] in absent:
            reasons = {name: absent[row["arm"]][name] for name in ("reason", "reason_zh")}
            yield from differences(_EMPTY | reasons, row, where)
        else:
            yield from work.faults(row, where)


class _Work:
    """What the engines of one test are held against."""

    def __init__(self, evidence: Evidence, test: TestEvidence, told: Json) -> None:
        self._test = test
        self._machine = machine_of(evidence)
        self._round_of = {unit["unit_id"]: unit["process"] for unit in evidence.plan["units"]}
        self._items = {item["arm"]: item for item in told["statistics"] if item["metric"] == METRIC}
        self._times = {arm: self._times_of(arm) for arm in test.arms}

    def _times_of(self, arm: str) -> dict[int, float]:
        """Median time of each process of an engine, by the number of its round."""
        found = {}
        for runs in self._test.of_arm(arm):
            if runs:
                seconds = [run.facts.window_ns / 1e9 for run in runs]
                found[self._round_of[runs[0].unit_id]] = own.median(seconds)
        return found

    def faults(self, row: Json, where: str) -> Iterator[str]:
        """Hold one engine that was run against its own traces."""
        arm, item = row["arm"], self._items[row["arm"]]
        runs = [run for process in self._test.of_arm(arm) for run in process]
        if item["median"] is None or not runs:
            yield from differences(_EMPTY, row, where)
            if row["reason"] is None:
                yield f"{where}: has no numbers and no reason why not"
            return
        yield from differences(self._expected(arm, runs), row, where)
        rounds = self._rounds(arm)
        low, high = own.mean_interval(rounds) if len(rounds) > 1 else (None, None)
        ends = None if low is None or high is None else {"low": math.exp(low), "high": math.exp(high)}
        if (ends is None) != (row["interval"] is None):
            yield f"{where}: {len(rounds)} rounds and {'no' if row['interval'] is None else 'an'} interval"
        elif ends is not None:
            yield from differences(ends, row["interval"], f"{where}, interval")

    def _expected(self, arm: str, runs: Sequence[TimedRun]) -> Json:
        rounds = self._rounds(arm)
        told = [run.facts.cached for run in runs]
        known = [cached for cached in told if cached is not None]
        engine = next((run.engine for run in runs if run.engine is not None), None) or {}
        return {
            "version": engine.get("version"),
            "settings": engine.get("settings"),
            "seconds": own.median(list(self._times[arm].values())),
            "rounds": rounds,
            "ratio": math.exp(own.mean(rounds)) if rounds else None,
            "share": self._share(arm),
            "cached_tokens": sum(int(cached.sum()) for cached in known) if len(known) == len(told) else None,
            "reason": None,
            "reason_zh": None,
        }

    def _rounds(self, arm: str) -> list[float]:
        first = self._test.arms[0]
        if arm == first or self._items[first]["median"] is None:
            return []
        theirs, mine = self._times[first], self._times[arm]
        return [math.log(mine[number]) - math.log(theirs[number]) for number in sorted(mine) if number in theirs]

    def _share(self, arm: str) -> float | None:
        """Median over the processes of the least time for the work over the time taken."""
        shares = []
        for runs in self._test.of_arm(arm):
            found = [share_of(run, self._machine) for run in runs]
            known = [value for value in found if value is not None]
            if len(known) < len(found):
                return None
            shares += [own.median(known)] if known else []
        return own.median(shares) if shares else None


def share_of(run: TimedRun, machine: Machine | None) -> float | None:
    """Least time for the requests of a run, however they are scheduled, over the time that they took."""
    shape, facts = shape_of(run.engine), run.facts
    if machine is None or shape is None or run.engine is None or facts.cached is None:
        return None
    later = facts.output - 1
    weights = shape["layers"] + shape["head"]
    read = int(facts.cached.sum()) + int((later * facts.prompt).sum()) + int((later * (later + 1)).sum()) // 2
    prompts = int((facts.prompt * (facts.prompt + 1) - facts.cached * (facts.cached + 1)).sum()) // 2
    pairs = prompts + int((later * facts.prompt).sum()) + int((later * (later + 1)).sum()) // 2
    computed = int((facts.prompt - facts.cached + later).sum())
    num_bytes = weights * shape["element"] * int(np.max(facts.output)) + read * shape["kv"]
    linear = 2 * (shape["layers"] * computed + shape["head"] * int(facts.output.sum()))
    least = max(num_bytes / machine.bytes_per_s, (linear + pairs * shape["pair"]) / machine.flops_per_s)
    return least / ranks_of(run.engine["settings"]) / (facts.window_ns / 1e9)


# --- the tables -----------------------------------------------------------------------------------------------------


def row_cells(told: Json, arm: str, language: str) -> list[list[str]] | None:
    """Numbers of every cell after the engine's; None for an engine that the result does not hold."""
    row = next((row for row in told["peers"] if row["arm"] == arm), None)
    if row is None:
        return None
    item = next((item for item in told["statistics"] if (item["metric"], item["arm"]) == (METRIC, arm)), None)
    time = [] if item is None or row["seconds"] is None else notation_of(item)(row["seconds"])
    cached = [] if row["cached_tokens"] is None else [written(row["cached_tokens"], 0)]
    remark = row["reason_zh" if language == "zh" else "reason"]
    return [time, *_cut(row), share(row["share"]), cached, [] if remark is None else numbers(remark)]


def verdict_of(told: Json, arm: str) -> str | None:
    """Verdict on the time of an engine; None for one that was not run."""
    items = (item for item in told["statistics"] if (item["metric"], item["arm"]) == (METRIC, arm))
    return next((str(item["verdict"]) for item in items), None)


def request_numbers(workload: Json) -> list[str]:
    """Numbers of the sentence on a workload: requests, lengths in and out, and what they share."""
    lengths = (workload["input_tokens"], workload["output_tokens"])
    ends = [end for length in lengths for end in dict.fromkeys((length["low"], length["high"]))]
    shares = [100 * workload[name] for name in _SHARES] if workload["shared_fraction"] else []
    return [written(value, 0).replace(",", "") for value in (workload["num_requests"], *ends, *shares)]


def _cut(row: Json) -> tuple[list[str], list[str]]:
    """Write ratio and interval on the digits that the half-width allows."""
    ratio, interval = row["ratio"], row["interval"]
    if ratio is None:
        return [], []
    noise = None if interval is None else (interval["high"] - interval["low"]) / 2
    notation = Notation(1.0, place_of(ratio, noise))
    return notation(ratio), [] if interval is None else notation(interval["low"], interval["high"])


def engine_cells(results: Mapping[str, Json], arm: str) -> tuple[str, str] | None:
    """Version and settings of an engine over all workloads, as the tables have to say them."""
    rows = [row for told in results.values() for row in told["peers"] if row["arm"] == arm and row["version"]]
    if not rows:
        return None
    settings = [row["settings"] for row in rows]
    lines = [f"{name} = {_values(name, settings)}" for name in sorted({name for one in settings for name in one})]
    return rows[0]["version"], "; ".join(lines)


def _values(name: str, settings: Sequence[Json]) -> str:
    seen: list[str] = []
    for one in settings:
        text = str(one.get(name))
        seen += [] if text in seen else [text]
    return " / ".join(seen)
