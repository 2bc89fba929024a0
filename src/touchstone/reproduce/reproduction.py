"""`touchstone reproduce`: every claim of the paper held against a reviewer's run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.reproduce.claims import CLAIMS_NAME, load_claims
from touchstone.reproduce.judging import judge
from touchstone.reproduce.machines import environment_differences, hardware_differences
from touchstone.reproduce.measured import load_measured
from touchstone.reproduce.obstacles import Sides
from touchstone.reproduce.outcomes import exit_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from touchstone.experiment import Experiment
    from touchstone.reproduce.claims import Claim
    from touchstone.reproduce.machines import Difference
    from touchstone.reproduce.measured import MeasuredRun
    from touchstone.reproduce.outcomes import ExitCode, Outcome


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Every claim judged, and what differs between the two environments.

    `decisive` are the differences that make the hardware another one; `other` all the rest.
    """

    paper: MeasuredRun
    reviewer: MeasuredRun
    decisive: tuple[Difference, ...]
    other: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def same_hardware(self) -> bool:
        """Whether speeds of the two runs may be compared."""
        return not self.decisive

    @property
    def status(self) -> ExitCode:
        """What the whole comparison amounts to."""
        return exit_code(self.outcomes)


def reproduce(run_dir: Path, against: Path, experiments: Mapping[str, Experiment]) -> Reproduction:
    """Judge the claims in `against/claims.yaml` on two run folders.

    ClaimsError, LedgerError and ComparisonError say what is wrong with claims, ledgers and environments.
    """
    claims = load_claims(against / CLAIMS_NAME)
    paper = load_measured(against, experiments, remedy=_NO_PAPER)
    reviewer = load_measured(run_dir, experiments)
    return judge_claims(claims, paper, reviewer)


def judge_claims(claims: Iterable[Claim], paper: MeasuredRun, reviewer: MeasuredRun) -> Reproduction:
    """Judge claims on two runs that have been read."""
    decisive = hardware_differences(paper.environment, reviewer.environment, paper.plan, reviewer.plan)
    keys = {difference.key for difference in decisive}
    every = environment_differences(paper.environment, reviewer.environment)
    sides = Sides(paper, reviewer, same_hardware=not decisive)
    return Reproduction(
        paper=paper,
        reviewer=reviewer,
        decisive=decisive,
        other=tuple(difference for difference in every if difference.key not in keys),
        outcomes=tuple(judge(claim, sides) for claim in claims),
    )


_NO_PAPER = (
    "the paper's run is not there, so nothing can be compared: name another run by --against, or make this one with "
    "`touchstone run --profile paper --out FOLDER`"
)
