"""What a chapter of the report shows of one test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from touchstone.reporting.peers import PeersView

if TYPE_CHECKING:
    from touchstone.experiment import Bilingual
    from touchstone.reporting.code_tables import CodeView
    from touchstone.reporting.machine import RooflineView
    from touchstone.reporting.numbers import EffectView, NumberView
    from touchstone.reporting.scaling import ScalingView
    from touchstone.reporting.sweeps import PaybackRow, SweepView
    from touchstone.reporting.values import Amount, Code, FigureView, Row


@dataclass(frozen=True, slots=True)
class CheckView:
    """One machine-decided statement about a test."""

    id: str
    passed: bool
    detail: Bilingual


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """Where the numbers of a test can be looked up."""

    ledger: Code
    lines: Amount
    attempts: int
    valid_attempts: int
    invalid_reasons: tuple[Code, ...]


@dataclass(frozen=True, slots=True)
class TestView:
    """One test of the plan; everything after `reason` is empty where it was not measured."""

    test_id: str
    title: Bilingual
    measured: bool
    reason: Bilingual
    question: Bilingual | None
    method: Bilingual
    how_obtained: Bilingual
    verification: Bilingual
    date: Code
    parameters: tuple[Row, ...]
    headline: tuple[NumberView, ...]
    supporting: tuple[NumberView, ...]
    effects: tuple[EffectView, ...]
    checks: tuple[CheckView, ...]
    evidence: EvidenceView | None
    figures: tuple[FigureView, ...]
    code: CodeView | None
    scaling: ScalingView
    rooflines: tuple[RooflineView, ...] = ()
    void: Bilingual | None = None
    sweeps: tuple[SweepView, ...] = ()
    payback: tuple[PaybackRow, ...] = ()
    peers: PeersView = field(default_factory=PeersView)
