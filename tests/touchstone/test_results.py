"""From a run folder to result files: plan fields, statistics, effects, checks, evidence, and what is withheld."""

from __future__ import annotations

import json
import math

import pytest

from tests.touchstone.factories import (
    MOMENT,
    MS,
    OFFSET_NS,
    FakeRun,
    make_engine,
    make_memory,
    make_trace,
    make_workload,
)
from touchstone.analysis.prediction import hit_upper_bound
from touchstone.analysis.results import PLAN, results_of, write_results
from touchstone.analysis.runs import RunsError, read_runs
from touchstone.analysis.summaries import MeasureError
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile, load_experiments
from touchstone.ledger import read_ledger
from touchstone.records import (
    CodeMetrics,
    FileMetrics,
    FunctionMetrics,
    NotMeasured,
    QualityAttempt,
    Result,
    Verdict,
)
from touchstone.validity import INTERRUPTED, KILLED
from touchstone.verify.custody import Evidence, read_chain, read_traces
from touchstone.verify.gathered import gather


def experiment(test_id, measures, **changes):
    text = Bilingual(f"text {test_id}", f"文字 {test_id}")
    return Experiment(
        plan_id=test_id,
        title=text,
        question=text,
        method=text,
        workload={Profile.SMOKE: make_workload()},
        measures=measures,
        **changes,
    )


THROUGHPUT = experiment(
    "1.1",
    (
        Measure("prefill_throughput", result="prefill_throughput", key=True),
        Measure("e2e_throughput", result="e2e_throughput", key=True),
        Measure("total_time", result="total_time", key=True),
        Measure("preemptions"),
        Measure("device_idle_between_steps"),
    ),
)
MEMORY = experiment("1.3", (Measure("model_weight_memory", result="model_weight_memory_gb", key=True),))
PREFIX = experiment(
    "2.1",
    (
        Measure("cache_hit_rate", result="cache_hit_rate"),
        Measure("compute_saved", result="compute_saved_pct"),
        Measure("speedup", result="actual_speedup_ratio"),
        Measure("total_time"),
    ),
    arms=(Arm("off", {"prefix_cache": False}), Arm("on", {"prefix_cache": True})),
    design=Design.PAIRED_BLOCKS,
)
INSTRUMENT = next(item for item in load_experiments() if item.plan_id == "0.1")
EXPERIMENTS = {item.plan_id: item for item in (INSTRUMENT, THROUGHPUT, MEMORY, PREFIX)}


def by_id(path, experiments=EXPERIMENTS):
    return {result.test_id: result for result in results_of(read_runs(path), experiments)}


def statistic(result, metric, arm="default"):
    return next(item for item in result.statistics if (item.metric, item.arm) == (metric, arm))


def failed(result):
    return {check.id for check in result.checks if not check.passed}


def throughput_run(path, scales=(1.0, 1.01, 0.99, 1.0, 1.02, 0.98), **changes):
    """Process i runs the two-request trace three times, at scale s, 0.99 s and 1.01 s of 100 ms + 2 x 10 ms."""
    fake = FakeRun(path)
    for unit, scale in zip(fake.plan_test("1.1", processes=len(scales)), scales, strict=True):
        factors = (scale, 0.99 * scale, 1.01 * scale)
        traces = [make_trace(prefill_ms=100 * factor, decode_ms=10 * factor, **changes) for factor in factors]
        fake.attempt(unit, traces)
    return fake


