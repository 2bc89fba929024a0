"""Scaling as the report shows it: every declared arm against one device, the fits, and their figure.

What a law says of counts that were not measured is drawn, dashed and named a projection; it is in no table and in no
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.scaling import predicted_speedup
from touchstone.experiment import Bilingual, Law
from touchstone.reporting.formatting import Notation, Scale, fixed, last_place, noise_of, notation_for, percent
from touchstone.reporting.scaling_figures import ScalingPanel
from touchstone.reporting.values import NOTHING, Amount, Printable, Term

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.records import Interval, MetricStatistics, Result, ScalingFit, ScalingPoint, ScalingSeries

FORMULAS = (
    r"S(p) = \exp\left(\overline{\ln x_p} - \overline{\ln x_1}\right), \quad E(p) = \frac{S(p)}{p}",
    r"\frac{1}{S} = s + \frac{1 - s}{p} \quad (\text{Amdahl}), \qquad S = p - s\,(p - 1) \quad (\text{Gustafson})",
)
_NOT_MEASURED = Bilingual("not measured", "未测量")
_NO_SPEEDUP = Bilingual("no speed-up", "无加速比")
_WITHHELD = Bilingual("withheld", "不予发布")
_PERCENT = 100
_CURVE_POINTS = 60


@dataclass(frozen=True, slots=True)
class PointRow:
    """One number of devices of one series; dashes and a reason where it has no value."""

    series: Bilingual
    arm: str
    num_gpus: int
    num_requests: Printable
    rate: Amount
    speedup: Amount
    speedup_interval: Amount
    efficiency: Amount
    efficiency_interval: Amount
    serial_fraction: Amount
    remark: Bilingual | Amount


@dataclass(frozen=True, slots=True)
class FitRow:
    """The law that was fitted to a series, and how far each point lies from it."""

    series: Bilingual
    law: Term
    serial_fraction: Amount
    points: Amount
    residuals: Amount


@dataclass(frozen=True, slots=True)
class ScalingView:
    """The scaling part of one test; no rows for a test without one."""

    points: tuple[PointRow, ...]
    fits: tuple[FitRow, ...]
    formulas: tuple[str, ...]


def scaling_view(result: Result, results: Mapping[str, Result]) -> ScalingView:
    """Arrange the series of a result; throughputs are cut to the noise of their own test's statistics."""
    rows = tuple(_point_row(series, point, results) for series in result.scaling for point in series.points)
    fits = tuple(_fit_row(series, series.fit) for series in result.scaling if series.fit is not None)
    return ScalingView(rows, fits, FORMULAS if rows else ())


def _point_row(series: ScalingSeries, point: ScalingPoint, results: Mapping[str, Result]) -> PointRow:
    mine = [item for item in results[point.test_id].statistics if (item.metric, item.arm) == (series.metric, point.arm)]
    return PointRow(
        series=Bilingual(series.name, series.name_zh),
        arm=point.arm,
        num_gpus=point.num_gpus,
        num_requests=NOTHING if point.num_requests is None else point.num_requests,
        rate=_rate(point, mine),
        speedup=_ratio(point.speedup, point.speedup_interval),
        speedup_interval=_span(point.speedup, point.speedup_interval, 1),
        efficiency=_share(point.efficiency, point.efficiency_interval),
        efficiency_interval=_span(point.efficiency, point.efficiency_interval, _PERCENT),
        serial_fraction=_fraction(point.serial_fraction),
        remark=_remark(point, withheld=any(item.withheld is not None for item in mine)),
    )


def _rate(point: ScalingPoint, mine: Sequence[MetricStatistics]) -> Amount:
    if not mine or point.throughput is None:
        return NOTHING
    notation = notation_for(mine[0])
    return Amount(notation.write(point.throughput), notation.scale.symbol)


def _notation(value: float, interval: Interval | None, factor: float) -> Notation:
    """Cut a value to the half-width of its interval; one device against itself is exact."""
    noise = noise_of([value], interval)
    place = 0 if value == 1 and interval is None else last_place(factor * value, noise and factor * noise)
    return Notation(Scale(factor, ""), place)


def _ratio(value: float | None, interval: Interval | None) -> Amount:
    return NOTHING if value is None else Amount(_notation(value, interval, 1).write(value), "×")


