"""Numbers as the report prints them: digits cut to the noise, decimal units, the same text in both languages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.records import Interval, MetricStatistics

NOISE_DIGITS = 2  # the noise is known to two digits at best with a dozen processes
DIGITS_WITHOUT_NOISE = 3  # a single value says nothing about its noise
MAX_DIGITS = 6
DECIMALS_OF_EXACT = 2
_GROUPING_FROM = 10_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How values of one unit are shown: multiplied by `factor` and followed by `symbol`."""

    factor: float
    symbol: str


_S_SCALES = ((0.1, Scale(1.0, "s")), (0.0, Scale(1e3, "ms")))
# A tiny model has no fraction of a GB that anyone reads: the largest unit that leaves a digit before the point.
_GB_SCALES = ((1.0, Scale(1.0, "GB")), (1e-3, Scale(1e3, "MB")), (1e-6, Scale(1e6, "kB")))


def scale_for(unit: str, magnitude: float) -> Scale:
    """Choose the scale in which values of `unit` around `magnitude` are read easily.

    Decimal gigabytes become MB or kB and seconds ms when they are small; every other unit is shown as it is.
    """
    if unit == "s":
        return next(scale for limit, scale in _S_SCALES if abs(magnitude) >= limit)
    if unit == "GB":
        return next((scale for limit, scale in _GB_SCALES if abs(magnitude) >= limit), _GB_SCALES[0][1])
    return Scale(1.0, unit)


def significant_place(value: float, digits: int) -> int:
    """Power of ten of the last of `digits` significant digits of `value`: 1434.13 to three digits gives 1.

    Zero has no first digit; its last place is 0.
    """
    if value == 0:
        return 0
    # The exponent is read from the decimal notation, because log10 of 1000 may fall a hair below 3.
    return int(f"{abs(value):.{digits - 1}e}".rpartition("e")[2]) - digits + 1


def last_place(value: float, noise: float | None) -> int:
    """Power of ten of the last digit worth printing.

    That is the second significant digit of `noise`; where the noise is not known (None) the third of the value; where
    there was none (0) that of an exact value. Never more than six significant digits of the value, and never a place
    above the value's own first digit.
    """
    finest = significant_place(value, MAX_DIGITS)
    if noise is None:
        return significant_place(value, DIGITS_WITHOUT_NOISE)
    if noise == 0:
        return place_of_exact([value])
    if value == 0:
        return significant_place(noise, NOISE_DIGITS)
    return min(max(significant_place(noise, NOISE_DIGITS), finest), significant_place(value, 1))


def fixed(value: float, place: int) -> str:
    """Write `value` rounded at 10^place, without exponent, with thousands separators from 10,000 on."""
    rounded = round(value, -place) if place > 0 else value
    text = f"{rounded:,.{max(-place, 0)}f}"
    bare = text.replace(",", "")
    if abs(float(bare)) < _GROUPING_FROM:  # as written: 9999.5 becomes 10,000
        text = bare
    return text.removeprefix("-") if float(bare) == 0 else text


def number(value: float, noise: float | None = None) -> str:
    """Write a value with the digits that its noise allows; integers of type int are written whole."""
    if isinstance(value, int):
        return fixed(value, 0)
    return fixed(value, last_place(value, noise))


def exact(value: float) -> str:
    """Write a value that carries no noise: whole numbers whole, others with at most six significant digits."""
    if float(value).is_integer():
        return fixed(value, 0)
    text = fixed(value, significant_place(value, MAX_DIGITS))
    return text.rstrip("0").rstrip(".") if "." in text else text  # a zero before the point counts


def place_of_exact(values: Iterable[float]) -> int:
    """Choose the last place for values without noise: whole numbers whole, others two decimals or three digits."""
    places = [
        0 if float(value).is_integer() else min(-DECIMALS_OF_EXACT, significant_place(value, DIGITS_WITHOUT_NOISE))
        for value in values
    ]
    return min(places, default=0)


def percent(share: float, digits: int = 1) -> str:
    """Write a share as per cent: 0.0123 is "1.2 %"."""
    return f"{fixed(share * 100, -digits)} %"


def noise_of(values: Sequence[float], interval: Interval | None) -> float | None:
    """Half-width of the interval; without one half the range of the values; None for fewer than two values."""
    if interval is not None:
        return (interval.high - interval.low) / 2
    if len(values) < 2:  # noqa: PLR2004  a range needs two values
        return None
    return (max(values) - min(values)) / 2


@dataclass(frozen=True, slots=True)
class Notation:
    """One way of writing for all values of a metric: a common scale and a common last digit."""

    scale: Scale
    place: int

    def write(self, value: float) -> str:
        """Write the value without its unit."""
        return fixed(value * self.scale.factor, self.place)

    def listing(self, values: Iterable[float]) -> str:
        """Write values after one another, without unit."""
        return ", ".join(self.write(value) for value in values)


def notation_for(statistics: MetricStatistics, *, exact_value: bool = False) -> Notation:
    """How the numbers of one metric are written: all of them on the digits that the median's noise allows."""
    centre = statistics.median if statistics.median is not None else next(iter(statistics.values), 0.0)
    scale = scale_for(statistics.unit, centre)
    shown = centre * scale.factor
    if exact_value:
        return Notation(scale, place_of_exact(value * scale.factor for value in statistics.values))
    noise = noise_of(statistics.values, statistics.interval)
    scaled = None if noise is None else noise * scale.factor
    return Notation(scale, last_place(shown, scaled if scaled is None or math.isfinite(scaled) else None))
