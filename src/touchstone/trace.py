"""Where traces lie: one compressed file each beside the ledger, named by the hash of its content."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from touchstone.canonical import atomic_write, canonical_json, sha256_hex
from touchstone.records import Trace

if TYPE_CHECKING:
    from pathlib import Path


class TraceError(ValueError):
    """A stored trace is missing or is not what its name says; the message names the file."""


def trace_path(run_dir: Path, sha256: str) -> Path:
    """Where the trace with this hash lies."""
    return run_dir / "traces" / f"{sha256}.json.gz"


def store_trace(run_dir: Path, trace: Trace) -> str:
    """Write the trace under `run_dir/traces` and return the SHA-256 of its uncompressed canonical JSON.

    The compressed bytes carry no time and no file name, so that equal traces give equal files.
    """
    data = canonical_json(trace)
    sha256 = sha256_hex(data)
    path = trace_path(run_dir, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, gzip.compress(data, mtime=0))
    return sha256


def load_trace(run_dir: Path, sha256: str) -> Trace:
    """Read a trace back; TraceError if it is missing, damaged, or hashes to something else."""
    path = trace_path(run_dir, sha256)
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise TraceError(f"{path} is missing; the ledger names it, so the run folder is incomplete") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be decompressed ({error}); the file is damaged") from error
    if (found := sha256_hex(data)) != sha256:
        raise TraceError(f"{path} hashes to {found}, not to its name; the file was changed after the run")
    try:
        return Trace.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise TraceError(f"{path} holds no valid trace: {error}") from error
