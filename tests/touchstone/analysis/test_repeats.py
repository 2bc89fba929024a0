"""Repeated prompts: noise is no cache, a cache is one whatever the noise, and other work is no measure."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.touchstone.factories import FakeRun, make_trace
from tools import simulate_statistics as simulate
from touchstone.analysis.repeats import MAX_SAVED, repeated_prompts_not_faster, saved_time
from touchstone.analysis.runs import read_runs
from touchstone.analysis.statistics import StatisticsError
from touchstone.experiment import load_experiments
from touchstone.running.orchestrate import execute, start
from touchstone.verify import custody
from touchstone.verify.gathered import gather
from touchstone.verify.repeats import repeat_faults

EXPERIMENTS = {item.plan_id: item for item in load_experiments()}


def lasting(milliseconds, **changes):
    return make_trace(prefill_ms=milliseconds - 20, **changes)


def run_of(path, fresh, again):
    """Write one process for each row of `fresh`; all repeats take `again` ms."""
    fake = FakeRun(path, repeated=lasting(again))
    for unit, row in zip(fake.plan_test("1.1", processes=len(fresh)), fresh, strict=True):
        fake.attempt(unit, [lasting(value) if isinstance(value, int | float) else value for value in row])
    return fake.write()


def check_of(folder):
    return repeated_prompts_not_faster(read_runs(folder).tests["1.1"])


def faults_of(folder, check):
    evidence = custody.Evidence(folder)
    assert custody.read_chain(evidence) == custody.read_traces(evidence) == ()
    checks = [] if check is None else [check.model_dump(mode="json")]
    return list(repeat_faults(gather(evidence), {"test_id": "1.1", "status": "measured", "checks": checks}))


SCATTERED = [[120 * factor for factor in np.exp(np.random.default_rng(4).normal(0, 0.2, 12))] for _ in range(6)]


def test_noise_of_single_runs_is_no_cache(tmp_path):
    """Each process's last run, against which one repeat was held once, happens to be a slow one here."""
    rows = [[*row[:-1], 150.0 + index] for index, row in enumerate(SCATTERED)]
    check = check_of(run_of(tmp_path, rows, 120))
    assert check.passed, "against the last run alone it would be a fifth faster"
    assert "all 72 runs" in check.detail


def test_results_kept_from_before_are_found_in_the_same_noise(tmp_path):
    folder = run_of(tmp_path, SCATTERED, 30)
    check = check_of(folder)
    assert not check.passed
    assert faults_of(folder, check) == []


@pytest.mark.parametrize("processes", [0, 1])
def test_fewer_than_two_processes_give_no_interval_and_no_check(tmp_path, processes):
    fake = FakeRun(tmp_path, repeated=lasting(60))
    for unit in fake.plan_test("1.1", processes=2)[:processes]:
        fake.attempt(unit, [lasting(120)])
    folder = fake.write()
    assert check_of(folder) is None
    assert faults_of(folder, None) == []
    with pytest.raises(StatisticsError, match="needs two"):
        saved_time([0.1] * processes)


def test_runs_of_other_work_are_no_measure_of_a_repeat(tmp_path):
    longer = lasting(400, prompts=[100] * 4)
    rows = [[longer, lasting(120 + index)] for index in range(6)]
    check = check_of(run_of(tmp_path, rows, 118))
    assert check.passed
    assert "all 6 runs" in check.detail


def test_the_share_saved_is_that_of_the_arms_geometric_mean(tmp_path):
    found = check_of(run_of(tmp_path, [[100, 144], [100, 144]], 108))
    assert "+10.0% of the time saved, 99% interval +10.0% to +10.0%" in found.detail  # 1 - 108 / 120
    assert saved_time([0.2, 0.2]).interval.low == pytest.approx(1 - np.exp(-0.2))
    assert saved_time([-0.2, -0.2]).share < 0


# --- worked out again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"passed": False}, "failed, and the interval begins at"),
        ({"detail": "6 processes"}, "detail says [6.0]"),
        ({"detail_zh": "6 个进程"}, "detail_zh says [6.0]"),
        (None, "is missing"),
    ],
)
def test_a_check_that_is_told_otherwise_is_worked_out_again(tmp_path, lie, told):
    folder = run_of(tmp_path, SCATTERED, 120)
    check = check_of(folder)
    assert faults_of(folder, check) == []
    faults = faults_of(folder, None if lie is None else check.model_copy(update=lie))
    assert faults
    assert all(told in fault for fault in faults)


def test_a_check_of_repeats_that_were_not_made_is_found(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    check = check_of(run_of(tmp_path / "with", SCATTERED[:2], 120))
    fake = FakeRun(tmp_path / "without")
    for unit in fake.plan_test("1.1", processes=2):
        fake.attempt(unit, [lasting(120)])
    assert "of too few repeats" in faults_of(fake.write(), check)[0]


# --- how often it errs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "runs"), [(6, 12), (6, 2)], ids=["smoke", "paper"])
@pytest.mark.parametrize("skewed", [False, True])
def test_a_false_alarm_is_rarer_than_one_in_a_hundred_on_a_restless_machine(processes, runs, skewed):
    """With 150 seeded experiments a rule that errs in three of a hundred shows no alarm in one of a hundred tries."""
    rng = np.random.default_rng(11)
    case = {"processes": processes, "runs": runs, "spread": 0.25, "skewed": skewed}
    assert simulate.share(150, lambda: simulate.is_shown_cached(rng, **case)) <= 0.01


@pytest.mark.parametrize(("processes", "runs", "spread"), [(6, 12, 0.2), (6, 2, 0.2), (6, 2, 0.02), (3, 2, 0.02)])
def test_kept_results_are_found_at_every_planned_size(processes, runs, spread):
    rng = np.random.default_rng(12)
    case = {"processes": processes, "runs": runs, "spread": spread, "saved": 0.9}
    assert simulate.share(40, lambda: simulate.is_shown_cached(rng, **case)) == 1.0


def test_a_gain_at_the_very_bound_is_an_alarm_as_seldom_as_the_level_says():
    rng = np.random.default_rng(13)
    case = {"processes": 6, "runs": 12, "spread": 0.05, "saved": MAX_SAVED}
    assert simulate.share(400, lambda: simulate.is_shown_cached(rng, **case)) <= 0.02


# --- an engine that keeps its answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "passes"), [("keeps answers", False), (None, True)])
def test_an_engine_that_answers_known_prompts_from_a_store_is_measured_and_found(tmp_path, monkeypatch, fault, passes):
    """Whole processes: warm-up, timed runs on fresh prompts, and the last run once more."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import fake_run  # noqa: PLC0415  it lies beside the tests' own helpers, which the line above makes importable

    test = fake_run.experiment("1.1", repeat_last=True, pace_s=0.05, **({} if fault is None else {"fault": fault}))
    run = fake_run.make_run(tmp_path, [test])
    with start(run) as ledger:
        execute(run, ledger, fake_run.Silent())
    sys.modules.pop("fake_run", None)
    check = check_of(tmp_path)
    assert check.passed is passes
    assert faults_of(tmp_path, check) == []
