"""The independent arithmetic against the libraries that the results use: two ways, one number."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.touchstone.factories import make_engine, make_memory, make_trace
from tests.touchstone.report_sample import sample_trace
from touchstone.analysis import statistics
from touchstone.analysis.formulas import RunFacts
from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.analysis.quantities import Quantity
from touchstone.records import DeviceWork
from touchstone.reporting import formatting
from touchstone.verify import arithmetic, digits, expected, observed

values = st.lists(st.floats(0.01, 1e6), min_size=3, max_size=9)


@pytest.mark.no_cover
@pytest.mark.parametrize("freedom", [1, 2, 5, 11, 40])
def test_students_t_agrees_with_scipy(freedom):
    for t in (0.0, 0.1, 1.0, 2.5, 7.0, 40.0):
        assert arithmetic.t_two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-10)
    for level in (0.9, 0.95):
        wanted = stats.t.ppf((1 + level) / 2, freedom)
        assert arithmetic.t_quantile(level, freedom) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("n", range(1, 31))
def test_ranks_of_the_medians_interval_agree_with_scipy(n):
    interval = statistics.median_interval(range(1, n + 1))
    ranks = arithmetic.median_ranks(n)
    assert (ranks is None) == (interval is None)
    if ranks is not None:
        assert ranks[:2] == (interval.low, interval.high)
        assert ranks[2] == pytest.approx(interval.level, rel=1e-12)


@pytest.mark.no_cover
@given(values)
def test_summary_agrees_with_the_results_code(scores):
    mine = expected.summary(scores, len(scores), counted=False)
    theirs = statistics.summarize(scores, planned=len(scores))
    told = {
        name: value.model_dump() if hasattr(value, "model_dump") else value
        for name in ("n", "median", "interval", "log_t_interval", "max_deviation", "drift", "drift_p", "indicative")
        for value in [getattr(theirs, name)]
    }
    assert list(expected.differences({name: mine[name] for name in told}, told, "summary")) == []


@given(st.lists(st.sampled_from([1.0, 1.01, 1.2, 3.0]), min_size=1, max_size=12), st.booleans())
def test_verdicts_agree_with_the_results_code(scores, counted):
    mine = expected.summary(scores, 3, counted=counted)["verdict"]
    assert mine == statistics.judge(scores, planned=3, counted=counted)


def test_kendalls_p_agrees_with_scipy_with_and_without_ties():
    chance = random.Random(5)
    for n in (3, 4, 6, 9, 12):
        for _ in range(20):
            scores = [chance.choice([chance.random(), 0.5]) for _ in range(n)]
            if len(set(scores)) > 1:
                assert arithmetic.kendall_p(scores) == pytest.approx(statistics.drift_p(scores), abs=1e-12)


@pytest.mark.no_cover
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.floats(-0.5, 0.5, allow_subnormal=False), min_size=6, max_size=8), min_size=1, max_size=4))
def test_effects_agree_with_the_results_code(families):
    theirs = statistics.ablation_effects(families)
    adjusted = arithmetic.holm([expected._t_p(ratios) for ratios in families])
    for ratios, p, effect in zip(families, adjusted, theirs, strict=True):
        mine = expected._tested(ratios, p, statistics.MARGIN)
        assert mine["p_sign_flip"] == pytest.approx(effect.p_sign_flip)
        assert mine["p_holm"] == pytest.approx(effect.p_holm, abs=1e-9)
        assert mine["ratio"] == pytest.approx(effect.ratio)
        assert mine["verdict"] == effect.verdict


# --- metrics --------------------------------------------------------------------------------------------------------

TRACES = {
    "two requests": make_trace(device_ms=5, cached=(16, 0), arrivals_ms=(0, 3)),
    "one token each": make_trace(outputs=1),
    "many": sample_trace(speed=1.3, cached=8, requests=40),
    "no steps": make_trace().model_copy(update={"steps": None}),
}


PROFILED = tuple(
    DeviceWork(device=f"cuda:{rank}", span_ns=7_000_003 + rank, busy_ns=1_234_567 * rank, communication_ns=89 + rank)
    for rank in range(3)
)


@pytest.mark.parametrize("metric", ["device_busy_share", "communication_share"])
@pytest.mark.parametrize("work", [(), PROFILED[:1], PROFILED])
def test_shares_of_a_profiled_run_are_worked_out_again(metric, work):
    theirs = DICTIONARY[metric].compute(RunFacts(make_trace(), device_work=work))
    run = observed.observe(make_trace().model_dump(mode="json"), {}, None)
    mine = observed.METRICS[metric].compute(replace(run, device_work=[one.model_dump(mode="json") for one in work]))
    assert (mine is None) == (not isinstance(theirs, Quantity)) == (not work)
    if mine is not None:
        assert mine.value == pytest.approx(theirs.value, rel=1e-12)
        assert mine.terms == pytest.approx(dict(theirs.terms), rel=1e-12)
        assert mine.size == theirs.sample_size


@pytest.mark.parametrize("metric", DICTIONARY)
@pytest.mark.parametrize("name", TRACES)
def test_every_metric_of_the_dictionary_is_worked_out_again(metric, name):
    trace, memory = TRACES[name], make_memory(cuda_graphs_bytes=None)
    engine = make_engine(num_kv_blocks=64)
    theirs = DICTIONARY[metric].compute(RunFacts(trace, memory=memory, engine=engine))
    entry = {"memory": memory.model_dump(mode="json"), "telemetry": None}
    run = observed.observe(trace.model_dump(mode="json"), entry, engine.model_dump(mode="json"))
    mine = observed.METRICS[metric].compute(run)
    assert (mine is None) == (not isinstance(theirs, Quantity))
    if mine is not None:
        assert mine.value == pytest.approx(theirs.value, rel=1e-12)
        assert mine.terms == pytest.approx(dict(theirs.terms), rel=1e-12)
        assert mine.size == theirs.sample_size


def test_units_kinds_and_comparisons_are_those_of_the_dictionary():
    assert observed.METRICS.keys() == DICTIONARY.keys()
    for name, metric in observed.METRICS.items():
        assert (metric.unit, metric.counted) == (DICTIONARY[name].unit, DICTIONARY[name].counted)
    assert observed.COMPARISONS.keys() == COMPARISONS.keys()
    for name, (metric, unit, made) in observed.COMPARISONS.items():
        theirs = COMPARISONS[name]
        assert (metric, unit) == (theirs.metric, theirs.unit)
        assert made(0.7) == pytest.approx(theirs.transform(0.7))


def test_gaps_of_one_request_never_reach_into_the_next():
    trace = make_trace(prompts=(5, 5, 5), outputs=4, decode_ms=7)
    run = observed.observe(trace.model_dump(mode="json"), {}, None)
    assert np.array_equal(run.gaps, np.full(9, 7_000_000))


# --- digits ---------------------------------------------------------------------------------------------------------

amounts = st.floats(1e-9, 1e12) | st.sampled_from([0.0, 1.0, 0.5, 2.5, 50.625, 999.5, 9999.5, 10000.0, 131072000.0])
noises = st.none() | st.just(0.0) | st.floats(1e-9, 1e12)


@given(amounts, noises, st.booleans())
def test_numbers_are_written_as_the_report_writes_them(amount, noise, negative):
    value = -amount if negative else amount
    place = formatting.last_place(value, noise)
    assert digits.place_of(value, noise) == place
    assert digits.written(value, place) == formatting.fixed(value, place)
    assert digits.plain(value) == formatting.exact(value).replace(",", "")
    assert float(digits.plain(value)) == pytest.approx(value, rel=5e-6, abs=0)


@pytest.mark.parametrize("p", [1.0, 0.05, 0.0314, 0.001, 0.00099, 1e-9])
def test_p_values_are_written_as_the_report_writes_them(p):
    from touchstone.reporting.numbers import p_value  # noqa: PLC0415  only this test needs it

    assert digits.p_value(p) == digits.numbers(p_value(p))


def test_signs_belong_to_numbers_and_hyphens_do_not():
    assert digits.signed_numbers("[-3.1, 4] ms") == ["-3.1", "4"]
    assert digits.signed_numbers("r = -0.5") == ["-0.5"]
    assert digits.numbers("2.1-b0: 11,800") == ["2.1", "0", "11800"]


def test_the_natural_logarithm_of_equal_counts_is_the_same_by_both_routes():
    assert expected._constant([math.log(3), math.log(6) - math.log(2)])


# --- independence -----------------------------------------------------------------------------------------------------


def test_no_arithmetic_is_shared_and_neither_torch_nor_scipy_is_loaded():
    """Only `again` and the lint of the templates need the instrument's own analysis, reporting and libraries."""
    program = (
        "import sys\n"
        "from touchstone.verify import printed, verification\n"
        "banned = ('touchstone.analysis', 'touchstone.reporting', 'scipy', 'torch', 'matplotlib', 'nanoinfer')\n"
        "print([name for name in sys.modules if name.startswith(banned)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
