"""A cell of a table against the numbers that belong there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from touchstone.verify.digits import signed_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def compare(cell: str, wanted: list[str]) -> Iterator[str]:
    """Require exactly these numbers, with their signs, in this order."""
    found = signed_numbers(cell)
    if found != wanted:
        yield f"says {', '.join(found) or 'no number'}, worked out again it is {', '.join(wanted) or 'no number'}"


def compare_row(row: Sequence[str], wanted: Sequence[list[str]]) -> Iterator[str]:
    """Require of each cell its own numbers."""
    for cell, expected in zip(row, wanted, strict=True):
        yield from compare(cell, expected)
