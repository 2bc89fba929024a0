"""What a ledger holds, arranged by test: the plan, every attempt, and the timed runs of the valid processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.formulas import RunFacts
from touchstone.analysis.prediction import Asked
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.records import Attempt, Environment, PlannedTest, QualityAttempt, RunPlan, UnitPlan
from touchstone.trace import load_trace
from touchstone.validity import STOPPED_FROM_OUTSIDE, readings_by_device, readings_of
from touchstone.workload import at_rate, of_arm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from touchstone.records import Canary, CanaryReading, DeviceWork, LedgerEntry, Measurement, Trace

MAX_INVALID_SHARE = 0.2


class RunsError(ValueError):
    """A ledger from which no results can be made; the message says what is missing or contradicts."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run of one arm."""

    unit_id: str
    arm: str
    position: int
    repetition: int
    seed: int
    facts: RunFacts
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """One valid process and its timed runs, in the order in which they were made.

    `repeated` is the last run once more on the same prompts, where the plan asks for it.
    """

    unit: UnitPlan
    runs: tuple[Run, ...]
    repeated: Trace | None = None

    def of_arm(self, arm: str) -> tuple[Run, ...]:
        """Select the runs of one arm."""
        return tuple(run for run in self.runs if run.arm == arm)


@dataclass(frozen=True, slots=True)
class TestRuns:
    """Everything that the ledger holds about one planned test, in ledger order.

    `processes` holds one process a unit: the first valid attempt.
    """

    planned: PlannedTest
    units: tuple[UnitPlan, ...]
    attempts: tuple[tuple[int, Attempt], ...]
    processes: tuple[Process, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms; the first is the baseline of a comparison."""
        return tuple(arm.name for arm in self.planned.arms)

    @property
    def arms_apart(self) -> bool:
        """Whether each process holds one of several arms, so that a fault in one says nothing of the others."""
        return len(self.arms) > 1 and all(len(set(unit.arm_order)) == 1 for unit in self.units)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All timed runs of all valid processes."""
        return tuple(run for process in self.processes for run in process.runs)

    @property
    def num_valid(self) -> int:
        """Number of valid attempts."""
        return sum(attempt.valid for _, attempt in self.attempts)

    @property
    def invalid_reasons(self) -> tuple[str, ...]:
        """Why attempts were invalid, in ledger order."""
        return tuple(attempt.reason or "no reason given" for _, attempt in self.attempts if not attempt.valid)

    @property
    def too_many_invalid(self) -> bool:
        """Whether more than 20 % of the attempts are invalid, so that no number may be published."""
        return _too_many(attempt for _, attempt in self.attempts)

    def too_many_invalid_of(self, arm: str) -> bool:
        """Whether an arm's numbers may not be published: for the whole test's attempts, or an engine's own.

        Arms that are engines fail each by itself; one that is broken here must not take the others' numbers away.
        """
        if all(each.engine is None for each in self.planned.arms):
            return self.too_many_invalid
        return _too_many(self.attempts_of(arm))

    def attempts_of(self, arm: str) -> tuple[Attempt, ...]:
        """Return every attempt of the processes that hold an arm, in ledger order."""
        own = {unit.unit_id for unit in self.units if arm in unit.arm_order}
        return tuple(attempt for _, attempt in self.attempts if attempt.unit_id in own)


def _too_many(attempts: Iterable[Attempt]) -> bool:
    """Count what was invalid by itself; whoever interrupts a run says nothing of what it measures."""
    valid = [attempt.valid for attempt in attempts if attempt.reason not in STOPPED_FROM_OUTSIDE]
    return valid.count(False) > MAX_INVALID_SHARE * len(valid)


@dataclass(frozen=True, slots=True)
class Ledgered:
    """A whole run as its ledger tells it."""

    root_sha256: str
    plan: RunPlan
    plan_seq: int
    planned_at: str
    environment: Environment
    environment_seq: int
    fingerprints: frozenset[str]
    quality: tuple[int, QualityAttempt] | None
    tests: dict[str, TestRuns]
    readings: tuple[CanaryReading, ...] = ()
    readings_by_device: tuple[tuple[CanaryReading, ...], ...] = ()


def read_runs(run_dir: Path) -> Ledgered:
    """Read a run folder; RunsError without plan or environment, or with two different plans."""
    entries = read_ledger(run_dir / LEDGER_NAME)
    plans = [(entry, entry.body) for entry in entries if isinstance(entry.body, RunPlan)]
    environments = [(entry, entry.body) for entry in entries if isinstance(entry.body, Environment)]
    if not plans or not environments:
        missing = "plan" if not plans else "environment"
        raise RunsError(f"the ledger in {run_dir} holds no {missing}; the run ended before it began, start it again")
    if len({plan.plan_sha256 for _, plan in plans}) > 1:
        raise RunsError(f"the ledger in {run_dir} holds two different plans; results are made from one plan only")
    entry, plan = plans[0]
    first, environment = environments[0]
    measured = [row for attempt in _attempts(entries) for row in attempt.measurements]
    quality = [(entry.seq, entry.body) for entry in entries if isinstance(entry.body, QualityAttempt)]
    return Ledgered(
        root_sha256=entries[-1].sha256,
        plan=plan,
        plan_seq=entry.seq,
        planned_at=entry.written_at,
        environment=environment,
        environment_seq=first.seq,
        fingerprints=frozenset(body.fingerprint for _, body in environments) | _attempt_fingerprints(entries),
        quality=quality[-1] if quality else None,
        tests={test.test_id: _gather(run_dir, plan, test, entries) for test in plan.tests},
        readings=readings_of(measured),
        readings_by_device=readings_by_device(measured),
    )


def _attempts(entries: tuple[LedgerEntry, ...]) -> tuple[Attempt, ...]:
    return tuple(entry.body for entry in entries if isinstance(entry.body, Attempt))


def _attempt_fingerprints(entries: tuple[LedgerEntry, ...]) -> frozenset[str]:
    bodies = (entry.body for entry in entries)
    return frozenset(body.environment_fingerprint for body in bodies if isinstance(body, Attempt | QualityAttempt))


def _gather(run_dir: Path, plan: RunPlan, test: PlannedTest, entries: tuple[LedgerEntry, ...]) -> TestRuns:
    attempts = tuple(
        (entry.seq, entry.body)
        for entry in entries
        if isinstance(entry.body, Attempt) and entry.body.test_id == test.test_id
    )
    units = {unit.unit_id: unit for unit in plan.units if unit.test_id == test.test_id}
    chosen: dict[str, Attempt] = {}
    for _, attempt in attempts:
        if attempt.valid and attempt.unit_id in units:
            chosen.setdefault(attempt.unit_id, attempt)
    processes = tuple(
        Process(units[name], _load_runs(run_dir, test, attempt), _load_repeated(run_dir, attempt))
        for name, attempt in chosen.items()
    )
    return TestRuns(test, tuple(units.values()), attempts, processes)


def _load_runs(run_dir: Path, test: PlannedTest, attempt: Attempt) -> tuple[Run, ...]:
    return tuple(
        Run(
            unit_id=attempt.unit_id,
            arm=measurement.arm,
            position=measurement.position,
            repetition=measurement.repetition,
            seed=measurement.seed,
            facts=RunFacts(
                load_trace(run_dir, measurement.trace_sha256),
                measurement.memory,
                attempt.engine,
                measurement.telemetry,
                _asked(test, measurement),
                measurement.graphs,
                _device_work(attempt, measurement.arm),
            ),
            canary=measurement.canary,
        )
        for measurement in sorted(attempt.measurements, key=lambda measurement: measurement.position)
    )


def _device_work(attempt: Attempt, arm: str) -> tuple[DeviceWork, ...]:
    """Pick what the devices did in the profiled run of an arm."""
    return tuple(device for device in attempt.device_work or () if device.arm in {None, arm})


def _asked(test: PlannedTest, measurement: Measurement) -> Asked | None:
    """Say what a timed run was asked for, as its worker worked it out from the plan; None for an unknown arm."""
    arm = next((arm for arm in test.arms if arm.name == measurement.arm), None)
    if test.workload is None or arm is None:
        return None
    workload = at_rate(of_arm(test.workload, arm), measurement.request_rate_per_s)
    return Asked(workload, measurement.seed, {**test.engine_options, **arm.options})


def _load_repeated(run_dir: Path, attempt: Attempt) -> Trace | None:
    return None if attempt.repeated is None else load_trace(run_dir, attempt.repeated.trace_sha256)
