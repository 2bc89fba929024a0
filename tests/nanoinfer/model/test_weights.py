"""Checkpoints are taken whole or refused by name; synthetic weights follow from the seed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoinfer.config import ConfigError
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.decoder import Decoder
from nanoinfer.model.destinations import destinations
from nanoinfer.model.ops import REFERENCE
from nanoinfer.model.weights import checkpoint_files, draw_weights, load_checkpoint


def config_of(**change):
    raw = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 32,
    }
    return ModelConfig.from_dict(raw | change)


def drawn(config, seed=0, dtype=torch.float32):
    model = Decoder(config, REFERENCE, 32).to(dtype)
    draw_weights(model, config, seed)
    return model


def tensors_of(model, config):
    return {name: place.view.clone() for name, place in destinations(model, config).items()}


@pytest.fixture
def config():
    return config_of(attention_bias=True)


def save(folder, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def load_into_zeros(config, folder):
    model = Decoder(config, REFERENCE, 32)
    for parameter in model.parameters():
        parameter.zero_()
    load_checkpoint(model, config, folder)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"])
def test_every_parameter_is_loaded_from_the_names_that_transformers_uses(tmp_path, architecture, tied):
    config = config_of(architectures=[architecture], tie_word_embeddings=tied, mlp_bias=architecture[0] == "L")
    source = drawn(config)
    save(tmp_path, tensors_of(source, config))
    loaded = load_into_zeros(config, tmp_path)
    for name, parameter in source.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert (loaded.head.weight is loaded.embedding.weight) == tied


def test_a_checkpoint_in_shards_is_read_through_its_index(tmp_path, config):
    source = drawn(config)
    tensors = tensors_of(source, config)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for shard, held in shards.items():
        save_file({name: tensors[name].contiguous() for name in held}, tmp_path / shard)
    save_file({"stray": torch.ones(1)}, tmp_path / "other.safetensors")
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_into_zeros(config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), loaded.parameters(), strict=True))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks model-00002-of-00002.safetensors"):
        checkpoint_files(tmp_path)


def test_missing_unused_and_misshapen_names_are_named(tmp_path, config):
    tensors = tensors_of(drawn(config), config)
    missing = "model.layers.1.self_attn.k_proj.weight"
    save(tmp_path, {name: tensor for name, tensor in tensors.items() if name != missing})
    with pytest.raises(ConfigError, match=f"lacks {missing}"):
        load_into_zeros(config, tmp_path)
    save(tmp_path, tensors | {"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigError, match=r"no use for model.layers.2.mlp.up_proj.weight"):
        load_into_zeros(config, tmp_path)
    save(tmp_path, tensors | {missing: torch.ones(3, 16)})
    with pytest.raises(ConfigError, match=rf"{missing} has shape \(3, 16\); config.json asks for \(12, 16\)"):
        load_into_zeros(config, tmp_path)
    save(tmp_path, tensors | {missing: torch.ones(12, 16, dtype=torch.int8)})
    with pytest.raises(ConfigError, match=r"stored as torch\.int8"):
        load_into_zeros(config, tmp_path)


def test_a_tied_head_may_be_stored_twice_only_if_it_is_the_embedding(tmp_path):
    config = config_of(tie_word_embeddings=True)
    tensors = tensors_of(drawn(config), config)
    save(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    load_into_zeros(config, tmp_path)
    save(tmp_path, tensors | {"lm_head.weight": torch.ones(50, 16)})
    with pytest.raises(ConfigError, match=r"no use for lm_head\.weight"):
        load_into_zeros(config, tmp_path)


def test_values_beyond_float16_are_refused(tmp_path, config):
    tensors = tensors_of(drawn(config), config)
    tensors["model.norm.weight"][3] = 1e6
    save(tmp_path, tensors)
    model = Decoder(config, REFERENCE, 32).half()
    with pytest.raises(ConfigError, match=r"model.norm.weight holds values beyond the range of float16"):
        load_checkpoint(model, config, tmp_path)


def test_pickled_weights_are_never_read(tmp_path, config):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ConfigError, match="holds no safetensors"):
        load_into_zeros(config, tmp_path)


def test_synthetic_weights_follow_from_seed_and_name_alone(config):
    first, again, other = drawn(config), drawn(config), drawn(config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    fewer = drawn(config_of(attention_bias=True, num_hidden_layers=1))
    torch.testing.assert_close(first.layers[0].mlp.down_proj.weight, fewer.layers[0].mlp.down_proj.weight * 2**-0.5)
    assert torch.equal(first.layers[0].attention.qkv_proj.weight, fewer.layers[0].attention.qkv_proj.weight)


def test_names_saved_by_transformers_are_exactly_the_expected_ones(tiny):
    for shape in ("qwen3", "qwen3-bias", "qwen2", "llama", "llama-bias"):
        folder = tiny(shape).folder
        config = ModelConfig.from_dict(json.loads(open(f"{folder}/config.json").read()))  # noqa: PTH123, SIM115  short
        assert set(destinations(Decoder(config, REFERENCE, 8), config)) == set(load_file(f"{folder}/model.safetensors"))
