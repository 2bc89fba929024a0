"""Where traces lie: one compressed file each beside the ledger, named by the hash of its content."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from typing import TYPE_CHECKING

from touchstone.canonical import atomic_write, canonical_json, make_folder, sha256_hex
from touchstone.records import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from touchstone.engines.base import GenerationRequest


# Of the largest runs a trace holds some MB. A file from a stranger must not fill the memory before its hash is known.
MAX_TRACE_BYTES = 1 << 30
_GZIP = 16 + zlib.MAX_WBITS


class TraceError(ValueError):
    """A stored trace is missing or is not what its name says; the message names the file."""


def tokens_sha256(token_ids: Sequence[int]) -> str:
    """Hash output ids as little-endian int32, as `RequestTrace.output_sha256` wants it."""
    return sha256_hex(struct.pack(f"<{len(token_ids)}i", *token_ids))


def outputs_sha256(hashes: Iterable[str]) -> str:
    """Hash the requests' output hashes, in request order, as `Trace.output_sha256` wants it."""
    return sha256_hex("".join(hashes).encode())


def what_is_wrong(trace: Trace, requests: Sequence[GenerationRequest]) -> str | None:
    """Say why a trace is not a run of these requests to their end; None when it is one."""
    if [request.request_id for request in requests] != [told.request_id for told in trace.requests]:
        return f"the engine told of {len(trace.requests)} requests, not of the {len(requests)} asked for in their order"
    for asked, told in zip(requests, trace.requests, strict=True):
        name = f"request {asked.request_id}"
        if told.prompt_tokens != len(asked.prompt_token_ids):
            return f"{name} had {told.prompt_tokens} prompt tokens instead of {len(asked.prompt_token_ids)}"
        if len(told.emissions) != asked.num_output_tokens:
            return f"{name} returned {len(told.emissions)} tokens instead of {asked.num_output_tokens}"
        times = [trace.emission_times_ns[index] for index in told.emissions]
        if times != sorted(times) or not 0 <= told.arrival_ns <= times[0] or times[-1] > trace.duration_ns:
            return f"{name} has times that run backwards or leave the timed region"
    if trace.output_sha256 != outputs_sha256(told.output_sha256 for told in trace.requests):
        return "the hash over all outputs does not follow from the hashes of the requests"
    return None


def trace_path(run_dir: Path, sha256: str) -> Path:
    """Where the trace with this hash lies: as it was measured, or else as `pack_trace` has packed it."""
    measured = run_dir / "traces" / f"{sha256}.json.gz"
    packed = measured.with_suffix(".xz")
    return packed if packed.exists() and not measured.exists() else measured


def store_trace(run_dir: Path, trace: Trace) -> str:
    """Write the trace under `run_dir/traces` and return the SHA-256 of its uncompressed canonical JSON.

    The compressed bytes carry no time and no file name, so that equal traces give equal files.
    """
    data = canonical_json(trace)
    sha256 = sha256_hex(data)
    path = trace_path(run_dir, sha256)
    make_folder(path.parent)
    atomic_write(path, gzip.compress(data, mtime=0))
    return sha256


def pack_trace(run_dir: Path, sha256: str, folder: Path) -> int:
    """Write a trace of a run into the `traces` of another folder as `.json.xz`; return the bytes that it takes there.

    Not a digit is lost: the content, and with it the name, stays the same. xz takes a good third less than gzip, and a
    hundred times as long, which a run that is measuring does not have. TraceError as for `load_trace`.
    """
    path = folder / "traces" / f"{sha256}.json.xz"
    make_folder(path.parent)
    packed = lzma.compress(_content(trace_path(run_dir, sha256), sha256), preset=lzma.PRESET_DEFAULT)
    atomic_write(path, packed)
    return len(packed)


def load_trace(run_dir: Path, sha256: str) -> Trace:
    """Read a trace back; TraceError if it is missing, damaged, or hashes to something else."""
    path = trace_path(run_dir, sha256)
    data = _content(path, sha256)
    try:
        return _sharing_numbers(Trace.model_validate_json(data))
    except ValueError as error:
        raise TraceError(f"{path} holds no valid trace: {error}") from error


def _content(path: Path, sha256: str) -> bytes:
    """Read the canonical JSON of a trace that lies at `path`, measured or packed."""
    try:
        data = _decompressed(path.read_bytes(), packed=path.suffix == ".xz")
    except FileNotFoundError:
        raise TraceError(f"{path} is missing; the ledger names it, so the run folder is incomplete") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{path} cannot be decompressed ({error}); the file is damaged") from error
    if (found := sha256_hex(data)) != sha256:
        raise TraceError(f"{path} hashes to {found}, not to its name; the file was changed after the run")
    return data


def _decompressed(compressed: bytes, *, packed: bool) -> bytes:
    """Decompress one file of gzip or xz; an error where it is cut, or holds more than any run does."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if packed else zlib.decompressobj(wbits=_GZIP)
    data = stream.decompress(compressed, MAX_TRACE_BYTES)
    if not stream.eof or stream.unused_data:
        raise EOFError(f"it ends too early or too late, or holds more than {MAX_TRACE_BYTES:,} bytes")
    return data


def _sharing_numbers(trace: Trace) -> Trace:
    """Let all requests share the numbers of their tokens' moments; by themselves they are most of a run's memory.

    ValueError where a token names a moment that is not there.
    """
    places = range(len(trace.emission_times_ns))
    shared = list(places)
    for request in trace.requests:
        if request.emissions and not (min(request.emissions) in places and max(request.emissions) in places):
            raise ValueError(f"request {request.request_id}: a token names a moment that is none of the {len(places)}")
    requests = tuple(
        request.model_copy(update={"emissions": tuple(map(shared.__getitem__, request.emissions))})
        for request in trace.requests
    )
    return trace.model_copy(update={"requests": requests})