def test_measured_test_carries_plan_fields_statistics_and_evidence(tmp_path):
    result = by_id(throughput_run(tmp_path).write())["1.1"]
    assert (result.status, result.test_name, result.zh.test_name) == ("measured", "text 1.1", "文字 1.1")
    assert result.test_date == "2026-03-04"
    assert "Made-up CPU" in result.hardware
    assert result.parameters["batch_size"] == 2
    assert result.parameters["input_length"] == 100
    assert result.results == {
        "prefill_throughput": pytest.approx(2000, rel=1e-6),
        "e2e_throughput": pytest.approx(206 / 0.12, rel=1e-6),
        "total_time": pytest.approx(0.12, rel=1e-6),
    }
    time = statistic(result, "total_time")
    assert time.values == pytest.approx([0.12, 0.1212, 0.1188, 0.12, 0.1224, 0.1176], rel=1e-6)
    assert (time.n, time.k, time.key, time.verdict, time.indicative) == (6, 3, True, Verdict.STABLE, False)
    assert time.example.value in [value for row in time.repetitions for value in row]
    assert time.example.terms[r"\max e_i"] - time.example.terms[r"\min a_i"] == pytest.approx(time.example.value)
    assert statistic(result, "preemptions").verdict is Verdict.EXACT
    assert failed(result) == set()


def test_evidence_names_the_ledger_lines_of_plan_environment_and_attempts(tmp_path):
    result = by_id(throughput_run(tmp_path).write())["1.1"]
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert result.evidence.entries == tuple(range(8))
    assert result.evidence.ledger_root_sha256 == entries[-1].sha256
    assert (result.evidence.attempts, result.evidence.valid_attempts) == (6, 6)


def test_metric_that_cannot_be_had_is_withheld_with_its_reason_in_both_languages(tmp_path):
    item = statistic(by_id(throughput_run(tmp_path).write())["1.1"], "device_idle_between_steps")
    assert item.median is None
    assert "not recorded" in item.withheld
    assert "设备" in item.withheld_zh


def test_results_cover_the_whole_plan_in_its_order_and_say_why_tests_are_missing(tmp_path):
    fake = throughput_run(tmp_path)
    fake.not_measured.append(NotMeasured(test_id="3.2", reason="this host has no GPU", reason_zh="本机没有 GPU"))
    fake.plan_test("1.3", processes=2)
    results = results_of(read_runs(fake.write()), EXPERIMENTS)
    assert [result.test_id for result in results] == list(PLAN)
    reasons = {result.test_id: (result.reason, result.reason_zh) for result in results}
    assert reasons["1.1"] == (None, None)
    assert reasons["3.2"] == ("this host has no GPU", "本机没有 GPU")
    assert "before this test began" in reasons["1.3"][0]
    assert "not part of" in reasons["4.1"][0]
    memory = next(result for result in results if result.test_id == "1.3")
    assert memory.results == {"model_weight_memory_gb": None}
    assert memory.evidence is None


def test_interrupted_run_publishes_what_it_has_as_insufficient(tmp_path):
    fake = FakeRun(tmp_path)
    units = fake.plan_test("1.1", processes=6)
    for unit in units[:4]:
        fake.attempt(unit, [make_trace()])
    result = by_id(fake.write())["1.1"]
    assert statistic(result, "total_time").verdict is Verdict.INSUFFICIENT
    assert failed(result) == {"attempts_accounted"}


def test_invalid_attempt_that_was_repeated_is_counted_and_its_reason_kept(tmp_path):
    fake = FakeRun(tmp_path)
    for index, unit in enumerate(fake.plan_test("1.1", processes=6)):
        if index == 2:
            fake.attempt(unit, [make_trace(prefill_ms=999)], invalid="the canary moved")
        fake.attempt(unit, [make_trace()])
    result = by_id(fake.write())["1.1"]
    assert (result.evidence.attempts, result.evidence.valid_attempts) == (7, 6)
    assert result.evidence.invalid_reasons == ("the canary moved",)
    assert statistic(result, "total_time").max_deviation == 0
    assert failed(result) == set()


def test_more_than_a_fifth_invalid_attempts_publish_no_number(tmp_path):
    fake = FakeRun(tmp_path)
    for index, unit in enumerate(fake.plan_test("1.1", processes=6)):
        if index < 2:
            fake.attempt(unit, [], invalid="out of memory")
        fake.attempt(unit, [make_trace()])
    result = by_id(fake.write())["1.1"]
    assert set(result.results.values()) == {None}
    assert all(item.verdict is Verdict.INVALID and item.median is None for item in result.statistics)
    assert "20%" in result.statistics[0].withheld


