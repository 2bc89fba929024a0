"""The plan's test 4.1 as tables: by package, by tool, by cause of difference, the worst functions, the naive counts."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual
from touchstone.reporting.formatting import exact, fixed
from touchstone.reporting.values import NOTHING, Amount, Code, Definition, Printable, Row, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from touchstone.records import CodeMetrics, FileMetrics, FunctionMetrics

PLAN_FIELDS_OF_CODE = ("total_loc", "function_count", "class_count", "avg_complexity")
_TEXT = Bilingual("text search over the whole file, as the plan counts", "按计划的做法，对全文做文本计数")
_TREE = Bilingual("counted in the syntax tree", "由语法树计数")

# F is the set of files, U the functions that the syntax tree finds, U_R and U_L those that radon and lizard report.
CODE_DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "total_loc": Definition(
            Bilingual("lines of code, all physical lines", "代码总行数（物理行）"),
            r"\sum_{f \in F} \mathrm{lines}(f)",
            Bilingual("physical lines of every Python file", "全部 Python 文件的物理行数"),
        ),
        "source_loc": Definition(
            Bilingual("source lines", "源代码行数"),
            r"\sum_{f \in F} \mathrm{source}(f)",
            Bilingual(
                "lines with code, without blanks, comments and docstrings", "含代码的行，不计空行、注释与文档字符串"
            ),
        ),
        "function_count": Definition(
            Bilingual("functions, methods and nested ones included", "函数总数（含方法与嵌套函数）"),
            r"|U|",
            _TREE,
        ),
        "class_count": Definition(Bilingual("classes", "类总数"), r"\sum_{f \in F} \mathrm{classes}(f)", _TREE),
        "avg_complexity": Definition(
            Bilingual("mean cyclomatic complexity by radon", "平均圈复杂度（radon）"),
            r"\frac{\sum_{u \in U_R} C_R(u)}{|U_R|}",
            Bilingual("mean over the functions that radon reports", "对 radon 报告的函数取平均"),
        ),
        "avg_complexity_lizard": Definition(
            Bilingual("mean cyclomatic complexity by lizard", "平均圈复杂度（lizard）"),
            r"\frac{\sum_{u \in U_L} C_L(u)}{|U_L|}",
            Bilingual("mean over the functions that lizard reports", "对 lizard 报告的函数取平均"),
        ),
        "avg_lines_per_function": Definition(
            Bilingual("mean lines of a function", "函数平均行数"),
            r"\frac{\sum_{u \in U} \mathrm{lines}(u)}{|U|}",
            Bilingual("from the line of def to the last statement", "从 def 所在行到最后一条语句"),
        ),
        "naive_total_lines": Definition(
            Bilingual("lines by the plan's text count", "文本计数的行数"),
            r"\sum_{f \in F} |\mathrm{split}(f)|",
            _TEXT,
        ),
        "naive_function_count": Definition(
            Bilingual("functions by the plan's text count", "文本计数的函数数"),
            r"\sum_{f \in F} \mathrm{count}(f, \text{def})",
            _TEXT,
        ),
        "naive_class_count": Definition(
            Bilingual("classes by the plan's text count", "文本计数的类数"),
            r"\sum_{f \in F} \mathrm{count}(f, \text{class})",
            _TEXT,
        ),
    }
)

WORST_FUNCTIONS = 10
MEAN_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class PackageRow:
    """The counts of one package; complexities are radon's."""

    package: Printable
    files: Amount
    physical_lines: Amount
    source_lines: Amount
    functions: Amount
    classes: Amount
    mean_complexity: Amount
    maximum_complexity: Amount


@dataclass(frozen=True, slots=True)
class ToolRow:
    """One count by the syntax tree, radon and lizard; a dash where a tool does not count it."""

    label: Term
    syntax_tree: Amount
    radon: Amount
    lizard: Amount


