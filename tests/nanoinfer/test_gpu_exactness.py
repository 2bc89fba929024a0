"""On a GPU: tokens of transformers for long prompts and large batches, and equal tokens from layers of every size."""

import itertools
import json
import random
import threading
from collections import defaultdict

import pytest
import torch

from nanoinfer import LLM, SamplingParams
from nanoinfer.execution import build
from nanoinfer.model.ops import REFERENCE

pytestmark = pytest.mark.gpu

LONG_PROMPTS = (4096, 4095, 2048, 2049, 1000, 1023, 513, 257)
SHORT_PROMPTS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200, 255)
BATCHES = (1, 3, 5, 20, 133, 256)


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


@pytest.fixture(scope="module")
def requests():
    """256 (prompt, max_tokens) pairs, long and short ones mixed, many with a beginning of 40 tokens in common."""
    draw = random.Random(11)
    shared = [draw.randrange(320) for _ in range(40)]
    lengths = [*LONG_PROMPTS, *itertools.islice(itertools.cycle(SHORT_PROMPTS), 256 - len(LONG_PROMPTS))]
    prompts = [
        [*(shared if index % 3 == 0 and length > 40 else []), *(draw.randrange(320) for _ in range(length))][:length]
        for index, length in enumerate(lengths)
    ]
    pairs = [(prompt, 6 + index % 4) for index, prompt in enumerate(prompts)]  # enough for all to run at once
    draw.shuffle(pairs)
    return pairs


@pytest.fixture(scope="module")
def long_model(make_tiny):
    """A small model whose positions reach beyond the longest prompt."""
    return make_tiny("qwen3-bias", max_position_embeddings=4224)


@pytest.fixture(scope="module")
def expected(long_model, requests):
    """What transformers generates, prompts of one length together."""
    by_length = defaultdict(list)
    for index, (prompt, _) in enumerate(requests):
        by_length[len(prompt)].append(index)
    tokens = {}
    for indices in by_length.values():
        found = long_model.greedy_batch([requests[index][0] for index in indices], 9)
        tokens |= dict(zip(indices, found, strict=True))
    return [tokens[index][:max_tokens] for index, (_, max_tokens) in enumerate(requests)]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_prompts_up_to_4096_tokens_in_batches_up_to_256_give_the_tokens_of_transformers(
    long_model, requests, expected, prefix_cache, scheduling, overlap, cuda_graphs
):
    with LLM(
        long_model.folder,
        device="cuda",
        dtype="float32",
        prefix_cache=prefix_cache,
        scheduling=scheduling,
        overlap=overlap,
        cuda_graphs=cuda_graphs,
        max_num_batched_tokens=8000,
        num_kv_blocks=4096,
    ) as llm:
        for count in BATCHES:
            chosen = requests[:count]
            outputs = llm.generate([prompt for prompt, _ in chosen], [greedy(tokens) for _, tokens in chosen])
            assert [output.token_ids for output in outputs] == expected[:count]
        steps = llm.take_step_facts()
        assert max(step.num_requests for step in steps) == 256
        for has_prompts in (True, False):
            assert any(step.graph for step in steps if (step.num_prefill_tokens > 0) == has_prompts) == cuda_graphs


LAYERS = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32},
}


@pytest.fixture
def folder(tmp_path):
    """Make a model folder of two layers of a larger Qwen3; the vocabulary is small, so that few choices are close."""

    def make(name):
        config = {
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": 1000,
            "num_hidden_layers": 2,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
        }
        (tmp_path / "config.json").write_text(json.dumps(config | LAYERS[name]), encoding="utf-8")
        return str(tmp_path)

    return make


def tokens_of(folder, prompts, max_tokens, **options):
    with LLM(
        folder, device="cuda", dtype="float32", weights="synthetic", max_num_batched_tokens=4096, **options
    ) as llm:
        outputs = llm.generate(prompts, greedy(max_tokens))
    torch.cuda.empty_cache()
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize(
    ("name", "num_prompts", "lengths", "max_tokens"),
    [
        ("1.7B", 512, (1, 64), 4),
        ("8B", 512, (1, 64), 3),
        ("1.7B", 12, (1, 3000), 8),
        ("4B", 12, (1, 3000), 8),
        ("4B", 1, (32_000, 32_000), 5),
    ],
)
def test_layers_of_larger_models_give_the_tokens_of_the_reference_kernels(
    folder, name, num_prompts, lengths, max_tokens, monkeypatch
):
    draw = random.Random(num_prompts)
    prompts = [[draw.randrange(1000) for _ in range(draw.randint(*lengths))] for _ in range(num_prompts)]
    options = {"max_num_seqs": num_prompts, "num_kv_blocks": 6000}
    found = tokens_of(folder(name), prompts, max_tokens, **options)
    monkeypatch.setattr(build, "select_ops", lambda _device, _head_dim: REFERENCE)
    wanted = tokens_of(folder(name), prompts, max_tokens, cuda_graphs=False, **options)
    # One sum in another order decides a near tie otherwise, and then the rest of that output.
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= max_tokens * (num_prompts // 250)


def test_every_kernel_was_compiled_side_by_side_before_a_step_needed_it(folder, monkeypatch):
    late = []

    def note(*, fn, **_rest):
        if not threading.current_thread().name.startswith("compile"):
            late.append(fn.name)

    knobs = pytest.importorskip("triton").knobs
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", note)
    monkeypatch.setitem(LAYERS["1.7B"], "hidden_size", 640)  # a shape of its own, whose kernels no other test compiled
    monkeypatch.setitem(LAYERS["1.7B"], "intermediate_size", 896)
    options = {"device": "cuda", "dtype": "float16", "weights": "synthetic", "num_kv_blocks": 600, "max_num_seqs": 160}
    with LLM(folder("1.7B"), **options) as llm:
        llm.generate([[1] * 100] * 40, SamplingParams(max_tokens=5, ignore_eos=True))
    assert late == []
