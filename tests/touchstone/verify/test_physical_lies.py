"""Lies about rates, clocks, memory, percentiles and the machine, told consistently: only the check made for it fires.

Some cannot be told by a ledger, because the number is worked out from the ledger: there the formula lies.
"""

from __future__ import annotations

import json
import random
from types import MappingProxyType

import pytest

from tests.touchstone.factories import FakeRun, make_memory, make_trace
from tests.touchstone.machine_samples import QWEN3_0_6B, engine, gpu, reading, telemetry
from tests.touchstone.verify.told import Story
from touchstone.analysis import checks, plausibility, summaries
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile, load_experiments
from touchstone.records import Canary, Lengths, WorkloadSpec
from touchstone.verify import custody
from touchstone.verify.expected import result_faults
from touchstone.verify.gathered import gather

TEXT = Bilingual("text", "文字")
WORK = WorkloadSpec(num_requests=8, input_tokens=Lengths(low=512, high=512), output_tokens=Lengths(low=5, high=5))


def experiment(test_id, *metrics, **changes):
    fields = {
        "plan_id": test_id,
        "title": TEXT,
        "question": TEXT,
        "method": TEXT,
        "workload": {Profile.SMOKE: WORK},
        "measures": tuple(Measure(metric) for metric in metrics),
    }
    return Experiment(**(fields | changes))


EXPERIMENTS = {
    "0.1": next(item for item in load_experiments() if item.plan_id == "0.1"),
    "1.1": experiment("1.1", "prefill_throughput", "decode_throughput", "total_time", "e2e_throughput"),
    "1.2": experiment("1.2", "ttft_p50", "ttft_p90", "ttft_max", "mean_concurrency"),
    "1.3": experiment("1.3", "model_weight_memory"),
    "2.1": experiment(
        "2.1", "total_time", arms=(Arm("off"), Arm("on")), design=Design.PAIRED_BLOCKS, workload={Profile.SMOKE: WORK}
    ),
}
ABBA = ("off", "on", "on", "off")
CONTROL = ("baseline", "placebo", "control")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model whose floor is known on a machine that is watched; every process ends with a repeat in test 0.1."""
    fake = FakeRun(tmp_path_factory.mktemp("good"), engine=engine(QWEN3_0_6B, block_size=16))
    fake.canary = Canary(before=reading(), after=reading())
    add_instrument(fake)
    for test_id in ("1.1", "1.2"):
        for unit in fake.plan_test(test_id, processes=6, workload=WORK):
            fake.attempt(unit, [timed(1 + 0.002 * (unit.process % 3))])
    for unit in fake.plan_test("1.3", processes=3, workload=WORK):
        fake.attempt(unit, [timed(1.0)], memory=make_memory())
    for unit in fake.plan_test("2.1", processes=6, order=ABBA, workload=WORK):
        fake.attempt(unit, [timed(1 + 0.003 * (unit.process % 3)) for _ in ABBA])
    return watched(Story.read(fake.write()))


def timed(slow):
    """Prefill of 4,096 tokens in five seconds, at least 3.6 of them needed; decode steps of 20 ms, at least 12."""
    arrivals = [index / 1000 for index in range(8)]
    return make_trace(prompts=[512] * 8, outputs=5, prefill_ms=5000 * slow, decode_ms=20, arrivals_ms=arrivals)


def add_instrument(fake):
    """Short prompts, so that a tenth more output tokens are a tenth more time."""
    short = {"num_requests": 2, "input_tokens": Lengths(low=8, high=8), "output_tokens": Lengths(low=10, high=10)}
    workload = WORK.model_copy(update=short)
    units = fake.plan_test("0.1", processes=6, order=(*CONTROL, *reversed(CONTROL)), workload=workload)
    arms = (*fake.tests[-1].arms[:2], fake.tests[-1].arms[2].model_copy(update={"extra_output": 0.1}))
    fake.tests[-1] = fake.tests[-1].model_copy(update={"arms": arms, "margin": 0.05, "repeat_last": True})
    for unit in units:
        outputs = [11 if arm == "control" else 10 for arm in unit.arm_order]
        fake.attempt(unit, [make_trace(prompts=[8] * 2, outputs=n, prefill_ms=20, decode_ms=20) for n in outputs])


def watched(story):
    """Give every run telemetry of its own length, the instrument's processes a repeat, and no two times alike."""
    chance = random.Random(3)
    for attempt in story.bodies("attempt"):
        for run in attempt["measurements"]:
            story.retrace(run, lambda trace: stretch(trace, 1 + chance.randrange(1, 5000) / 1e7))
            length = story.traces[run["trace_sha256"]]["duration_ns"] / 1e9
            run["telemetry"] = telemetry(length, gpus=(gpu(),)).model_dump(mode="json")
        if attempt["test_id"] == "0.1":
            attempt["repeated"] = {**attempt["measurements"][-1], "position": len(attempt["measurements"])}
    return story


