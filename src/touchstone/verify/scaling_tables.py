"""How a row of the report's scaling tables has to be written, from series that were found right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import Notation, notation_of, numbers, place_of, share, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json: TypeAlias = "dict[str, Any]"

POINTS = (
    "series",
    "arm",
    "device_count",
    "requests",
    "scaling_rate",
    "speedup_over_one",
    "interval",
    "efficiency",
    "interval",
    "serial_fraction",
    "remark",
)
FITS = ("series", "fitted_law", "serial_fraction", "device_count", "fit_residuals")


def series_named(told: Json, name: str, language: str) -> Json | None:
    """Find a series by the name that it has in one language."""
    key = "name_zh" if language == "zh" else "name"
    return next((row for row in told["scaling"] if row[key] == name), None)


def point_cells(series: Json, arm: str, results: Mapping[str, Json], language: str) -> list[list[str]] | None:
    """Numbers of every cell after the arm's; None for an arm that the series does not hold."""
    point = next((point for point in series["points"] if point["arm"] == arm), None)
    if point is None:
        return None
    requests = point["num_requests"]
    return [
        [str(point["num_gpus"])],
        [] if requests is None else [written(requests, 0)],
        _rate(point, series["metric"], results[point["test_id"]]["statistics"]),
        *_cut(point["speedup"], point["speedup_interval"], 1.0),
        *_cut(point["efficiency"], point["efficiency_interval"], 100.0),
        _fraction(point["serial_fraction"]),
        _remark(point, language),
    ]


def fit_cells(series: Json) -> list[list[str]]:
    """Numbers of every cell after the law's name."""
    fit = series["fit"]
    residuals = [cell for residual in fit["residuals"] for cell in share(residual)]
    return [_fraction(fit["serial_fraction"]), [str(count) for count in fit["num_gpus"]], residuals]


def _rate(point: Json, metric: str, statistics: Sequence[Json]) -> list[str]:
    item = next((item for item in statistics if (item["metric"], item["arm"]) == (metric, point["arm"])), None)
    return [] if item is None or point["throughput"] is None else notation_of(item)(point["throughput"])


def _cut(value: float | None, interval: Json | None, factor: float) -> tuple[list[str], list[str]]:
    """Write a value and its interval on the digits that the half-width allows; one device against itself is whole."""
    if value is None:
        return [], []
    if interval is None:
        return Notation(factor, 0 if value == 1 else place_of(factor * value, None))(value), []
    half_width = (interval["high"] - interval["low"]) / 2
    notation = Notation(factor, place_of(factor * value, factor * half_width))
    return notation(value), notation(interval["low"], interval["high"])


def _fraction(value: float | None) -> list[str]:
    return [] if value is None else [written(value, place_of(value, None))]


def _remark(point: Json, language: str) -> list[str]:
    if point["reason"] is not None:
        return numbers(point["reason_zh" if language == "zh" else "reason"])
    return numbers(point["test_id"]) if point["num_gpus"] == 1 else []
