"""How large the KV pool becomes, and what counts as weights."""

import pytest
import torch
from torch import nn

from nanoinfer import LLM, SamplingParams
from nanoinfer.config import ConfigError, EngineConfig
from nanoinfer.execution import memory
from nanoinfer.execution.build import _take_activations


def blocks(*, budget_bytes=1000, required_tokens=1, **options):
    config = EngineConfig(model="m", block_size=4, **options)
    return memory.num_kv_blocks(config, block_bytes=100, budget_bytes=budget_bytes, required_tokens=required_tokens)


def test_a_number_or_a_size_overrides_the_budget():
    assert blocks() == 10
    assert blocks(num_kv_blocks=77) == 77
    assert blocks(kv_cache_bytes=399) == 3


@pytest.mark.parametrize("options", [{"num_kv_blocks": 4}, {"kv_cache_bytes": 499}, {"budget_bytes": -5}])
def test_a_pool_too_small_for_one_sequence_names_both_sizes(options):
    with pytest.raises(ConfigError, match=r"one sequence of 17 tokens needs 5; lower max_model_len"):
        blocks(required_tokens=17, **options)


@pytest.mark.parametrize("options", [{"num_kv_blocks": 2**40}, {"kv_cache_bytes": 2**60}])
def test_a_pool_that_the_memory_cannot_hold_is_refused_with_its_bytes(tiny, options):
    with pytest.raises(ConfigError, match=r"KV pool of [\d,]+ bytes does not fit into the free memory of cpu; lower"):
        LLM(tiny("qwen3").folder, device="cpu", **options)


def test_a_device_without_room_for_the_pool_refuses_it_likewise(monkeypatch):
    def no_room(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", no_room)
    with pytest.raises(ConfigError, match="KV pool of 24 bytes does not fit into the free memory of cuda:0"):
        memory.zeros((2, 3), torch.float32, torch.device("cuda", 0))


def test_shared_storages_are_counted_once():
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(10, 3))
    model.b = model.a
    model.c = nn.Parameter(model.a.detach()[2:4])
    model.register_buffer("d", torch.zeros(5, dtype=torch.int64))
    assert memory.unique_storage_bytes(model) == 120 + 40


def test_the_budget_of_this_machine_is_below_its_memory():
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123  one line
        total = int(file.readline().split()[1]) * 1024
    assert 0 < memory.cpu_budget_bytes() <= total * memory.CPU_MEMORY_SHARE


def test_the_step_that_takes_memory_in_advance_leaves_nothing_behind_for_requests(tiny):
    model, prompt = tiny("qwen3"), (5, 6, 7, 8)
    with LLM(model.folder, device="cpu", dtype="float32", max_num_seqs=3, num_kv_blocks=12) as llm:
        _take_activations(llm._engine.execution.runner, llm.config, llm.max_model_len)
        settings = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        outputs = llm.generate([list(prompt)] * 4, settings)
        assert {output.token_ids for output in outputs} == {model.greedy(prompt, 6)}
        seeded = SamplingParams(temperature=1.0, seed=3, max_tokens=8, ignore_eos=True)
        after = llm.generate([list(prompt)], seeded)[0].token_ids
    with LLM(model.folder, device="cpu", dtype="float32", max_num_seqs=3, num_kv_blocks=12) as llm:
        assert llm.generate([list(prompt)], seeded)[0].token_ids == after


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, True), ({"num_kv_blocks": 9}, False), ({"kv_cache_bytes": 900}, False)]
)
def test_only_a_pool_without_a_size_of_its_own_takes_what_is_left(options, wanted):
    assert memory.takes_what_is_left(EngineConfig(model="m", memory_fraction=0.5, **options)) is wanted
