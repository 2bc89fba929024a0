"""Runs a plan: fresh processes in the planned order, every attempt in the ledger, and resuming where a run stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from touchstone.canonical import StorageError, atomic_write, canonical_json
from touchstone.clock import now_ns, seconds_since, utc_now
from touchstone.environment import REPOSITORY, EnvironmentRefusedError, differences
from touchstone.ledger import LEDGER_NAME, Ledger, LedgerError
from touchstone.records import (
    Attempt,
    CodeMetrics,
    EntryKind,
    Environment,
    PlannedTest,
    QualityAttempt,
    Record,
    RunEvent,
    RunPlan,
    UnitPlan,
)
from touchstone.running.planning import CODE_TEST, CODE_TREE, UNIT_TIMEOUT_S
from touchstone.running.worker import STORAGE_FAILED, WorkerRequest, WorkerRequests, WorkerResult
from touchstone.trace import trace_path
from touchstone.validity import (
    INTERRUPTED,
    KILLED,
    STOPPED_FROM_OUTSIDE,
    why_canary_invalid,
    why_telemetry_invalid,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from touchstone.experiment import Profile
    from touchstone.running.models import ChosenModel

MAX_ATTEMPTS = 2
_PENDING_NAME = "pending.json"
_REASON_CHARACTERS = 500
_LEFTOVERS = (".result-*", ".code-*", f".{_PENDING_NAME}.*", f".{LEDGER_NAME}.*", "traces/.*")


class ResumeError(ValueError):
    """A run that cannot go on here, because plan or environment are others now; the message names what differs."""


class Progress(Protocol):
    """Who is told how the run goes."""

    def begin(self, unit: UnitPlan, attempt: int) -> None:
        """Hear that a process is started for a unit."""
        ...

    def end(self, unit: UnitPlan, reason: str | None, seconds: float, *, final: bool) -> None:
        """Hear that it has ended; `reason` is None when it is valid, `final` when the unit is not repeated."""
        ...


class Pending(Record):
    """A unit under way, kept beside the ledger so that an attempt that dies with the run is not forgotten."""

    unit_id: str
    test_id: str
    attempt: int
    started_at: str


class UnderWay(Record):
    """The units of the process under way; those whose attempt is in the ledger already are done."""

    units: tuple[Pending, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A plan, where its traces and ledger lie, and what its workers need to know."""

    plan: RunPlan
    environment: Environment
    model: ChosenModel
    directory: Path
    memory_tests: frozenset[str]
    repository: Path = REPOSITORY


# --- opening the ledger ---------------------------------------------------------------------------------------------


def start(run: Run) -> Ledger:
    """Begin a ledger with environment and plan; LedgerError if the folder holds a run already."""
    path = run.directory / LEDGER_NAME
    ledger = Ledger.create(path)
    try:
        ledger.append(EntryKind.ENVIRONMENT, run.environment)
        ledger.append(EntryKind.PLAN, run.plan)
        ledger.append(EntryKind.EVENT, RunEvent(event="started", at=utc_now(), detail=None))
    except BaseException:
        path.unlink()  # while its lock is held: nothing was measured, so nothing stands in the way of a new start
        ledger.close()
        raise
    return ledger


def resume(run: Run) -> Ledger:
    """Open the ledger of the same plan in the same environment; ResumeError names what differs."""
    ledger = Ledger.resume(run.directory / LEDGER_NAME)
    try:
        plan, environment = _plan_and_environment(ledger)
        _refuse_differences(run, plan, environment)
        details = [] if ledger.torn_file is None else [f"a torn last line was moved to {ledger.torn_file.name}"]
        if (under_way := _read_pending(run.directory)) is not None:
            names = ", ".join(pending.unit_id for pending in under_way.units)
            details.append(f"{names} was under way when the run was killed")
            for pending in under_way.units:
                if not _is_recorded(ledger, pending):
                    ledger.append(EntryKind.ATTEMPT, _lost_attempt(pending, run))
            _pending_path(run.directory).unlink()
        _remove_leftovers(run.directory, ledger)
        if details or remaining(run.plan, ledger):
            ledger.append(EntryKind.EVENT, RunEvent(event="resumed", at=utc_now(), detail="; ".join(details) or None))
    except BaseException:
        ledger.close()
        raise
    return ledger


