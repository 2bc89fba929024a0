"""The adapters of engines that are driven step by step, against stand-ins for packages that need a GPU."""

import sys

import pytest

from tests.touchstone.engines import stand_ins
from touchstone.engines import nano_vllm, vllm
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.records import Lengths, WorkloadSpec
from touchstone.running.models import SYNTHETIC_SEED, ChosenModel, make_tiny_model, with_checkpoint
from touchstone.trace import tokens_sha256, what_is_wrong
from touchstone.workload import build, fixed, ranged


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    make_tiny_model(root / "tiny")
    return str(with_checkpoint(ChosenModel(None, root / "tiny", SYNTHETIC_SEED), "float32", root).folder)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanovllm", stand_ins.nanovllm)
    monkeypatch.setitem(sys.modules, "vllm", stand_ins.vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", stand_ins.vllm_sampling_params)
    monkeypatch.setattr(vllm, "_device_memory_bytes", lambda: 1 << 30)


@pytest.fixture(params=["nano-vllm", "vllm"])
def engine(request, folder):
    adapter = {"nano-vllm": nano_vllm, "vllm": vllm}[request.param]
    built = adapter.build(EngineSpec(request.param, folder, "cpu", "float32"))
    yield built
    built.close()


def run(engine, workload, seed=0):
    requests = build(workload, engine.vocabulary_size, seed)
    return requests, engine.generate(requests, concurrency=workload.concurrency)


def test_every_request_gets_its_own_tokens(engine):
    requests, trace = run(engine, ranged(7, (3, 40), (1, 9)))
    assert what_is_wrong(trace, requests) is None
    for asked, told in zip(requests, trace.requests, strict=True):
        expected = stand_ins.expected_tokens(asked.prompt_token_ids, asked.num_output_tokens)
        assert told.output_sha256 == tokens_sha256(expected)
        assert told.cached_tokens == 0


def test_requests_arrive_at_their_time_or_when_another_has_ended(engine):
    timed = WorkloadSpec(
        num_requests=4,
        input_tokens=Lengths(low=6, high=6),
        output_tokens=Lengths(low=3, high=3),
        request_rate_per_s=200.0,
    )
    requests, trace = run(engine, timed)
    assert what_is_wrong(trace, requests) is None
    assert [told.arrival_ns for told in trace.requests] == [asked.arrival_ns for asked in requests]
    requests, trace = run(engine, fixed(5, 6, 3, concurrency=2))
    assert what_is_wrong(trace, requests) is None
    in_flight = [
        sum(
            other.arrival_ns <= told.arrival_ns < trace.emission_times_ns[other.emissions[-1]]
            for other in trace.requests
        )
        for told in trace.requests
    ]
    assert max(in_flight) <= 2


def test_two_tokens_of_one_step_share_its_moment(folder):
    engine = vllm.build(EngineSpec("vllm", folder, "cpu", "float32"))
    _, trace = run(engine, fixed(1, 5, 4))
    assert trace.requests[0].emissions == (0, 0, 1, 1)
    engine.close()


def test_vllm_is_shut_down_at_the_end(folder):
    engine = vllm.build(EngineSpec("vllm", folder, "cpu", "float32", options={"kv_cache_bytes": 1 << 28}))
    core = engine._llm.llm_engine
    assert engine._llm.options["gpu_memory_utilization"] == 0.35
    engine.close()
    assert core.was_shut_down


class TestNanoVllmOverheard:
    @pytest.fixture
    def build(self, folder):
        return lambda **options: nano_vllm.build(EngineSpec("nano-vllm", folder, "cpu", "float32", options=options))

    def test_steps_tell_what_was_computed_in_them(self, build):
        engine = build()
        _, trace = run(engine, fixed(3, 20, 4))
        assert [step.kind for step in trace.steps] == ["prefill"] + ["decode"] * 3
        assert sum(step.prefill_tokens for step in trace.steps) == 60
        assert [step.decode_tokens for step in trace.steps] == [0, 3, 3, 3]
        assert all(step.launched_ns is None for step in trace.steps)
        assert trace.steps[0].graph is False
        assert trace.steps[1].graph is True
        assert trace.peak_concurrency == 3
        assert trace.peak_kv_blocks_used > 0

    def test_a_prompt_prefilled_in_parts_was_not_cached(self, build):
        engine = build(max_num_batched_tokens=16)
        requests, trace = run(engine, fixed(1, 40, 2))
        assert what_is_wrong(trace, requests) is None
        assert [step.prefill_tokens for step in trace.steps] == [16, 16, 8, 0]
        assert trace.requests[0].cached_tokens == 0

    def test_a_preemption_is_counted_and_the_tokens_stay_the_same(self, build):
        engine = build(max_num_seqs=2)
        requests, trace = run(engine, fixed(2, 10, 4))
        assert what_is_wrong(trace, requests) is None
        assert [told.preemptions for told in trace.requests] == [0, 1]

    def test_the_scheduler_has_its_own_methods_back_after_a_run(self, build):
        engine = build()
        run(engine, fixed(2, 5, 2))
        scheduler = engine._llm.scheduler
        assert "schedule" not in vars(scheduler)
        assert "preempt" not in vars(scheduler)

    def test_without_graphs_no_step_claims_one(self, build):
        engine = build(cuda_graphs=False)
        _, trace = run(engine, fixed(2, 5, 3))
        assert not any(step.graph for step in trace.steps)
        assert engine.facts().settings["cuda_graphs"] is False

    def test_what_it_cannot_start_with_is_an_engine_error(self, build, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("kvcache_block_size")

        monkeypatch.setattr(stand_ins.nanovllm, "LLM", refuse)
        with pytest.raises(EngineError, match="AssertionError kvcache_block_size"):
            build()
