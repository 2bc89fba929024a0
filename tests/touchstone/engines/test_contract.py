"""What every adapter promises, whatever engine is behind it. A new adapter joins by an entry in ENGINES."""

import gc
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.touchstone.engines.completions_server import serving
from touchstone.engines.base import EngineError, EngineSpec, GenerationRequest
from touchstone.engines.registry import ADAPTERS, build_engine, load_adapter, why_not_installed
from touchstone.records import EngineFacts, Lengths, WorkloadSpec
from touchstone.running.models import SYNTHETIC_SEED, ChosenModel, make_tiny_model, with_checkpoint
from touchstone.running.models import TINY_CONFIG as CONFIG
from touchstone.trace import tokens_sha256, what_is_wrong
from touchstone.workload import build, fixed, ranged

POOL = {"kv_cache_bytes": 1 << 22}


@dataclass(frozen=True)
class Case:
    """An engine on a device; `steady` promises equal tokens when the same greedy requests come again."""

    engine: str
    device: str = "cpu"
    dtype: str = "float32"
    options: dict = field(default_factory=dict)
    steady: bool = True

    @property
    def name(self):
        return f"{self.engine}-{self.device}"


ON_GPU = {"device": "cuda", "dtype": "bfloat16"}
SMALL = {"max_model_len": 512, "max_num_seqs": 16}
ENGINES = [
    Case("nanoinfer", options=POOL),
    Case("transformers"),
    Case("openai-server"),
    Case("nanoinfer", **ON_GPU, options=POOL | SMALL),
    Case("transformers", **ON_GPU),
    Case("vllm", **ON_GPU, options=SMALL | {"kv_cache_bytes": 1 << 26}, steady=False),
    Case("nano-vllm", **ON_GPU, options=SMALL | {"memory_fraction": 0.5}, steady=False),
]


def marked(case):
    marks = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")] if case.device == "cuda" else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders with equal weights in each type."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root / "tiny")
    shape = ChosenModel(spec=None, folder=root / "tiny", synthetic_seed=SYNTHETIC_SEED)
    return lambda dtype: str(with_checkpoint(shape, dtype, root).folder)


@pytest.fixture(scope="module", params=[marked(case) for case in ENGINES])
def case(request):
    return request.param


@pytest.fixture(scope="module")
def built(case, checkpoints):
    """The engine under contract, built once for all its tests; then closed."""
    if (reason := why_not_installed(case.engine)) is not None:
        pytest.skip(reason)
    if case.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    folder = checkpoints(case.dtype)
    if case.engine != "openai-server":
        yield from opened(EngineSpec(case.engine, folder, case.device, case.dtype, options=case.options))
        return
    with serving(folder) as (url, _):
        yield from opened(EngineSpec(case.engine, folder, case.device, case.dtype, options={"url": url}))


def opened(spec):
    engine = build_engine(spec)
    yield engine
    engine.close()
    gc.collect()


def run(engine, workload, seed=0):
    requests = build(workload, engine.vocabulary_size, seed)
    return requests, engine.generate(requests, concurrency=workload.concurrency)


def test_requests_come_back_whole_in_their_order_and_at_their_forced_lengths(built):
    requests, trace = run(built, ranged(7, (5, 60), (1, 12)))
    assert what_is_wrong(trace, requests) is None
    assert [told.request_id for told in trace.requests] == list(range(7))
    assert [len(told.emissions) for told in trace.requests] == [asked.num_output_tokens for asked in requests]
    assert [told.prompt_tokens for told in trace.requests] == [len(asked.prompt_token_ids) for asked in requests]


@pytest.mark.no_cover
def test_a_stop_token_among_the_outputs_does_not_end_a_request(built):
    """With random weights some of many long outputs hold the end token; all must have their length all the same."""
    requests, trace = run(built, fixed(8, 12, 48), seed=3)
    assert what_is_wrong(trace, requests) is None
    assert max(told.distinct_tokens for told in trace.requests) > 1


def test_token_times_lie_in_the_timed_region_and_never_run_backwards(built):
    _, trace = run(built, fixed(4, 20, 6))
    assert list(trace.emission_times_ns) == sorted(trace.emission_times_ns)
    assert trace.emission_times_ns[0] > 0
    assert trace.emission_times_ns[-1] <= trace.duration_ns
    for told in trace.requests:
        assert list(told.emissions) == sorted(told.emissions)


def test_requests_arrive_when_the_workload_says_and_answer_later(built):
    """What an engine does before it takes a request is time that its user waits."""
    lengths = fixed(1, 10, 3)
    workload = WorkloadSpec(
        num_requests=5,
        input_tokens=lengths.input_tokens,
        output_tokens=Lengths(low=3, high=3),
        request_rate_per_s=50.0,
    )
    requests, trace = run(built, workload)
    assert what_is_wrong(trace, requests) is None
    for asked, told in zip(requests, trace.requests, strict=True):
        assert told.arrival_ns == asked.arrival_ns
        assert trace.emission_times_ns[told.emissions[0]] > asked.arrival_ns
        assert told.scheduled_ns is None or told.scheduled_ns >= told.arrival_ns


