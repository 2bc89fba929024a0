"""Greedy tokens equal those of transformers, whatever the switches; seeded tokens depend on the request alone."""

import copy
import dataclasses
import itertools
import random

import pytest
import torch

from nanoinfer import LLM, SamplingParams
from nanoinfer.execution import build
from nanoinfer.model import layers
from nanoinfer.model.ops import REFERENCE


def run_checked(llm, requests):
    """Step requests to their end, checking the scheduler's invariants after every step."""
    ids = [llm.add_request(prompt, sampling) for prompt, sampling in requests]
    outputs = {}
    while llm.has_unfinished:
        outputs |= {output.request_id: output for output in llm.step()}
        llm._engine.scheduler.check_invariants()
    return [outputs[request_id] for request_id in ids]


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


SWITCHES = list(
    itertools.product((True, False), ("separated", "mixed"), (2, 16), (13, 4096), ("tight", "ample"), (True, False))
)


@pytest.mark.no_cover
@pytest.mark.parametrize(("prefix_cache", "scheduling", "block_size", "budget", "pool", "overlap"), SWITCHES)
def test_greedy_tokens_equal_transformers_for_every_combination_of_switches(
    tiny, ragged, prefix_cache, scheduling, block_size, budget, pool, overlap
):
    model = tiny("qwen3")
    longest = max(len(prompt) + max_tokens for prompt, max_tokens in ragged)
    tight = -(-longest // block_size) + 1
    llm = LLM(
        model.folder,
        device="cpu",
        prefix_cache=prefix_cache,
        scheduling=scheduling,
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=5,
        max_model_len=longest,
        num_kv_blocks=tight if pool == "tight" else 8 * tight,
        overlap=overlap,
    )
    requests = [(prompt, greedy(max_tokens)) for prompt, max_tokens in ragged]
    for _ in range(2 if prefix_cache else 1):  # the second time from the cache, as far as nothing was evicted
        outputs = run_checked(llm, requests)
        assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    hits = sum(output.facts.num_cached_tokens for output in outputs)
    if not prefix_cache:
        assert hits == 0
    elif pool == "ample":
        assert hits > 0


@pytest.mark.no_cover
@pytest.mark.parametrize("shape", ["qwen3", "qwen3-bias", "qwen2", "llama", "llama-bias"])
@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
def test_greedy_tokens_of_each_family_equal_transformers(tiny, ragged, shape, scheduling):
    model = tiny(shape)
    with LLM(model.folder, device="cpu", scheduling=scheduling, max_num_batched_tokens=19, num_kv_blocks=64) as llm:
        outputs = llm.generate([p for p, _ in ragged], [greedy(n) for _, n in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    assert len({token for output in outputs for token in output.token_ids}) > 20


@pytest.mark.parametrize("shape", ["qwen3", "qwen3-bias", "llama-bias"])
@pytest.mark.parametrize("few_rows", [1, 3])
def test_steps_of_few_rows_give_the_same_tokens(tiny, ragged, shape, few_rows, monkeypatch):
    monkeypatch.setattr(
        build, "select_ops", lambda _device, _head_dim: dataclasses.replace(REFERENCE, few_rows=few_rows)
    )
    model = tiny(shape)
    with LLM(model.folder, device="cpu", num_kv_blocks=64) as llm:
        outputs = llm.generate([p for p, _ in ragged], [greedy(n) for _, n in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]


@pytest.mark.parametrize("shape", ["qwen3", "llama-bias"])
def test_residuals_added_within_products_give_the_same_tokens(tiny, ragged, shape, monkeypatch):
    monkeypatch.setattr(layers, "MANY_ROWS", 4)
    model = tiny(shape)
    with LLM(model.folder, device="cpu", num_kv_blocks=64) as llm:
        outputs = llm.generate([p for p, _ in ragged], [greedy(n) for _, n in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["qwen2"])  # test_gpu_exactness.py runs qwen3-bias
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("budget", [13, 4096])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_greedy_tokens_on_a_gpu_equal_transformers(
    tiny, ragged, shape, prefix_cache, scheduling, budget, overlap, cuda_graphs
):
    model = tiny(shape)
    llm = LLM(
        model.folder,
        device="cuda",
        dtype="float32",
        prefix_cache=prefix_cache,
        scheduling=scheduling,
        max_num_batched_tokens=budget,
        max_num_seqs=7,
        num_kv_blocks=12,
        overlap=overlap,
        cuda_graphs=cuda_graphs,
    )
    outputs = run_checked(llm, [(prompt, greedy(max_tokens)) for prompt, max_tokens in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    steps = llm.take_step_facts()
    assert all(step.device_ns > 0 for step in steps)
    assert all(step.graph == cuda_graphs for step in steps)
    assert (llm.memory().cuda_graphs_bytes is not None) == cuda_graphs


def logits_of(llm, prompts, num_tokens):
    """Generate greedily; returns the sequences and the logits (prompts, num_tokens, V) that chose their last tokens."""
    runner, seen = llm._engine.execution.runner, []
    head = runner.model.logits

    def watched(hidden):
        seen.append(head(hidden))
        return seen[-1]

    runner.model.logits = watched
    outputs = llm.generate(prompts, greedy(num_tokens))
    return [output.prompt_token_ids + output.token_ids for output in outputs], torch.stack(seen, 1).float()


@torch.no_grad()
def logits_by_transformers(model, sequences, num_tokens, dtype):
    model = copy.deepcopy(model.model).to("cuda", dtype)
    ids = torch.tensor(sequences, device="cuda")[:, :-1]
    return model(ids).logits[:, -num_tokens:].float()


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "wide"), [("qwen3-bias", False), ("qwen2", False), ("qwen3-bias", True)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("num_prompts", [1, 24])  # products of few rows and of many
def test_logits_in_16_bit_are_no_further_from_float32_than_those_of_transformers(tiny, shape, wide, dtype, num_prompts):
    # wide enough for products in parts
    widths = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "head_dim": 64} if wide else {}
    model, draw = tiny(shape, **widths), random.Random(3)
    prompts = [[draw.randrange(300) for _ in range(40)] for _ in range(num_prompts)]
    with LLM(model.folder, device="cuda", dtype=dtype, cuda_graphs=False, overlap=False, num_kv_blocks=256) as llm:
        sequences, found = logits_of(llm, prompts, 24)
    exact = logits_by_transformers(model, sequences, 24, torch.float32)
    theirs = logits_by_transformers(model, sequences, 24, getattr(torch, dtype))
    assert (found - exact).norm() <= 1.05 * (theirs - exact).norm()  # equal but for the luck of rounding


@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("overlap", [True, False])
def test_preempted_requests_resume_with_the_same_tokens(tiny, ragged, scheduling, overlap):
    model = tiny("qwen3")
    llm = LLM(
        model.folder, device="cpu", scheduling=scheduling, overlap=overlap, block_size=1, num_kv_blocks=60,
        max_model_len=50, prefix_cache=False,
    )  # fmt: skip
    prompts = [prompt[:5] for prompt, _ in ragged]
    outputs = run_checked(llm, [(prompt, greedy(30)) for prompt in prompts])
    assert sum(output.facts.num_preemptions for output in outputs) > 0
    assert [output.token_ids for output in outputs] == [model.greedy(prompt, 30) for prompt in prompts]


def test_a_prefix_shared_by_requests_of_one_step_is_computed_once(tiny, ragged):
    shared = ragged[3][0][:32]
    prompts = [(*shared, token) for token in range(6)]
    llm = LLM(tiny("qwen3").folder, device="cpu", block_size=16, num_kv_blocks=64)
    outputs = llm.generate(prompts, greedy(4))
    assert [output.facts.num_cached_tokens for output in outputs] == [0, 32, 32, 32, 32, 32]
    assert sum(step.num_prefill_tokens for step in llm.take_step_facts()) == 33 + 5
    assert [output.token_ids for output in outputs] == [tiny("qwen3").greedy(prompt, 4) for prompt in prompts]


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restriction", [{}, {"top_k": 12}, {"top_p": 0.8}, {"top_k": 40, "top_p": 0.7}])
def test_seeded_tokens_do_not_depend_on_what_else_is_in_the_batch(tiny, ragged, restriction):
    folder, prompt = tiny("qwen3").folder, ragged[3][0]
    seeded = SamplingParams(temperature=0.9, seed=123456789012345, max_tokens=24, ignore_eos=True, **restriction)
    alone = LLM(folder, device="cpu", num_kv_blocks=64).generate([prompt], seeded)[0]
    others = [SamplingParams(temperature=1.3, max_tokens=n, ignore_eos=True) for _, n in ragged]
    crowd = LLM(
        folder, device="cpu", seed=5, scheduling="mixed", max_num_batched_tokens=23, block_size=4, num_kv_blocks=40
    )
    among = crowd.generate([*(p for p, _ in ragged), prompt], [*others, seeded])[-1]
    assert among.token_ids == alone.token_ids
    assert len(set(alone.token_ids)) > 3


def test_seeds_and_engine_seeds_change_the_tokens_and_repeat_them(tiny, ragged):
    folder, prompt = tiny("qwen3").folder, ragged[2][0]

    def tokens(engine_seed, seed):
        llm = LLM(folder, device="cpu", seed=engine_seed, num_kv_blocks=64)
        return llm.generate([prompt], SamplingParams(seed=seed, max_tokens=24, ignore_eos=True))[0].token_ids

    assert tokens(0, None) == tokens(0, None) != tokens(1, None)
    assert tokens(0, 4) == tokens(1, 4) != tokens(0, 5)


def test_requests_without_seeds_draw_different_tokens_from_one_prompt(tiny, ragged):
    llm = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64)
    outputs = llm.generate([ragged[2][0]] * 4, SamplingParams(temperature=1.5, max_tokens=24, ignore_eos=True))
    assert len({output.token_ids for output in outputs}) == 4


def test_top_k_of_one_is_greedy_at_any_temperature(tiny, ragged):
    model, (prompt, _) = tiny("qwen3"), ragged[4]
    llm = LLM(model.folder, device="cpu", num_kv_blocks=64)
    sampling = SamplingParams(temperature=3.0, top_k=1, max_tokens=20, ignore_eos=True)
    assert llm.generate([prompt], sampling)[0].token_ids == model.greedy(prompt, 20)


def test_a_preempted_seeded_request_draws_the_same_tokens(tiny, ragged):
    folder = tiny("qwen3").folder
    prompts = [prompt[:5] for prompt, _ in ragged]
    seeded = [SamplingParams(seed=i, temperature=1.1, max_tokens=30, ignore_eos=True) for i in range(len(prompts))]
    tight = LLM(folder, device="cpu", block_size=1, num_kv_blocks=60, max_model_len=50, prefix_cache=False)
    ample = LLM(folder, device="cpu", num_kv_blocks=200)
    squeezed = tight.generate(prompts, seeded)
    assert sum(output.facts.num_preemptions for output in squeezed) > 0
    assert [o.token_ids for o in squeezed] == [o.token_ids for o in ample.generate(prompts, seeded)]
