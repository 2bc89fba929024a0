"""Which model is measured: the one asked for, Qwen3-0.6B on a GPU, or a tiny Qwen3 made on the spot without one."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from touchstone.canonical import StorageError, atomic_write
from touchstone.experiment import Bilingual
from touchstone.records import ModelSpec
from touchstone.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_HUB_MODEL = "Qwen/Qwen3-0.6B"
TINY_SOURCE = "made on the spot"
SYNTHETIC_SEED = 0

# Weights that are not loaded, or an index of shards that are not there: random ones must not stand in for them unasked.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors.index.json")
_WANTED_FILES = ("*.json", "*.safetensors", "*.txt")
_HUB_TIMEOUT_S = 10
_PATHS_BEGIN = ("/", "./", "../", "~")
_ATTENTION_SHARPNESS = 2.0
_END_OF_TEXT = "<|endoftext|>"

# Both from the model card's config.json; the tiny one keeps every structural feature (grouped heads, tied embeddings,
# query and key norms) at a size that a processor core computes in a millisecond a token.
_QWEN3_COMMON: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
}
QWEN3_0_6B_CONFIG: dict[str, Any] = _QWEN3_COMMON | {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
TINY_CONFIG: dict[str, Any] = _QWEN3_COMMON | {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 384,
    "max_position_embeddings": 2048,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "vocab_size": 2048,
}


# What the time and the memory of a run are estimated from; the engine itself checks the rest.
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_OPTIONAL_SIZES = ("head_dim", "num_key_value_heads", "max_position_embeddings")


class ModelError(ValueError):
    """A model that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """What the report says of the model, and how an engine gets it: a folder, and a seed for synthetic weights."""

    spec: ModelSpec
    folder: Path
    synthetic_seed: int | None

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read as JSON ({error}); fetch the file again") from error
        if not isinstance(config, dict):
            raise ModelError(f"{path} holds no JSON object; give a model's config.json")
        for name in (*_SIZES, *(name for name in _OPTIONAL_SIZES if config.get(name) is not None)):
            if not isinstance(config.get(name), int) or config[name] < 1:
                raise ModelError(f"{name} is {config.get(name)!r} in {path}; a plan needs it to be a positive integer")
        return config


def choose_model(asked: str | None, device: str, workshop: Path) -> ChosenModel:
    """Decide on the model and see to it that its files are on this machine.

    `asked` is a folder or a hub id; None takes the default of the device. Models that are made on the spot are written
    under `workshop`.
    """
    if asked is None:
        return _default_gpu_model(workshop) if device.startswith("cuda") else _tiny_model(workshop)
    if (folder := Path(asked).expanduser()).is_dir():
        return _local_model(folder)
    if folder.exists():
        raise ModelError(f"model {asked!r} is a file; give the folder that it lies in, or a hub id")
    if asked.count("/") > 1 or asked.startswith(_PATHS_BEGIN):
        near = did_you_mean(asked, _folders_beside(folder))
        raise ModelError(f"model {asked!r} is no folder here, nor OWNER/NAME of a hub model; check the path{near}")
    return ChosenModel(ModelSpec(source=asked, weights="loaded", note=None), _from_hub(asked), None)


def _folders_beside(folder: Path) -> list[str]:
    parent = folder.parent
    return [str(each) for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []


def _local_model(folder: Path) -> ChosenModel:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; give the folder of a model in the hub's layout")
    if any(folder.glob("*.safetensors")):
        return ChosenModel(ModelSpec(source="local folder", weights="loaded", note=None), folder, None)
    if others := sorted(path.name for path in folder.iterdir() if path.name.endswith(_OTHER_WEIGHTS)):
        raise ModelError(
            f"{folder} holds {', '.join(others)} but no safetensors; complete the download, or convert the weights: "
            "pickled ones are never loaded, because they can run code"
        )
    note = Bilingual(
        "the folder holds a config.json but no safetensors, so the weights are random",
        "目录中有 config.json 而没有 safetensors，因此使用随机权重",
    )
    return ChosenModel(_synthetic("local folder", note), folder, SYNTHETIC_SEED)


def _default_gpu_model(workshop: Path) -> ChosenModel:
    try:
        folder = _from_hub(DEFAULT_HUB_MODEL)
    except ModelError:
        return _synthetic_shape(workshop / "qwen3-0.6b-shape")
    return ChosenModel(ModelSpec(source=DEFAULT_HUB_MODEL, weights="loaded", note=None), folder, None)


def _synthetic_shape(folder: Path) -> ChosenModel:
    _write_json(folder / "config.json", QWEN3_0_6B_CONFIG)
    note = Bilingual(
        f"`{DEFAULT_HUB_MODEL}` could not be fetched: its shape with random weights; speeds hold, "
        "the text means nothing",
        f"无法获取 `{DEFAULT_HUB_MODEL}`：采用其结构与随机权重；速度有效，生成的文本没有意义",
    )
    return ChosenModel(_synthetic(DEFAULT_HUB_MODEL, note), folder, SYNTHETIC_SEED)


def _from_hub(model_id: str) -> Path:
    """Return the folder of a hub model: from the cache if it is whole there, otherwise downloaded."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  only a hub model needs the hub's client

    for offline in (True, False):
        try:
            path = snapshot_download(
                model_id, allow_patterns=list(_WANTED_FILES), local_files_only=offline, etag_timeout=_HUB_TIMEOUT_S
            )
        except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
            if _is_of_a_disk(error):
                raise ModelError(_unusable_cache(model_id, error)) from error
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"
            continue
        if (Path(path) / "config.json").is_file() and any(Path(path).glob("*.safetensors")):
            return Path(path)
        reason = "config.json or safetensors are missing there"
    near = did_you_mean(model_id, _folders_beside(Path(model_id)))
    raise ModelError(
        f"model {model_id!r} is no folder here and cannot be had from the hub ({reason}); check the name{near}"
    )


def _is_of_a_disk(error: Exception) -> bool:
    """Whether a disk refused a file; errors of the hub itself have neither a path nor such a number."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in {errno.ENOSPC, errno.EDQUOT})


def _unusable_cache(model_id: str, error: Exception) -> str:
    from huggingface_hub import constants  # noqa: PLC0415  only a hub model needs the hub's client

    return (
        f"model {model_id!r} is no folder here, and the hub's cache {constants.HF_HUB_CACHE} cannot be used ({error}); "
        "set HF_HOME to a folder that can be written and has room, or give a local folder"
    )


def with_checkpoint(model: ChosenModel, dtype: str, workshop: Path) -> ChosenModel:
    """Give synthetic weights a file, for engines that load them and cannot draw them; real weights have theirs.

    Every engine of the run then loads the same weights, in the run's own type. They are written once, under `workshop`.
    """
    if model.synthetic_seed is None:
        return model
    config = model.config
    if config.get("architectures") != _QWEN3_COMMON["architectures"]:
        raise ModelError(
            f"synthetic weights are written for Qwen3 alone, not for {config.get('architectures')}; give a folder with "
            "safetensors"
        )
    folder = workshop / f"synthetic-{dtype}-{model.synthetic_seed}"
    if not (folder / "config.json").is_file():  # written last, so it says that the folder is whole
        _write_checkpoint(folder, config, dtype, model.synthetic_seed)
    return ChosenModel(model.spec, folder, None)


def _write_checkpoint(folder: Path, config: dict[str, Any], dtype: str, seed: int) -> None:
    import torch  # noqa: PLC0415  numpy has no bfloat16
    from safetensors import SafetensorError  # noqa: PLC0415  only where a model is made
    from safetensors.torch import save_file  # noqa: PLC0415  likewise

    folder.mkdir(parents=True, exist_ok=True)
    kind: torch.dtype = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(values).to(kind) for name, values in _weights(config, seed)}
    path = folder / "model.safetensors"
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # of a full disk as well
        raise StorageError(errno.EIO, str(error), str(path)) from error
    _write_tokenizer(folder, vocabulary_size=TINY_CONFIG["vocab_size"], seed=seed)
    _write_json(folder / "config.json", config | {"torch_dtype": dtype})


