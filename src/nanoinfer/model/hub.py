"""Where a model's files lie: a local folder as it is, or a snapshot of a hub repository."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from nanoinfer.config import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
_DUPLICATES = ("original/*", "consolidated*")


def resolve_folder(model: str, *, revision: str | None, with_weights: bool) -> Path:
    """Return the folder of a model: `model` itself where it is one, otherwise a snapshot of that hub id.

    Only safetensors, JSON and tokenizer files are fetched; what the cache holds already is not fetched again.
    """
    try:
        folder = Path(model).expanduser()
        if model and folder.is_dir():
            return folder
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise ConfigError(f"model {model!r} cannot be looked up as a folder: {error}") from error
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model {model!r} is neither a folder that exists nor a hub id such as 'Qwen/Qwen3-0.6B'")
    return _snapshot(model, revision, _SETTINGS + (("*.safetensors",) if with_weights else ()))


def _snapshot(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  costs half a second; local folders need it not

    try:
        path = snapshot_download(
            model, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_DUPLICATES)
        )
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        at = f" at revision {revision!r}" if revision else ""
        raise ConfigError(
            f"model {model!r}{at} could not be fetched from the hub ({error}); {_remedy(error)}"
        ) from error
    return Path(path)


def _remedy(error: Exception) -> str:
    """Say what helps; errors of a disk have a path or its number, those of the hub have neither."""
    from huggingface_hub import constants  # noqa: PLC0415  as above

    if isinstance(error, OSError) and (error.filename is not None or error.errno in {errno.ENOSPC, errno.EDQUOT}):
        return (
            f"its files go to {constants.HF_HUB_CACHE}: set HF_HOME to a folder that can be written and has room, or "
            "give a local folder instead"
        )
    return "give a local folder instead"
