"""Fill a decoder's parameters: from safetensors files, or drawn from a seed.

Both ways go through one table, `destinations`: checkpoint name -> the part of a parameter that it fills. A rank of
several reads or keeps only its own part.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from nanoinfer.config import ConfigError
from nanoinfer.model.config import read_json_object
from nanoinfer.model.destinations import ROWS, destinations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from nanoinfer.model.config import ModelConfig
    from nanoinfer.model.decoder import Decoder
    from nanoinfer.model.destinations import Destination

_NAMES_SHOWN = 8
# A plain file name: no folder, no way up, and no more than the 255 bytes that a file system takes.
_SHARD = re.compile(r"[\w-][\w.-]{0,242}\.safetensors", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_BIAS_STD = 0.02


# --- from a checkpoint ------------------------------------------------------------------------------------------------


def load_checkpoint(model: Decoder, config: ModelConfig, folder: Path) -> None:
    """Copy a folder's safetensors into the model.

    A name that is missing, unused or misshapen, a value that is no number, and a damaged file are a ConfigError.
    """
    missing = destinations(model, config)
    unused: dict[str, Tensor] = {}
    for path in checkpoint_files(folder):
        with _whole_file(path), safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  the handle is no mapping
                target = missing.pop(name, None)
                if target is None:
                    unused[name] = shard.get_tensor(name)
                else:
                    _copy(name, _read_part(name, shard, target), target.view)
    if missing:
        raise ConfigError(f"the checkpoint in {folder} lacks {_enumerate(missing)}")
    unknown = [name for name, tensor in unused.items() if not _is_redundant(name, tensor, model, config)]
    if unknown:
        raise ConfigError(f"{config.architecture} has no use for {_enumerate(unknown)} of the checkpoint in {folder}")


@contextmanager
def _whole_file(path: Path) -> Iterator[None]:
    """Say in a sentence that a file is no whole safetensors file, whichever read finds it out."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is no whole safetensors file ({error}); fetch the file again") from error


def checkpoint_files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint: those of its index, or the only one."""
    index = folder / "model.safetensors.index.json"
    files = [folder / name for name in _indexed(index)] if index.is_file() else sorted(folder.glob("*.safetensors"))
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise ConfigError(f"{folder} lacks {_enumerate(absent)}, which its index names; complete the download")
    if not files:
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f" but {_enumerate(pickled)}; pickled weights are never loaded, they can run code" if pickled else ""
        raise ConfigError(
            f'{folder} holds no safetensors{found}; convert the checkpoint, or use weights="synthetic" for random ones'
        )
    return files


def _indexed(index: Path) -> list[str]:
    """Return the file names of an index, each once; none may lead out of the index's own folder."""
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ConfigError(f"{index} holds no weight_map of tensor names to file names; fetch the file again")
    names = sorted(set(listed.values()))
    if strange := [name for name in names if not _SHARD.fullmatch(name)]:
        raise ConfigError(f"{index} names {_enumerate(strange)}; only safetensors files of its own folder are loaded")
    return names


def _read_part(name: str, shard: safe_open, target: Destination) -> Tensor:
    """Read what this rank needs of a tensor, and no more."""
    stored = shard.get_slice(name)  # type: ignore[no-untyped-call]
    shape = tuple(stored.get_shape())
    if shape != target.shape:
        raise ConfigError(f"{name} has shape {shape}; config.json asks for {target.shape}")
    if target.is_whole or not target.part:
        return target.part_of(shard.get_tensor(name))  # type: ignore[no-untyped-call]
    wanted = slice(target.part.start, target.part.stop)
    part: Tensor = stored[wanted] if target.axis == ROWS else stored[:, wanted]
    return part


def _copy(name: str, tensor: Tensor, target: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ConfigError(f"{name} is stored as {tensor.dtype}; only unquantized floating-point weights are supported")
    target.copy_(tensor.to(target.device))  # where types differ, the device converts, not the host
    if bool(target.isfinite().all()):
        return
    if bool(tensor.isfinite().all()):
        beyond = str(target.dtype).removeprefix("torch.")
        raise ConfigError(f'{name} holds values beyond the range of {beyond}; use dtype="bfloat16" or "float32"')
    raise ConfigError(f"{name} holds NaN or infinity; the checkpoint is damaged, fetch it again")


def _is_redundant(name: str, tensor: Tensor, model: Decoder, config: ModelConfig) -> bool:
    """Whether a name that fills nothing says only what is known: an old rotary table, or the copy of a tied head."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name != "lm_head.weight" or not config.tie_word_embeddings:
        return False
    embedding = destinations(model, config)["model.embed_tokens.weight"]
    if tuple(tensor.shape) != embedding.shape:
        return False
    weight = embedding.view
    return torch.equal(embedding.part_of(tensor).to(weight.device, weight.dtype), weight)


def _enumerate(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


# --- from a seed ------------------------------------------------------------------------------------------------------


def draw_weights(model: Decoder, config: ModelConfig, seed: int) -> None:
    """Draw every parameter from (seed, its checkpoint name) on the parameter's own device.

    A rank draws whole matrices and keeps its parts, so the model is the same on any number of ranks. Norms are 1.
    Matrices have variance 1 / inputs, so that activations keep their scale; those that write to the residual stream
    are divided by sqrt(2 * layers), so that it does not grow with depth (GPT-2's rule).
    """
    residual_scale = (2 * config.num_layers) ** -0.5
    for name, target in destinations(model, config).items():
        if name.endswith("norm.weight"):
            target.view.fill_(1.0)
            continue
        std = _BIAS_STD if len(target.shape) == 1 else target.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= residual_scale
        _draw(target, std, _name_seed(seed, name))


def _draw(target: Destination, std: float, seed: int) -> None:
    view = target.view
    whole = view if target.is_whole else view.new_empty(target.shape)
    whole.normal_(0.0, std, generator=torch.Generator(view.device).manual_seed(seed))
    if whole is not view:
        view.copy_(target.part_of(whole))


def _name_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