def _share(value: float | None, interval: Interval | None) -> Amount:
    return NOTHING if value is None else Amount(_notation(value, interval, _PERCENT).write(value), "%")


def _span(value: float | None, interval: Interval | None, factor: float) -> Amount:
    if value is None or interval is None:
        return NOTHING
    notation = _notation(value, interval, factor)
    unit = "×" if factor == 1 else "%"
    return Amount(f"[{notation.write(interval.low)}, {notation.write(interval.high)}]", unit)


def _fraction(value: float | None) -> Amount:
    return NOTHING if value is None else Amount(fixed(value, last_place(value, None)))


def _remark(point: ScalingPoint, *, withheld: bool) -> Bilingual | Amount:
    if point.reason is not None:
        word = _WITHHELD if withheld else _NOT_MEASURED if point.throughput is None else _NO_SPEEDUP
        return Bilingual(f"{word.en}: {point.reason}", f"{word.zh}：{point.reason_zh}")
    if point.num_gpus == 1:
        return Bilingual(f"baseline, from test {point.test_id}", f"基线，取自测试 {point.test_id}")
    return NOTHING


def _fit_row(series: ScalingSeries, fit: ScalingFit) -> FitRow:
    return FitRow(
        series=Bilingual(series.name, series.name_zh),
        law=Term(f"law_{fit.law.lower()}"),
        serial_fraction=_fraction(fit.serial_fraction),
        points=Amount(", ".join(str(count) for count in fit.num_gpus)),
        residuals=Amount(", ".join(percent(residual) for residual in fit.residuals)),
    )


# --- the figure -----------------------------------------------------------------------------------------------------


def scaling_panels(result: Result) -> list[ScalingPanel]:
    """One panel a series whose baseline is known; none for other tests."""
    return [_panel(series) for series in result.scaling if series.points[0].speedup is not None]


def _panel(series: ScalingSeries) -> ScalingPanel:
    measured = [point for point in series.points if point.speedup is not None]
    absent = tuple(point.num_gpus for point in series.points if point.speedup is None)
    last = max(point.num_gpus for point in measured)
    beyond = tuple(count for count in absent if count > last) if series.fit is not None else ()
    return ScalingPanel(
        label=_label(series),
        law=None if series.fit is None else series.fit.law,
        measured=tuple((point.num_gpus, point.speedup or 0.0, _ends(point.speedup_interval)) for point in measured),
        absent=absent,
        curve=_curve(series, 1, last),
        projection=_curve(series, last, max(beyond, default=last)),
        projected=tuple((count, _predicted(series, count)) for count in beyond),
        residuals=() if series.fit is None else tuple(zip(series.fit.num_gpus, series.fit.residuals, strict=True)),
    )


def _label(series: ScalingSeries) -> str:
    """Say an arm's name without its number: `DP 2 light` gives `DP light`."""
    words = series.points[-1].arm.split(" ")
    return " ".join(word for word in words if not word.isdecimal())


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def _curve(series: ScalingSeries, first: float, last: float) -> tuple[tuple[float, float], ...]:
    """Follow the fitted law from one count to another, in equal steps of the logarithm."""
    if series.fit is None or first == last:
        return ()
    steps = (first * (last / first) ** (index / _CURVE_POINTS) for index in range(_CURVE_POINTS + 1))
    return tuple((p, _predicted(series, p)) for p in steps)


def _predicted(series: ScalingSeries, num_gpus: float) -> float:
    fraction = series.fit.serial_fraction if series.fit is not None else 0.0
    return predicted_speedup(Law(series.law), fraction, num_gpus)


def scaling_caption(result: Result) -> Bilingual:
    """Say what the figure shows; the word projection stands where there is one."""
    projected = any(panel.projected for panel in scaling_panels(result))
    note = "; dashed with diamonds: projection of the fitted law, not measured" if projected else ""
    note_zh = "；虚线与菱形：拟合定律的外推（projection），并非测量值" if projected else ""
    return Bilingual(
        f"Speed-up of test {result.test_id} over the number of devices, with intervals and efficiencies (top), and "
        f"residuals of the fitted law (bottom); grey line: ideal; crosses: no value{note}",
        f"测试 {result.test_id} 的加速比与设备数的关系，含区间与效率（上），以及拟合定律的残差（下）；"
        f"灰线：理想情况；叉号：没有数值{note_zh}",
    )
