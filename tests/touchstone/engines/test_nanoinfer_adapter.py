import pytest
import torch

from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.registry import build_engine, load_adapter
from touchstone.records import WorkloadSpec
from touchstone.running.models import make_tiny_model
from touchstone.trace import what_is_wrong
from touchstone.workload import build, fixed

POOL = 1 << 22


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder)

    def make(**options):
        return EngineSpec("nanoinfer", str(folder), "cpu", "float32", options={"kv_cache_bytes": POOL} | options)

    return make


@pytest.fixture(scope="module")
def engine(spec):
    built = build_engine(spec())
    yield built
    built.close()


def run(engine, workload, seed=0):
    requests = build(workload, engine.vocabulary_size, seed)
    return requests, engine.generate(requests, concurrency=workload.concurrency)


def test_a_run_is_the_work_that_was_asked_for(engine):
    requests, trace = run(engine, fixed(6, 20, 5))
    assert what_is_wrong(trace, requests) is None
    assert trace.peak_concurrency == 6
    assert sum(step.prefill_tokens for step in trace.steps) == 6 * 20
    assert sum(step.decode_tokens for step in trace.steps) == 6 * 4
    assert trace.peak_kv_blocks_used >= 6 * 2
    assert all(request.cached_tokens == 0 for request in trace.requests)


def test_one_after_the_other_means_that_each_arrives_when_the_last_has_ended(engine):
    _, trace = run(engine, fixed(4, 20, 3, concurrency=1))
    assert trace.peak_concurrency == 1
    ends = [trace.emission_times_ns[request.emissions[-1]] for request in trace.requests]
    assert all(request.arrival_ns >= end for request, end in zip(trace.requests[1:], ends, strict=False))


def test_a_bound_between_one_and_all_is_kept(engine):
    requests, trace = run(engine, fixed(7, 10, 4, concurrency=3))
    assert what_is_wrong(trace, requests) is None
    assert trace.peak_concurrency <= 3


def test_requests_arrive_at_their_time_and_are_scheduled_later(engine):
    lengths = fixed(1, 10, 2)
    workload = WorkloadSpec(
        num_requests=5,
        input_tokens=lengths.input_tokens,
        output_tokens=lengths.output_tokens,
        request_rate_per_s=200.0,
    )
    requests, trace = run(engine, workload)
    assert what_is_wrong(trace, requests) is None
    for asked, told in zip(requests, trace.requests, strict=True):
        assert told.arrival_ns == asked.arrival_ns
        assert told.scheduled_ns >= told.arrival_ns


def test_how_requests_are_submitted_does_not_change_their_tokens(engine):
    _, together = run(engine, fixed(4, 20, 5), seed=9)
    _, alone = run(engine, fixed(4, 20, 5, concurrency=1), seed=9)
    _, others = run(engine, fixed(4, 20, 5), seed=10)
    assert together.output_sha256 == alone.output_sha256 != others.output_sha256


def test_a_repeated_prompt_is_told_as_cached_and_another_engine_starts_cold(engine, spec):
    run(engine, fixed(3, 40, 2), seed=77)
    _, again = run(engine, fixed(3, 40, 2), seed=77)
    assert all(request.cached_tokens >= 32 for request in again.requests)
    cold = build_engine(spec(prefix_cache=False))
    for _ in range(2):
        _, trace = run(cold, fixed(3, 40, 2), seed=77)
        assert all(request.cached_tokens == 0 for request in trace.requests)
    cold.close()


def test_memory_parts_close_to_the_total(engine):
    run(engine, fixed(3, 20, 3))
    parts = engine.memory()
    known = parts.weights_bytes + parts.kv_pool_bytes + (parts.activations_peak_bytes or 0)
    assert known + parts.context_and_other_bytes + parts.residual_bytes == parts.device_total_peak_bytes
    assert POOL <= parts.kv_pool_bytes < 2 * POOL
    assert 0 < parts.kv_used_peak_bytes <= parts.kv_pool_bytes


def test_facts_name_settings_and_shape_and_no_path(engine, spec):
    facts = engine.facts()
    assert facts.settings["prefix_cache"] is True
    assert facts.settings["num_kv_blocks"] > 0
    assert facts.model["num_layers"] == 2
    assert spec().model not in facts.model_dump_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 9}, "has no option speed"),
        ({"block_size": 7}, "block_size is 7"),
        ({"model": "x"}, "no option model"),
    ],
)
def test_options_that_cannot_be_set_are_refused(spec, options, message):
    with pytest.raises(EngineError, match=message):
        build_engine(spec(**options))


def test_a_prompt_over_the_limit_is_an_engine_error(engine):
    with pytest.raises(EngineError):
        run(engine, fixed(1, 4000, 2))


def test_a_module_that_is_no_adapter_says_what_it_lacks():
    with pytest.raises(EngineError, match=r"offers no capabilities and no build\(\)"):
        load_adapter("json")
