from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from touchstone.analysis.metrics import COMPARISONS
from touchstone.records import Effect
from touchstone.reporting.headline import COSTS, NO_MATTER, PAYS, UNDECIDED, word_for
from touchstone.verify.verification import verify_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from touchstone.experiment import Experiment


def effect(ratio: float, verdict: str) -> Effect:
    return Effect(
        metric="total_time",
        baseline="off",
        treatment="on",
        blocks=(),
        ratio=ratio,
        interval=None,
        p_sign_flip=None,
        p_holm=None,
        verdict=verdict,
    )


@pytest.mark.parametrize(
    ("comparison", "ratio", "verdict", "word"),
    [
        ("speedup", 0.5, "LOWER", PAYS),  # half the time is twice the speed
        ("speedup", 1.5, "HIGHER", COSTS),
        ("throughput_improvement", 1.5, "HIGHER", PAYS),
        ("throughput_improvement", 0.5, "LOWER", COSTS),
        ("speedup", 0.99, "EQUIVALENT", NO_MATTER),
        ("compute_saved", 0.5, "EXACT", PAYS),
        ("compute_saved", 1.0, "EXACT", NO_MATTER),
        ("compute_saved", 1.5, "EXACT", COSTS),
        ("speedup", 0.5, "INCONCLUSIVE", UNDECIDED),
        ("speedup", 0.5, "INSUFFICIENT", UNDECIDED),
        ("speedup", 0.5, "VOID", UNDECIDED),
    ],
)
def test_an_idea_pays_only_where_a_change_for_the_better_was_shown(comparison, ratio, verdict, word):
    assert word_for(COMPARISONS[comparison], effect(ratio, verdict)) == word


def test_an_idea_without_an_effect_is_not_decided():
    assert word_for(COMPARISONS["speedup"], None) == UNDECIDED


@pytest.fixture(scope="module")
def run(published, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Experiment]]:
    return shutil.copytree(published.folder, tmp_path_factory.mktemp("run") / "copy"), published.experiments


def first_page(folder: Path) -> str:
    return (folder / "report.en.md").read_text(encoding="utf-8").partition("## What the verdicts mean")[0]


def test_the_first_page_says_all_that_a_reader_acts_on(run):
    page = first_page(run[0])
    for heading in (
        "How fast, how large, how near to the physical limit",
        "Which ideas pay, and where",
        "Not measured",
        "Can the instrument be believed",
    ):
        assert f"### {heading}\n" in page


def test_each_comparison_stands_on_the_first_page_once(run):
    page = first_page(run[0])
    assert page.count("| 2.1 | speed-up of the total time |") == 1
    assert "| 2.1 | prefix cache hit rate |" not in page  # one arm alone says nothing of the idea


@pytest.mark.parametrize(
    ("told", "lie"),
    [
        ("| **it pays** |", "| **not decided** |"),
        (" % |\n| 1.1 | decode", "0 % |\n| 1.1 | decode"),  # the share of the limit, ten times as large
        ("key numbers", "9 key numbers"),
    ],
)
def test_verify_works_the_first_page_out_again(run, told, lie):
    folder, experiments = run
    path = folder / "report.en.md"
    text = path.read_text(encoding="utf-8")
    assert told in text
    try:
        path.write_text(text.replace(told, lie, 1), encoding="utf-8")
        outcomes = {outcome.id: outcome for outcome in verify_run(folder, experiments, remake=False)}
    finally:
        path.write_text(text, encoding="utf-8")
    assert not outcomes["printed_numbers"].passed
    assert {fault.file for fault in outcomes["printed_numbers"].faults} == {"report.en.md"}
