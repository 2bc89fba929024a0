"""The record by itself: chain, schemas, one plan, one environment, traces and attempts, read by code of its own."""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from touchstone.records import (
    SCHEMA_VERSION,
    Attempt,
    Environment,
    LedgerEntry,
    QualityAttempt,
    RunEvent,
    RunPlan,
    Trace,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from touchstone.records import Record

from touchstone.verify.outcome import Fault

Json = dict[str, Any]

LEDGER = "ledger.jsonl"
TRACES = "traces"
FIRST_LINK = "0" * 64
MAX_ATTEMPTS = 2  # an invalid process is repeated at most once
# What ends a process without saying anything of the measurement, and does not use up its repeat.
OUTSIDE_REASONS = frozenset({"interrupted by the user", "the run was killed while this process was under way"})
CODE_TEST = "4.1"
_GZIP = 31  # zlib's name for the gzip format
_MAX_TRACE_BYTES = 1 << 30  # a file from a stranger must not fill the memory
_BODIES: Mapping[str, type[Record]] = {
    "environment": Environment,
    "plan": RunPlan,
    "event": RunEvent,
    "attempt": Attempt,
    "quality": QualityAttempt,
}


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One ledger line. `written` is the body as it was read, which hashes are made of.

    `body` is the same until the schemas are checked; then it also holds the fields that an earlier version of the
    instrument did not know, with the values that stand for "not there".
    """

    line: int
    kind: str
    body: Json
    written: Json
    sha256: str


@dataclass(slots=True)
class Evidence:
    """What the run folder proves, as far as it could be read."""

    folder: Path
    lines: list[LedgerLine] = field(default_factory=list)
    traces: dict[str, Json] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[LedgerLine]:
        """Select the ledger lines of one kind, in order."""
        return [record for record in self.lines if record.kind == kind]

    @property
    def root_sha256(self) -> str:
        """Hash of the last line."""
        return self.lines[-1].sha256

    @property
    def plan(self) -> Json:
        """The one plan."""
        return self.of_kind("plan")[0].body

    @property
    def environment(self) -> Json:
        """The one environment."""
        return self.of_kind("environment")[0].body

    def attempts(self, test_id: str | None = None) -> list[Json]:
        """Every process that was started, of one test or of all."""
        bodies = [record.body for record in self.of_kind("attempt")]
        return bodies if test_id is None else [body for body in bodies if body["test_id"] == test_id]


def digest(content: object) -> str:
    """SHA-256 of canonical JSON: sorted keys, no blanks, UTF-8."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def without(content: Json, name: str) -> Json:
    """Copy a JSON object without one of its fields."""
    return {key: value for key, value in content.items() if key != name}


def timed_runs(attempt: Json) -> list[Json]:
    """Every run of an attempt that left a trace: those that count, and the repeat that no metric is made of."""
    repeated = attempt.get("repeated")
    return [*attempt["measurements"], *([] if repeated is None else [repeated])]


# --- the ledger -----------------------------------------------------------------------------------------------------


def read_chain(evidence: Evidence) -> tuple[Fault, ...]:
    """Read every line, and hold its hash, its number and its link against the line before."""
    *lines, rest = (evidence.folder / LEDGER).read_bytes().split(b"\n")
    faults = [Fault(LEDGER, "the last line has no end: it was cut off", len(lines) + 1)] if rest else []
    previous = FIRST_LINK
    for number, line in enumerate(lines, start=1):
        try:
            raw = _object(line)
        except (ValueError, RecursionError) as error:
            return (*faults, Fault(LEDGER, f"no JSON object: {error}", number))
        faults.extend(Fault(LEDGER, detail, number) for detail in _broken_links(line, raw, number - 1, previous))
        previous = str(raw.get("sha256"))
        found = raw.get("body")
        body: Json = found if isinstance(found, dict) else {}
        evidence.lines.append(LedgerLine(number, str(raw.get("kind")), body, body, previous))
    return tuple(faults)


def _object(line: bytes) -> Json:
    raw = json.loads(line, object_pairs_hook=_unique_names)
    if not isinstance(raw, dict):
        raise ValueError("it is another kind of value")  # noqa: TRY004  bad content, whatever its type
    return raw


def _unique_names(pairs: list[tuple[str, Any]]) -> Json:
    """Refuse a name that stands twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r} stands twice")
    return found


def _broken_links(line: bytes, raw: Json, seq: int, previous: str) -> Iterator[str]:
    if raw.get("sha256") != digest(without(raw, "sha256")):
        yield "the line does not hash to its sha256: it was changed after it was written"
    elif line != json.dumps(raw, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode():
        yield "the line is not in canonical form: it was not written by the instrument"
    if raw.get("seq") != seq:
        yield f"seq is {raw.get('seq')} where {seq} belongs: a line was removed, added or moved"
    if raw.get("previous_sha256") != previous:
        yield "previous_sha256 is not the hash of the line before: the chain is broken"


def check_schemas(evidence: Evidence) -> tuple[Fault, ...]:
    """Every body is what its kind promises, to the last field; fields that may be left out are filled in."""
    checked = [_checked(record) for record in evidence.lines]
    evidence.lines[:] = [record for record in checked if isinstance(record, LedgerLine)]
    return tuple(fault for fault in checked if isinstance(fault, Fault))


def _checked(record: LedgerLine) -> LedgerLine | Fault:
    model = _BODIES.get(record.kind)
    if model is None:
        return Fault(LEDGER, f"kind {record.kind!r} is none of {', '.join(_BODIES)}", record.line)
    try:
        body = model.model_validate(record.body)
        LedgerEntry.model_validate(
            {
                "seq": record.line - 1,
                "previous_sha256": FIRST_LINK,
                "kind": record.kind,
                "written_at": "",
                "body": body,
                "sha256": record.sha256,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return Fault(LEDGER, f"{record.kind}, {place}: {first['msg']}", record.line)
    if isinstance(body, RunPlan) and body.schema_version != SCHEMA_VERSION:
        versions = f"schema_version is {body.schema_version!r}, not {SCHEMA_VERSION!r}"
        return Fault(LEDGER, f"{versions}: verify it with the version of Touchstone that wrote it", record.line)
    return replace(record, body=body.model_dump(mode="json"))


# --- one plan, one environment --------------------------------------------------------------------------------------


def check_plan(evidence: Evidence) -> tuple[Fault, ...]:
    """One plan, whose hash is in every record, written before anything was measured."""
    plan, *others = evidence.of_kind("plan")
    faults = [Fault(LEDGER, "a second plan", other.line) for other in others]
    claimed = plan.body["plan_sha256"]
    if digest(without(plan.written, "plan_sha256")) != claimed:
        faults.append(Fault(LEDGER, "the plan does not hash to its plan_sha256", plan.line))
    for record in evidence.lines:
        found = str(record.body.get("plan_sha256", claimed))
        if found != claimed:
            faults.append(Fault(LEDGER, f"made under the plan {found[:12]}", record.line))
        if record.kind in {"attempt", "quality"} and record.line < plan.line:
            faults.append(Fault(LEDGER, "measured before the plan was made", record.line))
    return tuple(faults)


def check_environment(evidence: Evidence) -> tuple[Fault, ...]:
    """One environment fingerprint, which hashes what was captured, in every record."""
    environment, *_ = evidence.of_kind("environment")
    claimed = environment.body["fingerprint"]
    faults = [
        Fault(LEDGER, "the environment does not hash to its fingerprint", record.line)
        for record in evidence.of_kind("environment")
        if digest(without(record.written, "fingerprint")) != record.body["fingerprint"]
    ]
    for record in evidence.lines:
        found = str(record.body.get("fingerprint", record.body.get("environment_fingerprint", claimed)))
        if found != claimed:
            faults.append(Fault(LEDGER, f"made on another machine or software: {found[:12]}", record.line))
    return tuple(faults)


# --- attempts -------------------------------------------------------------------------------------------------------


def check_attempts(evidence: Evidence) -> tuple[Fault, ...]:
    """Every planned process has its attempts 1, 2, ... without gap, its repeats within the rule, and its runs."""
    planned = {unit["unit_id"]: unit for unit in evidence.plan["units"]}
    tried: dict[str, list[LedgerLine]] = {name: [] for name in planned}
    faults = []
    for record in evidence.of_kind("attempt"):
        name = record.body["unit_id"]
        if name not in planned:
            faults.append(Fault(LEDGER, f"unit {name} was not planned", record.line))
        else:
            tried[name].append(record)
            faults.extend(Fault(LEDGER, detail, record.line) for detail in _attempt_faults(record.body, planned[name]))
    finished = any(record.body["event"] == "finished" for record in evidence.of_kind("event"))
    for name, records in tried.items():
        faults.extend(_unit_faults(evidence, planned[name], records, finished=finished))
    return tuple(faults)


def _attempt_faults(attempt: Json, unit: Json) -> Iterator[str]:
    name, runs = attempt["unit_id"], attempt["measurements"]
    if attempt["test_id"] != unit["test_id"]:
        yield f"unit {name} belongs to test {unit['test_id']}, not {attempt['test_id']}"
    if attempt["valid"] == (attempt["reason"] is not None):
        yield f"unit {name}: an attempt is valid or has a reason why not, and not both"
    if any((run["unit_id"], run["test_id"]) != (name, unit["test_id"]) for run in runs):
        yield f"unit {name}: a run of another unit or test is among its runs"
    positions = [run["position"] for run in runs]
    if positions != list(range(len(runs))):
        yield f"unit {name}: runs {positions} are not numbered from 0 without gap"
    rounds, order = unit["num_repetitions"], unit["arm_order"]
    if attempt["valid"] and not _fits(Counter(run["arm"] for run in runs), order, rounds):
        yield f"unit {name}: {len(runs)} runs, where {rounds} x {len(order)} were planned"


def _fits(done: Counter[str], order: Sequence[str], rounds: int) -> bool:
    """Whether each arm ran as often as planned: unequal counts would favour one of them."""
    return done == Counter({arm: rounds * times for arm, times in Counter(order).items()})


def _unit_faults(evidence: Evidence, unit: Json, records: list[LedgerLine], *, finished: bool) -> Iterator[Fault]:
    name = unit["unit_id"]
    if unit["test_id"] == CODE_TEST:
        if finished and not evidence.of_kind("quality"):
            yield Fault(LEDGER, "the run is finished, and the planned code metrics are missing")
        return
    numbers = [record.body["attempt"] for record in records]
    valid = [record.line for record in records if record.body["valid"]]
    counted = [record for record in records if record.body["reason"] not in OUTSIDE_REASONS]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Fault(LEDGER, f"unit {name}: attempts {numbers} are not 1, 2, ... without gap", records[-1].line)
    if len(valid) > 1:
        yield Fault(LEDGER, f"unit {name} has {len(valid)} valid attempts, so that one could be chosen", valid[-1])
    if valid and records[-1].line != valid[0]:
        yield Fault(LEDGER, f"unit {name} was tried again after it was valid", records[-1].line)
    if len(counted) > MAX_ATTEMPTS:
        yield Fault(LEDGER, f"unit {name} was tried {len(counted)} times, {MAX_ATTEMPTS} are allowed", counted[-1].line)
    if finished and not valid and len(counted) < MAX_ATTEMPTS:
        yield Fault(LEDGER, f"the run is finished, and the attempts of unit {name} are missing: {len(counted)}")


# --- traces ---------------------------------------------------------------------------------------------------------


def read_traces(evidence: Evidence) -> tuple[Fault, ...]:
    """Read every trace that the ledger names: content by its hash, no file missing and none too many."""
    named = [run["trace_sha256"] for attempt in evidence.attempts() for run in timed_runs(attempt)]
    folder = evidence.folder / TRACES
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    chosen = {sha256: _measured_or_packed(sha256, found) for sha256 in dict.fromkeys(named)}
    faults = [
        Fault(f"{TRACES}/{name}", "no ledger line names this file; a run may have been left out")
        for name in sorted(found - set(chosen.values()))
    ]
    for sha256, name in chosen.items():
        file = f"{TRACES}/{name}"
        if name not in found:
            faults.append(Fault(file, "missing; a ledger line names it"))
            continue
        try:
            evidence.traces[sha256] = _trace((folder / name).read_bytes(), sha256, packed=name.endswith(".xz"))
        except (ValueError, RecursionError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            faults.append(Fault(file, str(error).splitlines()[0]))
    return tuple(faults)


def _measured_or_packed(sha256: str, found: set[str]) -> str:
    """Name the one file that a trace may have: as it was measured, or as a committed run packs it."""
    measured, packed = f"{sha256}.json.gz", f"{sha256}.json.xz"
    return packed if packed in found and measured not in found else measured


def _trace(compressed: bytes, sha256: str, *, packed: bool) -> Json:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if packed else zlib.decompressobj(wbits=_GZIP)
    content = stream.decompress(compressed, _MAX_TRACE_BYTES)
    if not stream.eof or stream.unused_data:
        raise ValueError(f"the compressed file ends too early or too late, or holds over {_MAX_TRACE_BYTES:,} bytes")
    if not packed and compressed[3:8] != bytes(5):
        raise ValueError("the compressed file carries a time or a name, which the instrument never writes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("the content does not hash to the file's name: it was changed after the run")
    trace: Json = _object(content)
    Trace.model_validate(trace)
    for request in trace["requests"]:
        request["emissions"] = _places(request["emissions"], len(trace["emission_times_ns"]))
    return trace


def _places(emissions: list[int], num_moments: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Hold the places of a request's tokens as an array: as lists, those of a whole paper would fill a gigabyte."""
    places = np.array(emissions, dtype=np.int64)
    if emissions and not 0 <= places.min() <= places.max() < num_moments:
        raise ValueError(f"a token names a moment that is none of the {num_moments}")
    return places.astype(np.int32)