def is_finished(directory: Path) -> bool:
    """Tell whether a folder holds a run that came to its end."""
    path = directory / LEDGER_NAME
    if not path.is_file():
        return False
    last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        body = json.loads(last).get("body", {})
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("event") == "finished"


def _plan_and_environment(ledger: Ledger) -> tuple[RunPlan, Environment]:
    bodies = [entry.body for entry in ledger.entries]
    plan = next((body for body in bodies if isinstance(body, RunPlan)), None)
    environment = next((body for body in bodies if isinstance(body, Environment)), None)
    if plan is None or environment is None:
        raise LedgerError(
            f"{ledger.path} ends before its plan, so nothing was measured; delete the folder and start again"
        )
    return plan, environment


def _refuse_differences(run: Run, plan: RunPlan, environment: Environment) -> None:
    if plan.plan_sha256 != run.plan.plan_sha256:
        old, new = plan.model_dump(mode="json"), run.plan.model_dump(mode="json")
        names = [name for name in new if new[name] != old.get(name) and name not in {"plan_sha256", "units"}]
        changes = "; ".join(f"{name}: {_short(old.get(name))} -> {_short(new[name])}" for name in names or ["units"])
        raise ResumeError(f"this run was planned otherwise ({changes}); repeat its options, or choose another --out")
    if environment.fingerprint != run.environment.fingerprint:
        changes = "; ".join(differences(environment, run.environment))
        raise ResumeError(f"the environment has changed since the run began ({changes}); start anew with another --out")


def _short(value: object) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  a line of a terminal