# --- the tiny model -------------------------------------------------------------------------------------------------


def _tiny_model(workshop: Path) -> ChosenModel:
    folder = workshop / "tiny-qwen3"
    if not (folder / "config.json").is_file():  # written last, so it says that the folder is whole
        make_tiny_model(folder)
    note = Bilingual(
        "no GPU: a tiny model of the Qwen3 family with random weights and its own tokenizer; its speeds say nothing of "
        "a real model",
        "没有 GPU：使用当场生成的极小模型（Qwen3 结构，随机权重，自带分词器），其速度不代表任何真实模型",
    )
    return ChosenModel(_synthetic(TINY_SOURCE, note), folder, None)


def _synthetic(source: str, note: Bilingual) -> ModelSpec:
    return ModelSpec(source=source, weights="synthetic", note=note.en, note_zh=note.zh)


def make_tiny_model(folder: Path, *, seed: int = SYNTHETIC_SEED) -> None:
    """Write a small Qwen3 as the hub lays models out: safetensors, tokenizer, config.json. A function of the seed."""
    from safetensors.numpy import save  # noqa: PLC0415  only where a model is made

    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "model.safetensors", save(dict(_weights(TINY_CONFIG, seed)), metadata={"format": "pt"}))
    _write_tokenizer(folder, vocabulary_size=TINY_CONFIG["vocab_size"], seed=seed)
    _write_json(folder / "generation_config.json", {"eos_token_id": TINY_CONFIG["eos_token_id"]})
    _write_json(folder / "config.json", TINY_CONFIG)


def _weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Draw weights whose every projection keeps the scale of its input (variance 1 / fan-in).

    The hub's usual 0.02 would leave so small a network to repeat its last token for ever, by the tied embedding; and
    attention that averages over all tokens alike would settle on a few tokens, so queries and keys are made larger.
    """
    generator = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(generator.standard_normal((rows, columns)) / np.sqrt(columns), dtype=np.float32)

    yield "model.embed_tokens.weight", matrix(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for projection, rows, columns in (
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            yield f"{name}.{projection}.weight", matrix(rows, columns)
        for norm, size, scale in (
            ("self_attn.q_norm", config["head_dim"], _ATTENTION_SHARPNESS),
            ("self_attn.k_norm", config["head_dim"], _ATTENTION_SHARPNESS),
            ("input_layernorm", hidden, 1.0),
            ("post_attention_layernorm", hidden, 1.0),
        ):
            yield f"{name}.{norm}.weight", np.full(size, scale, dtype=np.float32)
    yield "model.norm.weight", np.ones(hidden, dtype=np.float32)


def _write_tokenizer(folder: Path, *, vocabulary_size: int, seed: int) -> None:
    """Train a byte-level BPE tokenizer on seeded words and write it; any text can be encoded with it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415  only here

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(seed), trainer)
    atomic_write(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT}
    _write_json(folder / "tokenizer_config.json", settings)


def _sentences(seed: int) -> Iterator[str]:
    """Make up sentences from a few thousand pronounceable words, common ones often, as in a language."""
    random = Random(seed)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in ("a", "e", "i", "o", "u", "an")]
    words = ["".join(random.choices(syllables, k=1 + int(4 * random.random()))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law
    for _ in range(2000):
        yield " ".join(random.choices(words, weights, k=12)).capitalize() + "."


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
