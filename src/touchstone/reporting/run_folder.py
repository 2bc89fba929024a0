"""What a report is made from: one run folder, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.records import Attempt, Environment, QualityAttempt, RunPlan
from touchstone.reporting.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from touchstone.analysis.runs import TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import EngineFacts, LedgerEntry, Measurement, Result


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder: its ledger by kind of entry, and the results derived from it."""

    directory: Path
    entries: tuple[LedgerEntry, ...]
    environment: Environment
    plan: RunPlan
    attempts: tuple[Attempt, ...]
    quality: QualityAttempt | None
    results: tuple[Result, ...]
    tests: Mapping[str, TestRuns]
    experiments: Mapping[str, Experiment]

    @property
    def root_sha256(self) -> str:
        """Hash of the last ledger line, which stands for the whole chain."""
        return self.entries[-1].sha256

    @property
    def engine(self) -> EngineFacts | None:
        """The engine that the run is about; see `engine_of`."""
        return engine_of(self.plan, self.attempts)

    def experiment(self, test_id: str) -> Experiment | None:
        """Return what the bench file declares for a test; None for a test without one."""
        return self.experiments.get(test_id)

    def measurements(self, test_id: str) -> Iterator[Measurement]:
        """Yield the timed runs of a test's valid attempts, in ledger order."""
        for attempt in self.attempts:
            if attempt.valid and attempt.test_id == test_id:
                yield from attempt.measurements


def engine_of(plan: RunPlan, attempts: Sequence[Attempt]) -> EngineFacts | None:
    """Find the engine that the run names first, as the first process that built it described it.

    An adapter of the user's own is named by its path, which its engine does not know: it is the first engine told of.
    """
    told = [attempt.engine for attempt in attempts if attempt.engine is not None]
    return next((facts for facts in told if facts.name == plan.engine), next(iter(told), None))


def load_run(run_dir: Path, experiments: Mapping[str, Experiment]) -> Run:
    """Read a run folder and derive its results; ReportError if it was never planned."""
    entries = read_ledger(run_dir / LEDGER_NAME)
    environments = [entry.body for entry in entries if isinstance(entry.body, Environment)]
    plans = [entry.body for entry in entries if isinstance(entry.body, RunPlan)]
    qualities = [entry.body for entry in entries if isinstance(entry.body, QualityAttempt)]
    if not environments or not plans:
        raise ReportError(f"{run_dir} holds no environment or no plan; `touchstone run --out {run_dir}` makes both")
    ledgered = read_runs(run_dir)
    return Run(
        directory=run_dir,
        entries=entries,
        environment=environments[0],
        plan=plans[0],
        attempts=tuple(entry.body for entry in entries if isinstance(entry.body, Attempt)),
        quality=qualities[-1] if qualities else None,
        results=results_of(ledgered, experiments),
        tests=ledgered.tests,
        experiments=experiments,
    )
