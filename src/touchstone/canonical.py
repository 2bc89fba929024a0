"""Canonical JSON, its hash, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator


def canonical_json(value: object) -> bytes:
    """Encode a record, or anything that JSON can hold, in the one form that hashes are taken of.

    UTF-8, keys sorted, no blanks, no line breaks; floats in their shortest form that reads back the same. NaN and
    infinity raise ValueError.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


class StorageError(OSError):
    """A file that cannot be written: a full disk, a missing right. `filename` names it, `strerror` the cause."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder until the body ends; StorageError where the machine has no place for one."""
    try:
        temporary = TemporaryDirectory()
    except OSError as error:  # where every place refuses, Python's names none
        raise StorageError(error.errno, error.strerror, error.filename or "a temporary folder (TMPDIR)") from error
    with temporary as folder:
        yield Path(folder)


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, also after a crash.

    StorageError when that cannot be done; the old file is untouched then, and nothing else is left.
    """
    try:
        _replace(path, data)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are not there yet; StorageError when that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; a file's own fsync does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
