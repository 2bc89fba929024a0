"""What the devices did in the profiled runs of a process: to each arm its own, in the results and in verify."""

from __future__ import annotations

import pytest

from tests.touchstone.factories import FakeRun, make_trace, make_workload
from tests.touchstone.verify.told import Story
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.records import DeviceWork
from touchstone.verify import custody
from touchstone.verify.expected import result_faults
from touchstone.verify.gathered import gather

ABBA = ("off", "on", "on", "off")
ARMS = {"off": {"cuda_graphs": False}, "on": {"cuda_graphs": True}}
BUSY_NS = {"off": 70_000_000, "on": 910_000_000}
SPAN_NS = 1_000_000_000
TEXT = Bilingual("text", "文字")
EXPERIMENTS = {
    "2.3": Experiment(
        plan_id="2.3",
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload={Profile.SMOKE: make_workload()},
        measures=(Measure("total_time"), Measure("device_busy_share")),
        arms=tuple(Arm(name, options) for name, options in ARMS.items()),
        design=Design.PAIRED_BLOCKS,
        profile_devices=True,
    )
}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Six blocks whose processes end with a profiled run of each arm."""
    fake = FakeRun(tmp_path_factory.mktemp("profiled"))
    for unit in fake.plan_test("2.3", processes=6, order=ABBA, arms=ARMS):
        fake.attempt(unit, [make_trace(prefill_ms=100 * (1 + 0.003 * unit.process))] * len(ABBA))
    story = Story.read(fake.write())
    for run in story.runs("2.3", "on"):
        story.retrace(run, replay)
    for process, attempt in enumerate(story.attempts("2.3")):
        attempt["device_work"] = [work(arm, BUSY_NS[arm] + 1000 * process) for arm in ARMS]
    return story


def replay(trace):
    for step in trace["steps"]:
        step["graph"] = step["kind"] == "decode"


def work(arm, busy_ns):
    done = DeviceWork(arm=arm, device="cuda:0", span_ns=SPAN_NS, busy_ns=busy_ns, communication_ns=0)
    return done.model_dump(mode="json")


def judged(story, folder):
    """Return the result of the test, and what verify finds wrong with it."""
    evidence = custody.Evidence(story.write(folder))
    assert not custody.read_chain(evidence)
    assert not custody.check_schemas(evidence)
    assert not custody.read_traces(evidence)
    (result,) = (one for one in results_of(read_runs(folder), EXPERIMENTS) if one.test_id == "2.3")

    def faults(told):
        return list(result_faults(evidence, gather(evidence), EXPERIMENTS, told))

    return result.model_dump(mode="json"), faults


def shares(told):
    return {item["arm"]: item["median"] for item in told["statistics"] if item["metric"] == "device_busy_share"}


def test_each_arm_has_the_share_of_its_own_profiled_run(profiled, tmp_path):
    told, faults = judged(profiled.copy(), tmp_path / "run")
    assert shares(told) == pytest.approx({"off": 7.0, "on": 91.0}, abs=0.01)
    (effect,) = (one for one in told["effects"] if one["metric"] == "device_busy_share")
    assert effect["ratio"] == pytest.approx(13.0, abs=0.01)
    assert faults(told) == []


def test_a_share_that_the_ledger_does_not_give_is_found(profiled, tmp_path):
    told, faults = judged(profiled.copy(), tmp_path / "run")
    item = next(one for one in told["statistics"] if one["metric"] == "device_busy_share")
    item["median"] += 1
    assert faults(told)


def test_without_a_profile_the_share_is_not_given_and_the_reason_is(profiled, tmp_path):
    """As in ledgers from before the arms were profiled, whose lines do not name the field at all."""
    story = profiled.copy()
    for attempt in story.attempts("2.3"):
        del attempt["device_work"]
    told, faults = judged(story, tmp_path / "run")
    assert shares(told) == {"off": None, "on": None}
    assert {item["withheld"] for item in told["statistics"] if item["metric"] == "device_busy_share"} == {
        "no run of this arm was profiled"
    }
    assert faults(told) == []


def test_an_arm_whose_engine_has_no_profiler_takes_nothing_from_the_other(profiled, tmp_path):
    story = profiled.copy()
    for attempt in story.attempts("2.3"):
        attempt["device_work"] = attempt["device_work"][:1]
    told, faults = judged(story, tmp_path / "run")
    assert shares(told) == pytest.approx({"off": 7.0, "on": None}, abs=0.01)
    assert faults(told) == []


def test_work_that_names_no_arm_is_read_as_ledgers_of_one_arm_wrote_it(profiled, tmp_path):
    story = profiled.copy()
    for attempt in story.attempts("2.3"):
        attempt["device_work"] = [{key: told for key, told in attempt["device_work"][0].items() if key != "arm"}]
    folder = tmp_path / "run"
    told, faults = judged(story, folder)
    assert shares(told)["on"] == pytest.approx(7.0, abs=0.01)
    assert faults(told) == []
    assert b'"arm":null' not in (folder / "ledger.jsonl").read_bytes()


def test_a_device_busier_than_always_is_caught_by_profile_within_span(profiled, tmp_path):
    """As when kernels that run at the same time are added up: the share goes, and the times stay."""
    story = profiled.copy()
    story.attempts("2.3")[2]["device_work"][1]["busy_ns"] = SPAN_NS + 1
    told, faults = judged(story, tmp_path / "run")
    assert {check["id"] for check in told["checks"] if not check["passed"]} == {"profile_within_span"}
    withheld = {(item["metric"], item["arm"]): item["withheld"] for item in told["statistics"]}
    assert "cuda:0: busy for 1000000001 ns in 1000000000 ns" in withheld["device_busy_share", "on"]
    assert withheld["total_time", "on"] is None
    assert faults(told) == []


def test_a_device_that_never_rests_is_no_contradiction(profiled, tmp_path):
    story = profiled.copy()
    for attempt in story.attempts("2.3"):
        attempt["device_work"][1]["busy_ns"] = SPAN_NS
    told, _ = judged(story, tmp_path / "run")
    assert all(check["passed"] for check in told["checks"])
    assert shares(told)["on"] == 100.0
