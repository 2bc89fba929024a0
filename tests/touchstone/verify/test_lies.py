"""Every way in which numbers lie, told so consistently that only the check made for it can notice; none other does.

A good run is told otherwise, all hashes are made to fit again, and results and report are made from it anew.
"""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.touchstone.factories import FakeRun, make_memory, make_trace, make_workload
from tests.touchstone.verify.told import RemakingHere, Story
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile, load_experiments
from touchstone.records import Lengths
from touchstone.reporting import report
from touchstone.verify import again, custody, verification
from touchstone.verify.expected import result_faults
from touchstone.verify.gathered import gather
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


@pytest.fixture
def _no_figures(monkeypatch):
    """Leave the drawing away: no check looks at it, and it takes most of the time."""
    monkeypatch.setattr(report, "write_figures", lambda *_: {})
    monkeypatch.setattr(verification, "Remaking", RemakingHere)  # another process would draw them


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Tests of every kind, six processes each where the statistics need them; all times end on odd nanoseconds."""
    fake = FakeRun(tmp_path_factory.mktemp("good"))
    add_instrument(fake)
    for unit in fake.plan_test("1.1", processes=6):
        fake.attempt(unit, [make_trace(prefill_ms=100 * (1 + 0.002 * (unit.process % 3)), device_ms=5)])
    for unit in fake.plan_test("1.3", processes=3):
        fake.attempt(unit, [make_trace()], memory=make_memory())
    arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
    shared = make_workload(num_requests=10, shared_fraction=0.7, prefix_fraction=0.8)
    for unit in fake.plan_test("2.1", processes=6, order=ABBA, arms=arms, workload=shared):
        fake.attempt(unit, [shared_run(arm, 1 + 0.003 * (unit.process % 3)) for arm in ABBA])
    return of_odd_nanoseconds(fake)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """One and two GPUs, each process on its own number of them."""
    fake = FakeRun(tmp_path_factory.mktemp("scaled"))
    sizes = {"1 GPU": {"tensor_parallel_size": 1}, "2 GPU": {"tensor_parallel_size": 2}}
    fake.plan_test("3.2", processes=4, order=tuple(sizes), arms=sizes)
    for index, arm in zip(range(-4, 0), (*sizes, *sizes), strict=True):
        fake.units[index] = unit = fake.units[index].model_copy(update={"arm_order": (arm,)})
        faster = 1 if arm == "1 GPU" else 0.55
        fake.attempt(unit, [make_trace(prefill_ms=200 * faster, decode_ms=20 * faster)])
    return of_odd_nanoseconds(fake)


def of_odd_nanoseconds(fake):
    """Scatter all times a little, as no true clock reads whole milliseconds and no two true times are equal."""
    story = Story.read(fake.write())
    chance = random.Random(2)
    for run in (run for attempt in story.bodies("attempt") for run in attempt["measurements"]):
        story.retrace(run, lambda trace: postpone(trace, 2 * chance.randrange(100_000) + 1))
    return story


def add_instrument(fake):
    """Placebo and control in six blocks, the control with a tenth more output tokens."""
    order = ("baseline", "placebo", "control")
    ten = make_workload(output_tokens=Lengths(low=10, high=10))
    units = fake.plan_test("0.1", processes=6, order=(*order, *reversed(order)), workload=ten)
    arms = (*fake.tests[-1].arms[:2], fake.tests[-1].arms[2].model_copy(update={"extra_output": 0.1}))
    fake.tests[-1] = fake.tests[-1].model_copy(update={"arms": arms, "margin": 0.05})
    for unit in units:
        outputs = [11 if arm == "control" else 10 for arm in unit.arm_order]
        fake.attempt(unit, [make_trace(outputs=count, decode_ms=20) for count in outputs])


def shared_run(arm, slow):
    hits, scale = (48, 1) if arm == "on" else (0, 2)
    return make_trace(prompts=[100] * 10, cached=[hits] * 10, prefill_ms=100 * scale * slow, decode_ms=5 * scale)


def postpone(trace, nanoseconds):
    """Let everything but the beginning happen some nanoseconds later."""
    trace["duration_ns"] += nanoseconds
    trace["emission_times_ns"] = [time + nanoseconds for time in trace["emission_times_ns"]]
    for step in trace["steps"]:
        step["end_ns"] += nanoseconds


CUSTODY = {
    "hash_chain": custody.read_chain,
    "schemas": custody.check_schemas,
    "one_plan": custody.check_plan,
    "one_environment": custody.check_environment,
    "attempts_complete": custody.check_attempts,
    "traces": custody.read_traces,
}


def caught(story, folder):
    """Tell the story, derive its results, and say which checks of either kind fail."""
    evidence = custody.Evidence(story.write(folder))
    failed = {name for name, check in CUSTODY.items() if check(evidence)}
    results = [result.model_dump(mode="json") for result in results_of(read_runs(folder), EXPERIMENTS)]
    tests = gather(evidence)
    wrong = [fault for told in results for fault in result_faults(evidence, tests, EXPERIMENTS, told)]
    assert wrong == [], "a lie that is told consistently gives consistent results"
    return failed | {check["id"] for result in results for check in result["checks"] if not check["passed"]}


def test_the_good_run_is_caught_at_nothing(good, tmp_path):
    assert caught(good.copy(), tmp_path / "run") == set()


def change_trace(story, test_id, change, index=0, arm=None):
    """Change the trace of one run of a test."""
    run = list(story.runs(test_id, arm))[index]
    story.retrace(run, change)
    return run


# --- the lies -------------------------------------------------------------------------------------------------------


def test_no_synchronization_is_caught_by_device_time_within_wall(good, tmp_path):
    """The host stops its clock when the launch has returned, while the device still works."""
    story = good.copy()

    def stop_early(trace):
        for step in trace["steps"]:
            step["device_ns"] = 2 * (step["end_ns"] - step["begin_ns"])
            break

    change_trace(story, "1.1", stop_early)
    assert caught(story, tmp_path / "run") == {"device_time_within_wall"}


def test_a_clock_of_whole_milliseconds_is_caught_by_timer_not_rounded(good, tmp_path):
    story = good.copy()
    change_trace(story, "1.3", lambda trace: trace.update(duration_ns=(trace["duration_ns"] // MS + 1) * MS))
    assert caught(story, tmp_path / "run") == {"timer_not_rounded"}


def test_two_equal_times_are_caught_by_timings_never_repeat(good, tmp_path):
    story = good.copy()
    first, second, *_ = story.runs("1.3")
    longest = story.traces[first["trace_sha256"]]["duration_ns"]
    story.retrace(second, lambda trace: trace.update(duration_ns=longest))
    assert caught(story, tmp_path / "run") == {"timings_never_repeat"}


def test_a_decode_rate_sold_as_total_is_caught_by_total_rate_within_parts(good, tmp_path):
    """Steps drawn out, so that the whole run computes more tokens a second than its fastest step."""
    story = good.copy()

    def draw_out(trace):
        trace["duration_ns"] *= 20
        for step in trace["steps"]:
            step["begin_ns"], step["end_ns"] = 10 * step["begin_ns"], 10 * step["end_ns"]

    change_trace(story, "1.1", draw_out)
    assert caught(story, tmp_path / "run") == {"total_rate_within_parts"}


def test_step_times_beyond_the_run_are_caught_by_step_time_within_total(good, tmp_path):
    story = good.copy()

    def overlong(trace):
        trace["steps"][-1]["end_ns"] = trace["duration_ns"] + 50 * MS

    change_trace(story, "1.1", overlong)
    assert caught(story, tmp_path / "run") == {"step_time_within_total"}


def test_nominal_instead_of_real_tokens_are_caught_by_all_tokens_returned(good, tmp_path):
    story = good.copy()

    def promise(trace):
        for request in trace["requests"]:
            request["requested_tokens"] += 1

    change_trace(story, "1.1", promise)
    assert caught(story, tmp_path / "run") == {"all_tokens_returned"}


def test_the_same_token_over_and_over_is_caught_by_distinct_tokens(good, tmp_path):
    story = good.copy()

    def repeat(trace):
        for request in trace["requests"]:
            request.update(distinct_tokens=1, output_sha256="0" * 64)

    change_trace(story, "1.1", repeat)
    assert caught(story, tmp_path / "run") == {"distinct_tokens"}


def test_tokens_that_no_step_computed_are_caught_by_steps_account_for_tokens(good, tmp_path):
    story = good.copy()
    change_trace(story, "1.1", lambda trace: trace["steps"][1].update(decode_tokens=3))
    assert caught(story, tmp_path / "run") == {"steps_account_for_tokens"}


def test_a_token_after_the_end_is_caught_by_window_inside_timed_region(good, tmp_path):
    story = good.copy()

    def late(trace):
        trace["emission_times_ns"][-1] = trace["duration_ns"] + 1

    change_trace(story, "1.1", late)
    assert caught(story, tmp_path / "run") == {"window_inside_timed_region"}


def test_tokens_out_of_order_are_caught_by_latency_identity(good, tmp_path):
    story = good.copy()

    def backwards(trace):
        first = trace["emission_times_ns"][0]
        trace["emission_times_ns"][1] = first - 1_001

    change_trace(story, "1.1", backwards)
    assert caught(story, tmp_path / "run") == {"latency_identity"}


def test_memory_that_does_not_add_up_is_caught_by_memory_parts_close(good, tmp_path):
    story = good.copy()
    next(story.runs("1.3"))["memory"]["residual_bytes"] = 1
    assert caught(story, tmp_path / "run") == {"memory_parts_close"}


def test_memory_without_a_part_is_caught_by_memory_residual_bounded(good, tmp_path):
    story = good.copy()
    memory = next(story.runs("1.3"))["memory"]
    memory["device_total_peak_bytes"] += 10**9
    memory["residual_bytes"] += 10**9
    assert caught(story, tmp_path / "run") == {"memory_residual_bounded"}


def test_more_hits_than_possible_are_caught_by_cache_hits_within_bound(good, tmp_path):
    story = good.copy()

    def hit(trace):
        for request in trace["requests"]:
            request["cached_tokens"] += 1
        trace["steps"][0]["prefill_tokens"] -= len(trace["requests"])

    for run in story.runs("2.1", "on"):
        story.retrace(run, hit)
    assert caught(story, tmp_path / "run") == {"cache_hits_within_bound"}


def test_a_warm_baseline_is_caught_by_prefix_cache_off_hits_nothing(good, tmp_path):
    story = good.copy()

    def warm(trace):
        trace["requests"][0]["cached_tokens"] = 16
        trace["steps"][0]["prefill_tokens"] -= 16

    for run in story.runs("2.1", "off"):
        story.retrace(run, warm)
    assert caught(story, tmp_path / "run") == {"prefix_cache_off_hits_nothing"}


def test_less_work_in_one_arm_is_caught_by_same_work(good, tmp_path):
    story = good.copy()

    def shorten(trace):
        request = trace["requests"][0]
        request["prompt_tokens"] -= 1
        trace["steps"][0]["prefill_tokens"] -= 1

    for run in story.runs("2.1", "on"):  # in every pass, which therefore agree
        story.retrace(run, shorten)
    assert caught(story, tmp_path / "run") == {"same_work"}


def test_scaling_beyond_the_ideal_is_caught_by_scaling_within_ideal(scaled, tmp_path):
    story = scaled.copy()

    def twice_as_fast(trace):
        trace["duration_ns"] //= 2
        trace["emission_times_ns"] = [time // 2 for time in trace["emission_times_ns"]]
        for step in trace["steps"]:
            step.update({name: step[name] // 2 for name in ("begin_ns", "launched_ns", "end_ns")})

    for run in story.runs("3.2", "2 GPU"):
        story.retrace(run, twice_as_fast)
    honest = caught(scaled.copy(), tmp_path / "honest")
    assert caught(story, tmp_path / "run") - honest == {"scaling_within_ideal"}


def test_prompts_timed_twice_are_caught_by_prompts_never_repeat(good, tmp_path):
    story = good.copy()
    first, *_, last = story.attempts("2.1")[0]["measurements"]
    second_pair = [run for run in story.attempts("2.1")[0]["measurements"] if run["seed"] == last["seed"]]
    for run in second_pair:
        run["seed"] = first["seed"]
    assert caught(story, tmp_path / "run") == {"prompts_never_repeat"}


def test_a_dropped_failure_is_caught_by_attempts_accounted_and_attempts_complete(good, tmp_path):
    """The first attempt of a process failed and is left out; the one that is told says that it is the second."""
    story = good.copy()
    story.attempts("1.1")[2]["attempt"] = 2
    assert caught(story, tmp_path / "run") == {"attempts_accounted", "attempts_complete"}


def test_the_best_of_two_is_caught_by_attempts_accounted_and_attempts_complete(good, tmp_path):
    story = good.copy()
    index = next(i for i, entry in enumerate(story.entries) if entry["body"].get("test_id") == "1.1")
    again_told = json.loads(json.dumps(story.entries[index]))
    again_told["body"]["attempt"] = 2
    story.entries.insert(index + 1, again_told)
    assert caught(story, tmp_path / "run") == {"attempts_accounted", "attempts_complete"}


def test_one_arm_after_the_other_is_caught_by_arms_interleaved(good, tmp_path):
    """All runs of one arm first: the same numbers, in another order of time."""
    story = good.copy()
    runs = story.attempts("2.1")[0]["measurements"]
    runs.sort(key=lambda run: run["arm"])
    for position, run in enumerate(runs):
        run["position"] = position
    assert caught(story, tmp_path / "run") == {"arms_interleaved"}


def test_a_machine_that_sees_differences_in_nothing_is_caught_by_placebo_equivalent(good, tmp_path):
    story = good.copy()
    for run in story.runs("0.1", "placebo"):
        story.retrace(run, lambda trace: postpone(trace, 30 * MS))
    assert caught(story, tmp_path / "run") == {"placebo_equivalent"}


def test_a_machine_that_misses_a_tenth_of_the_work_is_caught_by_control_detected(good, tmp_path):
    story = good.copy()
    for run in story.runs("0.1", "control"):
        story.retrace(run, lambda trace: postpone(trace, -20 * MS))
    assert caught(story, tmp_path / "run") == {"control_detected"}


def test_mixed_machines_are_caught_by_one_environment_one_plan_and_one_environment(good, tmp_path):
    story = good.copy()
    story.attempts("1.3")[1]["environment_fingerprint"] = "1" * 64
    assert caught(story, tmp_path / "run") >= {"one_environment_one_plan", "one_environment"}


@pytest.fixture(scope="module")
def published(good, tmp_path_factory):
    """The good run with its reports, without figures."""
    folder = good.copy().write(tmp_path_factory.mktemp("published") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_figures", lambda *_: {})
        again.make(folder, folder, EXPERIMENTS)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "run")


def failed_outcomes(folder):
    return {
        outcome.id for outcome in verify_run(folder, EXPERIMENTS) if outcome.examined is not None and outcome.faults
    }


@pytest.mark.usefixtures("_no_figures")
def test_a_stale_report_is_caught_by_the_root_hash(good, folder, tmp_path):
    """One more line in the ledger after the report was made."""
    story = good.copy()
    finished = {"event": "finished", "at": "2026-03-04T05:06:07.000+00:00", "detail": None}
    story.entries.append({**story.entries[-1], "kind": "event", "body": finished})
    later = story.write(tmp_path / "later")
    (folder / "ledger.jsonl").write_bytes((later / "ledger.jsonl").read_bytes())
    assert "root_hash" in failed_outcomes(folder)


@pytest.mark.usefixtures("_no_figures")
def test_an_edited_ledger_is_caught_by_the_hash_chain(folder):
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"startup_s":0.1', b'"startup_s":0.2', 1))
    assert failed_outcomes(folder) == {"hash_chain"}


@pytest.mark.no_cover
@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_typed_in_number_is_caught_by_languages_and_printed_numbers(folder, language):
    path = folder / f"report.{language}.md"
    path.write_text(path.read_text(encoding="utf-8") + "\n131072000 tok/s\n", encoding="utf-8")
    assert failed_outcomes(folder) == {"languages", "printed_numbers", "made_again"}


@pytest.mark.usefixtures("_no_figures")
def test_a_number_typed_into_both_reports_is_caught_by_printed_numbers(folder):
    for path in folder.glob("report.*.md"):
        path.write_text(path.read_text(encoding="utf-8") + "\n131072000 tok/s\n", encoding="utf-8")
    assert failed_outcomes(folder) == {"printed_numbers", "made_again"}
