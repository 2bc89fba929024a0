"""One run folder as the comparison sees it: its records, and one derived result a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.results import results_of
from touchstone.analysis.runs import RunsError, read_runs
from touchstone.ledger import LedgerError
from touchstone.reproduce.errors import ComparisonError
from touchstone.suggestions import NAME_A_RUN, no_run
from touchstone.trace import TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from touchstone.analysis.runs import Ledgered, TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import Effect, Environment, MetricStatistics, Result, RunPlan


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run folder, read once and checked."""

    directory: Path
    ledgered: Ledgered
    results: Mapping[str, Result]

    @property
    def plan(self) -> RunPlan:
        """What was decided before anything was measured."""
        return self.ledgered.plan

    @property
    def environment(self) -> Environment:
        """Where the numbers come from."""
        return self.ledgered.environment

    def test(self, test_id: str) -> TestRuns | None:
        """Return the timed runs of a test; None where the plan has none."""
        return self.ledgered.tests.get(test_id)

    def statistics(self, test_id: str, metric: str, arm: str | None) -> MetricStatistics:
        """Look one number up; without an arm the test must have one only. ComparisonError names what exists."""
        described = self.results[test_id].statistics
        found = [item for item in described if item.metric == metric and arm in {None, item.arm}]
        if len(found) == 1:
            return found[0]
        arms = sorted({item.arm for item in described if item.metric == metric})
        if not arms:
            known = ", ".join(dict.fromkeys(item.metric for item in described))
            raise ComparisonError(f"test {test_id} in {self.directory} reports no {metric!r}; it reports {known}")
        asked = "which one is meant?" if arm is None else f"not {arm!r}"
        raise ComparisonError(
            f"{metric!r} of test {test_id} in {self.directory} has the arms {', '.join(arms)}: {asked}"
        )

    def effect(self, test_id: str, metric: str, treatment: str | None) -> Effect | None:
        """Look up the paired effect on a metric; None where the test has none, ComparisonError where it has several."""
        effects = self.results[test_id].effects
        found = [effect for effect in effects if effect.metric == metric and treatment in {None, effect.treatment}]
        if len(found) > 1:
            arms = ", ".join(effect.treatment for effect in found)
            raise ComparisonError(
                f"test {test_id} in {self.directory} compares {arms} by {metric!r}: which one is meant?"
            )
        return next(iter(found), None)


def load_measured(directory: Path, experiments: Mapping[str, Experiment], *, remedy: str = NAME_A_RUN) -> MeasuredRun:
    """Read a run folder; LedgerError or ComparisonError say what is wrong with it, `remedy` what to do if it is empty.

    A run with records of more than one environment is refused: its numbers belong to no machine.
    """
    if (fault := no_run(directory, remedy=remedy)) is not None:
        raise LedgerError(fault)
    try:
        ledgered = read_runs(directory)
        results = {result.test_id: result for result in results_of(ledgered, experiments)}
    except (RunsError, TraceError) as error:
        raise ComparisonError(str(error)) from None
    if len(ledgered.fingerprints) > 1:
        short = ", ".join(sorted(fingerprint[:12] for fingerprint in ledgered.fingerprints))
        raise ComparisonError(f"{directory} mixes the environments {short}; measure again in one environment")
    return MeasuredRun(directory, ledgered, results)
