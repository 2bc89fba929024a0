"""The workloads of tools/engine_speed.py are those that its documentation and other engines' figures name."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from nanoinfer.model.config import ModelConfig


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "engine_speed.py"
    spec = importlib.util.spec_from_file_location("engine_speed", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_speed"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["engine_speed"]


@pytest.fixture
def model(tool, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tool.QWEN3 | tool.SIZES["0.6B"]), encoding="utf-8")
    return ModelConfig.from_folder(tmp_path)


def test_the_ragged_workload_has_the_tokens_that_other_engines_were_timed_with(tool):
    workload = tool.WORKLOADS["w2"](3)
    assert sum(map(len, workload.prompts)) == 142_827
    assert sum(workload.output_lengths) == 133_966


def test_seventy_of_a_hundred_prompts_share_four_fifths(tool):
    prompts = tool.WORKLOADS["w4"](0).prompts
    beginnings = [tuple(prompt[:409]) for prompt in prompts]
    assert max(map(beginnings.count, beginnings)) == 70
    assert {len(prompt) for prompt in prompts} == {512}


def test_cached_tokens_cost_what_computing_them_alone_would(tool, model):
    whole, head = tool.prompt_flops(512, 0, model), 2 * model.hidden_size * model.vocab_size
    assert whole - tool.prompt_flops(512, 400, model) == pytest.approx(tool.prompt_flops(400, 0, model) - head)


def test_the_floor_of_one_decoded_token_is_the_time_to_read_weights_and_keys(tool, model):
    peaks = tool.Peaks(read_bytes_per_s=1e12, copy_bytes_per_s=1e12, flops_per_s=float("inf"))
    workload = tool.Workload([[1] * 100], [2])
    # Both steps read the weights, the second one the prompt's and its own keys.
    num_bytes = 2e9 + 101 * 2 * 28 * 8 * 128 * 2
    assert tool.floor_seconds(workload, [0], model, 10**9, 2, peaks) == pytest.approx(num_bytes / 1e12)


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.596), ("1.7B", 1.72), ("4B", 4.02), ("8B", 8.19)])
def test_every_size_has_the_parameters_of_its_name(tool, size, billions):
    shape = tool.QWEN3 | tool.SIZES[size]
    width, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = (2 * heads + 2 * kv_heads) * shape["head_dim"] * width
    layer = attention + 3 * width * shape["intermediate_size"]
    embeddings = shape["vocab_size"] * width * (1 if shape["tie_word_embeddings"] else 2)
    assert (shape["num_hidden_layers"] * layer + embeddings) / 1e9 == pytest.approx(billions, rel=0.01)
