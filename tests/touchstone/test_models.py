import json

import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from touchstone.running import models
from touchstone.running.models import TINY_CONFIG, ModelError, choose_model, make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(model_id):
        raise ModelError(f"model {model_id!r} cannot be had")

    monkeypatch.setattr(models, "_from_hub", refuse)


def test_the_tiny_model_is_a_function_of_its_seed(tiny, tmp_path):
    make_tiny_model(tmp_path / "again")
    make_tiny_model(tmp_path / "other", seed=1)
    for path in tiny.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    weights, others = load_file(tiny / "model.safetensors"), load_file(tmp_path / "other" / "model.safetensors")
    assert weights.keys() == others.keys()
    assert (weights["model.embed_tokens.weight"] != others["model.embed_tokens.weight"]).any()


def test_its_tokenizer_encodes_any_text_and_decodes_it_again(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    text = "Banatu: 试金石 – naïve 🙂\n\ttabs"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.get_vocab_size() == TINY_CONFIG["vocab_size"]


def test_transformers_loads_it_and_its_greedy_text_does_not_repeat_one_token(tiny):
    torch.set_num_threads(1)
    model, report = AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    prompt = torch.randint(0, 2048, (4, 16), generator=torch.Generator().manual_seed(0))
    output = model.generate(prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False)[:, 16:]
    assert all(len(set(row)) > 2 for row in output.tolist())


def test_without_a_gpu_the_default_is_the_tiny_model(tmp_path):
    chosen = choose_model(None, "cpu", tmp_path)
    assert chosen.spec.source == "made on the spot"
    assert "no GPU" in chosen.spec.note
    assert chosen.synthetic_seed is None
    assert chosen.config == TINY_CONFIG


@pytest.mark.usefixtures("no_hub")
def test_on_a_gpu_an_unreachable_hub_gives_the_shape_with_synthetic_weights_and_says_so(tmp_path):
    chosen = choose_model(None, "cuda", tmp_path)
    assert chosen.spec.source == "Qwen/Qwen3-0.6B"
    assert chosen.spec.weights == "synthetic"
    assert "could not be fetched" in chosen.spec.note
    assert chosen.synthetic_seed is not None
    config = chosen.config
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (28, 1024, 151936)
    assert [path.name for path in chosen.folder.iterdir()] == ["config.json"]


@pytest.mark.usefixtures("no_hub")
def test_a_named_model_is_never_replaced(tmp_path):
    with pytest.raises(ModelError, match="someone/model"):
        choose_model("someone/model", "cuda", tmp_path)


def test_a_local_folder_is_loaded_and_its_path_is_not_told(tiny, tmp_path):
    chosen = choose_model(str(tiny), "cpu", tmp_path)
    assert chosen.spec.source == "local folder"
    assert chosen.spec.weights == "loaded"
    assert str(tiny) not in chosen.spec.model_dump_json()


def test_a_folder_with_a_config_alone_gets_synthetic_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    chosen = choose_model(str(tmp_path), "cpu", tmp_path)
    assert chosen.spec.weights == "synthetic"
    assert "no safetensors" in chosen.spec.note


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        choose_model(str(tmp_path), "cpu", tmp_path)