def test_exactly_a_fifth_invalid_attempts_is_still_published(tmp_path):
    fake = FakeRun(tmp_path)
    for index, unit in enumerate(fake.plan_test("1.1", processes=4)):
        if index == 0:
            fake.attempt(unit, [], invalid="out of memory")
        fake.attempt(unit, [make_trace()])
    assert by_id(fake.write())["1.1"].results["total_time"] == pytest.approx(0.12)


def test_interrupts_are_counted_as_attempts_and_withhold_no_number(tmp_path):
    """Whoever stops a run three times to go on with it later has measured no less."""
    fake = FakeRun(tmp_path)
    for unit in fake.plan_test("1.1", processes=3):
        fake.attempt(unit, [], invalid=INTERRUPTED)
        fake.attempt(unit, [], invalid=KILLED)
        fake.attempt(unit, [make_trace()])
    result = by_id(fake.write())["1.1"]
    assert (result.evidence.attempts, result.evidence.valid_attempts) == (9, 3)
    assert result.results["total_time"] == pytest.approx(0.12)
    evidence = Evidence(tmp_path)
    assert (read_chain(evidence), read_traces(evidence)) == ((), ())
    assert gather(evidence)["1.1"].published


def test_only_invalid_attempts_give_a_test_that_was_not_measured(tmp_path):
    fake = FakeRun(tmp_path)
    fake.attempt(fake.plan_test("1.1", processes=1)[0], [], invalid="out of memory")
    result = by_id(fake.write())["1.1"]
    assert result.status == "not measured"
    assert "out of memory" in result.reason
    assert result.evidence.attempts == 1


# --- paired blocks --------------------------------------------------------------------------------------------------

SHARED = make_workload(num_requests=10, shared_fraction=0.7, prefix_fraction=0.8)
BOUND = 6 * 80
ARMS = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}