def test_one_after_the_other_means_that_each_arrives_when_the_last_has_ended(built):
    requests, trace = run(built, fixed(3, 20, 3, concurrency=1))
    assert what_is_wrong(trace, requests) is None
    ends = [trace.emission_times_ns[told.emissions[-1]] for told in trace.requests]
    assert all(told.arrival_ns >= end for told, end in zip(trace.requests[1:], ends, strict=False))


def test_prompts_that_were_never_seen_find_nothing_cached(built):
    _, trace = run(built, fixed(4, 300, 2), seed=11)
    assert all(told.cached_tokens in (0, None) for told in trace.requests)
    if built.capabilities.reports_cached_tokens:
        assert all(told.cached_tokens == 0 for told in trace.requests)


def test_an_engine_that_forgets_its_prompts_finds_nothing_of_them_cached(built):
    if not built.capabilities.forgets_prompts:
        pytest.skip("this engine cannot forget prompts; it is built anew instead")
    run(built, fixed(4, 300, 2), seed=13)
    assert built.forget_prompts()
    _, again = run(built, fixed(4, 300, 2), seed=13)
    assert all(told.cached_tokens == 0 for told in again.requests)


def test_the_same_greedy_requests_give_the_same_tokens_where_that_is_promised(built, case):
    if not case.steady:
        pytest.skip("this engine schedules by arrival between processes or reuses cached prefixes")
    _, first = run(built, fixed(4, 20, 8), seed=5)
    _, again = run(built, fixed(4, 20, 8), seed=5)
    _, others = run(built, fixed(4, 20, 8), seed=6)
    assert first.output_sha256 == again.output_sha256 != others.output_sha256


def test_a_positive_temperature_is_taken(built):
    prompt = tuple(range(1, 12))
    requests = [GenerationRequest(index, prompt, 6, temperature=0.8) for index in range(3)]
    assert what_is_wrong(built.generate(requests), requests) is None


def test_steps_account_for_every_token_where_they_are_told(built):
    requests, trace = run(built, fixed(5, 40, 6), seed=21)
    assert (trace.steps is not None) == built.capabilities.reports_steps
    if trace.steps is not None:
        assert sum(step.prefill_tokens for step in trace.steps) == sum(len(one.prompt_token_ids) for one in requests)
        assert sum(step.decode_tokens for step in trace.steps) == 5 * 5


def test_memory_is_told_or_the_capabilities_say_why_not(built):
    run(built, fixed(2, 20, 2))
    if built.capabilities.reports_memory_parts:
        assert built.memory().weights_bytes > 0
    else:
        assert built.memory() is None
        assert built.capabilities.unreported


def test_facts_name_engine_version_and_shape_and_no_path(built, case, checkpoints):
    facts = built.facts()
    assert isinstance(facts, EngineFacts)
    assert facts.name == case.engine
    assert facts.version
    assert facts.model["num_layers"] == CONFIG["num_hidden_layers"]
    assert facts.model["num_kv_heads"] == CONFIG["num_key_value_heads"]
    assert built.vocabulary_size == CONFIG["vocab_size"]
    assert checkpoints(case.dtype) not in facts.model_dump_json()


def test_engines_of_one_type_and_weights_agree_with_the_reference(case, built, checkpoints):
    """In float32 the greedy tokens of every engine are those of transformers, computed here without an adapter."""
    if case.dtype != "float32":
        pytest.skip("16-bit arithmetic may diverge")
    model = AutoModelForCausalLM.from_pretrained(checkpoints("float32"), dtype=torch.float32)
    requests, trace = run(built, fixed(2, 15, 5), seed=9)
    for asked, told in zip(requests, trace.requests, strict=True):
        ids = torch.tensor([asked.prompt_token_ids])
        with torch.inference_mode():
            for _ in range(5):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        tokens = ids[0, 15:].tolist()
        assert told.output_sha256 in (tokens_sha256(tokens), None)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_tells_what_it_can_without_its_engine(name):
    capabilities = load_adapter(name).capabilities()
    assert capabilities.fixed.keys() <= capabilities.options
    assert capabilities.reports_memory_parts or capabilities.unreported


@pytest.mark.parametrize("name", [case.name for case in ENGINES if case.device == "cuda"])
def test_engines_for_a_gpu_are_in_the_contract(name):
    assert name.removesuffix("-cuda") in ADAPTERS


def test_an_unknown_option_or_position_is_refused_before_anything_is_loaded(checkpoints):
    spec = EngineSpec("transformers", checkpoints("float32"), "cpu", "float32", options={"prefix_cache": True})
    with pytest.raises(EngineError, match="prefix_cache = False only, not True"):
        build_engine(spec)
    with pytest.raises(EngineError, match="no option speed"):
        build_engine(EngineSpec("vllm", "x", "cuda", "float16", options={"speed": 1}))


def test_closing_leaves_no_child_process(checkpoints):
    before = children()
    engine = build_engine(EngineSpec("transformers", checkpoints("float32"), "cpu", "float32"))
    run(engine, fixed(2, 8, 2))
    engine.close()
    assert children() == before


def children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split())
