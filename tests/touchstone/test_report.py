from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from touchstone.analysis.results import PLAN
from touchstone.experiment import INSTRUMENT_TEST
from touchstone.ledger import LEDGER_NAME, LedgerError, read_ledger
from touchstone.reporting.context import flatten, report_context, texts_of, views_of_tests
from touchstone.reporting.lint import language_number_faults, math_faults, numbers_in, table_faults
from touchstone.reporting.markdown import TEMPLATES, Glossary, ReportError, markdown_environment
from touchstone.reporting.numbers import line_ranges, p_value, substitute
from touchstone.reporting.report import COLUMNS, export_table, lint_report, render_report, verdict_table
from touchstone.reporting.run_folder import load_run

if TYPE_CHECKING:
    from pathlib import Path
    from types import SimpleNamespace


class Rendered:
    def __init__(self, published: SimpleNamespace) -> None:
        self.run_dir: Path = published.folder
        self.experiments = published.experiments
        self.faults = published.faults
        self.run = load_run(self.run_dir, self.experiments)
        self.figures = sorted(self.run_dir.glob("figures/*"))
        self.zh = (self.run_dir / "report.zh.md").read_text(encoding="utf-8")
        self.en = (self.run_dir / "report.en.md").read_text(encoding="utf-8")

    def chapter(self, test_id: str, language: str = "en") -> str:
        text, word = (self.en, "Test") if language == "en" else (self.zh, "测试")
        start = re.search(rf"^### {word} {re.escape(test_id)}[:：]", text, re.MULTILINE)
        end = re.compile(r"^##?#? (?!#)", re.MULTILINE).search(text, start.end())
        return text[start.start() : end.start()]


@pytest.fixture(scope="module")
def rendered(published) -> Rendered:
    return Rendered(published)