def prefix_run(path, *, hits=BOUND, off_hits=0, drift=0.0, outputs_on=3, processes=6, instrument=True):
    """ABBA blocks of 10 requests of 100 tokens: off takes 200 + 20 ms, on 100 + 10 ms, later runs `drift` slower."""
    fake = FakeRun(path)
    order = ("off", "on", "on", "off")
    for unit in fake.plan_test("2.1", processes=processes, order=order, arms=ARMS, workload=SHARED):
        traces = []
        for position, arm in enumerate(order):
            slow = math.exp(drift * position) * (2 if arm == "off" else 1)
            spread = [hits if arm == "on" else off_hits, *[0] * 9]
            cached = [spread[0] // 10] * 10 if spread[0] % 10 == 0 else spread
            outputs = outputs_on if arm == "on" else 3
            traces.append(
                make_trace(
                    prompts=[100] * 10, cached=cached, prefill_ms=100 * slow, decode_ms=5 * slow, outputs=outputs
                )
            )
        fake.attempt(unit, traces)
    if instrument:
        fake.add_instrument()
    return fake


def test_paired_test_gives_ratio_fields_and_exact_counts(tmp_path):
    result = by_id(prefix_run(tmp_path).write())["2.1"]
    assert result.results == {
        "cache_hit_rate": pytest.approx(48.0),
        "cache_hit_rate_off": 0.0,
        "compute_saved_pct": 48.0,
        "actual_speedup_ratio": pytest.approx(2.0),
    }
    effects = {effect.metric: effect for effect in result.effects}
    assert effects["prompt_tokens_computed"].verdict == "EXACT"
    assert effects["prompt_tokens_computed"].p_holm is None
    assert effects["total_time"].verdict == "LOWER"
    assert "cache_hit_rate" not in effects, "the cold arm's rate is 0 and has no logarithm"
    assert failed(result) == set()


def test_mirrored_order_cancels_a_linear_drift(tmp_path):
    result = by_id(prefix_run(tmp_path, drift=0.03).write())["2.1"]
    assert result.results["actual_speedup_ratio"] == pytest.approx(2.0, rel=1e-6)


def test_block_is_the_difference_of_mean_logs_of_a_process(tmp_path):
    fake = FakeRun(tmp_path)
    (unit,) = fake.plan_test("2.1", processes=1, order=("off", "on", "on", "off"), arms=ARMS)
    fake.attempt(unit, [make_trace(prefill_ms=time, decode_ms=0, outputs=1) for time in (100, 50, 80, 160)])
    effects = {effect.metric: effect for effect in by_id(fake.write())["2.1"].effects}
    expected = (math.log(50) + math.log(80) - math.log(100) - math.log(160)) / 2
    assert effects["total_time"].blocks == pytest.approx((expected,))
    assert effects["total_time"].verdict == "INSUFFICIENT"


@pytest.mark.parametrize(
    ("lie", "check"),
    [
        ({"hits": BOUND + 10}, "cache_hits_within_bound"),
        ({"off_hits": 10}, "prefix_cache_off_hits_nothing"),
        ({"outputs_on": 2}, "same_work"),
    ],
)
def test_lie_about_a_comparison_is_caught(tmp_path, lie, check):
    assert check in failed(by_id(prefix_run(tmp_path, **lie).write())["2.1"])


def test_arms_that_run_in_processes_of_their_own_are_not_held_to_what_is_not_there(tmp_path):
    fake = FakeRun(tmp_path)
    units = fake.plan_test("2.1", processes=2, order=("off", "on"), arms=ARMS)
    for unit, arm in zip(units, ("off", "on"), strict=True):
        fake.attempt(unit.model_copy(update={"arm_order": (arm,)}), [make_trace()])
    assert "same_work" not in failed(by_id(fake.write())["2.1"])


@pytest.mark.parametrize(("block_size", "expected"), [(1, 69 * 409), (16, 69 * 400), (256, 69 * 256), (512, 0)])
def test_upper_bound_of_hits_is_the_one_of_the_methods_chapter(block_size, expected):
    spec = make_workload(num_requests=100, shared_fraction=0.7, prefix_fraction=0.8)
    assert hit_upper_bound(spec, [512] * 100, block_size) == expected


def a_fourteenth_unexplained(device):
    return make_memory(device=device, device_total_peak_bytes=7_000_000_000, residual_bytes=500_000_000)


def test_without_sharing_no_hit_is_possible_and_the_last_token_is_always_computed():
    assert hit_upper_bound(make_workload(), [100, 100], 16) == 0
    everything = make_workload(shared_fraction=1, prefix_fraction=1)
    assert hit_upper_bound(everything, [32, 32], 16) == 16


# --- lies about single runs, each caught by its check and no other ----------------------------------------------------


def lie_to(path, change):
    """One process whose trace and memory were tampered with."""
    fake = FakeRun(path, engine=make_engine())
    (unit,) = fake.plan_test("1.3", processes=1)
    trace, memory = change(make_trace(), make_memory())
    fake.attempt(unit, [trace], memory=memory)
    return by_id(fake.write())["1.3"]


def requests_with(trace, **changes):
    requests = tuple(request.model_copy(update=changes) for request in trace.requests)
    return trace.model_copy(update={"requests": requests})


def steps_with(trace, index, **changes):
    steps = list(trace.steps)
    steps[index] = steps[index].model_copy(update=changes)
    return trace.model_copy(update={"steps": tuple(steps)})


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda trace, memory: (trace, memory), set()),
        (lambda trace, memory: (requests_with(trace, requested_tokens=4), memory), {"all_tokens_returned"}),
        (
            lambda trace, memory: (requests_with(trace, distinct_tokens=1, output_sha256="0" * 64), memory),
            {"distinct_tokens"},
        ),
        (
            lambda trace, memory: (trace.model_copy(update={"duration_ns": 119 * MS + 1}), memory),
            {"window_inside_timed_region", "step_time_within_total"},
        ),
        (lambda trace, memory: (steps_with(trace, 1, decode_tokens=3), memory), {"steps_account_for_tokens"}),
        (lambda trace, memory: (steps_with(trace, 0, prefill_tokens=190), memory), {"steps_account_for_tokens"}),
        (lambda _, memory: (make_trace(cached=(16, 16)), memory), {"cache_hits_within_bound"}),
        (
            lambda trace, memory: (
                trace.model_copy(update={"emission_times_ns": (100 * MS + OFFSET_NS, 99 * MS, 120 * MS)}),
                memory,
            ),
            {"latency_identity"},
        ),
        (lambda trace, _: (trace, make_memory(residual_bytes=1)), {"memory_parts_close"}),
        (
            lambda trace, _: (
                trace,
                make_memory(device_total_peak_bytes=7_500_000_000, residual_bytes=1_000_000_000),
            ),
            {"memory_residual_bounded"},
        ),
        (lambda trace, _: (trace, a_fourteenth_unexplained("cpu")), set()),
        (lambda trace, _: (trace, a_fourteenth_unexplained("cuda:0")), {"memory_residual_bounded"}),
        (
            lambda trace, _: (
                trace,
                make_memory(activations_peak_bytes=None, residual_bytes=1_000_000_000),
            ),
            set(),
        ),
        (lambda trace, _: (trace, make_memory(kv_used_peak_bytes=3_100_000_000)), {"memory_parts_close"}),
        (
            lambda trace, _: (trace, make_memory(device_total_peak_bytes=6_600_000_000, residual_bytes=100_000_000)),
            set(),
        ),
    ],
)
def test_lie_about_a_run_fails_its_check_and_no_other(tmp_path, change, checks):
    assert failed(lie_to(tmp_path, change)) == checks


