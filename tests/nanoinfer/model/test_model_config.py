"""What a config.json may say, and what it may not."""

import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanoinfer.config import ConfigError
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.layers import rotary_table

RAW = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
    "eos_token_id": 3,
}


def test_the_families_differ_in_norms_and_biases_alone():
    def flags(architecture, **more):
        config = ModelConfig.from_dict(RAW | {"architectures": [architecture]} | more)
        return config.qk_norm, config.qkv_bias, config.output_bias

    assert flags("Qwen3ForCausalLM") == (True, False, False)
    assert flags("Qwen3ForCausalLM", attention_bias=True) == (True, True, True)
    assert flags("Qwen2ForCausalLM") == (False, True, False)
    assert flags("LlamaForCausalLM") == (False, False, False)
    assert flags("LlamaForCausalLM", attention_bias=True) == (False, True, True)


def test_head_size_follows_from_the_hidden_size_where_it_is_not_given():
    raw = {name: value for name, value in RAW.items() if name != "head_dim"}
    assert ModelConfig.from_dict(raw).head_dim == 16
    assert ModelConfig.from_dict(raw | {"num_key_value_heads": None}).num_kv_heads == 4


def test_old_and_new_spellings_of_rope_settings_mean_the_same():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    bare = {name: value for name, value in RAW.items() if name != "rope_theta"}
    new = ModelConfig.from_dict(bare | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | llama3})
    old = ModelConfig.from_dict(bare | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | llama3})
    older = ModelConfig.from_dict(bare | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | llama3})
    assert new == old == older
    assert new.rope_theta == 5e5
    assert new.rope_scaling.original_max_position_embeddings == 128
    assert ModelConfig.from_dict(bare).rope_theta == 10_000.0


def test_llama3_rotary_table_equals_that_of_transformers():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "rope_theta": 5000.0} | scaling
    theirs = LlamaConfig(hidden_size=128, num_attention_heads=4, max_position_embeddings=512, rope_parameters=rope)
    frequencies, factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    ours = ModelConfig.from_dict(RAW | {"rope_parameters": rope})
    angles = torch.arange(512)[:, None] * frequencies
    torch.testing.assert_close(rotary_table(ours, 512), torch.cat((angles.cos(), angles.sin()), -1), atol=1e-4, rtol=0)
    assert factor == 1.0


def test_end_of_sequence_ids_of_the_generation_config_come_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 3]}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (7, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not known; known: Qwen3ForCausalLM"),
        ({"architectures": None}, "not named is not known"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 is no multiple of num_key_value_heads 2"),
        ({"head_dim": None, "num_attention_heads": 6}, "hidden_size 64 is no multiple of num_attention_heads 6"),
        ({"head_dim": 31}, "head_dim is 31"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized \\(awq\\)"),
        ({"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(RAW | change)


def test_a_sliding_window_that_is_switched_off_is_no_obstacle():
    config = ModelConfig.from_dict(RAW | {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 0})
    assert config.num_layers == 2


def test_a_folder_without_config_and_a_broken_config_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ModelConfig.from_folder(tmp_path)
