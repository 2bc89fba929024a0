"""Two runs into one folder: one writes, the other says so; nothing of the first is touched."""

import signal

import pytest

from touchstone.ledger import LEDGER_NAME, LedgerError
from touchstone.running.orchestrate import is_finished


def test_of_two_runs_started_together_one_measures_and_the_other_says_why_not(phased, tmp_path):
    both = [phased.begin(tmp_path) for _ in range(2)]
    ends = {process.wait(timeout=120): process.stderr.read() for process in both}
    assert sorted(ends) == [0, 1]
    assert "exists already; continue it with --resume" in ends[1]
    assert is_finished(tmp_path)
    assert phased.custody_faults(tmp_path) == []
    assert len(phased.attempts(tmp_path)) == 1


def test_a_run_under_way_is_neither_started_nor_resumed_by_another(phased, fault_at, tmp_path):
    marker, directory = fault_at("timed", "linger"), tmp_path / "run"
    process = phased.begin(directory)
    phased.wait_for(marker)
    before = (directory / LEDGER_NAME).read_bytes()
    run = phased.make_run(directory)
    with pytest.raises(LedgerError, match="exists already"):
        phased.orchestrate.start(run)
    with pytest.raises(LedgerError, match="is being written by another run"):
        phased.orchestrate.resume(run)
    assert (directory / LEDGER_NAME).read_bytes() == before
    assert (directory / "pending.json").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    phased.measure(run, resume=True)
    assert phased.custody_faults(directory) == []