def test_decode_rate_confused_with_a_slower_step_time_is_caught(tmp_path):
    """Every step drawn out to overlap wholly cannot be: a total rate above every step rate."""

    def slow_steps(trace, memory):
        stretched = tuple(
            step.model_copy(update={"begin_ns": 10 * step.begin_ns, "end_ns": 10 * step.end_ns}) for step in trace.steps
        )
        return trace.model_copy(update={"steps": stretched}), memory

    assert failed(lie_to(tmp_path, slow_steps)) == {"step_time_within_total", "total_rate_within_parts"}


def test_second_valid_attempt_of_a_unit_is_not_accepted_in_silence(tmp_path):
    fake = FakeRun(tmp_path)
    (unit,) = fake.plan_test("1.1", processes=1)
    fake.attempt(unit, [make_trace()])
    fake.attempt(unit, [make_trace(prefill_ms=1)])
    result = by_id(fake.write())["1.1"]
    assert failed(result) == {"attempts_accounted"}
    assert result.results["total_time"] == pytest.approx(0.12), "the first valid attempt counts"


# --- test 4.1 -------------------------------------------------------------------------------------------------------


def quality_attempt(**changes):
    file = {
        "file": "a.py", "package": "p", "physical_lines": 30, "source_lines": 20, "functions": 2, "classes": 1,
        "functions_radon": 2, "functions_lizard": 2, "classes_radon": 1, "naive_lines": 31, "naive_functions": 3,
        "naive_classes": 2, "error": None,
    }  # fmt: skip
    functions = tuple(
        FunctionMetrics(
            file="a.py",
            line=line,
            name="f",
            num_lines=lines,
            complexity_radon=radon,
            complexity_lizard=lizard,
            difference_causes=("x",),
        )
        for line, lines, radon, lizard in ((1, 10, 2, 3), (15, 4, None, 1))
    )
    code = {
        "tree": "src", "tree_sha256": "1" * 64, "radon_version": "6", "lizard_version": "1", "python_version": "3",
        "files": (FileMetrics(**file),), "functions": functions, "differences": {"x": 2}, "unexplained": (),
    }  # fmt: skip
    return QualityAttempt(
        test_id="4.1",
        environment_fingerprint=sha256_hex(canonical_json({})),
        plan_sha256="2" * 64,
        measured_at=MOMENT,
        code=CodeMetrics(**(code | changes)),
    )


