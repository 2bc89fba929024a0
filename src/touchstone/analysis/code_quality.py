"""Test 4.1 as a result: counts by the syntax tree, averages a tool each, and the plan's naive counts beside them."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from touchstone.analysis.quantities import Unit
from touchstone.experiment import Bilingual
from touchstone.records import Check, MetricStatistics, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.records import CodeMetrics, Scalar

METHOD = Bilingual(
    "The syntax tree counts lines, functions and classes; radon and lizard are joined to it function by function.",
    "以语法树统计行数、函数数与类数，并将 radon 与 lizard 的结果逐函数与之对照。",
)

_UNITS = {
    "total_loc": Unit.LINES,
    "source_loc": Unit.LINES,
    "function_count": Unit.FUNCTIONS,
    "class_count": Unit.CLASSES,
    "avg_complexity": Unit.PATHS_PER_FUNCTION,
    "avg_complexity_lizard": Unit.PATHS_PER_FUNCTION,
    "avg_lines_per_function": Unit.LINES_PER_FUNCTION,
    "naive_total_lines": Unit.LINES,
    "naive_function_count": Unit.FUNCTIONS,
    "naive_class_count": Unit.CLASSES,
}


def quality_results(code: CodeMetrics) -> dict[str, Scalar]:
    """Compute the plan's fields; None where nothing was there to count.

    `avg_complexity` is radon's cyclomatic complexity over the functions that radon reports. `naive_*` are the plan's
    text counts, which take comments and strings for code.
    """
    radon = [item.complexity_radon for item in code.functions if item.complexity_radon is not None]
    lizard = [item.complexity_lizard for item in code.functions if item.complexity_lizard is not None]
    return {
        "total_loc": sum(file.physical_lines for file in code.files),
        "source_loc": _sum_known(file.source_lines for file in code.files),
        "function_count": _sum_known(file.functions for file in code.files),
        "class_count": _sum_known(file.classes for file in code.files),
        "avg_complexity": _mean(radon),
        "avg_complexity_lizard": _mean(lizard),
        "avg_lines_per_function": _mean([item.num_lines for item in code.functions]),
        "naive_total_lines": sum(file.naive_lines for file in code.files),
        "naive_function_count": sum(file.naive_functions for file in code.files),
        "naive_class_count": sum(file.naive_classes for file in code.files),
    }


def quality_statistics(code: CodeMetrics) -> tuple[MetricStatistics, ...]:
    """Describe each count as what it is: one exact value."""
    values = {name: float(value) for name, value in quality_results(code).items() if isinstance(value, int | float)}
    return tuple(
        MetricStatistics(
            metric=name,
            arm=code.tree,
            unit=_UNITS[name],
            key=False,
            repetitions=((value,),),
            values=(value,),
            n=1,
            k=1,
            sample_size=None,
            median=value,
            interval=None,
            log_t_interval=None,
            max_deviation=None,
            drift=None,
            drift_p=None,
            verdict=Verdict.EXACT,
            indicative=False,
            withheld=None,
        )
        for name, value in values.items()
    )


def quality_checks(code: CodeMetrics) -> tuple[Check, ...]:
    """Hold the three tools against each other and the two levels of the record against each other."""
    unreadable = [file.file for file in code.files if file.error is not None]
    counted = _sum_known(file.functions for file in code.files) or 0
    return (
        _check(
            "tool_differences_explained",
            not code.unexplained,
            f"{sum(code.differences.values())} differences between the tools, {len(code.unexplained)} unexplained",
            f"工具之间有 {sum(code.differences.values())} 处差异，其中 {len(code.unexplained)} 处未能解释",
        ),
        _check(
            "all_files_parsed",
            not unreadable and bool(code.files),
            f"{len(code.files)} files, {len(unreadable)} not readable as Python",
            f"{len(code.files)} 个文件，{len(unreadable)} 个无法按 Python 解析",
        ),
        _check(
            "functions_add_up",
            counted == len(code.functions),
            f"{counted} functions counted by file, {len(code.functions)} listed",
            f"按文件计 {counted} 个函数，逐个列出 {len(code.functions)} 个",
        ),
    )


def quality_how(code: CodeMetrics) -> Bilingual:
    """Say which tools made the numbers."""
    return Bilingual(
        f"Python {code.python_version} ast over {code.tree}; radon {code.radon_version}; lizard {code.lizard_version}. "
        "avg_complexity: radon, mean over the functions it reports; avg_lines_per_function: from def to the last line.",
        f"Python {code.python_version} 的 ast，范围 {code.tree}；radon {code.radon_version}；"
        f"lizard {code.lizard_version}。avg_complexity：radon 对其报告的函数取平均；"
        "avg_lines_per_function：从 def 到最后一行。",
    )


def quality_verification(checks: Sequence[Check]) -> Bilingual:
    """Say how the counts were checked."""
    passed = sum(check.passed for check in checks)
    return Bilingual(
        f"Counted, not timed: the same tree gives the same numbers. Checks passed: {passed} of {len(checks)}.",
        f"计数而非计时：同一代码树必得相同数字。检查通过 {passed} 项，共 {len(checks)} 项。",
    )


def _check(identifier: str, passed: bool, detail: str, detail_zh: str) -> Check:
    return Check(id=identifier, passed=passed, detail=detail, detail_zh=detail_zh)


def _mean(values: Sequence[int]) -> float | None:
    return fmean(values) if values else None


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
