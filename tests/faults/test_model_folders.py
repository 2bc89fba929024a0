"""A model folder that is damaged, incomplete, or not what it says: a sentence that names the file and the remedy."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanoinfer import LLM, ConfigError, RequestError, SamplingParams
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.registry import build_engine
from touchstone.running.models import ModelError, choose_model, make_tiny_model

NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def load(folder, **options):
    return LLM(str(folder), device="cpu", max_model_len=64, num_kv_blocks=8, max_num_seqs=2, **options)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def poison(tensors, value):
    tensors[NORM] = tensors[NORM].copy()
    tensors[NORM][3] = value


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 200, 20_000, -1])
def test_truncated_weights_are_refused_by_the_name_of_the_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors is no whole safetensors file .*fetch the file again"):
        load(folder)


def test_weights_that_are_a_folder_or_noise_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        load(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors|no whole safetensors"):
        load(folder)


def test_missing_weights_are_named(folder):
    change_weights(folder, lambda tensors: tensors.pop(NORM))
    with pytest.raises(ConfigError, match=r"lacks model\.norm\.weight"):
        load(folder)


def test_extra_weights_are_named(folder):
    change_weights(folder, lambda tensors: tensors.update({"model.layers.9.mlp.up_proj.weight": np.ones((2, 2))}))
    with pytest.raises(ConfigError, match=r"no use for model\.layers\.9\.mlp\.up_proj\.weight"):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(folder, value):
    change_weights(folder, lambda tensors: poison(tensors, value))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds NaN or infinity; the checkpoint is damaged"):
        load(folder)


def test_weights_beyond_the_type_are_told_apart_from_damaged_ones(folder):
    change_weights(folder, lambda tensors: poison(tensors, 1e6))
    with pytest.raises(ConfigError, match="beyond the range of float16; use"):
        load(folder, dtype="float16")


@pytest.mark.parametrize("shape", [(64,), (256,), (128, 1), ()])
def test_wrongly_shaped_weights_are_named_with_both_shapes(folder, shape):
    change_weights(folder, lambda tensors: tensors.update({NORM: np.ones(shape, np.float32)}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has shape .* config\.json asks for \(128,\)"):
        load(folder)


def test_a_folder_with_pickled_weights_only_is_refused_and_nothing_is_unpickled(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ConfigError, match=r"no safetensors but pytorch_model\.bin; pickled weights are never loaded"):
        load(folder)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin but no safetensors.*never loaded"):
        choose_model(str(folder), "cpu", tmp_path)
    assert not ran.exists()


def test_random_weights_do_not_stand_in_for_shards_that_are_missing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match="complete the download"):
        choose_model(str(folder), "cpu", tmp_path)
    with pytest.raises(ConfigError, match=r"lacks model-00001-of-00002\.safetensors.*complete the download"):
        load(folder)


# --- the index ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "../../etc/passwd",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        "model.safetensors\n",
        "1" * 5000 + ".safetensors",
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(folder, name):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: name}}))
    with pytest.raises(ConfigError, match="only safetensors files of its own folder are loaded"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "\xff"]
)
def test_a_corrupt_index_is_named(folder, text):
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json"):
        load(folder)


# --- config.json and generation_config.json ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1,}', b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_corrupt_json_is_named_with_its_file(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} (is not valid JSON|must hold a JSON object)"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"hidden_size": "large"}', b"[" * 100_000])
def test_a_plan_is_not_made_from_a_corrupt_config(folder, tmp_path, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        choose_model(str(folder), "cpu", tmp_path).config  # noqa: B018  reading it is what fails


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load(folder)


def test_the_adapter_hands_the_sentence_on_as_the_engines_refusal(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(EngineError, match=r"config\.json is not valid JSON"):
        build_engine(EngineSpec("nanoinfer", str(folder), "cpu", "float32", synthetic_seed=None, options={}))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "a" * 5000, "model\0", "/proc/self/mem"])
def test_a_name_that_can_be_no_folder_is_refused(name):
    with pytest.raises(ConfigError, match=r"cannot be looked up|neither a folder|holds no config"):
        LLM(name)


# --- tokenizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"model": {"type": "none"}}', b"\xff\xfe"])
def test_a_corrupt_tokenizer_is_a_sentence_and_token_ids_still_work(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with load(folder) as llm:
        with pytest.raises(RequestError, match=r"the tokenizer in .* cannot be loaded .*fetch its files again"):
            llm.generate("a text")
        assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_a_tokenizer_of_a_larger_vocabulary_is_refused_as_another_models(folder):
    change_json(folder / "config.json", vocab_size=300)
    change_weights(folder, lambda tensors: tensors.update({k: v[:300] for k, v in tensors.items() if "embed" in k}))
    with (
        load(folder) as llm,
        pytest.raises(RequestError, match=r"the model has 300 tokens; it belongs to another model"),
    ):
        llm.generate("Banatu kelu " * 4)


def test_a_folder_without_tokenizer_says_so(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with load(folder) as llm, pytest.raises(RequestError, match="holds no tokenizer; give token ids"):
        llm.encode("a text")


def test_a_tokenizer_with_code_of_its_own_is_refused_and_the_code_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Own: pass\n")
    (folder / "tokenizer.json").unlink()
    change_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    settings = folder / "tokenizer_config.json"
    change_json(settings, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    with load(folder) as llm, pytest.raises(RequestError, match="cannot be loaded"):
        llm.encode("a text")
    assert not ran.exists()
