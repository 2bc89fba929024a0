"""ModelConfig: what a Hugging Face config.json says about a decoder, checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanoinfer.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_ROPE_THETA = 10_000.0
LARGEST_SIZE = 2**31 - 1  # sizes are indices of tensors in 32 bits on the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture has of itself, whatever its config.json says.

    qk_norm      each query and key head is normalized before the rotation
    qkv_bias     query, key and value projections have a bias; None: as `attention_bias` says
    output_bias  the attention's output projection has one; None: as `attention_bias` says
    """

    qk_norm: bool
    qkv_bias: bool | None
    output_bias: bool | None


FAMILIES = {
    "Qwen3ForCausalLM": Family(qk_norm=True, qkv_bias=None, output_bias=None),
    "Qwen2ForCausalLM": Family(qk_norm=False, qkv_bias=True, output_bias=False),
    "LlamaForCausalLM": Family(qk_norm=False, qkv_bias=None, output_bias=None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Stretching of long wavelengths as Llama 3.1 does it; the fields are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder.

    `eos_token_ids` come from generation_config.json where it names some, otherwise from config.json. `dtype` is what
    the checkpoint was saved in, None where it does not say.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    qk_norm: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    dtype: str | None

    @property
    def qkv_heads(self) -> int:
        """Heads of the fused projection: queries, keys, values."""
        return self.num_heads + 2 * self.num_kv_heads

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes that one token occupies in the KV cache, keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_size

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read config.json, and generation_config.json where there is one."""
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError(f"{folder} holds no config.json; give a model folder as transformers saves it")
        generation = folder / "generation_config.json"
        return cls.from_dict(read_json_object(path), read_json_object(generation) if generation.is_file() else {})

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """Build from the content of config.json; an unsupported feature is a ConfigError that names it."""
        architecture = _architecture(raw)
        _refuse_unsupported(raw)
        family = FAMILIES[architecture]
        theta, scaling = _rope(raw)
        num_heads = _positive(raw, "num_attention_heads")
        config = cls(
            architecture=architecture,
            vocab_size=_positive(raw, "vocab_size"),
            hidden_size=_positive(raw, "hidden_size"),
            intermediate_size=_positive(raw, "intermediate_size"),
            num_layers=_positive(raw, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_positive(raw, "num_key_value_heads", default=num_heads),
            head_dim=_head_dim(raw, num_heads),
            rms_norm_eps=_number(raw, "rms_norm_eps", default=1e-6),
            max_position_embeddings=_positive(raw, "max_position_embeddings"),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
            qk_norm=family.qk_norm,
            qkv_bias=_bias(raw, family.qkv_bias),
            output_bias=_bias(raw, family.output_bias),
            mlp_bias=_flag(raw, "mlp_bias"),
            eos_token_ids=_eos_token_ids(raw, generation or {}),
            dtype=_text(raw, "dtype") or _text(raw, "torch_dtype"),
        )
        _check_heads(config)
        return config


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file of a model folder that holds one JSON object; ConfigError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the file and its rights") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return content


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures is {names!r} in config.json; it must be a list of names")
    known = [name for name in names if name in FAMILIES]
    if not known:
        raise ConfigError(f"architecture {', '.join(names) or 'not named'} is not known; known: {', '.join(FAMILIES)}")
    return str(known[0])


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Refuse what would silently compute something else."""
    if raw.get("quantization_config") is not None:
        method = _object(raw, "quantization_config").get("quant_method", "unknown")
        raise ConfigError(f"the checkpoint is quantized ({method}); use the unquantized model")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act is {raw['hidden_act']!r}; only 'silu' is supported")
    if _is_windowed(raw):
        raise ConfigError("the model uses sliding window attention; only full attention is supported")


def _is_windowed(raw: Mapping[str, Any]) -> bool:
    layers = raw.get("layer_types") or []
    if not isinstance(layers, list):
        raise ConfigError(f"layer_types is {layers!r} in config.json; it must be a list")
    if layers:
        return any(kind != "full_attention" for kind in layers)
    if not raw.get("use_sliding_window") or raw.get("sliding_window") is None:
        return False
    return _number(raw, "max_window_layers", default=0, least=0) < _positive(raw, "num_hidden_layers")


# --- values of config.json, each of the type that it must have --------------------------------------------------------


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json lacks {name}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ConfigError(f"{name} is {value!r} in config.json; it must be an integer from 1 to {LARGEST_SIZE}")
    return value


def _number(raw: Mapping[str, Any], name: str, *, default: float, least: float | None = None) -> float:
    """Return a finite number above 0, or of at least `least` where that is given."""
    value = raw.get(name)
    value = default if value is None else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max  # also false for NaN, and for integers beyond floats
    if not is_finite or value < (least or 0) or (least is None and value == 0):
        bound = "above 0" if least is None else f"of at least {least}"
        raise ConfigError(f"{name} is {value!r} in config.json; it must be a number {bound}")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r} in config.json; it must be true or false")
    return bool(value)


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r} in config.json; it must be a text")
    return value


def _object(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r} in config.json; it must be a JSON object")
    return value or {}


# --- what several values decide together ------------------------------------------------------------------------------


def _head_dim(raw: Mapping[str, Any], num_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return _positive(raw, "head_dim")
    hidden_size = _positive(raw, "hidden_size")
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}, and there is no head_dim"
        )
    return hidden_size // num_heads


def _bias(raw: Mapping[str, Any], fixed: bool | None) -> bool:
    return _flag(raw, "attention_bias") if fixed is None else fixed


def _rope(raw: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Read theta and scaling: transformers 5 writes `rope_parameters`, older files `rope_theta` and `rope_scaling`."""
    parameters = _object(raw, "rope_scaling") | _object(raw, "rope_parameters")
    inherited = {name: raw.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    given = inherited | {name: value for name, value in parameters.items() if value is not None}
    theta = _number(given, "rope_theta", default=DEFAULT_ROPE_THETA)
    if _number(given, "partial_rotary_factor", default=1.0) != 1.0:
        raise ConfigError("partial_rotary_factor is not 1; only full rotation is supported")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"rope type {kind!r} is not supported; supported: default, llama3")
    return theta, _llama3_scaling(raw, parameters)


def _llama3_scaling(raw: Mapping[str, Any], parameters: Mapping[str, Any]) -> Llama3Scaling:
    missing = [name for name in ("factor", "low_freq_factor", "high_freq_factor") if name not in parameters]
    if missing:
        raise ConfigError(f"rope type llama3 lacks {', '.join(missing)} in config.json")
    low, high = (_number(parameters, f"{name}_freq_factor", default=1.0) for name in ("low", "high"))
    if low >= high:
        raise ConfigError(f"low_freq_factor {low} is not below high_freq_factor {high} in config.json")
    limit = _positive(raw, "max_position_embeddings")
    return Llama3Scaling(
        factor=_number(parameters, "factor", default=1.0),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_positive(parameters, "original_max_position_embeddings", default=limit),
    )


def _eos_token_ids(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    found = generation.get("eos_token_id")
    if found is None:
        found = raw.get("eos_token_id")
    if found is None:
        return ()
    listed = found if isinstance(found, list) else [found]
    for token_id in listed:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id <= LARGEST_SIZE:
            raise ConfigError(f"eos_token_id is {found!r}; it must be a token id or a list of them")
    return tuple(listed)


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"num_attention_heads {config.num_heads} is no multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise ConfigError(f"head_dim is {config.head_dim}; the rotary embedding needs an even number")