def test_code_metrics_give_the_plans_fields_beside_its_naive_counts(tmp_path):
    fake = FakeRun(tmp_path, quality=quality_attempt())
    result = by_id(fake.write(), {})["4.1"]
    assert result.results == {
        "total_loc": 30, "source_loc": 20, "function_count": 2, "class_count": 1, "avg_complexity": 2.0,
        "avg_complexity_lizard": 2.0, "avg_lines_per_function": 7.0, "naive_total_lines": 31,
        "naive_function_count": 3, "naive_class_count": 2,
    }  # fmt: skip
    assert {item.verdict for item in result.statistics} == {Verdict.EXACT}
    assert failed(result) == set()


def test_unexplained_tool_difference_fails_its_check(tmp_path):
    fake = FakeRun(tmp_path, quality=quality_attempt(unexplained=("a.py:1",)))
    assert failed(by_id(fake.write(), {})["4.1"]) == {"tool_differences_explained"}


# --- files and refusals ---------------------------------------------------------------------------------------------


def test_written_files_read_back_as_the_same_results(tmp_path):
    results = results_of(read_runs(throughput_run(tmp_path / "run").write()), EXPERIMENTS)
    paths = write_results(results, tmp_path / "out")
    assert [path.name for path in paths][:2] == ["0.1_instrument.json", "1.1_throughput.json"]
    assert len(paths) == 12
    assert [Result.model_validate_json(path.read_text()) for path in paths] == list(results)
    assert "文字" in paths[1].read_text(), "Chinese is written as such"
    assert list((tmp_path / "out").glob(".*")) == []
    shape = ["test_name", "test_date", "hardware", "method", "parameters", "results", "how_obtained", "verification"]
    assert set(shape) <= set(json.loads(paths[0].read_text()))


def test_same_ledger_gives_the_same_bytes(tmp_path):
    path = throughput_run(tmp_path / "run").write()
    first, second = (write_results(results_of(read_runs(path), EXPERIMENTS), tmp_path / name) for name in "ab")
    assert [item.read_bytes() for item in first] == [item.read_bytes() for item in second]


def test_both_languages_carry_the_same_numbers(tmp_path):
    fake = prefix_run(tmp_path, hits=BOUND + 10)
    result = by_id(fake.write())["2.1"]

    def digits(text):
        return sorted("".join(char if char.isdigit() else " " for char in text).split())

    assert digits(result.how_obtained) == digits(result.zh.how_obtained)
    assert digits(result.verification) == digits(result.zh.verification)
    for check in result.checks:
        assert digits(check.detail) == digits(check.detail_zh), check.id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": (Measure("no_such_metric"),)}, "no_such_metric"),
        ({"measures": (Measure("speedup"),)}, "paired blocks"),
        ({"measures": (Measure("total_time"),), "design": Design.PAIRED_BLOCKS}, "2 arms"),
    ],
)
def test_experiment_that_cannot_be_derived_is_refused(tmp_path, changes, message):
    path = throughput_run(tmp_path).write()
    with pytest.raises(MeasureError, match=message):
        results_of(read_runs(path), {"1.1": experiment("1.1", **changes)})


def test_ledger_without_a_plan_gives_no_results(tmp_path):
    path = throughput_run(tmp_path).write()
    ledger = path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(RunsError, match="holds no plan"):
        results_of(read_runs(path), EXPERIMENTS)
