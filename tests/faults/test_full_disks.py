"""A disk that is full or read-only: a sentence that names the file, no half-written file, a run that can go on."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from touchstone import cli, cli_errors
from touchstone.canonical import StorageError, atomic_write
from touchstone.ledger import LEDGER_NAME, NO_PREVIOUS, Ledger, LedgerError, read_ledger
from touchstone.records import EntryKind, RunEvent
from touchstone.running.orchestrate import KILLED, is_finished

NO_SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def files_no_longer_than(num_bytes):
    """Let the kernel refuse every byte of a file beyond a length, as a full disk does in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def event(detail):
    return RunEvent(event="started", at="2026-01-01T00:00:00+00:00", detail=detail)


# --- the ledger, at every byte --------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_at_any_byte_of_a_line_leaves_the_lines_before_and_takes_the_line_later(tmp_path):
    path = tmp_path / LEDGER_NAME
    with Ledger.create(path) as ledger:
        ledger.append(EntryKind.EVENT, event("a"))
        whole = path.read_bytes()
        for room in range(len(whole) + 1):
            with files_no_longer_than(len(whole) + room):
                with pytest.raises(LedgerError, match=r"cannot be written \(File too large\); make room.*--resume"):
                    ledger.append(EntryKind.EVENT, event("b" * 40))
                assert path.read_bytes() == whole
        ledger.append(EntryKind.EVENT, event("c"))
    assert [entry.body.detail for entry in read_ledger(path)] == ["a", "c"]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, NO_SPACE), KeyboardInterrupt()])
def test_a_line_whose_way_to_the_disk_fails_is_taken_back(tmp_path, monkeypatch, fault):
    path = tmp_path / LEDGER_NAME
    with Ledger.create(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr("touchstone.ledger.os.fsync", raising(fault))
            with pytest.raises((LedgerError, KeyboardInterrupt)):
                ledger.append(EntryKind.EVENT, event("lost"))
        assert path.read_bytes() == b""
        ledger.append(EntryKind.EVENT, event("kept"))
    (entry,) = read_ledger(path)
    assert (entry.body.detail, entry.previous_sha256) == ("kept", NO_PREVIOUS)


# --- files that are replaced ----------------------------------------------------------------------------------------


def raising(fault):
    def fail(*_args, **_options):
        raise fault

    return fail


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, NO_SPACE), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["os.fsync", "Path.open", "Path.replace", "sync_directory"])
def test_a_write_that_fails_at_any_step_leaves_one_whole_file_and_nothing_else(tmp_path, monkeypatch, step, fault):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    place = {"os.fsync": "touchstone.canonical.os.fsync", "sync_directory": "touchstone.canonical.sync_directory"}
    with monkeypatch.context() as patch:
        patch.setattr(place.get(step, f"pathlib.{step}"), raising(fault))
        with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
            atomic_write(path, b"new")
    if isinstance(fault, OSError):
        assert (caught.value.filename, caught.value.strerror) == (str(path), NO_SPACE)
    assert path.read_bytes() == (b"new" if step == "sync_directory" else b"old")
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_finds_no_room_in_its_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    with files_no_longer_than(10_000), pytest.raises(StorageError, match="File too large"):
        atomic_write(path, bytes(20_000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_in_a_write_leaves_the_old_file_under_its_name(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from touchstone import canonical;"
        "canonical.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
        "canonical.atomic_write(Path(sys.argv[1]), b'new')"
    )
    wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False, env=wanted)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


# --- a whole run ----------------------------------------------------------------------------------------------------


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def fill(folder):
    """Take all the room that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_disk_that_fills_up_before_a_process_stops_the_run_and_it_resumes(phased, small_disk):
    directory = small_disk("4m") / "run"
    run = phased.make_run(directory)
    with phased.orchestrate.start(run) as ledger:
        filler = fill(directory.parent)
        with pytest.raises(OSError, match=NO_SPACE):
            phased.orchestrate.execute(run, ledger, phased.Silent())
    assert phased.events(directory) == ["started"]
    filler.unlink()
    phased.measure(run, resume=True)
    assert is_finished(directory)
    assert phased.custody_faults(directory) == []


def test_a_worker_that_finds_the_disk_full_stops_the_run_and_uses_up_no_attempt(phased, fault_at, small_disk):
    directory = small_disk("4m") / "run"
    marker = fault_at("timed", "fill")
    with pytest.raises(StorageError, match=r"a process could not write its files; logs/.* says why"):
        phased.measure(phased.make_run(directory))
    assert phased.events(directory) == ["started"]
    assert phased.attempts(directory) == []
    Path(marker.read_text()).unlink()
    phased.measure(phased.make_run(directory), resume=True)
    assert [attempt.reason for attempt in phased.attempts(directory)] == [KILLED, None]
    assert phased.custody_faults(directory) == []
    assert phased.names_in(directory) == {"ledger.jsonl", "logs", "model", "traces"}


def test_a_run_that_could_not_write_its_plan_has_not_begun(phased, tmp_path):
    run = phased.make_run(tmp_path)
    with files_no_longer_than(1500), pytest.raises(LedgerError, match="cannot be written"):
        phased.orchestrate.start(run)
    assert not (tmp_path / LEDGER_NAME).exists()
    phased.measure(run)
    assert is_finished(tmp_path)


def test_a_read_only_folder_is_a_sentence_and_status_1(small_disk, monkeypatch, capsys):
    folder = small_disk("1m", "ro")
    monkeypatch.setattr(
        sys, "argv", ["touchstone", "run", "--device", "cpu", "--only", "1.1", "--out", f"{folder}/run"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == cli_errors.FAILED
    assert f"{folder}/run: Read-only file system; see to its rights" in said
    assert "Traceback" not in said


def test_a_report_that_cannot_be_written_leaves_the_run_as_it_was(phased, small_disk, monkeypatch, capsys):
    directory = small_disk("4m") / "run"
    phased.measure(phased.make_run(directory))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    remount(directory.parent, "ro")
    monkeypatch.setattr(sys, "argv", ["touchstone", "report", str(directory)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli_errors.FAILED
    assert "Read-only file system" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.fixture
def no_temporary_folder(monkeypatch):
    """no_temporary_folder() lets every place for temporary files refuse one, as in a container that is read-only."""
    opened = os.open

    def refuse(path, flags, *rest, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *rest, **options)

    def close_all():
        monkeypatch.setattr(tempfile, "tempdir", None)  # what Python found before
        monkeypatch.setattr(os, "open", refuse)

    return close_all


def test_no_place_for_temporary_files_is_a_sentence_and_status_1(tmp_path, no_temporary_folder, monkeypatch, capsys):
    from touchstone.verify import again  # noqa: PLC0415  the figures' library is slow to load; other tests need it not

    monkeypatch.setattr(sys, "argv", ["touchstone", "run", "--dry-run", "--device", "cpu", "--only", "1.1"])
    no_temporary_folder()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli_errors.FAILED
    assert "a temporary folder (TMPDIR): No usable temporary directory found" in capsys.readouterr().err
    with pytest.raises(StorageError, match="No usable temporary directory found"):
        again.made_again(tmp_path, {})
