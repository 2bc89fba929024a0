"""Every way in which numbers lie, told so consistently that only the check made for it can notice; none other does.

A good run is told otherwise, all hashes are made to fit again, and results and report are made from it anew.
"""

from __future__ import annotations

import json

import pytest

from tests.touchstone.factories import FakeRun, make_memory, make_trace, make_workload
from tests.touchstone.verify.told import Story
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile, load_experiments
from touchstone.reporting import report
from touchstone.verify import again
from touchstone.verify.verification import verify_run

MS = 1_000_000
TEXT = Bilingual("text", "文字")
ABBA = ("off", "on", "on", "off")


def experiment(test_id, *measures, arms=None, design=Design.REPEATED):
    return Experiment(
        plan_id=test_id,
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload={Profile.SMOKE: make_workload()},
        measures=measures,
        arms=arms or (Arm("default"),),
        design=design,
    )


EXPERIMENTS = {
    "0.1": next(item for item in load_experiments() if item.plan_id == "0.1"),
    "1.1": experiment(
        "1.1", Measure("prefill_throughput", "prefill_throughput", key=True), Measure("total_time", "total_time")
    ),
    "1.3": experiment("1.3", Measure("model_weight_memory", "model_weight_memory_gb", key=True)),
    "2.1": experiment(
        "2.1",
        Measure("speedup", "actual_speedup_ratio"),
        Measure("cache_hit_rate", "cache_hit_rate"),
        arms=(Arm("off", {"prefix_cache": False}), Arm("on", {"prefix_cache": True})),
        design=Design.PAIRED_BLOCKS,
    ),
    "3.2": experiment(
        "3.2",
        Measure("e2e_throughput", key=True),
        arms=(Arm("1 GPU", {"tensor_parallel_size": 1}), Arm("2 GPU", {"tensor_parallel_size": 2})),
    ),
}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Leave the drawing away: no check looks at it, and it takes most of the time."""
    monkeypatch.setattr(report, "write_figures", lambda run, out_dir: {})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Tests of every kind, six processes each where the statistics need them; all times end on odd nanoseconds."""
    fake = FakeRun(tmp_path_factory.mktemp("good"))
    fake.add_instrument()
    for unit in fake.plan_test("1.1", processes=6):
        fake.attempt(unit, [make_trace(prefill_ms=100 * (1 + 0.002 * (unit.process % 3)), device_ms=5)])
    for unit in fake.plan_test("1.3", processes=3):
        fake.attempt(unit, [make_trace()], memory=make_memory())
    arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
    shared = make_workload(num_requests=10, shared_fraction=0.7, prefix_fraction=0.8)
    for unit in fake.plan_test("2.1", processes=6, order=ABBA, arms=arms, workload=shared):
        fake.attempt(unit, [shared_run(arm, 1 + 0.003 * (unit.process % 3)) for arm in ABBA])
    sizes = {"1 GPU": {"tensor_parallel_size": 1}, "2 GPU": {"tensor_parallel_size": 2}}
    for name in sizes:
        before = len(fake.tests)
        if name == "1 GPU":
            units = fake.plan_test("3.2", processes=2, order=tuple(sizes), arms=sizes)
            assert len(fake.tests) == before + 1
            for unit in units:
                fake.attempt(unit, [make_trace(prefill_ms=200, decode_ms=20), make_trace(prefill_ms=110, decode_ms=11)])
    story = Story.read(fake.write())
    for number, run in enumerate(run for attempt in story.bodies("attempt") for run in attempt["measurements"]):
        story.retrace(run, lambda trace, odd=number: postpone(trace, 2 * odd + 1))
    return story


def shared_run(arm, slow):
    hits, scale = (48, 1) if arm == "on" else (0, 2)
    return make_trace(prompts=[100] * 10, cached=[hits] * 10, prefill_ms=100 * scale * slow, decode_ms=5 * scale)


def postpone(trace, nanoseconds):
    """Let everything but the beginning happen some nanoseconds later."""
    trace["duration_ns"] += nanoseconds
    trace["emission_times_ns"] = [time + nanoseconds for time in trace["emission_times_ns"]]
    for step in trace["steps"]:
        step["end_ns"] += nanoseconds


def caught(story, folder):
    """Tell the story, make results and report of it, and say which checks of either kind fail."""
    story.write(folder)
    again.make(folder, folder, EXPERIMENTS)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "results").glob("*.json"))]
    failed = {check["id"] for result in results for check in result["checks"] if not check["passed"]}
    return failed | {outcome.id for outcome in verify_run(folder, EXPERIMENTS) if not outcome.passed}


def test_the_good_run_is_caught_at_nothing(good, tmp_path):
    assert caught(good.copy(), tmp_path / "run") == set()
