"""The machine beside the numbers: each speed's physical floor, and what canary and telemetry said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual
from touchstone.records import TelemetrySummary
from touchstone.reporting.formatting import percent
from touchstone.reporting.values import NOTHING, Amount, Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.records import CanarySummary, MetricStatistics, Result, Roofline

_UNWATCHED = TelemetrySummary(
    num_runs=0,
    load_average_max=None,
    throttled_s=None,
    involuntary_switches=None,
    other_busy_cores_max=None,
    sm_clock_min_mhz=None,
    temperature_max_c=None,
    power_mean_w=None,
    energy_j=None,
    slowdown_s=None,
    other_gpu_processes=None,
)
_GIGA, _MICRO, _MILLI = 1e9, 1e6, 1e3


@dataclass(frozen=True, slots=True)
class RooflineView:
    """One metric of one arm beside what the machine could do at best."""

    metric: str
    arm: str
    bound: Amount
    share: Amount
    floor: Amount
    limited_by: Term
    flops: Amount
    num_bytes: Amount
    flops_per_s: Amount
    bytes_per_s: Amount
    explanation: Bilingual | None


@dataclass(frozen=True, slots=True)
class MachineView:
    """What was seen of the machine around the valid runs of one test; a dash where nothing was."""

    test_id: str
    readings: Amount
    flops_per_s: Amount
    bytes_per_s: Amount
    operation: Amount
    largest_move: Amount
    limit: Amount
    load: Amount
    throttled: Amount
    switches: Amount
    other_cores: Amount
    clock: Amount
    temperature: Amount
    power: Amount
    other_processes: Amount


def roofline_view(item: MetricStatistics) -> RooflineView | None:
    """Show a number's roofline; None for a number without one."""
    if item.roofline is None:
        return None
    roof = item.roofline
    return RooflineView(
        metric=item.metric,
        arm=item.arm,
        bound=_amount(roof.bound, item.unit, 3),
        share=Amount(percent(roof.share)),
        floor=_amount(roof.floor_s * _MILLI, "ms", 3),
        limited_by=Term("limited_by_bytes" if roof.limited_by == "bytes" else "limited_by_flops"),
        flops=_amount(roof.num_flops / _GIGA, "GFLOP", 4),
        num_bytes=_amount(roof.num_bytes / _GIGA, "GB", 4),
        flops_per_s=_amount(roof.flops_per_s / _GIGA, "GFLOP/s", 3),
        bytes_per_s=_amount(roof.bytes_per_s / _GIGA, "GB/s", 3),
        explanation=_explanation(roof),
    )


def roofline_views(result: Result) -> tuple[RooflineView, ...]:
    """Show every roofline of a test, in the order of its numbers."""
    views = (roofline_view(item) for item in result.statistics)
    return tuple(view for view in views if view is not None)


def machine_views(results: Sequence[Result]) -> tuple[MachineView, ...]:
    """Show what was seen around each test, leaving out tests with neither canary nor telemetry."""
    seen = (result for result in results if result.canary is not None or result.telemetry is not None)
    return tuple(_machine_view(result.test_id, result.canary, result.telemetry) for result in seen)


def _machine_view(test_id: str, canary: CanarySummary | None, watched: TelemetrySummary | None) -> MachineView:
    seen = watched or _UNWATCHED
    return MachineView(
        test_id=test_id,
        readings=NOTHING if canary is None else Amount(str(canary.num_readings)),
        flops_per_s=NOTHING if canary is None else _amount(canary.flops_per_s / _GIGA, "GFLOP/s", 3),
        bytes_per_s=NOTHING if canary is None else _amount(canary.bytes_per_s / _GIGA, "GB/s", 3),
        operation=NOTHING if canary is None else _amount(canary.operation_s * _MICRO, "µs", 3),
        largest_move=NOTHING if canary is None else Amount(percent(canary.largest_move)),
        limit=NOTHING if canary is None or canary.limit is None else Amount(percent(canary.limit, 0)),
        load=_optional(seen.load_average_max),
        throttled=_optional(seen.throttled_s, "s"),
        switches=_optional(seen.involuntary_switches),
        other_cores=_optional(seen.other_busy_cores_max),
        clock=_optional(seen.sm_clock_min_mhz, "MHz"),
        temperature=_optional(seen.temperature_max_c, "°C"),
        power=_optional(seen.power_mean_w, "W"),
        other_processes=_optional(seen.other_gpu_processes),
    )


def _explanation(roof: Roofline) -> Bilingual | None:
    if roof.explanation is None:
        return None
    return Bilingual(roof.explanation, roof.explanation_zh or roof.explanation)


def _optional(value: float | None, unit: str = "") -> Amount:
    return NOTHING if value is None else _amount(value, unit, 3)


def _amount(value: float, unit: str, digits: int) -> Amount:
    """Write a value of the machine, which is no result, with so many significant digits and no exponent."""
    if isinstance(value, int):
        return Amount(f"{value:,}", unit)
    size = f"{abs(value):e}".partition("e")[2] if value else "0"
    return Amount(f"{value:,.{max(0, digits - 1 - int(size))}f}", unit)