def _read_pending(directory: Path) -> UnderWay | None:
    try:
        return UnderWay.model_validate_json(_pending_path(directory).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        path = _pending_path(directory)
        raise LedgerError(f"{path} was changed ({error.error_count()} errors); delete it and resume again") from error


def _pending_path(directory: Path) -> Path:
    return directory / _PENDING_NAME


def _is_recorded(ledger: Ledger, pending: Pending) -> bool:
    """Tell whether the attempt's line was written before the run died."""
    return len(_attempts(ledger, pending.unit_id)) >= pending.attempt or _has_quality(ledger, pending.test_id)


def _lost_attempt(pending: Pending, run: Run) -> Attempt:
    return Attempt(
        unit_id=pending.unit_id,
        test_id=pending.test_id,
        attempt=pending.attempt,
        valid=False,
        reason=KILLED,
        started_at=pending.started_at,
        ended_at=utc_now(),
        environment_fingerprint=run.environment.fingerprint,
        plan_sha256=run.plan.plan_sha256,
        engine=None,
        startup_s=None,
        measurements=(),
    )


# --- what is left to do ---------------------------------------------------------------------------------------------


def remaining(plan: RunPlan, ledger: Ledger) -> tuple[UnitPlan, ...]:
    """List the units, in planned order, that have neither a valid attempt nor used up their attempts."""
    return tuple(unit for unit in plan.units if not _is_settled(unit, ledger))


def failed_units(plan: RunPlan, ledger: Ledger) -> tuple[str, ...]:
    """Name the units without a valid attempt."""
    return tuple(unit.unit_id for unit in plan.units if not _is_valid(unit, ledger))


def _is_settled(unit: UnitPlan, ledger: Ledger) -> bool:
    """Interrupted and killed attempts say nothing of the measurement, so they do not use up the one repeat."""
    used = [row for row in _attempts(ledger, unit.unit_id) if row.reason not in STOPPED_FROM_OUTSIDE]
    return _is_valid(unit, ledger) or len(used) >= MAX_ATTEMPTS


def _is_valid(unit: UnitPlan, ledger: Ledger) -> bool:
    if unit.test_id == CODE_TEST:
        return _has_quality(ledger, unit.test_id)
    return any(attempt.valid for attempt in _attempts(ledger, unit.unit_id))


def _attempts(ledger: Ledger, unit_id: str) -> list[Attempt]:
    return [entry.body for entry in ledger.entries if isinstance(entry.body, Attempt) and entry.body.unit_id == unit_id]


def _has_quality(ledger: Ledger, test_id: str) -> bool:
    return test_id == CODE_TEST and any(isinstance(entry.body, QualityAttempt) for entry in ledger.entries)


# --- running --------------------------------------------------------------------------------------------------------


def execute(run: Run, ledger: Ledger, progress: Progress) -> None:
    """Run what is left of the plan. KeyboardInterrupt (Ctrl-C, SIGTERM) leaves a ledger that can be resumed."""
    if not remaining(run.plan, ledger) and _has_ended(ledger):
        return
    with Interrupts().caught() as interrupts:
        try:
            while left := remaining(run.plan, ledger):
                _attempt(_of_one_process(left), run, ledger, progress, interrupts)
        except KeyboardInterrupt:
            ledger.append(EntryKind.EVENT, RunEvent(event="interrupted", at=utc_now(), detail=None))
            raise
        failed = failed_units(run.plan, ledger)
        detail = f"without a valid attempt: {', '.join(failed)}" if failed else None
        ledger.append(EntryKind.EVENT, RunEvent(event="finished", at=utc_now(), detail=detail))


def _has_ended(ledger: Ledger) -> bool:
    """Tell whether the end was written down; a crash may have come between the last attempt and that line."""
    events = [entry.body.event for entry in ledger.entries if isinstance(entry.body, RunEvent)]
    return events[-1:] == ["finished"]


def _of_one_process(left: Sequence[UnitPlan]) -> tuple[UnitPlan, ...]:
    """Take the next unit, and the others of its process that are left, in the planned order."""
    shared = left[0].shared_process
    return (left[0],) if shared is None else tuple(unit for unit in left if unit.shared_process == shared)


def _attempt(units: Sequence[UnitPlan], run: Run, ledger: Ledger, progress: Progress, interrupts: Interrupts) -> None:
    """Run one process for its units and write down what came of each, also when the user interrupts it."""
    numbers = {unit.unit_id: len(_attempts(ledger, unit.unit_id)) + 1 for unit in units}
    under_way = tuple(
        Pending(unit_id=unit.unit_id, test_id=unit.test_id, attempt=numbers[unit.unit_id], started_at=utc_now())
        for unit in units
    )
    atomic_write(_pending_path(run.directory), canonical_json(UnderWay(units=under_way)))
    for unit in units:
        progress.begin(unit, numbers[unit.unit_id])
    begin_ns = now_ns()
    interrupt: KeyboardInterrupt | None = None
    outcomes: Sequence[WorkerResult | CodeMetrics]
    try:
        if units[0].test_id == CODE_TEST:
            outcomes = [_measure_code(run, numbers[units[0].unit_id], interrupts)]
        else:
            outcomes = _measure(units, numbers, run, interrupts)
    except KeyboardInterrupt as error:
        interrupt, outcomes = error, [_before_interrupt(unit, numbers[unit.unit_id], run) for unit in units]
    judged = [
        _judged_by_machine(outcome, run.plan, ledger) if isinstance(outcome, WorkerResult) else outcome
        for outcome in outcomes
    ]
    for pending, outcome in zip(under_way, judged, strict=True):
        _record(outcome, pending, run, ledger)
    _pending_path(run.directory).unlink()
    _remove_leftovers(run.directory, ledger)
    seconds = seconds_since(begin_ns) / len(units)
    for unit, outcome in zip(units, judged, strict=True):
        reason = outcome.reason if isinstance(outcome, WorkerResult) else None
        progress.end(unit, reason, seconds, final=_is_settled(unit, ledger))
    if interrupt is not None:
        raise interrupt


def _remove_leftovers(directory: Path, ledger: Ledger) -> None:
    """Remove what processes left that came to nothing: files half made, and traces that no line of the ledger names."""
    tried = [entry.body for entry in ledger.entries if isinstance(entry.body, Attempt)]
    runs = [run for attempt in tried for run in (*attempt.measurements, attempt.repeated) if run is not None]
    named = {trace_path(directory, run.trace_sha256) for run in runs}
    left = [path for pattern in _LEFTOVERS for path in directory.glob(pattern)]
    for path in {*left, *directory.glob("traces/*")} - named:
        path.unlink()


def _record(outcome: WorkerResult | CodeMetrics, pending: Pending, run: Run, ledger: Ledger) -> None:
    fingerprint, plan_sha256 = run.environment.fingerprint, run.plan.plan_sha256
    if isinstance(outcome, CodeMetrics):
        body = QualityAttempt(
            test_id="4.1",
            environment_fingerprint=fingerprint,
            plan_sha256=plan_sha256,
            measured_at=utc_now(),
            code=outcome,
        )
        ledger.append(EntryKind.QUALITY, body)
        return
    attempt = _lost_attempt(pending, run).model_copy(
        update={
            "valid": outcome.reason is None,
            "reason": outcome.reason,
            "engine": outcome.engine,
            "startup_s": outcome.startup_s,
            "measurements": outcome.measurements,
            "repeated": outcome.repeated,
            "device_work": outcome.device_work,
        }
    )
    ledger.append(EntryKind.ATTEMPT, attempt)


def _judged_by_machine(outcome: WorkerResult, plan: RunPlan, ledger: Ledger) -> WorkerResult:
    """Make a result invalid where the machine changed or was disturbed; its own times are not looked at."""
    if outcome.reason is not None:
        return outcome
    earlier = [entry.body for entry in ledger.entries if isinstance(entry.body, Attempt)]
    measured = [measurement for attempt in earlier for measurement in attempt.measurements]
    reason = why_canary_invalid(outcome.measurements, measured, plan.canary_limit)
    if reason is None and plan.telemetry_enforced:
        reason = why_telemetry_invalid(outcome.measurements)
    return outcome.model_copy(update={"reason": reason})


def _failure(reason: str) -> WorkerResult:
    return WorkerResult(engine=None, startup_s=None, measurements=(), reason=reason[:_REASON_CHARACTERS])


def _measure(
    units: Sequence[UnitPlan], numbers: Mapping[str, int], run: Run, interrupts: Interrupts
) -> list[WorkerResult]:
    """Start the worker for the units of one process and read its results; an interrupt leaves those that are there."""
    tests = {test.test_id: test for test in run.plan.tests}
    files = [_result_file(unit, numbers[unit.unit_id], run) for unit in units]
    requests = [_worker_request(unit, tests[unit.test_id], run, file) for unit, file in zip(units, files, strict=True)]
    command = [sys.executable, "-m", "touchstone.running.worker"]
    timeout_s = unit_timeout_s(run.plan) * len(units)
    log = _log_path(run, units[0].unit_id, numbers[units[0].unit_id])
    stdin = canonical_json(WorkerRequests(requests=tuple(requests)))
    status = run_process(command, stdin, log, timeout_s, _worker_environment(run.plan), interrupts)
    if status == STORAGE_FAILED:
        where = str(run.directory)
        raise StorageError(errno.EIO, f"a process could not write its files; logs/{log.name} says why", where)
    return [_read_result(file, status, log, timeout_s) for file in files]


def _result_file(unit: UnitPlan, number: int, run: Run) -> Path:
    return run.directory / f".result-{unit.unit_id}-{number}.json"


def _before_interrupt(unit: UnitPlan, number: int, run: Run) -> WorkerResult:
    """Keep what a unit of the interrupted process had handed over already; it is whole, and measured like any other."""
    result_file = _result_file(unit, number, run)
    return _read_result(result_file, 0, result_file, 0) if result_file.exists() else _failure(INTERRUPTED)


def _read_result(result_file: Path, status: int | None, log: Path, timeout_s: float) -> WorkerResult:
    try:
        result = WorkerResult.model_validate_json(result_file.read_bytes())
    except FileNotFoundError:
        return _failure(_why_ended(status, log, timeout_s))
    except ValidationError as error:
        return _failure(f"the worker's result is not readable: {error.error_count()} errors; see logs/{log.name}")
    finally:
        result_file.unlink(missing_ok=True)
    if result.reason is not None:
        return result.model_copy(update={"reason": result.reason[:_REASON_CHARACTERS]})
    return result if status == 0 else _failure(_why_ended(status, log, timeout_s))


def _why_ended(status: int | None, log: Path, timeout_s: float) -> str:
    if status is None:
        return f"the process did not end within {timeout_s:.0f} s and was killed; see logs/{log.name}"
    if status < 0:
        return f"the process was ended by signal {signal.Signals(-status).name}; see logs/{log.name}"
    return f"the process ended with status {status} and no result; see logs/{log.name}"


def unit_timeout_s(plan: RunPlan) -> float:
    """Return after how many seconds a process of this plan is given up."""
    profiles: Mapping[Profile | str, int] = {profile.value: seconds for profile, seconds in UNIT_TIMEOUT_S.items()}
    return profiles[plan.profile]


def _worker_request(unit: UnitPlan, test: PlannedTest, run: Run, result_file: Path) -> WorkerRequest:
    if test.engine is None or test.workload is None:
        raise ValueError(f"test {test.test_id} is planned without an engine or a workload")
    wanted = set(unit.arm_order)
    return WorkerRequest(
        unit=unit,
        engine=test.engine,
        model_folder=str(run.model.folder),
        synthetic_seed=run.model.synthetic_seed,
        device=run.plan.device,
        dtype=run.plan.dtype,
        options=run.plan.engine_options | test.engine_options,
        arms=tuple(arm for arm in test.arms if arm.name in wanted),
        workload=test.workload,
        measure_memory=test.test_id in run.memory_tests,
        repeat_last=test.repeat_last,
        profile_devices=test.profile_devices,
        warmup_output_tokens=test.warmup_output_tokens,
        read_canary=run.plan.canary_limit is not None,
        run_dir=str(run.directory),
        result_file=str(result_file),
        parent_pid=os.getpid(),
    )


def _worker_environment(plan: RunPlan) -> dict[str, str]:
    """Pass the environment on, with what would otherwise differ from process to process fixed."""
    fixed = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if plan.threads is not None:
        fixed |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(plan.threads))
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, **fixed, "PYTHONPATH": path}


