"""What a bench file declares: one test of the plan, its arms, workload and metrics. No timing lives here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.records import Scalar, WorkloadSpec

INSTRUMENT_TEST = "0.1"  # placebo and control: part of every run that holds a paired test
EQUIVALENCE_MARGIN = 0.05  # "the same" means a ratio from 1 / 1.05 to 1.05
BENCH = Path(__file__).resolve().parents[2] / "bench"


class ExperimentError(ValueError):
    """A bench file or a choice of tests that cannot be used; the message names it and the remedy."""


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
    """One setting under test; `options` are engine options by name.

    `extra_output` asks for this share of output tokens more than the workload says: the known effect of a control.
    """

    name: str
    options: Mapping[str, Scalar] = field(default_factory=dict)
    extra_output: float = 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that the test reports.

    `metric` is an id of `touchstone.analysis.metrics.DICTIONARY`; `result` the field of the plan that it fills
    (None for a supporting number); `key` marks the numbers that must hold within ±5 %.
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

    `workload` gives the requests for each profile. `requires` names what the machine or engine must have, by the keys
    of `touchstone.running.planning.REQUIREMENTS`; the orchestrator says "not measured" with the reason where it is
    absent. The options of the arms, and `engine_options` that all arms share in a profile, are required of the engine
    as well.

    In paired blocks the first arm is the baseline and every other one a treatment; `margins` says within which ratio
    they count as equivalent. `repeat_last` lets each process end with its last run once more, outside all metrics.
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
    engine_options: Mapping[Profile, Mapping[str, Scalar]] = field(default_factory=dict)
    margins: Mapping[Profile, float] = field(default_factory=lambda: dict.fromkeys(Profile, EQUIVALENCE_MARGIN))
    repeat_last: bool = False


def load_experiments(folder: Path = BENCH) -> tuple[Experiment, ...]:
    """Load every bench file's EXPERIMENT, ordered by the plan's numbers; ExperimentError names what is wrong."""
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise ExperimentError(f"{folder} holds no bench files; run from a clone of the repository")
    experiments = sorted((_load(path) for path in paths), key=lambda experiment: experiment.plan_id)
    ids = [experiment.plan_id for experiment in experiments]
    if twice := sorted({plan_id for plan_id in ids if ids.count(plan_id) > 1}):
        raise ExperimentError(f"{folder}: test {', '.join(twice)} is declared by more than one bench file")
    return tuple(experiments)


def _load(path: Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{path} declares no EXPERIMENT; see ARCHITECTURE.md for what a bench file holds")
    return experiment
