"""Each lie of the table is told to a good run folder; the check that the table names fires, and the number is gone."""

from __future__ import annotations

import importlib

import pytest

from tests.touchstone.factories import MS, FakeRun, make_engine, make_memory, make_trace, make_workload
from tests.touchstone.machine_samples import QWEN3_0_6B, RTX_3090
from touchstone.analysis import arm_checks, plausibility
from touchstone.analysis import checks as checks_module
from touchstone.analysis.plausibility import LIES, why_void
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import Arm, Bilingual, Experiment, Measure, Profile, load_experiments
from touchstone.records import Canary, Check, Verdict

TEXT = Bilingual("text", "文字")
EXPERIMENTS = {item.plan_id: item for item in load_experiments()}
THROUGHPUT = EXPERIMENTS["1.1"]


def derived_from(fake, experiments=EXPERIMENTS):
    return {result.test_id: result for result in results_of(read_runs(fake.write()), experiments)}


def failed(result):
    return {check.id for check in result.checks if not check.passed}


def run_of(path, *, trace=None, traces=None, memory=None, canary=None, model=None, settings=None):
    fake = FakeRun(path, canary=canary)
    fake.engine = make_engine(**(settings or {})).model_copy(update={"model": model or {}})
    for index, unit in enumerate(fake.plan_test("1.1", processes=6)):
        fake.attempt(unit, [traces[index] if traces else trace or make_trace()], memory=memory)
    return derived_from(fake)["1.1"]


def test_every_row_of_the_table_is_caught_by_something_that_exists():
    for lie in LIES:
        assert lie.checks or lie.functions, lie.lie.en
        for check in lie.checks:
            text = checks_module.__loader__.get_source(checks_module.__name__)
            text += plausibility.__loader__.get_source(plausibility.__name__)
            text += arm_checks.__loader__.get_source(arm_checks.__name__)
            assert text.count(f'"{check}"') >= 1, check
        for name in lie.functions:
            module, _, function = name.rpartition(".")
            assert hasattr(importlib.import_module(module), function) or importlib.util.find_spec(name)


def test_an_honest_run_passes_every_check(tmp_path):
    result = run_of(tmp_path, memory=make_memory())
    assert failed(result) == set()
    assert all(item.withheld is None for item in result.statistics if item.metric == "total_time")


def test_no_synchronization_is_caught_by_device_events_longer_than_the_step(tmp_path):
    assert failed(run_of(tmp_path, trace=make_trace(device_ms=50))) == {"device_time_within_wall"}


def test_device_events_that_fit_pass(tmp_path):
    assert failed(run_of(tmp_path, trace=make_trace(device_ms=9))) == set()


@pytest.mark.parametrize("duration_ns", [122 * MS, 10**9])
def test_a_clamped_or_rounded_timer_is_caught_by_whole_milliseconds(tmp_path, duration_ns):
    traces = [make_trace() for _ in range(6)]
    traces[0] = traces[0].model_copy(update={"duration_ns": duration_ns})
    result = run_of(tmp_path, traces=traces)
    assert failed(result) == {"timer_not_rounded"}
    time = next(item for item in result.statistics if item.metric == "total_time")
    assert (time.verdict, time.median) == (Verdict.INVALID, None)
    assert time.withheld.startswith("timer_not_rounded: ")
    assert result.results["total_time"] is None


def test_a_time_below_ten_thousand_ticks_is_caught(tmp_path):
    tiny = make_trace(prefill_ms=0.004, decode_ms=0.001, launch_ms=0.0005)
    shift = tiny.emission_times_ns[0] - 4000
    requests = tuple(r.model_copy(update={"arrival_ns": 1, "scheduled_ns": 1}) for r in tiny.requests)
    steps = tuple(
        s.model_copy(
            update={"begin_ns": s.begin_ns - shift, "launched_ns": s.launched_ns - shift, "end_ns": s.end_ns - shift}
        )
        for s in tiny.steps
    )
    short = tiny.model_copy(
        update={
            "duration_ns": 9000,
            "emission_times_ns": tuple(time - shift for time in tiny.emission_times_ns),
            "requests": requests,
            "steps": steps,
        }
    )
    assert "timer_above_resolution" in failed(run_of(tmp_path, trace=short))


