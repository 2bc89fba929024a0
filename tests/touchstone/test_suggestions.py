import re
from pathlib import Path

import pytest

from touchstone.suggestions import did_you_mean, no_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a maker of run folders in it."""
    monkeypatch.chdir(tmp_path)

    def make(name):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "ledger.jsonl").touch()

    return make


def test_the_nearest_names_are_offered_and_far_ones_are_not():
    assert did_you_mean("nanoinfr", ["vllm", "nanoinfer"]) == "; did you mean nanoinfer?"
    assert did_you_mean("2.1@hit-5", ["2.1@hit-50", "2.1@hit-25", "4.1"]).startswith("; did you mean 2.1@hit-50 or ")
    assert did_you_mean("zzz", ["vllm", "nanoinfer"]) == ""


def test_a_folder_with_a_ledger_is_a_run(here):
    here("run")
    assert no_run(Path("run")) is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("results", "results holds no ledger.jsonl; name a folder that `touchstone run` has written \\(there is "),
        ("results", "results/paper or results/smoke"),
        ("results/smoke/report.html", "results/smoke/report.html is a file; .* \\(there is results/smoke\\)$"),
        ("results/smoke/ledger.jsonl", "results/smoke/ledger.jsonl is a file; .* \\(there is results/smoke\\)$"),
        ("results/smoke/figures", "results/smoke/figures does not exist; .* \\(there is results/smoke\\)$"),
        ("results/smok", "results/smok does not exist; .* \\(there is results/smoke( or |\\))"),
        ("reults/smoke", "reults/smoke does not exist; .* \\(there is results/smoke( or |\\))"),
        ("elsewhere", "elsewhere does not exist; name a folder that `touchstone run` has written$"),
    ],
)
def test_what_is_no_run_is_told_with_the_runs_that_lie_near(here, asked, told):
    here("results/smoke")
    here("results/paper")
    Path("results/smoke/report.html").touch()
    assert re.search(told, no_run(Path(asked)))


def test_a_ledger_that_is_a_folder_is_no_ledger(here):
    here("run")
    Path("run/ledger.jsonl").unlink()
    Path("run/ledger.jsonl").mkdir()
    assert no_run(Path("run")) == "run holds no ledger.jsonl; name a folder that `touchstone run` has written"


@pytest.mark.usefixtures("here")
def test_another_remedy_stands_in_its_place():
    assert no_run(Path("paper"), remedy="make it") == "paper does not exist; make it"
