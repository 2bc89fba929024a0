"""Floors by hand, and the sample figures of the plan, which no machine can reach."""

from __future__ import annotations

import pytest

from tests.touchstone.factories import make_trace
from tests.touchstone.machine_samples import QWEN3_0_6B, RTX_3090, engine, reading
from touchstone.analysis.formulas import RunFacts
from touchstone.analysis.roofline import (
    MAX_SHARE,
    Peaks,
    fastest,
    model_work,
    roofline_of,
    too_fast,
    too_slow,
    work_of,
)

LAYERS = 28 * (1024 * 128 * (2 * 16 + 2 * 8) + 3 * 1024 * 3072)
HEAD = 151_936 * 1024
PEAKS = Peaks(flops_per_s=1e13, bytes_per_s=1e12, operation_s=5e-6)


def roofline(metric, trace, value=1.0, peaks=PEAKS, device="cuda", facts=None, *, alone=False):
    return roofline_of(metric, RunFacts(trace, None, facts or engine()), value, peaks, device, alone=alone)


def test_the_shape_gives_the_440_million_parameters_outside_the_embeddings():
    model = model_work(engine())
    assert model.layer_parameters == LAYERS == 440_401_920
    assert model.kv_bytes_per_token == 112 * 1024
    assert model.flops_per_pair == 4 * 16 * 128 * 28


@pytest.mark.parametrize("missing", QWEN3_0_6B)
def test_an_engine_that_does_not_tell_its_shape_has_no_roofline(missing):
    told = {name: value for name, value in QWEN3_0_6B.items() if name != missing}
    assert model_work(engine(told)) is None
    assert roofline("total_time", make_trace(), facts=engine(told)) is None


def test_decode_floor_is_weights_and_kv_over_bandwidth():
    """Two requests of 100 + 3 tokens: two decode steps read the weights twice, and contexts of 101 and 102 tokens."""
    work = work_of(make_trace(), "decode", model_work(engine()), PEAKS, "cuda")
    kv = 2 * (101 + 102) * 112 * 1024
    assert work.num_bytes == 2 * (LAYERS + HEAD) * 2 + kv
    assert work.num_flops == 4 * 2 * (LAYERS + HEAD) + 2 * (101 + 102) * 4 * 16 * 128 * 28
    assert work.floor_s == pytest.approx(work.num_bytes / 1e12)


def test_prefill_floor_is_operations_over_speed_without_cached_tokens():
    trace = make_trace(prompts=(1000, 1000), cached=(0, 200))
    work = work_of(trace, "prefill", model_work(engine()), PEAKS, "cuda")
    pairs = 2 * 1000 * 1001 // 2 - 200 * 201 // 2
    assert work.num_flops == 2 * LAYERS * 1800 + pairs * 4 * 16 * 128 * 28
    assert work.floor_s == pytest.approx(work.num_flops / 1e13)


def test_ranks_share_the_work():
    one, two = (
        work_of(make_trace(), "decode", model_work(engine(tensor_parallel_size=size)), PEAKS, "cuda") for size in (1, 2)
    )
    assert two.floor_s == one.floor_s / 2


def test_peaks_are_the_fastest_readings_so_that_no_floor_is_too_high():
    peaks = fastest([reading(1e12, 3e11, 2e-6), reading(2e12, 1e11, 4e-6), reading(1e12, 1e11, 9e-6)])
    assert (peaks.flops_per_s, peaks.bytes_per_s, peaks.operation_s) == (2e12, 3e11, 4e-6)
    assert fastest([]) is None


def test_bound_of_a_rate_is_above_it_and_of_a_time_below():
    trace = make_trace(decode_ms=10)
    rate, time = (roofline(name, trace, 200.0) for name in ("decode_throughput", "decode_step_time"))
    assert rate.share == time.share == pytest.approx(rate.floor_s / 0.02)
    assert rate.bound == pytest.approx(200 / rate.share)
    assert time.bound == pytest.approx(200 * time.share)


def test_a_latency_is_held_against_the_steps_only_where_no_request_waits_for_another():
    assert roofline("tpot_mean", make_trace()) is None
    assert roofline("tpot_mean", make_trace(), alone=True) is not None


