"""Padded decode steps that are recorded and repeated; here the recorder just calls the work again."""

import itertools

import pytest
import torch

from nanoinfer import LLM, SamplingParams
from nanoinfer.execution.cuda_graphs import DecodeGraphs, graph_size, padded_batch_sizes
from nanoinfer.execution.decode_rows import LastBlocks, PaddingRow, stage_rows
from nanoinfer.scheduling.plan import ScheduledRequest


def call_again(work):
    work()
    return work


def with_graphs(llm, sizes):
    """Let a CPU engine take the path of a GPU's graphs."""
    runner = llm._engine.execution.runner
    padding = torch.tensor([runner.num_slots, 0, llm.num_kv_blocks, 0])

    @torch.inference_mode()
    def step(rows):
        return runner._decode(rows, restricted=False, max_context_len=llm.max_model_len)

    runner.graphs = DecodeGraphs(step, sizes, padding, call_again)
    return llm


@pytest.mark.parametrize("largest", [1, 2, 5, 8, 9, 64, 100, 256, 300, 512])
def test_sizes_ascend_to_the_largest_batch_and_pad_little(largest):
    sizes = padded_batch_sizes(largest)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert all(upper - lower <= max(4, lower // 4, 8) for lower, upper in itertools.pairwise(sizes))
    assert len(sizes) <= 40


def test_a_step_takes_the_smallest_graph_that_holds_it():
    assert [graph_size((1, 2, 4, 8), n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, None]


def test_each_size_is_recorded_on_padding_alone_the_largest_first():
    seen = []

    def step(rows):
        seen.append(rows.clone())
        return rows[3]

    DecodeGraphs(step, (1, 3, 4), torch.tensor([9, 0, 7, 0]), call_again)
    assert [rows.shape for rows in seen] == [(4, 4), (4, 3), (4, 1)]
    assert all(torch.equal(rows, torch.tensor([[9], [0], [7], [0]]).expand_as(rows)) for rows in seen)


def test_a_replay_computes_the_staged_rows_and_returns_no_padding():
    graphs = DecodeGraphs(lambda rows: 1000 * rows[0] + rows[1], (2, 4), torch.tensor([9, 0, 7, 0]), call_again)
    rows = torch.tensor([[1, 2, 3, 9], [10, 20, 30, 0], [0, 0, 0, 7], [0, 0, 0, 0]])
    assert graphs.replay(rows, 3).tolist() == [1010, 2020, 3030]
    assert graphs.replay(rows[:, :2].contiguous(), 1).tolist() == [1010]


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


@pytest.mark.parametrize("scheduling", ["separated", "mixed"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("sizes", [(1, 2, 4, 5), (5,), (2,)])
def test_padded_steps_give_the_same_tokens_and_say_that_they_were_replayed(tiny, ragged, scheduling, overlap, sizes):
    model = tiny("qwen3")
    options = {"max_num_seqs": 5, "block_size": 2, "num_kv_blocks": 100, "overlap": overlap}
    llm = with_graphs(LLM(model.folder, device="cpu", scheduling=scheduling, **options), sizes)
    settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in ragged]
    outputs = llm.generate([prompt for prompt, _ in ragged], settings)
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    for step in llm.take_step_facts():
        assert step.graph == (step.phase == "decode" and step.num_requests <= sizes[-1])


def test_steps_that_restrict_the_choice_are_not_replayed(tiny, ragged):
    prompt = ragged[2][0]
    llm = with_graphs(LLM(tiny("qwen3").folder, device="cpu", max_num_seqs=4, num_kv_blocks=64), (1, 2, 4))
    drawn = SamplingParams(seed=3, temperature=1.5, max_tokens=12, ignore_eos=True)
    limited = SamplingParams(seed=3, temperature=1.5, max_tokens=6, ignore_eos=True, top_k=5)
    plain = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64)
    assert [o.token_ids for o in llm.generate([prompt] * 2, [drawn, limited])] == [
        o.token_ids for o in plain.generate([prompt] * 2, [drawn, limited])
    ]
    decodes = [step for step in llm.take_step_facts() if step.phase == "decode"]
    assert [step.graph for step in decodes] == [step.num_requests == 1 for step in decodes]


def test_a_cpu_captures_nothing(tiny):
    with LLM(tiny("qwen3").folder, device="cpu", cuda_graphs=True, num_kv_blocks=64) as llm:
        assert llm.cuda_graphs is None
        assert llm.memory().cuda_graphs_bytes is None
