"""Each exit code of `touchstone reproduce` on real runs: the engine measured twice on this machine by the command line.

What a busy machine may decide either way, a speed or an order of times, decides nothing here: counts, tokens and
identities do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.touchstone.reproduce.pairs_of_runs import claim, write_claims
from tests.touchstone.verify.told import Story
from touchstone.ledger import LEDGER_NAME

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
COUNT = claim("exact", metric="peak_concurrency")
TOKENS = claim("token hash")
IDENTITIES = [
    claim("identity", metric=name) | {"id": name.replace("_", "-")} for name in ("latency_identity", "littles_law")
]
EXACT_CLAIMS = (COUNT, TOKENS, *IDENTITIES)


def touchstone(*arguments):
    """Run a command in a process of its own; return its status and all that it printed."""
    command = [sys.executable, "-m", "touchstone", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def measure(folder):
    status, text = touchstone("run", "--profile", "smoke", "--only", "1.1", "--device", "cpu", "--out", folder)
    assert status == 0, text
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The same machine, code and seed, measured one run after the other."""
    folder = tmp_path_factory.mktemp("measured")
    return measure(folder / "paper"), measure(folder / "rerun")


@pytest.fixture
def runs(measured, tmp_path):
    """Copies that a test may change."""
    return tuple(shutil.copytree(folder, tmp_path / folder.name) for folder in measured)


def reproduce(runs, *claims):
    paper, rerun = runs
    write_claims(paper, *claims)
    return touchstone("reproduce", rerun, "--against", paper)


def test_a_rerun_of_the_same_machine_holds_every_exact_claim_with_status_0(runs):
    status, text = reproduce(runs, *EXACT_CLAIMS)
    assert status == 0, text
    assert text.count("HOLDS") == len(EXACT_CLAIMS)
    assert "hardware: the same" in text
    assert "a count, the same in all 6 processes of the paper's run and all 6 of this one" in text
    assert "the same tokens" in text
    for language in ("en", "zh"):
        assert (runs[1] / f"reproduction.{language}.md").is_file()


def test_a_run_against_itself_reproduces_its_speeds(runs):
    """The ratio is 1 and only the run's own spread decides: nothing can be refuted."""
    paper, _ = runs
    write_claims(paper, claim("absolute", metric="total_time"), *EXACT_CLAIMS)
    status, text = touchstone("reproduce", paper, "--against", paper)
    assert status in {0, 2}, text
    assert "NOT REPRODUCED" not in text


def test_a_run_that_answered_otherwise_is_refuted_with_status_1(runs, tmp_path):
    """One request of the rerun gives other tokens, told so consistently that the ledger holds."""
    paper, rerun = runs
    story = Story.read(rerun)

    def answer_otherwise(trace):
        trace["requests"][0]["output_sha256"] = trace["requests"][0]["output_sha256"][::-1]

    story.retrace(next(story.runs("1.1")), answer_otherwise)
    status, text = reproduce((paper, story.write(tmp_path / "told otherwise")), *EXACT_CLAIMS)
    assert status == 1, text
    assert "at least one claim is refuted" in text
    assert text.count("HOLDS") == len(EXACT_CLAIMS) - 1


def test_a_claim_about_what_was_not_measured_stays_open_with_status_2(runs):
    status, text = reproduce(runs, claim("identity", "2.1", metric="every_check"))
    assert status == 2, text
    assert "has not measured this test" in text


def test_a_ledger_that_was_edited_is_status_3(runs):
    ledger = runs[1] / LEDGER_NAME
    ledger.write_bytes(ledger.read_bytes().replace(b'"valid":true', b'"valid":false', 1))
    status, text = reproduce(runs, *EXACT_CLAIMS)
    assert status == 3, text
    assert "does not hash" in text
    assert "Traceback" not in text


def test_a_real_run_and_its_report_are_verified(runs):
    _, rerun = runs
    assert touchstone("report", rerun)[0] == 0
    status, text = touchstone("verify", rerun)
    assert status == 0, text
