"""The report of a run: Markdown in both languages, one HTML page of both, the same numbers as a table."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from touchstone.canonical import atomic_write
from touchstone.experiment import load_experiments
from touchstone.records import Verdict
from touchstone.reporting.context import report_context, texts_of, views_of_tests
from touchstone.reporting.further import further_runs
from touchstone.reporting.html_page import html_page
from touchstone.reporting.lint import (
    glossary_faults,
    language_number_faults,
    math_faults,
    table_faults,
    unsourced_number_faults,
)
from touchstone.reporting.markdown import GLOSSARY_FILE, LANGUAGES, TEMPLATES, Glossary, markdown_environment, render
from touchstone.reporting.plots import write_figures
from touchstone.reporting.run_folder import load_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from touchstone.experiment import Experiment
    from touchstone.records import MetricStatistics, Result, Scalar
    from touchstone.reporting.numbers import ArmView
    from touchstone.reporting.run_folder import Run

COLUMNS = (
    "test_id",
    "status",
    "metric",
    "arm",
    "unit",
    "key",
    "median",
    "interval_low",
    "interval_high",
    "interval_level",
    "max_deviation",
    "drift",
    "num_processes",
    "num_repetitions",
    "sample_size",
    "verdict",
    "indicative",
    "reason",
)
_VERDICT_STYLES: dict[str, str] = {
    Verdict.STABLE: "green",
    Verdict.EXACT: "green",
    Verdict.UNSTABLE: "yellow",
    Verdict.DRIFTING: "yellow",
    Verdict.INSUFFICIENT: "yellow",
    Verdict.INVALID: "red",
}


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files of a report, and what its lints found; a report with faults must not be published."""

    zh: Path
    en: Path
    html: Path
    figures: tuple[Path, ...]
    faults: tuple[str, ...]


def render_report(run: Run, out_dir: Path) -> ReportPaths:
    """Render `report.zh.md`, `report.en.md`, `report.html` and `figures/*.svg`; the same ledger gives the same bytes.

    ReportError or FigureError name what cannot be printed.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    environments = {language: markdown_environment(language, glossary) for language in LANGUAGES}
    figures = write_figures(run, out_dir)
    further = further_runs(run.directory, glossary)
    context = report_context(run, figures, environments["en"], glossary) | {"further": further}
    texts = {
        language: render(environment, f"report.{language}.md.j2", context)
        for language, environment in environments.items()
    }
    drawn = tuple(out_dir / view.path for views in figures.values() for view in views)
    paths = {language: out_dir / f"report.{language}.md" for language in LANGUAGES}
    for language, path in paths.items():
        atomic_write(path, texts[language].encode())
    page = out_dir / "report.html"
    atomic_write(page, html_page(texts, drawn, glossary).encode())
    faults = lint_report(texts["zh"], texts["en"], context, glossary)
    return ReportPaths(paths["zh"], paths["en"], page, drawn, faults)


def lint_report(chinese: str, english: str, context: Mapping[str, object], glossary: Glossary) -> tuple[str, ...]:
    """Everything that is wrong with a rendered report, one line a fault."""
    sources = [*texts_of(context), *_structural_texts()]
    named = {"zh": chinese, "en": english}
    return (
        *language_number_faults(chinese, english),
        *glossary_faults(chinese, english, glossary.terms, glossary.units),
        *(f"{name}: {fault}" for name, text in named.items() for fault in table_faults(text)),
        *(f"{name}: {fault}" for name, text in named.items() for fault in math_faults(text)),
        *(f"{name}: {fault}" for name, text in named.items() for fault in unsourced_number_faults(text, sources)),
    )


def _structural_texts() -> Iterator[str]:
    """Digits that the lint of the templates lets pass: the templates themselves and the glossary."""
    for path in sorted(path for path in TEMPLATES.iterdir() if path.is_file()):
        yield path.read_text(encoding="utf-8")


# --- the same numbers as a table ------------------------------------------------------------------------------------


def export_table(
    run_dir: Path,
    format: Literal["json", "csv"],  # noqa: A002  named after the option of the command line
    experiments: Mapping[str, Experiment] | None = None,
) -> str:
    """Return one row for each metric of each arm, with full digits, as JSON (an array of objects) or CSV.

    A test that was not measured has one row with its reason.
    """
    run = _load(run_dir, experiments)
    rows = [row for result in run.results for row in _rows(result)]
    if format == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _load(run_dir: Path, experiments: Mapping[str, Experiment] | None) -> Run:
    if experiments is None:
        experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    return load_run(run_dir, experiments)


def _rows(result: Result) -> Iterator[dict[str, Scalar]]:
    head: dict[str, Scalar] = dict.fromkeys(COLUMNS) | {"test_id": result.test_id, "status": result.status}
    if result.status == "not measured":
        yield head | {"reason": result.reason}
    for statistics in result.statistics:
        yield head | _columns_of(statistics)


def _columns_of(statistics: MetricStatistics) -> dict[str, Scalar]:
    interval = statistics.interval
    return {
        "metric": statistics.metric,
        "arm": statistics.arm,
        "unit": statistics.unit,
        "key": statistics.key,
        "median": statistics.median,
        "interval_low": None if interval is None else interval.low,
        "interval_high": None if interval is None else interval.high,
        "interval_level": None if interval is None else interval.level,
        "max_deviation": statistics.max_deviation,
        "drift": statistics.drift,
        "num_processes": statistics.n,
        "num_repetitions": statistics.k,
        "sample_size": statistics.sample_size,
        "verdict": statistics.verdict.value,
        "indicative": statistics.indicative,
        "reason": statistics.withheld,
    }


# --- the terminal ---------------------------------------------------------------------------------------------------


def verdict_table(run_dir: Path, experiments: Mapping[str, Experiment] | None = None) -> Table:
    """Return the headline numbers with their verdicts, and what was not measured, for the terminal."""
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    table = Table("test", "metric", "value", "interval or range", "verdict", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[1].min_width = 21  # the longest metric; eighty columns have room for it
    for column in table.columns[2:4]:
        column.justify = "right"
    for test in views_of_tests(_load(run_dir, experiments), {}):
        if not test.measured:
            table.add_row(test.test_id, Text(test.title.en), "", "", Text("not measured", style="dim"))
        for number in test.headline:
            for arm in number.arms:
                name = f"{number.metric} ({arm.arm})" if number.several_arms else number.metric
                table.add_row(test.test_id, Text(name), *_terminal_cells(arm, glossary))
    return table


def _terminal_cells(arm: ArmView, glossary: Glossary) -> tuple[Text, ...]:
    verdict = Text(arm.verdict, style=_VERDICT_STYLES.get(arm.verdict, ""))
    if arm.indicative:
        verdict.append(" (indicative)", style="dim")
    if arm.withheld is not None:
        return Text("withheld"), Text(arm.withheld.en), verdict
    value = f"{arm.value.text} {glossary.unit(arm.value.unit, 'en')}"
    return Text(value.strip()), Text((arm.range if arm.quotes_range else arm.interval).text), verdict
