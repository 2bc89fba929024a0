"""A comparison of two runs as a table for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from touchstone.analysis.statistics import EffectVerdict
from touchstone.records import Verdict
from touchstone.reporting.formatting import number, percent, scale_for
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary, escape_markdown
from touchstone.reproduce.comparison import verdict_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.reproduce.comparison import MetricComparison, RunComparison

COLUMNS = ("test", "metric", "A", "B", "B / A", "n", "verdict")
NUM_TEXT_COLUMNS = 2
SOLE_ARM = "default"  # of a test that compares nothing; it says no more than the test
_STYLES: dict[str, str] = {
    EffectVerdict.EQUIVALENT: "green",
    Verdict.EXACT: "green",
    EffectVerdict.HIGHER: "cyan",
    EffectVerdict.LOWER: "cyan",
    EffectVerdict.INCONCLUSIVE: "yellow",
    EffectVerdict.INSUFFICIENT: "yellow",
}


def comparison_table(comparison: RunComparison) -> Table:
    """Return one row a metric for the terminal."""
    table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[NUM_TEXT_COLUMNS:-1]:
        column.justify = "right"
    table.columns[1].overflow = "fold"
    table.columns[-1].no_wrap = True
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    for metric in comparison.metrics:
        *cells, verdict = _cells(metric, glossary)
        table.add_row(*map(Text, cells), Text(verdict, style=_STYLES.get(verdict, "")))
    return table


def remarks(comparison: RunComparison) -> Iterator[str]:
    """Say what belongs to the table: the margin, the tests that are not in it, and what else differs."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdict_counts(comparison).items()))
    yield f"verdicts: {counts or 'none'}; equivalent means within ±{percent(comparison.margin, 0)}"
    for refusal in comparison.refused:
        yield f"test {refusal.test_id} is not compared: {refusal.reason}"
    for difference in comparison.differences:
        yield f"differs: {difference}"


def comparison_markdown(comparison: RunComparison) -> str:
    """Return the same table and remarks as Markdown."""
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    rows = [tuple(map(escape_markdown, _cells(metric, glossary))) for metric in comparison.metrics]
    lines = [COLUMNS, (":--",) * len(COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    roots = f"A: ledger `{comparison.first_root_sha256}`\nB: ledger `{comparison.second_root_sha256}`".split("\n")
    listed = "\n".join(f"- {line}" for line in (*roots, *map(escape_markdown, remarks(comparison))))
    return f"{table}\n\n{listed}\n"


def comparison_json(comparison: RunComparison) -> str:
    """Return everything with full digits."""
    return json.dumps(comparison.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n"


def _cells(metric: MetricComparison, glossary: Glossary) -> tuple[str, ...]:
    scale = scale_for(metric.unit, max(abs(metric.first), abs(metric.second)))
    unit = glossary.unit(scale.symbol, "en")
    interval = metric.interval
    exact = 0.0 if metric.verdict == Verdict.EXACT else None
    noise = exact if interval is None else (interval.high - interval.low) / 2
    values = (value * scale.factor for value in (metric.first, metric.second))
    first, second = (f"{number(value, None if noise is None else noise * value)} {unit}".strip() for value in values)
    name = metric.metric if metric.arm == SOLE_ARM else f"{metric.metric} ({metric.arm})"
    size = {"paired": f"{metric.n} pairs", "unpaired": str(metric.n), "count": "—"}[metric.design]
    return (metric.test_id, name, first, second, _ratio(metric, noise), size, metric.verdict)


def _ratio(metric: MetricComparison, noise: float | None) -> str:
    """Write the ratio with its interval."""
    if metric.ratio is None:
        return "—"
    ratio, interval = number(metric.ratio, noise), metric.interval
    return ratio if interval is None else f"{ratio} [{number(interval.low, noise)}, {number(interval.high, noise)}]"
