"""What several devices tell, put together: by hand, and from real engines over gloo."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nanoinfer import StepFacts
from nanoinfer.execution.devices import DeviceMemory
from nanoinfer.execution.memory import MemoryFacts
from touchstone.analysis.formulas import engine_peak, peak_per_device
from touchstone.engines.base import EngineSpec
from touchstone.engines.registry import build_engine
from touchstone.engines.several_devices import parts_of_devices, peak_concurrency
from touchstone.running.models import make_tiny_model
from touchstone.trace import what_is_wrong
from touchstone.workload import build, fixed


def told(index, **changes):
    facts = {
        "weights_bytes": 100,
        "kv_pool_bytes": 1000,
        "kv_block_bytes": 10,
        "kv_used_peak_bytes": 400,
        "activations_peak_bytes": 30,
        "cuda_graphs_bytes": 5,
    }
    return DeviceMemory(f"cuda:{index}", MemoryFacts(**(facts | changes)), 1300 + index)


def test_parts_are_sums_over_the_devices_and_close_to_the_sum_of_their_totals():
    parts = parts_of_devices(
        [told(0), told(1)],
        device="cuda",
        ranks_an_engine=2,
        before_bytes=300,
        host_bytes=None,
        instrument_bytes=[None, None],
    )
    assert (parts.weights_bytes, parts.kv_pool_bytes, parts.activations_peak_bytes) == (200, 2000, 60)
    assert parts.device_total_peak_bytes == 2601
    known = 200 + 2000 + 60 + 10 + parts.context_and_other_bytes
    assert known + parts.residual_bytes == parts.device_total_peak_bytes
    assert [device.total_peak_bytes for device in parts.devices] == [1300, 1301]
    assert parts.instrument_bytes is None


def test_what_the_instrument_holds_is_a_part_of_the_context_and_told_for_each_device():
    parts = parts_of_devices(
        [told(0), told(1)],
        device="cuda",
        ranks_an_engine=1,
        before_bytes=300,
        host_bytes=None,
        instrument_bytes=[70, 20],
    )
    assert (parts.instrument_bytes, parts.context_and_other_bytes) == (90, 300)
    assert [device.instrument_bytes for device in parts.devices] == [70, 20]
    assert engine_peak(parts) == 1300 + 1301 - 90
    assert peak_per_device(parts) == 1301 - 20


def test_what_a_device_had_in_use_before_its_model_is_known_best_in_its_own_process():
    mine = [replace(told(index), bytes_before=160) for index in range(2)]
    parts = parts_of_devices(
        mine, device="cuda", ranks_an_engine=1, before_bytes=300, host_bytes=None, instrument_bytes=[None, None]
    )
    assert parts.context_and_other_bytes == 320
    parts = parts_of_devices(
        [mine[0], told(1)],
        device="cuda",
        ranks_an_engine=1,
        before_bytes=300,
        host_bytes=None,
        instrument_bytes=[None, None],
    )
    assert parts.context_and_other_bytes == 300, "one of them does not tell"


@pytest.mark.parametrize(("ranks_an_engine", "blocks"), [(2, 40), (1, 80)])
def test_a_block_lies_on_the_ranks_of_one_engine_and_replicas_have_blocks_of_their_own(ranks_an_engine, blocks):
    parts = parts_of_devices(
        [told(0), told(1)],
        device="cuda",
        ranks_an_engine=ranks_an_engine,
        before_bytes=0,
        host_bytes=None,
        instrument_bytes=[None, None],
    )
    assert parts.kv_used_peak_bytes // parts.kv_block_bytes == blocks


def test_a_part_that_one_device_cannot_tell_is_not_told():
    parts = parts_of_devices(
        [told(0), told(1, activations_peak_bytes=None)],
        device="cpu",
        ranks_an_engine=2,
        before_bytes=0,
        host_bytes=5000,
        instrument_bytes=[None, None],
    )
    assert parts.activations_peak_bytes is None
    assert parts.device_total_peak_bytes == 5000


def step(rank, begin, end, requests):
    return StepFacts(
        phase="decode",
        num_prefill_tokens=0,
        num_decode_tokens=requests,
        num_requests=requests,
        begin_ns=begin,
        launched_ns=begin,
        end_ns=end,
        device_ns=None,
        graph=False,
        rank=rank,
    )


@pytest.mark.parametrize(
    ("steps", "peak"),
    [
        ([], 0),
        ([step(0, 0, 5, 3), step(0, 4, 9, 2)], 3),
        ([step(0, 0, 5, 3), step(1, 1, 9, 4)], 7),
        ([step(0, 0, 5, 3), step(1, 6, 9, 4)], 4),
        ([step(0, 0, 5, 3), step(0, 8, 12, 1), step(1, 6, 9, 4)], 7),
    ],
)
def test_requests_of_replicas_count_together_while_both_have_work(steps, peak):
    assert peak_concurrency(steps) == peak


@pytest.mark.parametrize("option", ["tensor_parallel_size", "data_parallel_size"])
def test_two_ranks_do_the_work_that_was_asked_for_and_tell_of_each_device(tmp_path, option):
    torch.set_num_threads(1)
    make_tiny_model(tmp_path)
    spec = EngineSpec(
        "nanoinfer",
        str(tmp_path),
        "cpu",
        "float32",
        options={"kv_cache_bytes": 1 << 22, "prefix_cache": False, option: 2},
    )
    engine = build_engine(spec)
    try:
        requests = build(fixed(6, 20, 5), engine.vocabulary_size, 3)
        trace = engine.generate(requests)
        parts, facts = engine.memory(), engine.facts()
        assert engine.profile(requests) is None, "a processor has no kernels to record"
    finally:
        engine.close()
    assert what_is_wrong(trace, requests) is None
    assert sum(step.prefill_tokens for step in trace.steps) == 6 * 20
    assert sum(step.decode_tokens for step in trace.steps) == 6 * 4
    assert {step.rank for step in trace.steps} == ({0, 1} if option.startswith("data") else {0})
    assert trace.peak_concurrency == 6
    assert trace.peak_kv_blocks_used == parts.kv_used_peak_bytes // parts.kv_block_bytes >= 6 * 2
    assert len(parts.devices) == 2
    assert all(device.kv_pool_bytes == pytest.approx(1 << 22, rel=0.01) for device in parts.devices)
    assert facts.settings[option] == 2