def test_a_graph_starts_all_operations_at_once_so_that_starting_them_explains_nothing():
    trace = make_trace(decode_ms=100)
    slow = Peaks(1e15, 1e13, 5e-5)
    assert roofline("decode_throughput", trace, peaks=slow).explanation is not None
    graphs = trace.model_copy(update={"steps": tuple(s.model_copy(update={"graph": True}) for s in trace.steps)})
    replayed = roofline("decode_throughput", graphs, peaks=slow)
    assert replayed.launch_s is None
    assert "does not explain it" in too_slow(replayed).en


@pytest.mark.parametrize(("operation_s", "refused"), [(2e-5, False), (4e-6, True)])
def test_the_launch_rule_is_itself_a_bound(operation_s, refused):
    """28 layers x 12 operations: at 20 us each they take 6.7 ms of a step of 50 ms, at 4 us 1.3 ms, below a tenth."""
    found = roofline("decode_throughput", make_trace(decode_ms=50), peaks=Peaks(1e15, 1e13, operation_s))
    assert (too_slow(found) is not None) is refused


class TestSampleFiguresOfThePlan:
    """Each sample figure is refused with its bound and both inputs named."""

    PEAKS = fastest([RTX_3090])

    def test_131_072_000_decode_tokens_a_second(self):
        """131,072 tokens in one millisecond would need 1.3e17 FLOP/s."""
        trace = make_trace(prompts=[512] * 256, outputs=513, prefill_ms=1000, decode_ms=1 / 512)
        found = roofline("decode_throughput", trace, 131_072_000.0, peaks=self.PEAKS)
        assert found.num_flops / 0.001 > 1.1e17
        assert found.share > 1000
        assert found.bound < 131_072
        text = too_fast(found).en
        assert "F = 1.42e+14 FLOP/s" in text
        assert "B = 9.36e+11 B/s" in text

    def test_a_total_time_of_0_3316_s_for_262_144_tokens(self):
        """The prefill of 131,072 tokens alone takes 0.8 s at 142 TFLOP/s; the decode time is missing besides."""
        trace = make_trace(prompts=[512] * 256, outputs=513, prefill_ms=331.5, decode_ms=0.1 / 512)
        prefill = roofline("prefill_throughput", trace, 131_072 / 0.3315, peaks=self.PEAKS)
        assert 0.8 < prefill.floor_s < 1.0
        assert too_fast(prefill) is not None
        total = roofline("total_time", trace, 0.3316, peaks=self.PEAKS)
        assert total.bound > 0.8
        assert total.share > 2.4 > MAX_SHARE
        assert too_fast(total) is not None

    def test_at_half_the_speed_of_fp32_accumulation_it_is_twice_as_impossible(self):
        trace = make_trace(prompts=[512] * 256, outputs=2, prefill_ms=331.5, decode_ms=0.1)
        slower = roofline("prefill_throughput", trace, peaks=fastest([reading(71e12, 936e9)]))
        assert slower.floor_s > 1.6


@pytest.mark.parametrize(
    ("ranks", "times_the_floor", "explained"), [(1, 20.0, False), (8, 20.0, True), (8, 70.0, True), (8, 90.0, False)]
)
def test_several_devices_may_be_as_slow_as_one_by_what_they_exchange_and_no_slower(ranks, times_the_floor, explained):
    """Graphs replay, so starting operations explains nothing; the floor of eight devices leaves their exchange out."""
    trace = make_trace(decode_ms=1)
    floor = work_of(trace, None, model_work(engine(tensor_parallel_size=ranks)), PEAKS, "cuda").floor_s
    trace = make_trace(prefill_ms=1e3 * times_the_floor * floor - 0.02, decode_ms=0.01)
    steps = tuple(step.model_copy(update={"graph": True}) for step in trace.steps)
    found = roofline("total_time", trace.model_copy(update={"steps": steps}), facts=engine(tensor_parallel_size=ranks))
    assert found.share == pytest.approx(1 / times_the_floor)
    assert (found.explanation is not None) == explained
    assert (too_slow(found) is None) == explained
    if explained:
        assert found.explanation.startswith("bound by what 8 devices exchange")
