"""Hold the values of settings against the types that their fields declare."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import DataclassInstance


class _Kind(NamedTuple):
    """What a field takes: a test of values, and its name in a message."""

    holds: Callable[[object], bool]
    wanted: str


def wrong_type(settings: DataclassInstance) -> str | None:
    """Name the first field of a dataclass that holds another type than it declares, with the remedy; None if none does.

    Known are bool, int, float (which takes an int as well), str, `tuple[int, ...]`, Literal, and each of these or None.
    A bool is no number, and an integer has at most 64 bits, because that is what a device computes with.
    """
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if not kind.holds(value):
            return f"{name} is {value!r}; use {kind.wanted}"
    return None


@cache
def _kinds(settings_type: type[DataclassInstance]) -> dict[str, _Kind]:
    declared = get_type_hints(settings_type)
    return {field.name: _kind(declared[field.name]) for field in fields(settings_type)}


def _kind(declared: Any) -> _Kind:  # noqa: ANN401  an annotation: a class, a union, a Literal
    if get_origin(declared) is Literal:
        choices = get_args(declared)
        return _Kind(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")
    if declared in _PLAIN:
        return _PLAIN[declared]
    (inner,) = (part for part in get_args(declared) if part is not NoneType)
    kind = _kind(inner)
    return _Kind(lambda value: value is None or kind.holds(value), f"{kind.wanted}, or None")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_PLAIN = {
    bool: _Kind(lambda value: isinstance(value, bool), "True or False"),
    int: _Kind(_is_integer, "an integer of at most 64 bits"),
    float: _Kind(lambda value: isinstance(value, float) or _is_integer(value), "a number"),
    str: _Kind(lambda value: isinstance(value, str), "a text in quotes"),
    tuple[int, ...]: _Kind(
        lambda value: isinstance(value, tuple) and all(map(_is_integer, value)), "a tuple of integers such as (1, 2)"
    ),
}