def _log_path(run: Run, unit_id: str, number: int) -> Path:
    path = run.directory / "logs" / f"{unit_id}-{number}.log"
    path.parent.mkdir(exist_ok=True)
    return path


def _measure_code(run: Run, number: int, interrupts: Interrupts) -> WorkerResult | CodeMetrics:
    """Run test 4.1 as its own program and check what it wrote."""
    result_file = run.directory / f".code-{number}.json"
    script = run.repository / "quality" / "code_metrics.py"
    log = _log_path(run, CODE_TEST, number)
    command = [sys.executable, str(script), CODE_TREE, "--json", str(result_file)]
    timeout_s = unit_timeout_s(run.plan)
    status = run_process(command, b"", log, timeout_s, _worker_environment(run.plan), interrupts, run.repository)
    try:
        return CodeMetrics.model_validate_json(result_file.read_bytes())
    except FileNotFoundError:
        return _failure(_why_ended(status, log, timeout_s))
    except ValidationError as error:
        return _failure(f"the code metrics are not a valid record: {error.error_count()} errors; see logs/{log.name}")
    finally:
        result_file.unlink(missing_ok=True)


# --- processes ------------------------------------------------------------------------------------------------------


def run_process(
    command: list[str],
    stdin: bytes,
    log: Path,
    timeout_s: float,
    environment: Mapping[str, str],
    interrupts: Interrupts,
    directory: Path | None = None,
) -> int | None:
    """Run a program in a process group of its own and return its status, None when it took too long.

    Whatever happens here, an interrupt included, no process of the group is left behind. What it prints goes to `log`.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  this Python and modules of ours, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        try:
            with interrupts.allowed():
                process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(process)
    return process.returncode


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the group; the leader's number stays the group's until the last member is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Interrupts:
    """Ctrl-C and SIGTERM, let through only while a process is waited for.

    At any other moment they wait, so that no ledger line is half written and no process is started and forgotten.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._came = False

    @contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Take the two signals over; inside, `allowed` says when they may interrupt."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise KeyboardInterrupt inside, at once if a signal has been waiting."""
        self._allowed = True
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._allowed:
            self._allowed = False  # whoever presses twice does not interrupt the clearing up
            raise KeyboardInterrupt


def refuse(reasons: Iterable[str]) -> None:
    """Raise EnvironmentRefusedError if there is any reason."""
    if listed := list(reasons):
        raise EnvironmentRefusedError("this machine is not fit for a published run now:\n  - " + "\n  - ".join(listed))
