"""What canary and telemetry said over all valid runs of a test, in one record each; None where nothing was said."""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING, TypeVar

from touchstone.records import CanarySummary, TelemetrySummary
from touchstone.validity import largest_move, readings_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from touchstone.analysis.runs import Ledgered, TestRuns
    from touchstone.records import GpuTelemetry, Measurement

Number = TypeVar("Number", int, float)


def canary_summary(ledgered: Ledgered, test: TestRuns) -> CanarySummary | None:
    """Sum up the canary readings around a test's valid runs."""
    measured = _valid(test)
    readings = readings_of(measured)
    if not readings:
        return None
    moves = (move for row in measured if (move := largest_move(row, ledgered.readings_by_device)) is not None)
    return CanarySummary(
        num_readings=len(readings),
        flops_per_s=median(reading.flops_per_s for reading in readings),
        bytes_per_s=median(reading.bytes_per_s for reading in readings),
        operation_s=median(reading.operation_s for reading in readings),
        largest_move=max(moves),
        limit=ledgered.plan.canary_limit,
    )


def telemetry_summary(test: TestRuns) -> TelemetrySummary | None:
    """Sum up the telemetry of a test's valid runs: totals of counters, extremes of samples."""
    told = [row.telemetry for row in _valid(test) if row.telemetry is not None]
    if not told:
        return None
    gpus = [gpu for telemetry in told for gpu in telemetry.gpus]
    return TelemetrySummary(
        num_runs=len(told),
        load_average_max=_largest(telemetry.load_average for telemetry in told),
        throttled_s=_total(telemetry.throttled_s for telemetry in told),
        involuntary_switches=_total(telemetry.involuntary_switches for telemetry in told),
        other_busy_cores_max=_largest(telemetry.other_busy_cores for telemetry in told),
        sm_clock_min_mhz=min(_known(gpu.sm_clock_min_mhz for gpu in gpus), default=None),
        temperature_max_c=_largest(gpu.temperature_max_c for gpu in gpus),
        power_mean_w=fmean(powers) if (powers := _known(gpu.power_mean_w for gpu in gpus)) else None,
        energy_j=_total(gpu.energy_j for gpu in gpus),
        slowdown_s=_slowdowns(gpus),
        other_gpu_processes=_largest(gpu.other_processes for gpu in gpus),
    )


def _valid(test: TestRuns) -> list[Measurement]:
    return [row for _, attempt in test.attempts if attempt.valid for row in attempt.measurements]


def _known(values: Iterable[Number | None]) -> list[Number]:
    return [value for value in values if value is not None]


def _largest(values: Iterable[Number | None]) -> Number | None:
    return max(_known(values), default=None)


def _total(values: Iterable[Number | None]) -> Number | None:
    """Add counters up; None where no run has one."""
    known = _known(values)
    return sum(known) if known else None


def _slowdowns(gpus: list[GpuTelemetry]) -> dict[str, float] | None:
    told = [gpu.slowdown_s for gpu in gpus if gpu.slowdown_s is not None]
    names = sorted({name for row in told for name in row})
    return {name: sum(row.get(name, 0.0) for row in told) for name in names} if told else None
