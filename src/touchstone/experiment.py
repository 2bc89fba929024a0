"""What a bench file declares: one test of the plan, its arms, workload and metrics. No timing lives here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.records import Scalar, WorkloadSpec


class Profile(StrEnum):
    """How much is measured: `smoke` on any machine in minutes, `quick` for a first look, `paper` for publication."""

    SMOKE = "smoke"
    QUICK = "quick"
    PAPER = "paper"


class Design(StrEnum):
    """How the timed runs are laid out."""

    REPEATED = "repeated"
    PAIRED_BLOCKS = "paired blocks"


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting under test; `options` are engine options by name."""

    name: str
    options: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that the test reports.

    `metric` is an id of `touchstone.metrics.DICTIONARY`; `result` the field of the plan that it fills (None for a
    supporting number); `key` marks the numbers that must hold within ±5 %.
    """

    metric: str
    result: str | None = None
    key: bool = False


@dataclass(frozen=True, slots=True)
class Bilingual:
    """A text in both languages of the report."""

    en: str
    zh: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """One test of the user's plan as data.

    `workload` gives the requests for each profile. `requires` names what the machine or engine must have; the
    orchestrator says "not measured" with the reason where it is absent.
    """

    plan_id: str
    title: Bilingual
    question: Bilingual
    method: Bilingual
    workload: Mapping[Profile, WorkloadSpec]
    measures: tuple[Measure, ...]
    arms: tuple[Arm, ...] = (Arm("default"),)
    design: Design = Design.REPEATED
    requires: frozenset[str] = frozenset()
    measure_memory: bool = False
