import pytest

from tests.touchstone.machine_samples import gpu, measurement, reading, telemetry
from touchstone.records import Canary, RunPlan
from touchstone.running import orchestrate
from touchstone.running.worker import WorkerResult
from touchstone.validity import (
    CPU_CANARY_LIMIT,
    GPU_CANARY_LIMIT,
    PAPER_CANARY_LIMIT,
    canary_limit,
    why_canary_invalid,
    why_disturbed,
    why_telemetry_invalid,
)


@pytest.mark.parametrize(
    ("profile", "device", "limit"),
    [
        ("paper", "cuda", PAPER_CANARY_LIMIT),
        ("paper", "cpu", PAPER_CANARY_LIMIT),
        ("smoke", "cuda:0", GPU_CANARY_LIMIT),
        ("smoke", "cpu", CPU_CANARY_LIMIT),
    ],
)
def test_the_paper_is_strict_on_every_device(profile, device, limit):
    assert canary_limit(profile, device) == limit


@pytest.mark.parametrize("name", ["flops_per_s", "bytes_per_s"])
@pytest.mark.parametrize(("factor", "valid"), [(1.029, True), (1.031, False), (1 / 1.029, True), (1 / 1.031, False)])
def test_a_rate_may_move_by_three_per_cent_either_way(name, factor, valid):
    moved = reading(**{name: getattr(reading(), name) * factor})
    reason = why_canary_invalid([measurement(reading(), moved)], [measurement(reading(), reading())] * 5, 0.03)
    assert (reason is None) is valid


def test_a_machine_that_is_slow_before_and_after_is_caught_by_the_runs_median():
    slow = reading(flops_per_s=0.9e12)
    assert why_canary_invalid([measurement(slow, slow)], [], 0.03) is None, "nothing is known yet"
    reason = why_canary_invalid(
        [measurement(slow, slow, position=4, arm="on")], [measurement(reading(), reading())] * 5, 0.03
    )
    assert reason == ("the machine changed around run 4 of arm 'on': the canary moved by 11.1%, allowed are 3%")


def test_each_device_is_held_against_its_own_readings():
    """A second device that is a tenth slower all the time has not changed; one that slows down has."""
    slow, slower = reading(flops_per_s=0.9e12), reading(flops_per_s=0.85e12)
    steady = measurement(reading(), reading()).model_copy(update={"other_canaries": (Canary(before=slow, after=slow),)})
    assert why_canary_invalid([steady], [steady] * 3, 0.03) is None
    changed = steady.model_copy(update={"other_canaries": (Canary(before=slow, after=slower),)})
    assert "moved by 5.9%" in why_canary_invalid([changed], [steady] * 3, 0.03)


def test_without_a_limit_or_a_canary_nothing_is_decided():
    moved = measurement(reading(), reading(flops_per_s=1))
    assert why_canary_invalid([moved], [], None) is None
    assert why_canary_invalid([measurement()], [measurement(reading(), reading())], 0.03) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"throttled_s": 0.009}, None),
        ({"throttled_s": 0.011}, "the CPU quota stopped the run for 0.011 s of 1.000 s"),
        ({"other_busy_cores": 0.5}, None),
        ({"other_busy_cores": 0.6}, "other processes kept 0.60 cores busy"),
        ({"gpus": (gpu(other_processes=2),)}, "2 other process(es) on GPU 0"),
        ({"gpus": (gpu(slowdown_s={"hardware thermal": 0.02}),)}, "GPU 0 was held down for 0.020 s (hardware thermal)"),
        ({"gpus": (gpu(slowdown_s={"software power cap": 0.9}),)}, None),
        ({"gpus": (gpu(slowdown_s=None, other_processes=None),)}, None),
    ],
)
def test_what_disturbs_a_run_is_named_and_what_is_unknown_is_not_held_against_it(changes, reason):
    found = why_disturbed(telemetry(**changes))
    assert (found and found.en) == reason
    assert found is None or any("\u4e00" <= character <= "\u9fff" for character in found.zh)


def test_the_first_disturbed_run_is_named():
    watched = [measurement(watched=telemetry()), measurement(watched=telemetry(other_busy_cores=3.0), position=1)]
    assert why_telemetry_invalid(watched) == "run 1 of arm 'default': other processes kept 3.00 cores busy"


class FakeLedger:
    """A ledger that holds nothing yet."""

    entries = ()


def judged(before, after, *, limit, enforced=False, reason=None, watched=None):
    outcome = WorkerResult(
        engine=None, startup_s=1.0, measurements=(measurement(before, after, watched),), reason=reason
    )
    plan = RunPlan.model_construct(canary_limit=limit, telemetry_enforced=enforced)
    return orchestrate._judged_by_machine(outcome, plan, FakeLedger())


def test_an_attempt_is_invalid_where_the_canary_moved_and_keeps_its_measurements():
    result = judged(reading(), reading(flops_per_s=0.9e12), limit=0.03)
    assert result.reason.startswith("the machine changed around run 0")
    assert len(result.measurements) == 1
    assert judged(reading(), reading(flops_per_s=0.9e12), limit=2.0).reason is None


def test_a_disturbed_run_is_invalid_in_the_paper_only():
    disturbed = telemetry(other_busy_cores=2.0)
    assert judged(reading(), reading(), limit=0.03, watched=disturbed).reason is None
    result = judged(reading(), reading(), limit=0.03, watched=disturbed, enforced=True)
    assert result.reason == "run 0 of arm 'default': other processes kept 2.00 cores busy"


def test_a_reason_of_the_engine_comes_first():
    assert judged(reading(), reading(flops_per_s=1), limit=0.03, reason="it broke").reason == "it broke"
