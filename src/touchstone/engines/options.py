"""Engine options as a user writes them on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from touchstone.engines.base import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.records import Scalar


def options_by_engine(texts: Sequence[str], engines: Sequence[str]) -> dict[str, dict[str, Scalar]]:
    """Read `ENGINE.NAME=VALUE`, or `NAME=VALUE` for the first engine.

    A value is JSON where it can be (`true`, `512`, `null`), else text. EngineError names what cannot be read, and what
    is given twice.
    """
    found: dict[str, dict[str, Scalar]] = {}
    for text in texts:
        left, sign, value = text.partition("=")
        engine = next((engine for engine in engines if left.startswith(f"{engine}.")), None)
        name = left.removeprefix(f"{engine}.")
        if not sign or not name.isidentifier():
            known = ", ".join(engines)
            raise EngineError(
                f"--option is {text!r}; write NAME=VALUE, or ENGINE.NAME=VALUE with an engine of this run ({known})"
            )
        mine = found.setdefault(engine or engines[0], {})
        if name in mine:
            raise EngineError(
                f"--option gives {engine or engines[0]}.{name} twice, as {mine[name]} and {_value(value)}; give it once"
            )
        mine[name] = _value(value)
    return found


def _value(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value
