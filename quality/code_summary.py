"""Numbers derived from code metrics: totals, averages, distribution, worst functions, naive counts. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.records import CodeMetrics, FileMetrics, FunctionMetrics

Tool = Literal["radon", "lizard"]
BIN_STARTS = (1, 6, 11, 21, 31, 41)
"""The risk classes of cyclomatic complexity that radon calls A to F; the last one has no upper end."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What test 4.1 asks for, over some files and their functions. An average over nothing is None.

    Complexity is averaged over the functions that the tool reports, so the two averages have different populations.
    Lines per function run from `def` to the last statement; lines outside functions are not shared out among them.
    """

    files: int
    total_loc: int
    source_loc: int
    function_count: int
    class_count: int
    avg_complexity_radon: float | None
    avg_complexity_lizard: float | None
    avg_lines_per_function: float | None


@dataclass(frozen=True, slots=True)
class NaiveCount:
    """One of the plan's text counts beside the count from the syntax tree, over files that are Python."""

    what: str
    naive: int
    true: int


@dataclass(frozen=True, slots=True)
class ToolCount:
    """One count by the syntax tree and by the tools; None where a tool does not count it."""

    what: str
    syntax_tree: int
    radon: int
    lizard: int | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many functions both tools report, and on how many of those they give the same complexity."""

    reported_by_both: int
    equal: int


def totals(files: Iterable[FileMetrics], functions: Sequence[FunctionMetrics]) -> Totals:
    """Add up `files`, and average over `functions`, which must be theirs."""
    listed = tuple(files)
    return Totals(
        files=len(listed),
        total_loc=sum(file.physical_lines for file in listed),
        source_loc=_sum(file.source_lines for file in listed),
        function_count=_sum(file.functions for file in listed),
        class_count=_sum(file.classes for file in listed),
        avg_complexity_radon=_mean(complexities(functions, "radon")),
        avg_complexity_lizard=_mean(complexities(functions, "lizard")),
        avg_lines_per_function=_mean([function.num_lines for function in functions]),
    )


def by_package(code: CodeMetrics) -> dict[str, Totals]:
    """Totals of every package, in the order of their names."""
    return {package: totals(files, functions) for package, (files, functions) in code.by_package().items()}


def complexities(functions: Iterable[FunctionMetrics], tool: Tool) -> list[int]:
    """Complexities that `tool` reports; functions that it does not report are left out, not counted as 0."""
    found = ((f.complexity_radon if tool == "radon" else f.complexity_lizard) for f in functions)
    return [complexity for complexity in found if complexity is not None]


def distribution(values: Iterable[int]) -> dict[str, int]:
    """Count complexities by risk class, empty classes included."""
    listed = tuple(values)
    bins = {f"{low}-{high - 1}": sum(low <= v < high for v in listed) for low, high in pairwise(BIN_STARTS)}
    return bins | {f"{BIN_STARTS[-1]}+": sum(v >= BIN_STARTS[-1] for v in listed)}


def worst_functions(functions: Iterable[FunctionMetrics], count: int) -> list[FunctionMetrics]:
    """Pick the `count` functions to which either tool gives the highest complexity; ties in the order of place."""

    def order(function: FunctionMetrics) -> tuple[int, str, int]:
        return -max(function.complexity_radon or 0, function.complexity_lizard or 0), function.file, function.line

    return sorted(functions, key=order)[:count]


def agreement(functions: Iterable[FunctionMetrics]) -> Agreement:
    """Compare the tools where they can be compared: on functions that both report."""
    pairs = [(f.complexity_radon, f.complexity_lizard) for f in functions]
    both = [(radon, lizard) for radon, lizard in pairs if radon is not None and lizard is not None]
    return Agreement(len(both), sum(radon == lizard for radon, lizard in both))


def naive_counts(files: Iterable[FileMetrics]) -> tuple[NaiveCount, ...]:
    """Set the plan's `split` and `count` beside lines, functions and classes; files that are no Python are left out."""
    readable = [file for file in files if file.error is None]
    return (
        NaiveCount("lines", _sum(f.naive_lines for f in readable), _sum(f.physical_lines for f in readable)),
        NaiveCount("functions", _sum(f.naive_functions for f in readable), _sum(f.functions for f in readable)),
        NaiveCount("classes", _sum(f.naive_classes for f in readable), _sum(f.classes for f in readable)),
    )


def tool_counts(files: Iterable[FileMetrics]) -> tuple[ToolCount, ...]:
    """Count functions and classes by all three; lizard knows no classes. Files that are no Python are left out."""
    readable = [file for file in files if file.error is None]
    return (
        ToolCount(
            "functions",
            _sum(f.functions for f in readable),
            _sum(f.functions_radon for f in readable),
            _sum(f.functions_lizard for f in readable),
        ),
        ToolCount("classes", _sum(f.classes for f in readable), _sum(f.classes_radon for f in readable), None),
    )


def _sum(values: Iterable[int | None]) -> int:
    """Add up what is known: a file that is no Python has no count to add."""
    return sum(value for value in values if value is not None)


def _mean(values: Sequence[int]) -> float | None:
    return fmean(values) if values else None
