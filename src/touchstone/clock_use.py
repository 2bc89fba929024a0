"""Which source files of the instrument read a clock or wait for a device: one module may, so that all times are alike.

It is looked at when a run is planned and recorded with the environment: the report then says what was true of the code
that measured, and not of the code that renders.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from touchstone.records import ClockUse

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parent
CLOCK_MODULE = "clock.py"
CLOCK_NAMES = frozenset({"perf_counter", "perf_counter_ns", "synchronize"})
_OWNERS = frozenset({"time", "torch.cuda"})


def clock_use(sources: Path = PACKAGE) -> ClockUse:
    """Search every source file under a folder; a file that is no Python is named, for nothing is known of it."""
    files = sorted(sources.rglob("*.py"))
    names = {file: _names(file) for file in files}
    return ClockUse(
        num_files=len(files),
        readers=tuple(str(file.relative_to(sources)) for file in files if names[file]),
        unreadable=tuple(str(file.relative_to(sources)) for file in files if names[file] is None),
    )


def _names(file: Path) -> frozenset[str] | None:
    """Clock names that a source file takes from `time` or `torch.cuda`; None where it is no Python."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):
        return None
    if not any(name in text for name in CLOCK_NAMES):
        return frozenset()  # going through a tree takes far longer than through its text
    return frozenset(_taken(tree))


def _taken(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in CLOCK_NAMES and ast.unparse(node.value) in _OWNERS:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module in _OWNERS:
            yield from (alias.name for alias in node.names if alias.name in CLOCK_NAMES)
