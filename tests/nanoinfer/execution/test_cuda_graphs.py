"""Padded decode steps that are recorded and repeated; here the recorder just calls the work again."""

import dataclasses
import itertools
import weakref

import pytest
import torch

from nanoinfer import LLM, SamplingParams
from nanoinfer.config import EngineConfig
from nanoinfer.execution.batch import BatchShape
from nanoinfer.execution.cuda_graphs import Graphs, GraphSizes, graph_size, graph_sizes, padded_batch_sizes
from nanoinfer.execution.decode_rows import LastBlocks, PaddingRow, stage_rows
from nanoinfer.execution.wire import decode, encode
from nanoinfer.scheduling.plan import ScheduledRequest


def call_again(work):
    work()
    return work


def with_graphs(llm, sizes=None):
    """Let a CPU engine take the path of a GPU's graphs."""
    llm._engine.execution.runner.record_graphs(sizes or graph_sizes(llm.config, llm.max_model_len), call_again)
    return llm


def make_graphs(step, padding, most_sampled=9):
    return Graphs(step, padding, call_again, most_sampled=most_sampled, device=torch.device("cpu"))


@pytest.mark.parametrize("largest", [1, 2, 5, 8, 9, 64, 100, 256, 300, 512])
def test_sizes_ascend_to_the_largest_batch_and_pad_little(largest):
    sizes = padded_batch_sizes(largest)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert all(upper - lower <= max(4, lower // 4, 8) for lower, upper in itertools.pairwise(sizes))
    assert len(sizes) <= 40


def test_a_step_takes_the_smallest_graph_that_holds_it():
    assert [graph_size((1, 2, 4, 8), n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, None]


@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("num_ranks", [1, 4])
@pytest.mark.parametrize("limits", [(1, 1, 5), (7, 13, 160), (256, 16384, 40_960), (512, 2048, 2048)])
def test_shapes_with_prompt_tokens_ascend_to_the_budget_and_pad_little(scheduling, limits, num_ranks):
    max_num_seqs, budget, max_len = limits
    bounds = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": budget}
    config = EngineConfig(model="m", scheduling=scheduling, tensor_parallel_size=num_ranks, **bounds)
    shapes = graph_sizes(config, max_len).prefills
    tokens = [shape.tokens for shape in shapes]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == min(budget, 4096 * num_ranks)
    assert all(upper <= max(2 * lower, 128) for lower, upper in itertools.pairwise(tokens))
    assert all(upper <= 1.5 * lower for lower, upper in itertools.pairwise(tokens) if lower >= 256)
    assert all(upper <= 1.25 * lower for lower, upper in itertools.pairwise(tokens) if lower >= 1024)
    assert len(shapes) <= (17 if num_ranks == 1 else 25)
    for smaller, larger in itertools.pairwise(shapes):
        assert larger.holds(smaller)
    for shape in shapes:
        assert max(shape.decodes, shape.prefills, shape.sampled, shape.new_slots) <= max_num_seqs
        assert (shape.decodes > 0) == (scheduling == "mixed")
        assert shape.prefills >= min(8, shape.tokens, max_num_seqs)
        assert shape.table_updates >= shape.decodes + min(shape.prefills * -(-max_len // 16), 4096)


def test_each_size_is_recorded_on_padding_alone_the_largest_first():
    seen = []

    def step(size, integers):
        seen.append((size, integers.tolist()))
        return integers[:size]

    make_graphs(step, {1: torch.tensor([9, 0]), 4: torch.tensor([9, 9, 9, 9, 0]), 3: torch.tensor([9, 9, 9, 0])})
    assert seen == [(4, [9, 9, 9, 9, 0]), (3, [9, 9, 9, 0]), (1, [9, 0])]


def test_a_replay_computes_the_staged_integers_and_returns_no_padding():
    shapes = BatchShape(2, 0, 1, 1, 1, 1), BatchShape(4, 0, 1, 1, 1, 1)
    padding = {shape: torch.zeros(shape.tokens, dtype=torch.int64) for shape in shapes}
    graphs = make_graphs(lambda shape, integers: 10 * integers + shape.tokens, padding)
    assert graphs.replay(shapes[1], torch.tensor([1, 2, 3, 0]), 3).tolist() == [14, 24, 34]
    assert graphs.replay(shapes[0], torch.tensor([5, 0]), 1).tolist() == [52]


def test_graphs_do_not_keep_the_step_that_they_were_recorded_from():
    class Step:
        def __call__(self, _size, integers):
            return integers

    step = Step()
    graphs = Graphs(
        step,
        {2: torch.zeros(2, dtype=torch.int64)},
        lambda work: work() or (lambda: None),
        most_sampled=2,
        device=torch.device("cpu"),
    )
    alive = weakref.ref(step)
    del step
    assert alive() is None
    assert graphs.replay(2, torch.ones(2, dtype=torch.int64), 1).tolist() == [0]


def test_rows_are_staged_with_the_last_block_of_their_tables_and_padded():
    last_blocks = LastBlocks(4)
    first = ScheduledRequest(1, 2, 0, 5, (1, 2, 3, 4, 5), (8, 3), 0, True, 0, SamplingParams())
    last_blocks.note([first])
    rows = [
        ScheduledRequest(1, 2, 5, 1, None, (), 2, True, 1, None),
        ScheduledRequest(2, 0, 16, 1, None, (6,), 4, True, 12, None),
    ]
    last_blocks.note(rows)
    staged = stage_rows(rows, last_blocks, size=3, padding=PaddingRow(4, 9), pin_memory=False)
    assert staged.rows.tolist() == [[0, 2, 4], [16, 5, 0], [6, 3, 9], [12, 1, 0]]  # the longest context first
    assert staged.in_plan_order(torch.tensor([70, 80])) == [80, 70]


@pytest.mark.no_cover
@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("decodes", [(1, 2, 4, 5), (5,), (2,)])
def test_padded_decodes_give_the_same_tokens_and_say_that_they_were_replayed(
    tiny, ragged, scheduling, overlap, decodes
):
    model = tiny("qwen3")
    options = {"max_num_seqs": 5, "block_size": 2, "num_kv_blocks": 100, "overlap": overlap}
    llm = with_graphs(LLM(model.folder, device="cpu", scheduling=scheduling, **options), GraphSizes(decodes))
    settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in ragged]
    outputs = llm.generate([prompt for prompt, _ in ragged], settings)
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    for step in llm.take_step_facts():
        assert step.graph == (step.phase == "decode" and step.num_requests <= decodes[-1])


@pytest.mark.no_cover
@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("budget", [5, 23, 4096])  # long prompts come in chunks
@pytest.mark.parametrize(("pool", "overlap"), [(28, True), (200, False)])  # in a small one requests are preempted
def test_padded_steps_of_every_kind_give_the_tokens_of_transformers(
    tiny, ragged, scheduling, prefix_cache, budget, pool, overlap
):
    model = tiny("qwen3")
    llm = with_graphs(
        LLM(
            model.folder,
            device="cpu",
            scheduling=scheduling,
            prefix_cache=prefix_cache,
            overlap=overlap,
            max_num_batched_tokens=budget,
            max_num_seqs=5,
            block_size=2,
            num_kv_blocks=pool,
            max_model_len=56,
        )
    )
    settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in ragged]
    for _ in range(2 if prefix_cache else 1):  # the second time most prompts are found in the cache
        outputs = llm.generate([prompt for prompt, _ in ragged], settings)
        assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    assert all(step.graph for step in llm.take_step_facts())
    assert any(output.facts.num_preemptions for output in outputs) == (pool < 100)
    assert any(output.facts.num_cached_tokens for output in outputs) == prefix_cache


@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
def test_steps_staged_elsewhere_are_replayed_alike(tiny, ragged, scheduling, monkeypatch):
    """What the ranks of a tensor-parallel engine do: the step arrives as integers."""
    model = tiny("qwen3")
    options = {"max_num_seqs": 5, "block_size": 2, "num_kv_blocks": 100, "max_num_batched_tokens": 23}
    llm = with_graphs(LLM(model.folder, device="cpu", scheduling=scheduling, **options))
    runner = llm._engine.execution.runner
    compute, sent = runner.compute, []

    def received(step):
        sent.append(step.replay)
        handle = compute(decode(encode(step)))
        return dataclasses.replace(handle, staged=getattr(step, "staged", None))  # the order of rows is not sent

    monkeypatch.setattr(runner, "compute", received)
    settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in ragged]
    outputs = llm.generate([prompt for prompt, _ in ragged], settings)
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    assert all(sent)


def test_a_step_of_more_prompts_tokens_or_blocks_than_a_graph_has_room_for_is_not_replayed(tiny, ragged):
    model = tiny("qwen3")
    roomy = BatchShape(tokens=64, decodes=0, prefills=2, sampled=2, table_updates=99, new_slots=2)
    for shape in (roomy, roomy._replace(tokens=20), roomy._replace(prefills=1), roomy._replace(table_updates=8)):
        llm = with_graphs(LLM(model.folder, device="cpu", block_size=2, num_kv_blocks=64), GraphSizes((), (shape,)))
        prompts = [ragged[2][0], ragged[3][0]]  # 7 and 37 tokens
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
        assert [output.token_ids for output in outputs] == [model.greedy(prompt, 3) for prompt in prompts]
        assert [step.graph for step in llm.take_step_facts()] == [shape is roomy, False, False]


def test_drawn_tokens_do_not_depend_on_padding(tiny, ragged):
    settings = [
        SamplingParams(seed=i, temperature=1.2, max_tokens=n, ignore_eos=True) for i, (_, n) in enumerate(ragged)
    ]
    options = {"device": "cpu", "num_kv_blocks": 64, "max_num_batched_tokens": 19, "scheduling": "mixed"}
    prompts = [prompt for prompt, _ in ragged]
    found = with_graphs(LLM(tiny("qwen3").folder, **options)).generate(prompts, settings)
    plain = LLM(tiny("qwen3").folder, **options).generate(prompts, settings)
    assert [output.token_ids for output in found] == [output.token_ids for output in plain]


def test_what_padding_computes_reaches_no_request_even_if_it_is_not_a_number(tiny, ragged, monkeypatch):
    """Padding goes through all layers and into a block; poisoned, it must not get into any that a request reads."""
    llm = with_graphs(
        LLM(tiny("qwen3").folder, device="cpu", block_size=2, num_kv_blocks=64, scheduling="mixed", max_num_seqs=4)
    )
    model, poisoned = llm._engine.execution.runner.model, []
    forward, embed = model.forward, model.embedding.forward

    def watched(token_ids, inputs, *rest):
        # Prompts begin with another token than 0, and no decode is at position 0.
        is_padding = (inputs.positions == 0) & ((token_ids == 0) | (inputs.prefill is None))
        poisoned.append(int(is_padding.sum()))
        monkeypatch.setattr(
            model.embedding, "forward", lambda ids: embed(ids).masked_fill(is_padding[:, None], torch.nan)
        )
        return forward(token_ids, inputs, *rest)

    monkeypatch.setattr(model, "forward", watched)
    requests = [((1, *prompt), max_tokens) for prompt, max_tokens in ragged]
    settings = [SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True) for _, max_tokens in requests]
    outputs = llm.generate([prompt for prompt, _ in requests], settings)
    assert [output.token_ids for output in outputs] == [tiny("qwen3").greedy(*request) for request in requests]
    assert sum(poisoned) > 20


def test_steps_that_restrict_the_choice_are_not_replayed(tiny, ragged):
    prompt = ragged[2][0]
    llm = with_graphs(LLM(tiny("qwen3").folder, device="cpu", max_num_seqs=4, num_kv_blocks=64))
    drawn = SamplingParams(seed=3, temperature=1.5, max_tokens=12, ignore_eos=True)
    limited = SamplingParams(seed=3, temperature=1.5, max_tokens=6, ignore_eos=True, top_k=5)
    plain = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64)
    assert [o.token_ids for o in llm.generate([prompt] * 2, [drawn, limited])] == [
        o.token_ids for o in plain.generate([prompt] * 2, [drawn, limited])
    ]
    assert [step.graph for step in llm.take_step_facts()] == [False] * 6 + [True] * 6


def test_a_cpu_captures_nothing(tiny):
    with LLM(tiny("qwen3").folder, device="cpu", cuda_graphs=True, num_kv_blocks=64) as llm:
        assert llm.cuda_graphs is None
        assert llm.memory().cuda_graphs_bytes is None
