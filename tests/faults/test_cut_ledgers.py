"""A ledger cut off at any byte: what is whole stays, the torn rest is kept beside it, and the run goes on."""

import pytest

from touchstone import cli, cli_errors
from touchstone.ledger import LEDGER_NAME, Ledger, LedgerError, read_ledger
from touchstone.records import EntryKind, RunEvent
from touchstone.running.orchestrate import is_finished
from touchstone.verify import custody

LINES_BEFORE_MEASURING = 3  # environment, plan, start


@pytest.fixture
def done(phased, tmp_path):
    directory = tmp_path / "run"
    phased.measure(phased.make_run(directory))
    return directory


def cut(directory, size):
    data = (directory / LEDGER_NAME).read_bytes()
    (directory / LEDGER_NAME).write_bytes(data[:size])
    return data[:size]


def test_at_every_byte_of_the_last_lines_resuming_keeps_what_is_whole(tmp_path):
    path = tmp_path / LEDGER_NAME
    with Ledger.create(path) as ledger:
        for number in range(3):
            ledger.append(EntryKind.EVENT, RunEvent(event="started", at="", detail=str(number)))
    data = path.read_bytes()
    for size in range(len(data.splitlines(keepends=True)[0]), len(data) + 1):
        path.write_bytes(data[:size])
        whole, _, torn = data[:size].rpartition(b"\n")
        if torn:
            with pytest.raises(LedgerError, match=r"the last line is torn \(\d+ bytes.*--resume"):
                read_ledger(path)
        with Ledger.resume(path) as ledger:
            assert len(ledger.entries) == data[:size].count(b"\n") >= 1
            assert (ledger.torn_file is not None) is bool(torn)
            if torn:
                assert ledger.torn_file.read_bytes() == torn
        assert path.read_bytes() == whole + b"\n"
        assert custody.read_chain(custody.Evidence(tmp_path)) == ()


@pytest.mark.parametrize("line", [-1, -2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_run_with_a_cut_ledger_is_finished_by_resuming(done, phased, line, share):
    lines = (done / LEDGER_NAME).read_bytes().splitlines(keepends=True)
    kept = cut(done, sum(map(len, lines[:line])) + round(share * (len(lines[line]) - 1)))
    phased.measure(phased.make_run(done), resume=True)
    assert is_finished(done)
    assert phased.custody_faults(done) == []
    assert [attempt.valid for attempt in phased.attempts(done)] == [True]
    torn = kept.rpartition(b"\n")[2]
    saved = [path for path in done.iterdir() if ".torn-" in path.name]
    assert [path.read_bytes() for path in saved] == ([torn] if torn else [])


def test_cut_before_its_plan_a_ledger_says_that_nothing_was_measured(done, phased):
    path = done / LEDGER_NAME
    data = path.read_bytes()
    head = b"".join(data.splitlines(keepends=True)[: LINES_BEFORE_MEASURING - 1])
    run = phased.make_run(done)
    for size in range(0, len(head), 97):
        path.write_bytes(data[:size])
        with pytest.raises(LedgerError, match=r"ledger\.jsonl ends before its plan, .* delete the folder"):
            phased.orchestrate.resume(run)


def test_a_line_missing_from_the_middle_is_never_mended(done, phased):
    path = done / LEDGER_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    with pytest.raises(LedgerError, match="a line was removed"):
        phased.orchestrate.resume(phased.make_run(done))
    assert custody.read_chain(custody.Evidence(done)) != ()


@pytest.mark.parametrize("keep", [None, 0, 20])
def test_a_report_without_one_of_its_traces_is_a_sentence_that_names_it(done, phased, monkeypatch, capsys, keep):
    trace = min((done / "traces").iterdir())
    data = trace.read_bytes()
    trace.unlink()
    if keep is not None:
        trace.write_bytes(data[:keep])
    monkeypatch.setattr("sys.argv", ["touchstone", "report", str(done)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == cli_errors.BAD_INPUT
    assert trace.name in said.replace("\n", "")
    assert "Traceback" not in said
    assert any(trace.name in fault for fault in phased.custody_faults(done))
