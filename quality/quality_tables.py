"""The code metrics on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from code_summary import (
    Totals,
    agreement,
    by_package,
    complexities,
    distribution,
    naive_counts,
    tool_counts,
    totals,
    worst_functions,
)

if TYPE_CHECKING:
    from rich.console import Console

    from touchstone.records import CodeMetrics

NUM_WORST = 10
MEANS = ("radon", "lizard", "lines/def")
UNKNOWN = "-"


def print_tables(code: CodeMetrics, console: Console) -> None:
    """Print every table for one tree; an empty one is left out."""
    tools = f"radon {code.radon_version}, lizard {code.lizard_version}, Python {code.python_version}"
    console.print(f"{code.tree}: {tools}\n", markup=False, highlight=False)
    tables = (_packages(code), _tools(code), _differences(code), _distribution(code), _worst(code), _naive(code))
    for table in tables:
        if table.row_count:
            console.print(table)
    console.print(_agreement(code), highlight=False)


def _table(title: str, *columns: str) -> Table:
    """Make a table whose first column holds words and whose other columns hold numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=0)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


def _packages(code: CodeMetrics) -> Table:
    table = _table("By package", "package", "files", "lines", "source", "defs", "classes", *MEANS)
    table.caption = (
        "source: lines with code; radon, lizard: mean cyclomatic complexity; lines/def: mean lines of a function"
    )
    for package, row in by_package(code).items():
        table.add_row(package, *_cells(row))
    table.add_section()
    table.add_row("total", *_cells(totals(code.files, code.functions)), style="bold")
    return table


def _cells(row: Totals) -> tuple[str, ...]:
    counts = (row.files, row.total_loc, row.source_loc, row.function_count, row.class_count)
    means = (row.avg_complexity_radon, row.avg_complexity_lizard, row.avg_lines_per_function)
    return (*(f"{count:,}" for count in counts), *(UNKNOWN if mean is None else f"{mean:.2f}" for mean in means))


def _tools(code: CodeMetrics) -> Table:
    table = _table("The same tree by three tools", "count", "syntax tree", "radon", "lizard")
    for row in tool_counts(code.files):
        table.add_row(row.what, f"{row.syntax_tree:,}", f"{row.radon:,}", _known(row.lizard))
    return table


def _agreement(code: CodeMetrics) -> str:
    agreed = agreement(code.functions)
    return (
        f"Both tools report {agreed.reported_by_both:,} functions, {agreed.equal:,} of them with equal complexity; "
        f"differences unexplained: {len(code.unexplained):,}\n"
    )


def _differences(code: CodeMetrics) -> Table:
    table = _table("Differences between the tools by cause", "cause", "functions or files")
    for cause, count in sorted(code.differences.items(), key=lambda item: -item[1]):
        table.add_row(cause, f"{count:,}")
    return table


def _distribution(code: CodeMetrics) -> Table:
    table = _table("Functions by complexity", "complexity", "radon", "lizard")
    by_radon = distribution(complexities(code.functions, "radon"))
    by_lizard = distribution(complexities(code.functions, "lizard"))
    for risk_class, count in by_radon.items():
        table.add_row(risk_class, f"{count:,}", f"{by_lizard[risk_class]:,}")
    return table


def _worst(code: CodeMetrics) -> Table:
    table = _table("The most complex functions", "place", "radon", "lizard", "lines", "function")
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    for function in worst_functions(code.functions, NUM_WORST):
        tools = (_known(function.complexity_radon), _known(function.complexity_lizard))
        table.add_row(f"{function.file}:{function.line}", *tools, str(function.num_lines), function.name)
    return table


def _known(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _naive(code: CodeMetrics) -> Table:
    table = _table("The plan's text counts beside the true ones", "count", "text count", "syntax tree", "difference")
    for row in naive_counts(code.files):
        table.add_row(row.what, f"{row.naive:,}", f"{row.true:,}", f"{row.naive - row.true:+,}")
    return table