def stretch(trace, factor):
    """Let everything take so many times as long."""
    trace["duration_ns"] = round(trace["duration_ns"] * factor)
    trace["emission_times_ns"] = [round(time * factor) for time in trace["emission_times_ns"]]
    for request in trace["requests"]:
        request["arrival_ns"] = round(request["arrival_ns"] * factor)
        request["scheduled_ns"] = round(request["scheduled_ns"] * factor)
    for step in trace["steps"]:
        step.update({name: round(step[name] * factor) for name in ("begin_ns", "launched_ns", "end_ns")})


def failed_checks(story, folder, *, consistent=True):
    """Tell the story and name the checks that fail; a lying formula is caught by verify's own as well."""
    evidence = custody.Evidence(story.write(folder))
    assert not custody.read_chain(evidence)
    assert not custody.check_schemas(evidence)
    assert not custody.check_attempts(evidence)
    assert not custody.read_traces(evidence)
    results = [result.model_dump(mode="json") for result in results_of(read_runs(folder), EXPERIMENTS)]
    tests = gather(evidence)
    wrong = [fault for told in results for fault in result_faults(evidence, tests, EXPERIMENTS, told)]
    assert (wrong == []) is consistent, wrong
    return {check["id"] for result in results for check in result["checks"] if not check["passed"]}


def test_the_good_run_is_caught_at_nothing(good, tmp_path):
    assert failed_checks(good.copy(), tmp_path / "run") == set()


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_that_this_machine_cannot_reach_is_caught_by_within_roofline(good, tmp_path):
    story = good.copy()
    story.retrace(next(story.runs("1.1")), lambda trace: stretch(trace, 0.1))
    assert failed_checks(story, tmp_path / "run") == {"within_roofline"}


def test_another_code_path_is_caught_by_not_far_below_roofline(good, tmp_path):
    """Twenty times as slow, which neither bytes nor operations nor their launches explain."""
    story = good.copy()
    for run in story.runs("1.1"):
        story.retrace(run, lambda trace: stretch(trace, 20.0))
    assert failed_checks(story, tmp_path / "run") == {"not_far_below_roofline"}


def test_a_rate_over_nominal_tokens_is_caught_by_rate_times_time_is_tokens(good, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "DICTIONARY", lying(checks.DICTIONARY, "e2e_throughput", times(2.0)))
    assert failed_checks(good.copy(), tmp_path / "run") == {"rate_times_time_is_tokens"}


# --- clocks and samples -----------------------------------------------------------------------------------------------


def test_a_time_of_a_few_ticks_is_caught_by_timer_above_resolution(good, tmp_path):
    story = good.copy()
    for attempt in story.attempts("1.3"):
        attempt["engine"]["model"] = {}  # or the roofline would refuse so short a time as well
    story.retrace(next(story.runs("1.3")), lambda trace: stretch(trace, 1e-6))
    assert failed_checks(story, tmp_path / "run") == {"timer_above_resolution"}


def test_percentiles_of_another_sample_are_caught_by_percentiles_ordered(good, tmp_path, monkeypatch):
    monkeypatch.setattr(summaries, "DICTIONARY", lying(summaries.DICTIONARY, "ttft_p90", times(0.5)))
    assert failed_checks(good.copy(), tmp_path / "run", consistent=False) == {"percentiles_ordered"}


def test_latencies_of_another_run_are_caught_by_littles_law(good, tmp_path, monkeypatch):
    honest = plausibility.mean_concurrency
    monkeypatch.setattr(plausibility, "mean_concurrency", lambda facts: times(1.5)(honest(facts)))
    assert failed_checks(good.copy(), tmp_path / "run") == {"littles_law"}


