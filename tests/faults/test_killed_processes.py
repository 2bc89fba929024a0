"""Processes killed in each phase of their work: the ledger stays whole, the run goes on, nothing is left."""

import signal

import pytest

from tests.faults.phased_engine import PHASES
from touchstone import canonical, cli, cli_errors
from touchstone.running.orchestrate import INTERRUPTED, KILLED, is_finished

RECORD = {"ledger.jsonl", "logs", "model", "traces"}


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_worker_costs_one_attempt_and_the_run_goes_on(phased, fault_at, tmp_path, phase):
    marker, directory = fault_at(phase, "kill"), tmp_path / "run"
    phased.measure(phased.make_run(directory))
    first, second = phased.attempts(directory)
    assert first.reason == f"the process was ended by signal SIGKILL; see logs/{first.unit_id}-1.log"
    assert (first.valid, second.valid, first.measurements) == (False, True, ())
    assert phased.events(directory) == ["started", "finished"]
    assert phased.custody_faults(directory) == []
    assert phased.names_in(directory) == RECORD
    assert phased.gone([int(marker.read_text())])


def stop(phased, directory, marker, number):
    """Start a run, stop the orchestrator by a signal while its worker lingers in a phase; return what it said."""
    process = phased.begin(directory)
    worker = int(phased.wait_for(marker))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL if number == signal.SIGKILL else process.returncode != 0
    assert phased.gone([worker])
    return errors


def check_resumed(phased, directory, *reasons):
    """Go on with a stopped run, and look at the whole record."""
    phased.measure(phased.make_run(directory), resume=True)
    told = phased.attempts(directory)
    assert [attempt.reason for attempt in told] == [*reasons, None]
    assert is_finished(directory)
    assert phased.custody_faults(directory) == []
    assert phased.names_in(directory) == RECORD


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "reporting"])
def test_ctrl_c_in_any_phase_before_the_result_is_written_down_and_the_run_resumes(phased, fault_at, tmp_path, phase):
    marker, directory = fault_at(phase, "linger"), tmp_path / "run"
    assert "KeyboardInterrupt" in stop(phased, directory, marker, signal.SIGINT)
    assert phased.events(directory) == ["started", "interrupted"]
    assert phased.custody_faults(directory) == []
    assert phased.names_in(directory) == RECORD - ({"traces"} if phase != "timed" else set())
    check_resumed(phased, directory, INTERRUPTED)
    assert phased.events(directory) == ["started", "interrupted", "resumed", "finished"]


def test_ctrl_c_after_the_result_keeps_the_attempt(phased, fault_at, tmp_path):
    marker, directory = fault_at("reporting", "linger"), tmp_path / "run"
    stop(phased, directory, marker, signal.SIGINT)
    assert phased.events(directory) == ["started", "interrupted"]
    check_resumed(phased, directory)
    assert phased.events(directory) == ["started", "interrupted", "finished"]


@pytest.mark.parametrize("phase", ["timed", "reporting"])
def test_a_killed_orchestrator_takes_its_worker_along_and_the_run_resumes(phased, fault_at, tmp_path, phase):
    marker, directory = fault_at(phase, "linger"), tmp_path / "run"
    stop(phased, directory, marker, signal.SIGKILL)
    assert phased.events(directory) == ["started"]
    check_resumed(phased, directory, KILLED)
    assert phased.events(directory) == ["started", "resumed", "finished"]


@pytest.mark.no_cover
def test_a_run_with_killed_and_interrupted_attempts_is_reported_and_verified(phased, fault_at, tmp_path):
    marker, directory = fault_at("timed", "linger"), tmp_path / "run"
    stop(phased, directory, marker, signal.SIGINT)
    marker.unlink()
    fault_at("reporting", "kill")
    phased.measure(phased.make_run(directory), resume=True)
    assert [attempt.valid for attempt in phased.attempts(directory)] == [False, False, True]
    phased.report(directory)
    assert phased.faults(directory) == []


def test_what_a_crash_leaves_half_made_is_cleared_away_on_resume(phased, tmp_path):
    directory = tmp_path / "run"
    run = phased.make_run(directory)
    phased.orchestrate.start(run).close()
    (directory / "traces").mkdir()
    leftovers = [".result-2.1-b0-1.json", ".pending.json.77.tmp", ".code-1.json", f"traces/{'0' * 64}.json.gz"]
    for name in [*leftovers, "traces/.half.json.gz.77.tmp"]:
        (directory / name).write_bytes(b"half")
    phased.measure(run, resume=True)
    assert phased.names_in(directory) == RECORD
    assert phased.custody_faults(directory) == []


def test_a_pending_file_that_was_changed_is_a_sentence(phased, tmp_path):
    run = phased.make_run(tmp_path)
    phased.orchestrate.start(run).close()
    (tmp_path / "pending.json").write_text("{")
    with pytest.raises(phased.orchestrate.LedgerError, match=r"pending\.json was changed .*delete it and resume again"):
        phased.orchestrate.resume(run)


# --- while a report is written ----------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, name):
    """Let Ctrl-C come while a file of this name is on its way to the disk."""
    replace = canonical._replace

    def interrupted(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(canonical, "_replace", interrupted)


def test_ctrl_c_while_a_report_is_written_leaves_whole_files_and_the_next_report_is_the_same(
    phased, tmp_path, monkeypatch
):
    phased.measure(phased.make_run(tmp_path))
    phased.report(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        interrupt_at(patch, "report.en.md")
        with pytest.raises(KeyboardInterrupt):
            phased.report(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert phased.faults(tmp_path) == []


def test_ctrl_c_while_a_report_is_made_ends_with_status_130(monkeypatch, capsys):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "report_paths", interrupted)
    monkeypatch.setattr("sys.argv", ["touchstone", "report", "anywhere"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli_errors.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