def test_a_copied_run_is_caught_by_two_equal_times(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.touchstone.factories._later", lambda trace, _: trace)
    assert failed(run_of(tmp_path)) == {"timings_never_repeat"}


def test_a_peak_below_weights_and_kv_is_caught_and_takes_memory_numbers_back(tmp_path):
    memory = make_memory(device_total_peak_bytes=3_000_000_000, residual_bytes=-3_500_000_000)
    assert "memory_peak_holds_parts" in failed(run_of(tmp_path, memory=memory))


def test_latencies_of_another_run_are_caught_by_littles_law(tmp_path, monkeypatch):
    honest = plausibility.mean_concurrency
    monkeypatch.setattr(plausibility, "mean_concurrency", lambda facts: _doubled(honest(facts)))
    assert failed(run_of(tmp_path)) == {"littles_law"}


def _doubled(quantity):
    return type(quantity)(2 * quantity.value, quantity.unit, quantity.sample_size, quantity.terms)


class TestSampleFiguresOfThePlan:
    CANARY = Canary(before=RTX_3090, after=RTX_3090)

    @pytest.mark.no_cover
    @pytest.mark.parametrize(
        ("prefill_ms", "decode_ms", "metric"),
        [(1000, 1 / 512, "decode_throughput"), (331.5, 0.1 / 512, "prefill_throughput")],
    )
    def test_a_rate_that_no_rtx_3090_reaches_is_refused_with_bound_and_inputs(
        self, tmp_path, prefill_ms, decode_ms, metric
    ):
        trace = make_trace(prompts=[512] * 256, outputs=513, prefill_ms=prefill_ms, decode_ms=decode_ms, launch_ms=0)
        result = run_of(tmp_path, trace=trace, canary=self.CANARY, model=QWEN3_0_6B)
        assert "within_roofline" in failed(result)
        claimed = next(item for item in result.statistics if item.metric == metric)
        assert (claimed.verdict, claimed.median, result.results[metric]) == (Verdict.INVALID, None, None)
        assert "F = 1.42e+14 FLOP/s" in claimed.withheld
        assert "B = 9.36e+11 B/s" in claimed.withheld
        assert claimed.roofline.share > 1.1

    @pytest.mark.parametrize(("block_size", "bound"), [(16, 69 * 400), (256, 69 * 256)])
    def test_55_92_per_cent_saved_is_more_than_whole_blocks_of_the_prefix_can_give(self, tmp_path, block_size, bound):
        """28,630 tokens are 70 x 409: the request that computes the prefix was counted as a hit."""
        workload = make_workload(
            num_requests=100,
            input_tokens={"low": 512, "high": 512},
            shared_fraction=0.7,
            prefix_fraction=0.8,
        )
        fake = FakeRun(tmp_path)
        fake.engine = make_engine(block_size=block_size)
        trace = make_trace(prompts=[512] * 100, cached=[409] * 70 + [0] * 30)
        for unit in fake.plan_test("1.1", processes=6, workload=workload):
            fake.attempt(unit, [trace])
        result = derived_from(fake)["1.1"]
        assert "cache_hits_within_bound" in failed(result)
        check = next(check for check in result.checks if check.id == "cache_hits_within_bound")
        assert f"28630 cached tokens, at most {bound} possible" in check.detail
        assert all(item.median is None for item in result.statistics)


def test_a_tenth_of_the_bound_without_explanation_is_refused(tmp_path):
    canary = Canary(before=RTX_3090.model_copy(update={"operation_s": 1e-9}), after=RTX_3090)
    canary = canary.model_copy(update={"after": canary.before})
    result = run_of(tmp_path, trace=make_trace(decode_ms=900), canary=canary, model=QWEN3_0_6B)
    decode = next(item for item in result.statistics if item.metric == "decode_throughput")
    assert failed(result) == {"not_far_below_roofline"}
    assert decode.withheld.startswith("not_far_below_roofline: ")
    assert decode.median is None


def scaling_run(path, gain, *, preemptions=0, peak_concurrency=2):
    arms = {f"{count} GPU": {"tensor_parallel_size": count} for count in (1, 2)}
    fake = FakeRun(path)
    units = fake.plan_test("3.2", processes=12, order=("1 GPU", "2 GPU"), arms=arms)
    small = make_trace()
    requests = tuple(request.model_copy(update={"preemptions": preemptions}) for request in small.requests)
    small = small.model_copy(update={"requests": requests, "peak_concurrency": peak_concurrency})
    for unit in units:
        fake.attempt(unit, [small, make_trace(prefill_ms=100 / gain, decode_ms=10 / gain)])
    declared = Experiment(
        plan_id="3.2",
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload=dict.fromkeys(Profile, make_workload()),
        measures=(Measure("total_time"),),
        arms=tuple(Arm(name, options) for name, options in arms.items()),
    )
    return derived_from(fake, {"3.2": declared})["3.2"]


@pytest.mark.parametrize(("gain", "fires"), [(2.05, False), (2.2, True)])
def test_scaling_beyond_twice_the_rate_is_caught(tmp_path, gain, fires):
    assert ("scaling_within_ideal" in failed(scaling_run(tmp_path, gain))) is fires


@pytest.mark.parametrize("lack", [{"preemptions": 1}, {"peak_concurrency": 1}], ids=["preempted", "queued"])
def test_scaling_beyond_it_is_excused_where_the_smaller_arm_was_short_of_blocks(tmp_path, lack):
    """More memory lets more requests run at once, and none is computed twice."""
    found = next(check for check in scaling_run(tmp_path, 2.2, **lack).checks if check.id == "scaling_within_ideal")
    assert found.passed
    assert "1 steps to more GPUs, 1 from an arm short of KV blocks" in found.detail


class TestTheInstrumentsOwnTest:
    def effects_of(self, path, **instrument):
        fake = FakeRun(path)
        arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
        for unit in fake.plan_test("2.1", processes=6, order=("off", "on", "on", "off"), arms=arms):
            fast, slow = make_trace(prefill_ms=50), make_trace(prefill_ms=100)
            fake.attempt(unit, [slow, fast, fast, slow])
        if instrument:
            fake.add_instrument(**instrument)
        results = derived_from(fake)
        effects = {effect.metric: effect for effect in results["2.1"].effects}
        return effects["total_time"], results["0.1"]

    def test_a_sound_instrument_lets_verdicts_stand(self, tmp_path):
        effect, own = self.effects_of(tmp_path, placebo=1.0)
        assert (effect.verdict, effect.void) == ("LOWER", None)
        assert {"placebo_equivalent", "control_detected"} <= {check.id for check in own.checks if check.passed}

    def test_a_placebo_that_shows_a_difference_voids_them(self, tmp_path):
        effect, own = self.effects_of(tmp_path, placebo=1.2)
        assert effect.verdict == "VOID"
        assert "between equal settings" in effect.void
        assert failed(own) == {"placebo_equivalent"}
        assert {item.verdict for item in own.effects} == {"HIGHER"}, "the instrument's own verdicts are the reason"

    def test_a_control_that_is_not_seen_voids_them(self, tmp_path):
        effect, own = self.effects_of(tmp_path, control=0.999)
        assert effect.verdict == "VOID"
        assert "would have missed a tenth" in effect.void
        assert failed(own) == {"control_detected"}

    def test_a_run_without_placebo_and_control_shows_no_verdict(self, tmp_path):
        effect, _ = self.effects_of(tmp_path)
        assert effect.verdict == "VOID"
        assert "no placebo and no control" in effect.void
        assert effect.ratio < 1, "what was computed stays"

    def test_too_few_blocks_are_no_failure_and_the_reason_says_so(self, tmp_path):
        effect, own = self.effects_of(tmp_path, blocks=3)
        assert effect.verdict == "VOID"
        assert "3 blocks cannot show what this run is able to tell apart; 6 are needed" in effect.void
        assert failed(own) == set()

    def test_an_unsteady_machine_is_called_lack_of_resolution(self):
        placebo = Check(id="placebo_equivalent", passed=False, detail="", detail_zh="")
        assert "lack of resolution" in why_void([placebo], ()).en
        assert why_void([placebo.model_copy(update={"passed": True})], ()) is None

    @pytest.mark.parametrize(("share", "fires"), [(0.95, False), (0.85, True)])
    def test_cached_results_are_caught_by_prompts_that_are_faster_the_second_time(self, tmp_path, share, fires):
        fake = FakeRun(tmp_path, repeated=make_trace(prefill_ms=120 * share - 20))
        for unit in fake.plan_test("1.1", processes=6):
            fake.attempt(unit, [make_trace()])
        result = derived_from(fake)["1.1"]
        assert ("repeated_prompts_not_faster" in failed(result)) is fires

    def test_timing_an_engine_on_prompts_that_it_has_seen_is_caught(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tests.touchstone.factories.pair_seed", lambda *_: 7)
        fake = FakeRun(tmp_path)
        for unit in fake.plan_test("1.1", processes=6):
            fake.attempt(unit, [make_trace(), make_trace()])
        assert failed(derived_from(fake)["1.1"]) == {"prompts_never_repeat"}


def test_an_arm_that_was_measured_after_the_other_is_caught(tmp_path):
    fake = FakeRun(tmp_path)
    arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
    for unit in fake.plan_test("2.1", processes=6, order=("off", "off", "on", "on"), arms=arms):
        fake.attempt(unit, [make_trace()] * 4)
    assert "arms_interleaved" in failed(derived_from(fake)["2.1"])


def test_a_neighbour_that_woke_up_is_caught_by_the_canary(tmp_path):
    slowed = RTX_3090.model_copy(update={"bytes_per_s": RTX_3090.bytes_per_s / 4})
    result = run_of(tmp_path, canary=Canary(before=RTX_3090, after=slowed))
    assert failed(result) == {"machine_steady"}
    assert result.canary.largest_move == pytest.approx(3.0)


class TestOneTokenOverAndOver:
    """Random weights often continue a prompt so, which says nothing as long as another prompt gives another token."""

    ALIKE = make_workload(num_requests=2, shared_fraction=1.0, prefix_fraction=1.0)

    @staticmethod
    def repeating(token):
        trace = make_trace()
        changes = {"distinct_tokens": 1, "output_sha256": token * 64}
        requests = tuple(request.model_copy(update=changes) for request in trace.requests)
        return trace.model_copy(update={"requests": requests})

    def derive(self, path, workload, tokens):
        fake = FakeRun(path)
        for unit, token in zip(fake.plan_test("1.1", processes=6, workload=workload), tokens, strict=True):
            fake.attempt(unit, [self.repeating(token) if token else make_trace()])
        return derived_from(fake)["1.1"]

    @pytest.mark.parametrize(
        ("workload", "tokens", "caught"),
        [
            pytest.param(ALIKE, ["a", "b", None, None, None, None], False, id="one prompt a run, tokens differ"),
            pytest.param(ALIKE, ["a"] * 6, True, id="one prompt a run, one token in all of them"),
            pytest.param(None, ["a", "b", None, None, None, None], True, id="several prompts, one token in a run"),
        ],
    )
    def test_is_a_fault_where_different_prompts_give_the_same(self, tmp_path, workload, tokens, caught):
        result = self.derive(tmp_path, workload, tokens)
        assert ("distinct_tokens" in failed(result)) is caught
        assert all((item.verdict is Verdict.INVALID) is caught for item in result.statistics if item.key)


@pytest.mark.parametrize("apart", [True, False])
def test_a_run_that_fails_takes_the_numbers_of_its_own_arm_alone_where_arms_have_processes_of_their_own(
    tmp_path, apart
):
    fake = FakeRun(tmp_path)
    planned = fake.plan_test("1.1", processes=6, order=("sound", "warm"))
    if apart:
        fake.units = [
            unit.model_copy(update={"unit_id": f"1.1-{arm}-p{unit.process}", "arm_order": (arm,)})
            for unit in planned
            for arm in ("sound", "warm")
        ]
    for unit in fake.units:
        warm_in = unit.process == 2
        fake.attempt(
            unit, [make_trace(cached=(16, 16) if arm == "warm" and warm_in else None) for arm in unit.arm_order]
        )
    result = derived_from(fake)["1.1"]
    check = next(check for check in result.checks if check.id == "cache_hits_within_bound")
    assert not check.passed
    assert check.failed_arms == (("warm",) if apart else ())
    refused = {item.arm for item in result.statistics if item.verdict is Verdict.INVALID}
    assert refused == ({"warm"} if apart else {"sound", "warm"})
