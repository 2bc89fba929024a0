"""Options on the command line, and their translation into what other engines call them."""

import sys
from types import SimpleNamespace

import pytest

from touchstone.engines import nano_vllm, registry, vllm
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.options import options_by_engine

GIB = 1 << 30


def test_options_are_read_by_engine_and_as_json_where_they_are():
    texts = ["max_num_seqs=8", "vllm.prefix_cache=false", "my.adapter.name=x y", "vllm.memory_fraction=0.5"]
    assert options_by_engine(texts, ["nanoinfer", "vllm", "my.adapter"]) == {
        "nanoinfer": {"max_num_seqs": 8},
        "vllm": {"prefix_cache": False, "memory_fraction": 0.5},
        "my.adapter": {"name": "x y"},
    }


def test_a_url_may_hold_whatever_a_url_holds():
    found = options_by_engine(["openai-server.url=http://host:8000/v1?a=b"], ["openai-server"])
    assert found == {"openai-server": {"url": "http://host:8000/v1?a=b"}}


@pytest.mark.parametrize("text", ["max_num_seqs", "=5", "other.max_num_seqs=5", "9x=1"])
def test_an_option_that_cannot_be_read_is_refused(text):
    with pytest.raises(EngineError, match=r"write NAME=VALUE, or ENGINE\.NAME=VALUE with an engine of this run"):
        options_by_engine([text], ["nanoinfer"])


def test_an_option_given_twice_is_refused_however_its_engine_is_named():
    with pytest.raises(EngineError, match=r"gives nanoinfer\.max_num_seqs twice, as 3 and 4; give it once"):
        options_by_engine(["max_num_seqs=3", "nanoinfer.max_num_seqs=4"], ["nanoinfer", "vllm"])


def spec(**options):
    return EngineSpec("vllm", "folder", "cuda", "float16", options=options)


def test_options_are_translated_into_those_of_vllm():
    told = vllm.llm_arguments(spec(prefix_cache=False, cuda_graphs=False, max_num_seqs=64), 100 * GIB)
    assert told == {"enable_prefix_caching": False, "enforce_eager": True, "max_num_seqs": 64}
    assert vllm.llm_arguments(spec(cuda_graphs=True, max_model_len=None), GIB) == {"enforce_eager": False}


def test_a_pool_of_given_size_leaves_the_rest_of_the_device_to_others():
    told = vllm.llm_arguments(spec(kv_cache_bytes=20 * GIB), 100 * GIB)
    assert told == {"kv_cache_memory_bytes": 20 * GIB, "gpu_memory_utilization": 0.3}
    assert vllm.llm_arguments(spec(kv_cache_bytes=95 * GIB), 100 * GIB)["gpu_memory_utilization"] == 0.92
    chosen = vllm.llm_arguments(spec(kv_cache_bytes=GIB, memory_fraction=0.5), 100 * GIB)
    assert chosen["gpu_memory_utilization"] == 0.5


def test_the_settings_of_vllm_are_told_in_our_words():
    part = SimpleNamespace
    config = part(
        scheduler_config=part(max_num_seqs=1024, max_num_batched_tokens=16384, async_scheduling=True),
        cache_config=part(
            enable_prefix_caching=False,
            block_size=16,
            num_gpu_blocks=99,
            kv_cache_memory_bytes=None,
            gpu_memory_utilization=0.9,
        ),
        model_config=part(dtype="torch.bfloat16", max_model_len=2048, enforce_eager=False),
        parallel_config=part(tensor_parallel_size=2),
        compilation_config=part(mode=part(name="VLLM_COMPILE"), cudagraph_mode=None),
    )
    told = vllm.settings_in_force(config)
    assert told["cuda_graphs"] is True
    assert told["prefix_cache"] is False
    assert told["dtype"] == "bfloat16"
    assert told["compilation_mode"] == "VLLM_COMPILE"
    assert told["tensor_parallel_size"] == 2


def test_switches_of_vllm_in_the_environment_are_told_and_paths_are_not():
    variables = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_CACHE_ROOT": "/a/place", "HOME": "/b"}
    assert vllm.switches_set(variables) == {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def test_nano_vllm_refuses_a_type_that_its_config_does_not_name():
    asked = EngineSpec("nano-vllm", "folder", "cuda", "float16")
    with pytest.raises(EngineError, match="use --dtype bfloat16"):
        nano_vllm._check_dtype(asked, {"torch_dtype": "bfloat16"})
    nano_vllm._check_dtype(asked, {"dtype": "float16"})


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    assert registry.why_not_installed("vllm") == (
        "engine 'vllm' needs the package vllm, which is not installed: pip install vllm"
    )
    with pytest.raises(EngineError, match="pip install flash-attn"):
        registry.build_engine(EngineSpec("nano-vllm", "x", "cuda", "float16"))
    assert registry.why_not_installed("a.module.of.ones.own") is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def capabilities(:\n", "importing own_adapter fails with SyntaxError"),
        ("import no_such_library\n", "No module named 'no_such_library'"),
        ("1 / 0\n", "importing own_adapter fails with ZeroDivisionError: division by zero; mend that module"),
        (
            "capabilities = build = dict\n",
            r"capabilities\(\) returns dict; return a touchstone\.engines\.base\.Capabilities",
        ),
        ("build = dict\ndef capabilities():\n    return 1 / 0\n", r"capabilities\(\) fails with ZeroDivisionError"),
    ],
)
def test_an_adapter_of_ones_own_that_is_wrong_is_named_with_what_to_mend(tmp_path, monkeypatch, source, words):
    (tmp_path / "own_adapter.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_adapter", raising=False)
    with pytest.raises(EngineError, match=words):
        registry.capabilities_of("own_adapter")
