from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.touchstone.report_sample import write_sample_run
from touchstone.records import Verdict
from touchstone.reporting.checklist import PACKAGE, checklist
from touchstone.reporting.markdown import TEMPLATES, Glossary, markdown_environment
from touchstone.reporting.run_folder import Run, load_run

if TYPE_CHECKING:
    from pathlib import Path

GLOSSARY = Glossary.load(TEMPLATES / "terms.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    return load_run(folder, write_sample_run(folder))


def ticks(run: Run, templates: Path = TEMPLATES, sources: Path = PACKAGE) -> dict[str, bool]:
    items = checklist(run, {}, markdown_environment("en", GLOSSARY, templates), sources)
    return {item.key: item.ticked for item in items}


def test_every_item_of_the_glossary_is_decided(run):
    assert list(ticks(run)) == list(GLOSSARY.checklist)


def test_one_foreign_fingerprint_unticks_the_same_hardware(run):
    assert ticks(run)["same_hardware"]
    foreign = run.attempts[0].model_copy(update={"environment_fingerprint": "f" * 64})
    assert not ticks(dataclasses.replace(run, attempts=(foreign, *run.attempts[1:])))["same_hardware"]


def test_a_missing_trace_unticks_verifiable(run, tmp_path):
    assert ticks(run)["verifiable"]
    assert not ticks(dataclasses.replace(run, directory=tmp_path))["verifiable"]


def test_a_typed_in_number_unticks_no_external_data(run, tmp_path):
    assert ticks(run)["no_external_data"]
    (tmp_path / "report.md.j2").write_text("1434.13 tok/s")
    assert not ticks(run, templates=tmp_path)["no_external_data"]


def test_a_lost_run_of_one_arm_unticks_paired(run):
    assert ticks(run)["paired"]
    attempts = tuple(
        attempt.model_copy(update={"measurements": attempt.measurements[1:]}) if attempt.test_id == "2.1" else attempt
        for attempt in run.attempts
    )
    assert not ticks(dataclasses.replace(run, attempts=attempts))["paired"]


def test_no_measured_comparison_leaves_paired_unticked(run):
    others = tuple(attempt for attempt in run.attempts if attempt.test_id != "2.1")
    assert not ticks(dataclasses.replace(run, attempts=others))["paired"]


@pytest.mark.parametrize(
    "line",
    [
        "import time\nt = time.perf_counter()",
        "from time import perf_counter_ns",
        "import torch\ntorch.cuda.synchronize()",
    ],
)
def test_a_second_clock_unticks_synchronized(run, tmp_path, line):
    (tmp_path / "clock.py").write_text("import time\nnow = time.perf_counter_ns\n")
    assert ticks(run, sources=tmp_path)["synchronized"]
    (tmp_path / "other.py").write_text(line)
    assert not ticks(run, sources=tmp_path)["synchronized"]


def test_no_clock_module_leaves_synchronized_unticked(run, tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    assert not ticks(run, sources=tmp_path)["synchronized"]


def test_only_settled_key_numbers_tick_repeated(run):
    assert not ticks(run)["repeated"]
    settled = tuple(
        result.model_copy(
            update={"statistics": tuple(s.model_copy(update={"verdict": Verdict.STABLE}) for s in result.statistics)}
        )
        for result in run.results
    )
    assert ticks(dataclasses.replace(run, results=settled))["repeated"]


def test_nothing_shown_means_no_method_is_recorded(run):
    assert not ticks(run)["method_recorded"]
