"""How a number has to be written: worked out in decimal arithmetic, where the report's own code formats floats."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Json: TypeAlias = "dict[str, Any]"

_WIDE = Context(prec=60, rounding=ROUND_HALF_EVEN)
_GROUPED_FROM = 10_000
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_SIGNED = re.compile(rf"(?<![\w)])-?(?:{_NUMBER.pattern})")

# Units that change with the size of the value: smallest value for each, and the factor.
_SCALES = {"s": ((0.1, 1.0), (0.0, 1e3)), "GB": ((1.0, 1.0), (1e-3, 1e3), (1e-6, 1e6), (0.0, 1.0))}


def numbers(text: str) -> list[str]:
    """Numbers of a text as they are written, without sign and separators."""
    return [match.group().replace(",", "") for match in _NUMBER.finditer(text)]


def signed_numbers(text: str) -> list[str]:
    """Numbers of a table cell as they are written, sign and separators included."""
    return [match.group() for match in _SIGNED.finditer(text)]


def first_place(value: float, digits: int) -> int:
    """Power of ten of the last of `digits` significant digits, after rounding to them; 0 for zero."""
    rounded = Context(prec=digits, rounding=ROUND_HALF_EVEN).create_decimal(Decimal(value))
    return 0 if rounded == 0 else rounded.adjusted() - digits + 1


def exact_place(values: Iterable[float]) -> int:
    """Last place of values without noise: whole numbers whole, others two decimals, or three digits where smaller."""
    return min((0 if value == int(value) else min(-2, first_place(value, 3)) for value in values), default=0)


def place_of(value: float, noise: float | None) -> int:
    """Last place worth writing: the second digit of the noise, within six digits and the first of the value."""
    if noise is None:
        return first_place(value, 3)
    if noise == 0:
        return exact_place([value])
    if value == 0:
        return first_place(noise, 2)
    return min(max(first_place(noise, 2), first_place(value, 6)), first_place(value, 1))


def written(value: float, place: int) -> str:
    """Write a value rounded half to even at 10^place, with separators from 10,000 on."""
    rounded = Decimal(value).quantize(Decimal(1).scaleb(place), context=_WIDE)
    text = f"{rounded.quantize(Decimal(1)) if place > 0 else rounded:f}"
    if Decimal(text) == 0:
        text = text.lstrip("-")
    whole, point, rest = text.partition(".")
    return f"{int(whole):,}{point}{rest}" if abs(rounded) >= _GROUPED_FROM else text


def significant(value: float | None, digits: int) -> list[str]:
    """Write a fact about the machine with so many significant digits, and whole where it is larger."""
    if value is None:
        return []
    if isinstance(value, int):
        return [f"{value:,}"]
    exponent = first_place(value, 7) + 6 if value else 0
    place = -max(0, digits - 1 - exponent)
    return [f"{Decimal(value).quantize(Decimal(1).scaleb(place), context=_WIDE):,f}"]


def plain(value: float) -> str:
    """Write a value for a formula: whole numbers whole, others to six digits without zeros at the end."""
    if value == int(value):
        return str(int(value))
    text = written(value, first_place(value, 6)).replace(",", "")
    return text.rstrip("0").rstrip(".") if "." in text else text  # a zero before the point counts


def share(value: float | None, decimals: int = 1) -> list[str]:
    """Write a share as per cent; nothing where there is none."""
    return [] if value is None else [written(value * 100, -decimals)]


def p_value(p: float | None) -> list[str]:
    """Write a p-value to three decimals, and one below them as the smallest of them."""
    return [] if p is None else [written(max(p, 0.001), -3)]


@dataclass(frozen=True, slots=True)
class Notation:
    """The common factor and last place of all values of one metric of one arm."""

    factor: float
    place: int

    def __call__(self, *values: float) -> list[str]:
        """Write values."""
        return [written(value * self.factor, self.place) for value in values]


def noise_of(values: Sequence[float], interval: Json | None) -> float | None:
    """Half-width of the interval, else half the range; None for fewer than two values."""
    if interval is not None:
        return float((interval["high"] - interval["low"]) / 2)
    return (max(values) - min(values)) / 2 if len(values) > 1 else None


def notation_of(statistics: Json) -> Notation:
    """Decide how the values of one metric of one arm have to be written."""
    values, centre = statistics["values"], statistics["median"]
    centre = centre if centre is not None else next(iter(values), 0.0)
    scales = _SCALES.get(statistics["unit"], ((0.0, 1.0),))
    factor = next(factor for limit, factor in scales if abs(centre) >= limit)
    if statistics["verdict"] == "EXACT":
        return Notation(factor, exact_place([value * factor for value in values]))
    noise = noise_of(values, statistics["interval"])
    scaled = None if noise is None else noise * factor
    return Notation(factor, place_of(centre * factor, scaled if scaled is None or math.isfinite(scaled) else None))


def effect_notation(effect: Json, ratios: list[float]) -> Notation:
    """Decide how ratios are written: four digits for counts, else cut to the noise."""
    if effect["verdict"] == "EXACT":
        return Notation(1.0, first_place(effect["ratio"], 4))
    return Notation(1.0, place_of(effect["ratio"], noise_of(ratios, effect["interval"])))
