"""The ledger: append-only JSON lines, each with the hash of the one before, each on disk before the run goes on."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from touchstone.canonical import atomic_write, canonical_json, sha256_hex, sync_directory
from touchstone.clock import utc_now
from touchstone.records import (
    SCHEMA_VERSION,
    Attempt,
    EntryKind,
    Environment,
    LedgerEntry,
    QualityAttempt,
    Record,
    RunEvent,
    RunPlan,
)

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path
    from types import TracebackType
    from typing import Self

LEDGER_NAME = "ledger.jsonl"
NO_PREVIOUS = "0" * 64
_ANOTHER_VERSION = "if another version of Touchstone wrote this ledger, read it with that version"

_BODY_OF_KIND: dict[EntryKind, type[Record]] = {
    EntryKind.ENVIRONMENT: Environment,
    EntryKind.PLAN: RunPlan,
    EntryKind.EVENT: RunEvent,
    EntryKind.ATTEMPT: Attempt,
    EntryKind.QUALITY: QualityAttempt,
}


class LedgerError(ValueError):
    """A ledger that cannot be trusted or used; the message names the file, the line and the cause."""


def read_ledger(path: Path) -> tuple[LedgerEntry, ...]:
    """Read every entry, checking schema, sequence numbers, hashes and the chain; LedgerError names line and cause."""
    entries, torn = _parse(path, _read_bytes(path))
    if torn:
        raise LedgerError(
            f"{path}, line {len(entries) + 1}: the last line is torn ({len(torn)} bytes without a line end), as a "
            "crash leaves it; continue the run with --resume, which moves those bytes aside"
        )
    return entries


class Ledger:
    """The one writer of a ledger. Holds an exclusive lock on the file until closed; a context manager."""

    def __init__(self, path: Path, file: FileIO, entries: tuple[LedgerEntry, ...]) -> None:
        self._path = path
        self._file = file  # without a buffer, so that nothing of a line that failed is written later
        self._entries = list(entries)
        self.torn_file: Path | None = None

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """Begin a new ledger; LedgerError if one exists."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError:
            raise LedgerError(
                f"{path} exists already; continue it with --resume, or choose another folder with --out"
            ) from None
        _lock(path, file)
        sync_directory(path.parent)
        return cls(path, file, ())

    @classmethod
    def resume(cls, path: Path) -> Ledger:
        """Open an existing ledger to append to it.

        A torn last line, left by a crash, is moved to a file of its own beside the ledger; `torn_file` names it then.
        """
        try:
            file = path.open("r+b", buffering=0)
        except FileNotFoundError:
            raise LedgerError(f"{path} does not exist; there is no run to resume: leave --resume away") from None
        try:
            _lock(path, file)
            data = file.read()
            entries, torn = _parse(path, data)
            ledger = cls(path, file, entries)
            if torn:
                ledger._set_aside(torn, keep=len(data) - len(torn))
        except BaseException:
            file.close()
            raise
        return ledger

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """What the ledger holds, in order."""
        return tuple(self._entries)

    def append(self, kind: EntryKind, body: Environment | RunPlan | RunEvent | Attempt | QualityAttempt) -> LedgerEntry:
        """Add one entry; it is on disk when this returns. LedgerError, and nothing added, when it cannot be written."""
        if not isinstance(body, _BODY_OF_KIND[kind]):
            raise LedgerError(
                f"an entry of kind {kind!r} holds {_BODY_OF_KIND[kind].__name__}, not {type(body).__name__}"
            )
        fields: dict[str, Any] = {
            "seq": len(self._entries),
            "previous_sha256": self._entries[-1].sha256 if self._entries else NO_PREVIOUS,
            "kind": kind,
            "written_at": utc_now(),
            "body": body.model_dump(mode="json"),
        }
        entry = LedgerEntry(**(fields | {"body": body}), sha256=sha256_hex(canonical_json(fields)))
        try:
            self._write(canonical_json(entry) + b"\n")
        except OSError as error:
            raise LedgerError(
                f"{self._path} cannot be written ({error.strerror}); make room there, then go on with --resume"
            ) from error
        self._entries.append(entry)
        return entry

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        """Write a line to its end, or take back what a full disk or an interrupt left of it."""
        begin = self._file.tell()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            with suppress(OSError):  # what cannot be taken back is a torn line, which resuming sets aside
                self._file.truncate(begin)
                self._file.seek(begin)
            raise

    def _set_aside(self, torn: bytes, *, keep: int) -> None:
        """Save the torn bytes first, then cut them off: a crash between the two loses nothing."""
        self.torn_file = self._path.with_name(f"{self._path.name}.torn-{len(self._entries)}-{sha256_hex(torn)[:12]}")
        atomic_write(self.torn_file, torn)
        self._file.truncate(keep)
        self._file.seek(keep)
        os.fsync(self._file.fileno())


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LedgerError(f"{path} does not exist; name a folder that `touchstone run` has written") from None


def _lock(path: Path, file: FileIO) -> None:
    """Take the lock that dies with the process; the file is closed if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LedgerError(f"{path} is being written by another run; wait for its end or choose another --out") from None


def _parse(path: Path, data: bytes) -> tuple[tuple[LedgerEntry, ...], bytes]:
    """Split into checked entries and the torn rest, which is empty in a ledger that was closed in peace."""
    *lines, torn = data.split(b"\n")
    entries: list[LedgerEntry] = []
    previous = NO_PREVIOUS
    for number, line in enumerate(lines, start=1):
        try:
            entry = _check_line(line, seq=number - 1, previous=previous)
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"{path}, line {number}: {error}") from error
        entries.append(entry)
        previous = entry.sha256
    return tuple(entries), torn


def _check_line(line: bytes, *, seq: int, previous: str) -> LedgerEntry:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  one error kind for bad content
    claimed = raw.pop("sha256", None)
    if sha256_hex(canonical_json(raw)) != claimed:
        raise ValueError("the line does not hash to its sha256: it was changed after it was written")
    if raw.get("seq") != seq:
        raise ValueError(f"seq is {raw.get('seq')} where {seq} belongs: a line was removed, added or moved")
    if raw.get("previous_sha256") != previous:
        raise ValueError("previous_sha256 is not the hash of the line before: the chain is broken")
    return _validate_entry(raw, claimed)


def _validate_entry(raw: dict[str, Any], sha256: str) -> LedgerEntry:
    """Build the entry with the body type that its kind names, not with whichever type happens to fit."""
    kind = EntryKind(str(raw.get("kind")))
    try:
        body = _BODY_OF_KIND[kind].model_validate(raw.get("body"))
        entry = LedgerEntry.model_validate({**raw, "body": body, "sha256": sha256})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{kind.value}, {place}: {first['msg']}; {_ANOTHER_VERSION}") from error
    if isinstance(body, RunPlan) and body.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {body.schema_version!r}, not {SCHEMA_VERSION!r}; {_ANOTHER_VERSION}")
    return entry
