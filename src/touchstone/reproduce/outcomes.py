"""Verdicts on claims, and what a whole comparison amounts to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from touchstone.reporting.values import NOTHING, Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.experiment import Bilingual
    from touchstone.reproduce.claims import Claim


class ClaimVerdict(StrEnum):
    """What a reviewer's run says about a claim."""

    HOLDS = "HOLDS"
    REFUTED = "REFUTED"
    REPRODUCED = "REPRODUCED"
    NOT_REPRODUCED = "NOT REPRODUCED"
    COMPATIBLE = "COMPATIBLE"
    NOT_COMPATIBLE = "NOT COMPATIBLE"
    CONSISTENT = "CONSISTENT"
    REFUTED_HERE = "REFUTED HERE"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_COMPARABLE = "NOT COMPARABLE"
    NOT_MEASURED = "NOT MEASURED"


HELD = frozenset(
    {ClaimVerdict.HOLDS, ClaimVerdict.REPRODUCED, ClaimVerdict.COMPATIBLE, ClaimVerdict.CONSISTENT},
)
REFUTED = frozenset(
    {
        ClaimVerdict.REFUTED,
        ClaimVerdict.NOT_REPRODUCED,
        ClaimVerdict.NOT_COMPATIBLE,
        ClaimVerdict.REFUTED_HERE,
    },
)


class ExitCode(IntEnum):
    """What `touchstone reproduce` ends with."""

    ALL_HOLD = 0
    REFUTED = 1
    INCONCLUSIVE = 2
    INVALID = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One claim with its verdict, what it was decided from and why; `detail` is the same in both languages."""

    claim: Claim
    verdict: ClaimVerdict
    paper: Amount = NOTHING
    here: Amount = NOTHING
    ratio: Amount = NOTHING
    reason: Bilingual | None = None
    detail: str = ""


def exit_code(outcomes: Sequence[Outcome]) -> ExitCode:
    """Sum up: one refuted claim refutes; an open claim, or nothing that could be tested, leaves the whole open."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if verdicts & REFUTED:
        return ExitCode.REFUTED
    if ClaimVerdict.INCONCLUSIVE in verdicts or not verdicts & HELD:
        return ExitCode.INCONCLUSIVE
    return ExitCode.ALL_HOLD
