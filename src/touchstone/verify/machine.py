"""What canary and telemetry said, summed up again from the ledger: each device against its own readings."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify import arithmetic as own
from touchstone.verify.comparing import differences
from touchstone.verify.rooflines import canaries, far_below, readings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from touchstone.verify.custody import Evidence
    from touchstone.verify.gathered import TestEvidence

Json: TypeAlias = "dict[str, Any]"

_RATES = ("flops_per_s", "bytes_per_s")


def machine_faults(evidence: Evidence, test: TestEvidence, told: Json) -> Iterator[str]:
    """Say where the summaries of canary and telemetry are not those of the test's valid attempts, or a check errs."""
    runs = [run for attempt in test.attempts if attempt["valid"] for run in attempt["measurements"]]
    yield from _summary_faults("canary", canary_summary(evidence, runs), told["canary"])
    yield from _summary_faults("telemetry", telemetry_summary(runs), told["telemetry"])
    engines = any(arm["engine"] is not None for arm in test.planned["arms"])  # a slow engine is a finding there
    fails = {
        "machine_steady": _unsteady(evidence, runs),
        "not_far_below_roofline": None if engines else far_below(told["statistics"]),
    }
    passed = {check["id"]: check["passed"] for check in told["checks"]}
    for check, failed in fails.items():
        if passed.get(check) != (None if failed is None else not failed):
            yield f"the check {check} is told otherwise than the ledger gives it"


def _summary_faults(name: str, mine: Json | None, told: Json | None) -> Iterator[str]:
    if mine is not None and told is not None:
        yield from differences(mine, told, name)
    elif mine is not told:
        yield f"{name} is {'missing' if told is None else 'given, and the ledger holds none'}"


def canary_summary(evidence: Evidence, runs: list[Json]) -> Json | None:
    """Medians of all readings of these runs, and how far one moved at most."""
    told = [reading for run in runs for reading in readings(run)]
    if not told:
        return None
    medians = {name: own.median([reading[name] for reading in told]) for name in (*_RATES, "operation_s")}
    move = max(_moves(evidence, runs))
    return {"num_readings": len(told), **medians, "largest_move": move, "limit": evidence.plan.get("canary_limit")}


def _unsteady(evidence: Evidence, runs: list[Json]) -> bool | None:
    limit = evidence.plan.get("canary_limit")
    moves = list(_moves(evidence, runs))
    return None if limit is None or not moves else max(moves) > limit


def _moves(evidence: Evidence, runs: list[Json]) -> Iterator[float]:
    """How far each canary moved: the widest of before, after, and the device's median over the whole run."""
    centres = _centres(evidence)
    for run in runs:
        for canary, centre in zip(canaries(run), centres, strict=False):  # an arm may take fewer devices than another
            for rate, middle in centre.items():
                logs = [math.log(value) for value in (canary["before"][rate], canary["after"][rate], middle)]
                yield math.expm1(max(logs) - min(logs))


def _centres(evidence: Evidence) -> list[Json]:
    """Median rates of each device over the whole run, invalid attempts included."""
    rows = [canaries(run) for attempt in evidence.attempts() for run in attempt["measurements"]]
    devices = range(max(map(len, rows), default=0))
    return [
        {
            rate: own.median([row[device][moment][rate] for row in rows if len(row) > device for moment in _MOMENTS])
            for rate in _RATES
        }
        for device in devices
    ]


_MOMENTS = ("before", "after")


def telemetry_summary(runs: list[Json]) -> Json | None:
    """Totals of counters, extremes of samples; None for what no run tells."""
    told = [run["telemetry"] for run in runs if run.get("telemetry") is not None]
    if not told:
        return None
    gpus = list(chain.from_iterable(one["gpus"] for one in told))
    slowdowns = [gpu["slowdown_s"] for gpu in gpus if gpu["slowdown_s"] is not None]
    reasons = sorted(set(chain.from_iterable(slowdowns)))
    powers = _known(gpu["power_mean_w"] for gpu in gpus)
    return {
        "num_runs": len(told),
        "load_average_max": max(_known(one["load_average"] for one in told), default=None),
        "throttled_s": _sum(one["throttled_s"] for one in told),
        "involuntary_switches": _sum(one["involuntary_switches"] for one in told),
        "other_busy_cores_max": max(_known(one["other_busy_cores"] for one in told), default=None),
        "sm_clock_min_mhz": min(_known(gpu["sm_clock_min_mhz"] for gpu in gpus), default=None),
        "temperature_max_c": max(_known(gpu["temperature_max_c"] for gpu in gpus), default=None),
        "power_mean_w": own.mean(powers) if powers else None,
        "energy_j": _sum(gpu["energy_j"] for gpu in gpus),
        "slowdown_s": {name: math.fsum(row.get(name, 0.0) for row in slowdowns) for name in reasons}
        if slowdowns
        else None,
        "other_gpu_processes": max(_known(gpu["other_processes"] for gpu in gpus), default=None),
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _sum(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return math.fsum(known) if known else None
