from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.touchstone.report_sample import write_sample_run
from touchstone.records import ClockUse, Verdict
from touchstone.reporting.checklist import checklist
from touchstone.reporting.markdown import TEMPLATES, Glossary, markdown_environment
from touchstone.reporting.run_folder import Run, load_run

if TYPE_CHECKING:
    from pathlib import Path

GLOSSARY = Glossary.load(TEMPLATES / "terms.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    return load_run(folder, write_sample_run(folder))


def ticks(run: Run, templates: Path = TEMPLATES) -> dict[str, bool]:
    items = checklist(run, {}, markdown_environment("en", GLOSSARY, templates))
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


def measured_with(run: Run, clock: ClockUse | None) -> Run:
    source = run.environment.source.model_copy(update={"clock": clock})
    return dataclasses.replace(run, environment=run.environment.model_copy(update={"source": source}))


@pytest.mark.parametrize(
    "clock",
    [
        ClockUse(num_files=9, readers=("clock.py", "other.py"), unreadable=()),
        ClockUse(num_files=9, readers=(), unreadable=()),
        ClockUse(num_files=9, readers=("clock.py",), unreadable=("broken.py",)),
        None,
    ],
    ids=["a second clock", "no clock module", "a file that was not searched", "not recorded"],
)
def test_what_was_recorded_of_clocks_unticks_synchronized(run, clock):
    alone = ClockUse(num_files=9, readers=("clock.py",), unreadable=())
    assert ticks(measured_with(run, alone))["synchronized"]
    assert not ticks(measured_with(run, clock))["synchronized"]


def test_only_settled_key_numbers_tick_repeated(run):
    assert not ticks(run)["repeated"]
    settled = tuple(
        result.model_copy(
            update={"statistics": tuple(s.model_copy(update={"verdict": Verdict.STABLE}) for s in result.statistics)}
        )
        for result in run.results
    )
    assert ticks(dataclasses.replace(run, results=settled))["repeated"]


def test_the_fewest_processes_are_those_of_numbers_that_are_given_and_are_no_counts(run):
    def with_processes(verdict, n):
        number = next(s for result in run.results for s in result.statistics if s.key)
        return number.model_copy(update={"verdict": verdict, "n": n})

    numbers = [(Verdict.STABLE, 6), (Verdict.UNSTABLE, 3), (Verdict.EXACT, 1), (Verdict.INVALID, 0)]
    first = run.results[0].model_copy(update={"statistics": tuple(with_processes(*number) for number in numbers)})
    items = checklist(dataclasses.replace(run, results=(first,)), {}, markdown_environment("en", GLOSSARY, TEMPLATES))
    (told,) = (item.detail.en for item in items if item.key == "repeated")
    assert told.startswith("2 of 4 key numbers are stable or exact")
    assert told.endswith("behind each that is given and no count, at least 3 processes")


def test_nothing_shown_means_no_method_is_recorded(run):
    assert not ticks(run)["method_recorded"]
