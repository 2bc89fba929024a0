"""Every formula by hand-worked cases, identities by property tests."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.touchstone.factories import MS, make_engine, make_memory, make_trace
from touchstone.analysis import samples
from touchstone.analysis.formulas import RunFacts
from touchstone.analysis.metrics import COMPARISONS, DICTIONARY, SAMPLES
from touchstone.analysis.quantities import NotAvailable, Quantity, Unit, UnitError
from touchstone.records import DeviceWork, StepTrace


def value(metric, facts):
    measured = DICTIONARY[metric].compute(facts)
    assert isinstance(measured, Quantity), measured
    assert measured.unit is DICTIONARY[metric].unit
    return measured.value


def reason(metric, facts):
    measured = DICTIONARY[metric].compute(facts)
    assert isinstance(measured, NotAvailable)
    assert measured.reason.en
    assert measured.reason.zh
    return measured.reason.en


def step(kind, begin, end, *, prefill=0, decode=0, launched=None, device=None):
    return StepTrace(
        kind=kind,
        prefill_tokens=prefill,
        decode_tokens=decode,
        batch=1,
        graph=False,
        begin_ns=begin * MS,
        launched_ns=(begin if launched is None else launched) * MS,
        end_ns=end * MS,
        device_ns=None if device is None else device * MS,
    )


# Two requests of 100 prompt tokens (40 and 0 cached) and 3 output tokens. Prefill 0..100 ms computes 160 tokens; decode
# steps end at 110 and 120 ms. The second request arrives at 20 ms. T = 120 ms.
FACTS = RunFacts(
    make_trace(cached=(40, 0), arrivals_ms=(0, 20), launch_ms=2, device_ms=8), make_memory(), make_engine()
)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("ttft_mean", 90.0),
        ("ttft_p50", 90.0),
        ("ttft_p90", 98.0),
        ("ttft_max", 100.0),
        ("queue_time_mean", 0.0),
        ("prefill_time_mean", 90.0),
        ("tpot_mean", 10.0),
        ("itl_p50", 10.0),
        ("total_latency_mean", 110.0),
        ("total_latency_max", 120.0),
        ("output_throughput", 6 / 0.12),
        ("e2e_throughput", 206 / 0.12),
        ("e2e_throughput_uncached", 166 / 0.12),
        ("prefill_throughput", 160 / 0.1),
        ("decode_throughput", 4 / 0.02),
        ("total_time", 0.12),
        ("prefill_step_time", 100.0),
        ("decode_step_time", 10.0),
        ("cpu_overhead", 2.0),
        ("device_idle_between_steps", 20.0),
        ("cache_hit_rate", 20.0),
        ("cached_tokens", 40.0),
        ("prompt_tokens_computed", 160.0),
        ("peak_concurrency", 2.0),
        ("mean_concurrency", 0.22 / 0.12),
        ("preemptions", 0.0),
        ("kv_occupancy", 50.0),
        ("model_weight_memory", 2.0),
        ("kv_cache_memory", 3.0),
        ("kv_used_memory", 1.5),
        ("activation_memory", 1.0),
        ("cuda_graph_memory", 0.0),
        ("context_memory", 0.5),
        ("residual_memory", 0.0),
        ("total_peak_memory", 6.5),
        ("kv_cache_per_device", 3.0),
        ("peak_memory_per_device", 6.5),
    ],
)
def test_metric_equals_the_value_worked_out_by_hand(metric, expected):
    assert value(metric, FACTS) == pytest.approx(expected, rel=1e-12)


def test_every_metric_is_either_pinned_by_hand_or_not_available_in_the_example():
    pinned = {mark.args[1][index][0] for mark in _marks() for index in range(len(mark.args[1]))}
    others = set(DICTIONARY) - pinned
    unavailable = {name for name in others if isinstance(DICTIONARY[name].compute(FACTS), NotAvailable)}
    same_statistic = {name for name in others if name.rsplit("_", 1)[-1] in {"mean", "p50", "p90", "max"}}
    assert others == unavailable | same_statistic


def _marks():
    return test_metric_equals_the_value_worked_out_by_hand.pytestmark


def test_first_token_belongs_to_prefill_and_not_to_tpot():
    assert value("tpot_mean", RunFacts(make_trace(outputs=2, prefill_ms=500, decode_ms=7))) == pytest.approx(7)


def test_single_token_outputs_have_no_time_per_output_token():
    facts = RunFacts(make_trace(outputs=1))
    assert "single token" in reason("tpot_mean", facts)
    assert "single token" in reason("itl_p50", facts)
    assert value("ttft_mean", facts) == 100.0
    assert "no pure decode step" in reason("decode_throughput", facts)


def test_p99_is_withheld_below_one_hundred_samples_and_given_at_one_hundred():
    assert "99 samples" in reason("ttft_p99", RunFacts(make_trace(prompts=[1] * 99)))
    facts = RunFacts(make_trace(prompts=[1] * 100))
    assert DICTIONARY["ttft_p99"].compute(facts).sample_size == 100


def test_inter_token_gaps_are_pooled_and_unsmoothed():
    facts = RunFacts(make_trace(prompts=[1] * 4, outputs=6))
    assert DICTIONARY["itl_p50"].compute(facts).sample_size == 4 * 5


def test_overlapping_steps_share_no_instant():
    """Step 2 begins at 6 and ends at 18 while step 1 runs 0..10; step 3 begins after a gap: 10, 8 and 5 ms."""
    steps = (step("decode", 0, 10), step("decode", 6, 18), step("decode", 25, 30))
    assert [timed.attributed_ns // MS for timed in samples.attribute_time(steps)] == [10, 8, 5]


def test_a_step_inside_another_gets_no_time_twice():
    steps = (step("prefill", 0, 20), step("decode", 5, 15), step("decode", 16, 30))
    assert [timed.attributed_ns // MS for timed in samples.attribute_time(steps)] == [20, 0, 10]


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 100)), min_size=1, max_size=12))
def test_attributed_times_add_up_to_the_union_of_the_intervals(intervals):
    steps = [step("decode", begin, begin + length) for begin, length in intervals]
    union = {tick for begin, length in intervals for tick in range(begin, begin + length)}
    assert samples.total_attributed_ns(samples.attribute_time(steps)) == len(union) * MS


def test_decode_rate_of_overlapped_steps_uses_attributed_time():
    trace = make_trace(outputs=3)
    overlapped = (step("prefill", 0, 100), step("decode", 90, 110, decode=2), step("decode", 101, 120, decode=2))
    facts = RunFacts(trace.model_copy(update={"steps": overlapped}))
    assert value("decode_throughput", facts) == pytest.approx(4 / 0.02)


def test_mixed_steps_are_never_split_into_prefill_and_decode():
    trace = make_trace()
    mixed = (step("mixed", 0, 50, prefill=120, decode=3), step("mixed", 50, 120, prefill=80, decode=1))
    facts = RunFacts(trace.model_copy(update={"steps": mixed}))
    assert value("mixed_tokens_per_step", facts) == 102
    assert value("mixed_step_time", facts) == 60
    assert "no pure prefill step" in reason("prefill_throughput", facts)
    assert "no pure decode step" in reason("decode_throughput", facts)
    assert "no mixed step" in reason("mixed_step_time", RunFacts(trace))


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("prefill_throughput", {"steps": None}),
        ("cpu_overhead", {"steps": None}),
        ("prompt_tokens_computed", {"steps": None}),
        ("peak_concurrency", {"peak_concurrency": None}),
        ("kv_occupancy", {"peak_kv_blocks_used": None}),
        ("e2e_throughput", {"requests": ()}),
        ("cache_hit_rate", {"requests": ()}),
        ("total_time", {"requests": ()}),
    ],
)
def test_fact_that_the_engine_does_not_report_makes_the_metric_not_available(metric, change):
    reason(metric, RunFacts(FACTS.trace.model_copy(update=change), FACTS.memory, FACTS.engine))


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("cache_hit_rate", {"cached_tokens": None}),
        ("e2e_throughput_uncached", {"cached_tokens": None}),
        ("preemptions", {"preemptions": None}),
        ("queue_time_p50", {"scheduled_ns": None}),
        ("prefill_time_p50", {"scheduled_ns": None}),
        ("ttft_p50", {"emissions": ()}),
        ("output_throughput", {"emissions": ()}),
    ],
)
def test_fact_missing_in_one_request_makes_the_metric_not_available(metric, change):
    first, second = FACTS.trace.requests
    requests = (first, second.model_copy(update=change))
    reason(metric, RunFacts(FACTS.trace.model_copy(update={"requests": requests})))


def test_device_time_missing_in_one_step_makes_the_idle_share_not_available():
    steps = (*FACTS.trace.steps[:-1], FACTS.trace.steps[-1].model_copy(update={"device_ns": None}))
    reason("device_idle_between_steps", RunFacts(FACTS.trace.model_copy(update={"steps": steps})))


def test_memory_is_not_available_where_it_was_not_measured():
    assert "not measured" in reason("model_weight_memory", RunFacts(FACTS.trace))
    reason("activation_memory", RunFacts(FACTS.trace, make_memory(activations_peak_bytes=None)))


def test_of_several_devices_the_smallest_pool_and_the_fullest_device_are_told():
    devices = [
        {"device": f"cuda:{rank}", "kv_pool_bytes": pool * 10**9, "total_peak_bytes": peak * 10**9}
        for rank, pool, peak in ((0, 2, 9), (1, 1, 4))
    ]
    facts = RunFacts(FACTS.trace, make_memory(devices=devices))
    assert value("kv_cache_per_device", facts) == 1.0
    assert value("peak_memory_per_device", facts) == 9.0


def test_what_the_instrument_holds_is_told_apart_and_taken_off_the_totals():
    facts = RunFacts(FACTS.trace, make_memory(instrument_bytes=300_000_000))
    assert value("instrument_memory", facts) == 0.3
    assert value("context_memory", facts) == 0.5
    assert value("total_peak_memory", facts) == value("peak_memory_per_device", facts) == 6.2


def test_the_share_of_collectives_is_that_of_all_devices_together():
    work = tuple(
        DeviceWork(device=f"cuda:{rank}", span_ns=span * MS, busy_ns=span * MS, communication_ns=spent * MS)
        for rank, span, spent in ((0, 6, 1), (1, 10, 3))
    )
    assert value("communication_share", replace(FACTS, device_work=work)) == 25.0
    assert "collectives" in reason("communication_share", FACTS)


def test_the_share_of_time_with_a_kernel_is_that_of_all_devices_together():
    work = tuple(
        DeviceWork(arm="off", device=f"cuda:{rank}", span_ns=span * MS, busy_ns=busy * MS, communication_ns=0)
        for rank, span, busy in ((0, 6, 1), (1, 10, 3))
    )
    assert value("device_busy_share", replace(FACTS, device_work=work[:1])) == pytest.approx(100 / 6)
    assert value("device_busy_share", replace(FACTS, device_work=work)) == 25.0
    assert "no run of this arm was profiled" in reason("device_busy_share", FACTS)


def test_gaps_between_the_kernels_of_a_step_are_no_idle_time_between_steps():
    """A step whose kernels take a tenth of it is as busy by its events as one that they fill."""
    whole = RunFacts(make_trace(decode_ms=10, device_ms=10))
    assert value("device_idle_between_steps", whole) == 0.0
    profile = DeviceWork(arm=None, device="cuda:0", span_ns=10 * MS, busy_ns=MS, communication_ns=0)
    assert value("device_busy_share", replace(whole, device_work=(profile,))) == 10.0


def test_replicas_that_work_at_the_same_time_share_the_clock():
    """Two replicas make the same steps side by side: twice the tokens in the same time."""
    steps = FACTS.trace.steps or ()
    doubled = FACTS.trace.model_copy(
        update={"steps": (*steps, *(step.model_copy(update={"rank": 1}) for step in steps))}
    )
    for metric in ("prefill_throughput", "decode_throughput"):
        assert value(metric, RunFacts(doubled)) == pytest.approx(2 * value(metric, RunFacts(FACTS.trace)))
    assert value("decode_step_time", RunFacts(doubled)) == value("decode_step_time", RunFacts(FACTS.trace))


def test_pool_size_in_the_settings_goes_before_the_memory_parts():
    assert value("kv_occupancy", RunFacts(FACTS.trace, make_memory(), make_engine(num_kv_blocks=20))) == 25.0


traces = st.builds(
    make_trace,
    prompts=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    outputs=st.integers(2, 12),
    prefill_ms=st.floats(0.1, 1e4),
    decode_ms=st.floats(0.01, 1e3),
)


@given(traces)
def test_total_rate_is_the_token_weighted_harmonic_mean_of_prefill_and_decode(trace):
    facts = RunFacts(trace)
    prompt = sum(request.prompt_tokens for request in trace.requests)
    decoded = sum(len(request.emissions) - 1 for request in trace.requests)
    harmonic = (prompt + decoded) / (
        prompt / value("prefill_throughput", facts) + decoded / value("decode_throughput", facts)
    )
    total = (prompt + decoded) / value("total_time", facts)
    assert total == pytest.approx(harmonic, rel=1e-9)


@given(traces)
def test_percentiles_are_ordered_and_lie_within_the_samples(trace):
    facts = RunFacts(trace)
    for sample in SAMPLES:
        low, middle, high = (value(f"{sample}_{name}", facts) for name in ("p50", "p90", "max"))
        assert low <= middle * (1 + 1e-12)
        assert middle <= high * (1 + 1e-12)


@given(traces)
def test_rate_times_time_gives_back_the_tokens(trace):
    facts = RunFacts(trace)
    tokens = sum(request.prompt_tokens + len(request.emissions) for request in trace.requests)
    assert value("e2e_throughput", facts) * value("total_time", facts) == pytest.approx(tokens)


def test_rates_of_different_kinds_have_no_ratio():
    prefill, decode = (DICTIONARY[f"{kind}_throughput"].compute(FACTS) for kind in ("prefill", "decode"))
    assert prefill.ratio_to(prefill) == 1
    with pytest.raises(UnitError, match="prefill tokens/s"):
        prefill.ratio_to(decode)


def test_the_four_throughputs_have_four_units():
    names = ("prefill_throughput", "decode_throughput", "output_throughput", "e2e_throughput")
    assert len({DICTIONARY[name].unit for name in names}) == 4


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        ("compute_saved", 20.0),
        ("speedup", 1.25),
        ("total_time_saved", 20.0),
        ("cpu_overhead_reduction", 20.0),
        ("throughput_improvement", -20.0),
        ("decode_throughput_improvement", -20.0),
    ],
)
def test_comparison_transforms_a_ratio_of_four_fifths(comparison, expected):
    assert COMPARISONS[comparison].transform(0.8) == pytest.approx(expected)


def test_comparisons_refer_to_known_metrics_and_share_no_name_with_them():
    assert {comparison.metric for comparison in COMPARISONS.values()} <= set(DICTIONARY)
    assert not set(COMPARISONS) & set(DICTIONARY)


@pytest.mark.parametrize("definition", [*DICTIONARY.values(), *COMPARISONS.values()], ids=lambda item: item.id)
def test_definition_is_complete_and_its_formula_survives_markdown(definition):
    assert definition.name.en
    assert re.search(r"[\u4e00-\u9fff]", definition.name.zh)
    assert definition.how.en
    assert definition.how.zh
    assert definition.formula.count("{") == definition.formula.count("}")
    assert not re.search(r"\\[^A-Za-z]", definition.formula), "markdown eats a backslash before punctuation"
    assert isinstance(definition.unit, Unit)


@pytest.mark.parametrize("metric", sorted(DICTIONARY))
def test_terms_of_the_formula_stand_in_it_or_count_its_samples(metric):
    measured = DICTIONARY[metric].compute(FACTS)
    if isinstance(measured, Quantity):
        loose = [symbol for symbol in measured.terms if symbol not in DICTIONARY[metric].formula]
        assert loose in ([], ["N"])
