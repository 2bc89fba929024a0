"""Two ways to the same record, held against each other field by field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = "dict[str, Any]"

RELATIVE, ABSOLUTE = 1e-9, 1e-9  # what double precision may leave between two ways to the same number


def differences(mine: Json, told: Json, where: str) -> Iterator[str]:
    """Say every field of `mine` that is told otherwise."""
    for name, value in mine.items():
        found = told.get(name)
        if not same(value, found):
            yield f"{where}: {name} is {_short(found)}, worked out again it is {_short(value)}"
    if where == "results" and (extra := sorted(told.keys() - mine.keys())):
        yield f"results: {extra[0]} is no field of this test"


def same(mine: Any, told: Any) -> bool:  # noqa: ANN401  any JSON value
    """Tell whether two JSON values are equal, numbers up to what double precision may leave."""
    if isinstance(mine, bool) or isinstance(told, bool) or mine is None or told is None:
        return mine is told
    if isinstance(mine, int | float) and isinstance(told, int | float):
        return math.isclose(mine, told, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(mine, dict) and isinstance(told, dict):
        return mine.keys() == told.keys() and all(same(mine[name], told[name]) for name in mine)
    if isinstance(mine, list) and isinstance(told, list):
        return len(mine) == len(told) and all(same(one, other) for one, other in zip(mine, told, strict=True))
    return bool(mine == told)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  a line of a table