@dataclass(frozen=True, slots=True)
class NaiveRow:
    """One of the plan's text counts beside the true count."""

    label: Term
    naive: Amount
    true: Amount
    difference: Amount


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One of the most complex functions."""

    name: Code
    location: Code
    num_lines: int
    radon: Amount
    lizard: Amount


@dataclass(frozen=True, slots=True)
class CodeView:
    """Everything that chapter 4.1 shows."""

    tree: Code
    tree_hash: Code
    tools: tuple[Row, ...]
    packages: tuple[PackageRow, ...]
    total: PackageRow
    tool_rows: tuple[ToolRow, ...]
    causes: tuple[Row, ...]
    unexplained: tuple[Code, ...]
    unreadable: tuple[Row, ...]
    worst: tuple[FunctionRow, ...]
    naive: tuple[NaiveRow, ...]


def code_view(code: CodeMetrics) -> CodeView:
    """Arrange the code metrics of one tree."""
    return CodeView(
        tree=Code(code.tree),
        tree_hash=Code(code.tree_sha256),
        tools=(
            Row(Term("python"), Code(code.python_version)),
            Row(Code("radon"), Code(code.radon_version)),
            Row(Code("lizard"), Code(code.lizard_version)),
        ),
        packages=_packages(code),
        total=_package_row(Term("total"), code.files, code.functions),
        tool_rows=_tool_rows(code),
        causes=tuple(Row(Code(cause), count) for cause, count in sorted(code.differences.items())),
        unexplained=tuple(Code(place) for place in code.unexplained),
        unreadable=tuple(Row(Code(file.file), Code(file.error)) for file in code.files if file.error is not None),
        worst=tuple(_function_row(function) for function in _worst(code.functions)),
        naive=_naive_rows(code.files),
    )


def formula_terms(code: CodeMetrics) -> dict[str, dict[str, float]]:
    """Name what was counted by the LaTeX of the definitions: the numbers to put into the formulas of test 4.1."""
    values = complexities(code.functions)
    radon, lizard, lines = values["radon"], values["lizard"], [function.num_lines for function in code.functions]
    terms: dict[str, dict[str, float]] = {metric: {} for metric in CODE_DEFINITIONS}
    terms["avg_complexity"] = {"|U_R|": len(radon), r"\sum_{u \in U_R} C_R(u)": sum(radon)}
    terms["avg_complexity_lizard"] = {"|U_L|": len(lizard), r"\sum_{u \in U_L} C_L(u)": sum(lizard)}
    terms["avg_lines_per_function"] = {"|U|": len(lines), r"\sum_{u \in U} \mathrm{lines}(u)": sum(lines)}
    return terms


def complexities(functions: Iterable[FunctionMetrics]) -> dict[str, tuple[int, ...]]:
    """Cyclomatic complexity of every function, by tool; functions that a tool does not report are left out."""
    listed = tuple(functions)
    radon = tuple(f.complexity_radon for f in listed if f.complexity_radon is not None)
    lizard = tuple(f.complexity_lizard for f in listed if f.complexity_lizard is not None)
    return {"radon": radon, "lizard": lizard}


def _packages(code: CodeMetrics) -> tuple[PackageRow, ...]:
    return tuple(_package_row(Code(name), files, functions) for name, (files, functions) in code.by_package().items())


def _package_row(package: Printable, files: Sequence[FileMetrics], functions: Sequence[FunctionMetrics]) -> PackageRow:
    radon = complexities(functions)["radon"]
    return PackageRow(
        package=package,
        files=Amount(exact(len(files))),
        physical_lines=_sum(file.physical_lines for file in files),
        source_lines=_sum(file.source_lines for file in files),
        functions=_sum(file.functions for file in files),
        classes=_sum(file.classes for file in files),
        mean_complexity=_mean(radon),
        maximum_complexity=_max(radon),
    )


def _tool_rows(code: CodeMetrics) -> tuple[ToolRow, ...]:
    files = code.files
    values = complexities(code.functions)
    radon, lizard = values["radon"], values["lizard"]
    return (
        ToolRow(
            Term("functions"),
            _sum(file.functions for file in files),
            _sum(file.functions_radon for file in files),
            _sum(file.functions_lizard for file in files),
        ),
        ToolRow(
            Term("classes"), _sum(file.classes for file in files), _sum(file.classes_radon for file in files), NOTHING
        ),
        ToolRow(Term("mean_complexity"), NOTHING, _mean(radon), _mean(lizard)),
        ToolRow(Term("maximum_complexity"), NOTHING, _max(radon), _max(lizard)),
    )


def _naive_rows(files: Sequence[FileMetrics]) -> tuple[NaiveRow, ...]:
    return (
        _naive_row("physical_lines", [(f.naive_lines, f.physical_lines) for f in files]),
        _naive_row("functions", [(f.naive_functions, f.functions) for f in files]),
        _naive_row("classes", [(f.naive_classes, f.classes) for f in files]),
    )


def _naive_row(label: str, counts: Sequence[tuple[int, int | None]]) -> NaiveRow:
    """Compare over the files that the syntax tree could count."""
    pairs = [(naive, true) for naive, true in counts if true is not None]
    naive, true = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    sign = "+" if naive > true else ""
    return NaiveRow(Term(label), Amount(exact(naive)), Amount(exact(true)), Amount(f"{sign}{exact(naive - true)}"))


def _worst(functions: Sequence[FunctionMetrics]) -> Sequence[FunctionMetrics]:
    def order(function: FunctionMetrics) -> tuple[int, str, int]:
        return -max(function.complexity_radon or 0, function.complexity_lizard or 0), function.file, function.line

    return sorted(functions, key=order)[:WORST_FUNCTIONS]


def _function_row(function: FunctionMetrics) -> FunctionRow:
    return FunctionRow(
        name=Code(function.name),
        location=Code(f"{function.file}:{function.line}"),
        num_lines=function.num_lines,
        radon=_known(function.complexity_radon),
        lizard=_known(function.complexity_lizard),
    )


def _known(value: int | None) -> Amount:
    return NOTHING if value is None else Amount(exact(value))


def _sum(values: Iterable[int | None]) -> Amount:
    """Sum what is known; a dash where a tool reported nothing at all."""
    known = [value for value in values if value is not None]
    return Amount(exact(sum(known))) if known else NOTHING


def _mean(values: Sequence[int]) -> Amount:
    return Amount(fixed(sum(values) / len(values), -MEAN_DECIMALS)) if values else NOTHING


def _max(values: Sequence[int]) -> Amount:
    return Amount(exact(max(values))) if values else NOTHING
