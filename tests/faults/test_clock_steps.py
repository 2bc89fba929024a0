"""A wall clock that is set back while a run is under way: no time is measured by it, and no order turns round."""

from datetime import UTC, datetime, timedelta

import pytest

from touchstone import clock
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.trace import load_trace

AN_HOUR = timedelta(hours=1)


@pytest.fixture
def set_back(monkeypatch):
    """set_back() lets every later reading of the wall clock be an hour earlier than the one before."""

    class SteppingBack(datetime):
        @classmethod
        def now(cls, _zone=None):
            now.append(now[-1] - AN_HOUR)
            return now[-1]

    now = [datetime.now(UTC)]

    def step():
        monkeypatch.setattr(clock, "datetime", SteppingBack)
        return now

    return step


def test_records_keep_their_order_when_the_wall_clock_is_set_back(set_back):
    before = clock.utc_now()
    set_back()
    after = [clock.utc_now() for _ in range(3)]
    assert [before, *after] == sorted([before, *after])
    assert datetime.fromisoformat(after[-1]) - datetime.fromisoformat(before) < AN_HOUR


def test_a_new_process_takes_the_wall_clock_as_it_is(set_back):
    clock._wall_clock.cache_clear()
    stepped = set_back()
    try:
        assert clock.utc_now()[:19] == stepped[-1].isoformat()[:19]
    finally:
        clock._wall_clock.cache_clear()


def test_durations_do_not_know_the_wall_clock(set_back, monkeypatch):
    set_back()
    monkeypatch.setattr(clock.time, "time", lambda: 0.0)
    with clock.timed_region("cpu") as region:
        sum(range(10_000))
    assert 0 < region.duration_ns < AN_HOUR.total_seconds() * 1e9


def test_a_run_whose_workers_see_the_clock_go_back_is_valid_and_interleaved(phased, fault_at, set_back, tmp_path):
    fault_at("timed", "clock")
    directory = tmp_path / "run"
    run = phased.make_run(directory)
    with phased.orchestrate.start(run) as ledger:
        set_back()
        phased.orchestrate.execute(run, ledger, phased.Silent())
    (attempt,) = phased.attempts(directory)
    assert attempt.valid
    written = [entry.written_at for entry in read_ledger(directory / LEDGER_NAME)]
    assert written == sorted(written)
    begun = [row.started_at for row in attempt.measurements]
    assert begun == sorted(begun)
    assert attempt.started_at <= attempt.ended_at
    assert all(load_trace(directory, row.trace_sha256).duration_ns > 0 for row in attempt.measurements)
    (interleaved,) = [check for check in phased.checks(directory) if check.id == "arms_interleaved"]
    assert interleaved.passed