def summary_row(text: str, test_id: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {test_id} | {name} |"))


def test_the_lints_find_nothing_in_a_full_run(rendered):
    assert rendered.faults == ()


def test_both_languages_carry_the_same_multiset_of_numbers(rendered):
    assert numbers_in(rendered.zh) == numbers_in(rendered.en)
    assert numbers_in(rendered.en).total() > 1000


def test_every_test_of_the_plan_has_its_chapter_in_order(rendered):
    for text, word in ((rendered.en, "Test"), (rendered.zh, "测试")):
        assert re.findall(rf"^### {word} (\d\.\d)", text, re.MULTILINE) == list(PLAN)


def test_a_planted_number_in_one_language_is_caught(rendered):
    assert language_number_faults(rendered.zh, rendered.en.replace("## Checklist", "## Checklist 1434.13", 1))


def test_a_planted_number_in_both_languages_is_unsourced(rendered):
    glossary = Glossary.load(TEMPLATES / "terms.toml")
    context = report_context(rendered.run, {}, markdown_environment("en", glossary), glossary)
    planted = "\n131072077.5 tok/s\n"
    faults = lint_report(rendered.zh + planted, rendered.en + planted, context, glossary)
    assert {fault for fault in faults if "131072077.5" in fault} == {
        f"{language}: 131072077.5: no value of the context holds it" for language in ("zh", "en")
    }


def test_a_stable_number_carries_interval_verdict_and_all_repetitions(rendered):
    row = summary_row(rendered.en, "1.1", "prefill throughput")
    assert re.search(r"\| \d+,\d+ tok/s \| \[\d+,\d+, \d+,\d+\] tok/s \| stable \| [\d.]+ % \|$", row)
    chapter = rendered.chapter("1.1")
    section = chapter[chapter.index("#### Prefill throughput") : chapter.index("#### Decode throughput")]
    for label in ("**Data**", "**How obtained**", "**Formula**", "With this run's values", "**How verified**"):
        assert label in section
    assert len(re.findall(r"^\| `default` \| [1-6] \| \S+ tok/s \| \S+, \S+ \|$", section, re.MULTILINE)) == 6


def test_the_worked_formula_gives_the_printed_outcome(rendered):
    chapter = rendered.chapter("1.1")
    worked = re.findall(r"\\frac\{(\d+)\}\{([\d.]+)\} = ([\d.]+)\\ \\text\{prefill tokens/s\}", chapter)
    assert len(worked) == 1
    tokens, seconds, rate = map(float, worked[0])
    assert rate == pytest.approx(tokens / seconds, rel=1e-4)


def test_an_unstable_number_is_printed_with_its_range_and_the_word(rendered):
    english = summary_row(rendered.en, "1.2", "time to first token, mean")
    chinese = summary_row(rendered.zh, "1.2", "首 token 延迟（平均）")
    assert re.search(r"\| Range \[\S+, \S+\] ms \| unstable \| [\d.]+ % \|$", english)
    assert re.search(r"\| 取值范围 \[\S+, \S+\] ms \| 不稳定 \| [\d.]+ % \|$", chinese)
    assert "Verdict: **unstable**" in rendered.chapter("1.2")


def test_few_processes_are_called_insufficient_and_indicative(rendered):
    assert summary_row(rendered.en, "1.3", "model weights").endswith("| insufficient (indicative) | — |")
    assert summary_row(rendered.zh, "1.3", "模型权重内存").endswith("| 样本不足（仅供参考） | — |")


def test_an_invalid_test_shows_no_value(rendered):
    row = summary_row(rendered.en, "3.1", "total time")
    assert row.endswith("| withheld | — | invalid | — |")
    assert "more than 20% of the attempts were invalid" in rendered.chapter("3.1")
    assert "tok/s" not in rendered.chapter("3.1").replace("tokens/s", "")


def test_what_was_not_measured_says_why_in_both_languages(rendered):
    assert "**not measured**: needs 2 GPUs" in rendered.chapter("3.2")
    assert "**未测量**：需要 2 块 GPU" in rendered.chapter("3.2", "zh")
    one_row = r"^\| 3\.2 [^|]*; 3\.3 [^|]* \| needs 2 GPUs \|$"
    assert re.search(one_row, rendered.en, re.MULTILINE)
    assert "**Data**" not in rendered.chapter("3.2")


def test_a_comparison_shows_the_speed_up_as_higher_though_the_time_is_lower(rendered):
    assert summary_row(rendered.en, "2.1", "speed-up of the total time").endswith("| higher | **it pays** |")
    chapter = rendered.chapter("2.1")
    assert re.search(r"^\| total time \| `off` \| `on` \| 0\.\d+ \|.*\| lower \|$", chapter, re.MULTILINE)
    assert "100 \\cdot (1 - 0.625) = 37.5\\ \\%" in chapter


def test_an_exact_count_has_no_interval(rendered):
    assert "| 37.50 % | — | exact |" in summary_row(rendered.en, "2.1", "prompt computation saved")


def test_invalid_attempts_and_their_reasons_are_printed(rendered):
    chapter = rendered.chapter("1.1")
    assert "| Attempts | 7 |" in chapter
    assert "| Valid attempts | 6 |" in chapter
    assert "`the canary moved by 4.2 %`" in chapter


def test_the_ledger_lines_named_hold_the_attempts_of_the_test(rendered):
    entries = read_ledger(rendered.run_dir / LEDGER_NAME)
    (first, last) = map(int, re.search(r"\| Ledger lines \| 1, 2, (\d+)–(\d+) \|", rendered.chapter("1.2")).groups())
    assert {entry.body.test_id for entry in entries[first - 1 : last]} == {"1.2"}


def test_captured_facts_fill_the_environment_and_cannot_break_the_table(rendered):
    assert "| CPU | `Example\\|CPU_9000 'fast' $5` |" in rendered.en
    assert "| 驱动 | `570.124.04` |" in rendered.zh
    assert "| 物理核数 | 未能获取 |" in rendered.zh


def test_the_report_carries_the_hashes_that_it_hangs_on(rendered):
    for digest in (rendered.run.root_sha256, rendered.run.plan.plan_sha256, rendered.run.environment.fingerprint):
        assert digest in rendered.en


def test_tables_and_formulas_are_what_github_can_show(rendered):
    for text in (rendered.en, rendered.zh):
        assert table_faults(text) == ()
        assert math_faults(text) == ()


def test_every_figure_that_is_named_exists_with_alternative_text(rendered):
    for text in (rendered.en, rendered.zh):
        images = re.findall(r"^!\[(.+)\]\((figures/\S+\.svg)\)$", text, re.MULTILINE)
        assert {rendered.run_dir / path for _, path in images} == set(rendered.figures)
        assert all(len(alternative) > 10 for alternative, _ in images)
    assert {path.stem.partition("-")[0] for path in rendered.figures} == {
        "repetitions",
        "latency",
        "memory",
        "pairs",
        "complexity",
    }
    assert all(path.read_bytes().startswith(b"<?xml") for path in rendered.figures)


@pytest.mark.no_cover
def test_the_same_ledger_gives_the_same_bytes(rendered, tmp_path):
    again = render_report(rendered.run, tmp_path)
    assert {path.name for path in again.figures} == {path.name for path in rendered.figures}
    for other in (again.zh, again.en, again.html, *again.figures):
        assert other.read_bytes() == (rendered.run_dir / other.relative_to(tmp_path)).read_bytes()


def test_the_code_chapter_adds_its_packages_up(rendered):
    chapter = rendered.chapter("4.1")
    rows = {
        name: list(map(int, counts.split(" | ")))
        for name, counts in re.findall(
            r"^\| (`engine`|`engine\.cache`|Total) \| (\d+(?: \| \d+){4}) \|", chapter, re.MULTILINE
        )
    }
    assert rows["Total"] == [sum(pair) for pair in zip(rows["`engine`"], rows["`engine.cache`"], strict=True)]
    assert "| Functions | 66 | 60 | +6 |" in chapter
    assert "| `assert` | 1 |" in chapter


@pytest.mark.no_cover
def test_both_exports_hold_every_metric_with_full_digits(rendered):
    rows = json.loads(export_table(rendered.run_dir, "json", rendered.experiments))
    expected = sum(len(result.statistics) or 1 for result in rendered.run.results)
    assert len(rows) == expected
    assert all(tuple(row) == COLUMNS for row in rows)
    statistics = next(result for result in rendered.run.results if result.statistics).statistics[0]
    first = next(index for index, row in enumerate(rows) if row["metric"])
    assert rows[first]["median"] == statistics.median
    assert next(row for row in rows if row["test_id"] == "3.2")["reason"] == "needs 2 GPUs"

    table = list(csv.DictReader(io.StringIO(export_table(rendered.run_dir, "csv", rendered.experiments))))
    assert [row["metric"] for row in table] == [row["metric"] or "" for row in rows]
    assert float(table[first]["median"]) == rows[first]["median"]


def test_the_verdict_table_names_every_test_and_its_verdict(rendered):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(verdict_table(rendered.run_dir, rendered.experiments))
    text = console.export_text()
    assert all(f" {test_id} " in text for test_id in PLAN if test_id != INSTRUMENT_TEST), "it has no key number"
    for word in ("STABLE", "UNSTABLE", "INSUFFICIENT", "INVALID", "EXACT", "not measured", "withheld"):
        assert word in text


def test_an_unreadable_ledger_is_refused_by_name(rendered, tmp_path):
    with pytest.raises(LedgerError, match="does not exist"):
        load_run(tmp_path, rendered.experiments)


def test_a_run_without_a_plan_is_refused(rendered, tmp_path):
    line = (rendered.run_dir / LEDGER_NAME).read_bytes().split(b"\n")[0]
    (tmp_path / LEDGER_NAME).write_bytes(line + b"\n")
    with pytest.raises(ReportError, match="no plan"):
        load_run(tmp_path, rendered.experiments)


def test_a_term_is_put_in_only_where_it_is_a_whole_symbol():
    filled, used = substitute(r"\frac{\sum n_i}{T} \mathrm{TTFT} T_0 \Tau", {r"\sum n_i": 12.0, "T": 0.5, "N": 3.0})
    assert filled == r"\frac{12}{0.5} \mathrm{TTFT} T_0 \Tau"
    assert used == {r"\sum n_i", "T"}
    assert substitute("a - b", {"a": 1.0, "b": -2.0})[0] == "1 - (-2)"


def test_ledger_lines_are_counted_from_one_and_joined_to_ranges():
    assert line_ranges([0, 1, 2, 6]) == "1–3, 7"
    assert line_ranges([5, 4]) == "5, 6"
    assert line_ranges([]) == ""


def test_a_p_value_is_never_printed_as_nothing():
    assert p_value(0.03125) == "0.031"
    assert p_value(0.00001) == "< 0.001"


def test_nested_parameters_become_dotted_names():
    assert dict(flatten({"a": {"b": 1, "c": [1, 2]}, "d": None})) == {"a.b": 1, "a.c": "1, 2", "d": None}


def test_the_context_tells_all_its_texts(rendered):
    views = views_of_tests(rendered.run, {})
    assert "needs 2 GPUs" in set(texts_of(views))


def test_the_mean_complexity_is_worked_out_from_its_counts(rendered):
    functions = rendered.run.quality.code.functions
    total = sum(function.complexity_radon for function in functions)
    assert f"\\frac{{{total}}}{{{len(functions)}}} = " in rendered.chapter("4.1")