def lying(dictionary, metric, change):
    """Let the formula of one metric give another value."""
    definition = dictionary[metric]
    honest = definition.compute
    fields = {name: getattr(definition, name) for name in definition.__dataclass_fields__}
    changed = type(definition)(**(fields | {"compute": lambda facts: change(honest(facts))}))
    return MappingProxyType({**dictionary, metric: changed})


def times(factor):
    return lambda quantity: type(quantity)(factor * quantity.value, quantity.unit, quantity.sample_size, quantity.terms)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_peak_of_another_moment_is_caught_by_memory_peak_holds_parts(good, tmp_path):
    """Read before weights and cache were there; the residual hides it, as one part is not told."""
    story = good.copy()
    memory = next(story.runs("1.3"))["memory"]
    memory.update(device_total_peak_bytes=3_000_000_000, activations_peak_bytes=None, residual_bytes=-2_500_000_000)
    assert failed_checks(story, tmp_path / "run") == {"memory_peak_holds_parts"}


# --- the machine ------------------------------------------------------------------------------------------------------


def test_an_attempt_kept_although_the_machine_changed_is_caught_by_machine_steady(good, tmp_path):
    story = good.copy()
    after = next(story.runs("1.1"))["canary"]["after"]
    after["flops_per_s"] /= 4
    assert failed_checks(story, tmp_path / "run") == {"machine_steady"}


@pytest.mark.parametrize(
    "neighbour",
    [
        {"other_busy_cores": 2.0},
        {"throttled_s": 1.0},
        {"gpus": [gpu(other_processes=1).model_dump()]},
        {"gpus": [gpu(slowdown_s={"hardware thermal": 3.0}).model_dump()]},
    ],
    ids=["cores", "quota", "GPU", "heat"],
)
def test_an_attempt_kept_beside_a_neighbour_is_caught_by_machine_undisturbed(good, tmp_path, neighbour):
    story = good.copy()
    story.plan["telemetry_enforced"] = True
    next(story.runs("1.1"))["telemetry"].update(neighbour)
    assert failed_checks(story, tmp_path / "run") == {"machine_undisturbed"}


# --- results that were there already ----------------------------------------------------------------------------------


def test_results_kept_from_before_are_caught_by_repeated_prompts_not_faster(good, tmp_path):
    story = good.copy()
    for attempt in story.attempts("0.1"):
        story.retrace(attempt["repeated"], lambda trace: stretch(trace, 0.8))
    assert failed_checks(story, tmp_path / "run") == {"repeated_prompts_not_faster"}


def test_arms_that_did_not_answer_the_same_are_caught_by_same_answer(good, tmp_path):
    story = good.copy()

    def answer_otherwise(trace):
        for request in trace["requests"]:
            request["output_sha256"] = request["output_sha256"][::-1]

    for run in story.runs("2.1", "on"):
        story.retrace(run, answer_otherwise)
    assert failed_checks(story, tmp_path / "run") == {"same_answer"}


# --- the summaries that the reports print -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lambda result: result["canary"].update(flops_per_s=2e12), "canary: flops_per_s is"),
        (lambda result: result["canary"].update(largest_move=0.5), "canary: largest_move is"),
        (lambda result: result["telemetry"].update(power_mean_w=1.0), "telemetry: power_mean_w is"),
        (lambda result: result.update(telemetry=None), "telemetry is missing"),
        (lambda result: roof(result).update(share=0.99), "roofline: share is"),
        (lambda result: roof(result).update(num_bytes=1.0), "roofline: num_bytes is"),
        (lambda result: roof(result).update(limited_by="bytes"), "roofline: limited_by is"),
        (lambda result: roof(result).update(explanation="because"), "explanation is given"),
        (lambda result: result["statistics"][0].update(roofline=None), "roofline: missing"),
    ],
)
def test_a_changed_summary_is_worked_out_again(good, tmp_path, lie, told):
    folder = good.copy().write(tmp_path / "run")
    evidence = custody.Evidence(folder)
    custody.read_chain(evidence)
    custody.read_traces(evidence)
    results = {result.test_id: result for result in results_of(read_runs(folder), EXPERIMENTS)}
    result = json.loads(results["1.1"].model_dump_json())
    tests = gather(evidence)
    assert list(result_faults(evidence, tests, EXPERIMENTS, result)) == []
    lie(result)
    faults = list(result_faults(evidence, tests, EXPERIMENTS, result))
    assert faults
    assert all(told in fault for fault in faults)


def roof(result):
    return result["statistics"][0]["roofline"]
