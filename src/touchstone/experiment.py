"""What a bench file declares: one test of the plan, its arms, workload and metrics. No timing lives here."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.records import Scalar, WorkloadSpec

AT = "@"  # between the id of a test and the name of a point of its sweep
INSTRUMENT_TEST = "0.1"  # placebo and control: part of every run that holds a paired test
BASELINE_TEST = "3.1"  # what one GPU does: the only source of the scaling tests' denominators
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
    `num_gpus` is how many devices the arm takes, 0 .. num_gpus - 1; where the machine has fewer, the arm is not
    measured. `requests_per_gpu` lets the work grow with them, by profile; None takes the workload's own number.
    `engine` names the engine of an arm that compares engines; None is the engine of the run.
    """

    name: str
    options: Mapping[str, Scalar] = field(default_factory=dict)
    extra_output: float = 0.0
    num_gpus: int = 1
    requests_per_gpu: Mapping[Profile, int] | None = None
    engine: str | None = None


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


class Law(StrEnum):
    """What stays the same when devices are added: all of the work, or the work of each device."""

    STRONG = "strong"
    WEAK = "weak"


@dataclass(frozen=True, slots=True)
class Series:
    """Arms that differ in their number of devices alone, and the baseline's arm that they are held against."""

    id: str
    name: Bilingual
    arms: tuple[str, ...]
    baseline_arm: str


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a test's speed-up is made: the one test that its denominator comes from, the metric, and the series.

    Each series gives the result fields `<n>gpu_throughput` and `<n>gpu_efficiency`; all but the first with
    `_<id of the series>` after it.
    """

    law: Law
    series: tuple[Series, ...]
    baseline_test: str = BASELINE_TEST
    metric: str = "e2e_throughput"


@dataclass(frozen=True, slots=True)
class Point:
    """One value on an axis: what is asked for there in place of the test's own workload.

    `name` ends the id of the point, as in `2.1@hit-25`, and is part of file names. `engine_options` come in addition to
    the test's own. A profile without a workload leaves the point out. `without` names engines that the point leaves
    out, each with the reason.
    """

    name: str
    workload: Mapping[Profile, WorkloadSpec]
    engine_options: Mapping[Profile, Mapping[str, Scalar]] = field(default_factory=dict)
    without: Mapping[str, Bilingual] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Axis:
    """A sweep: the test's comparison made again at several values of one quantity.

    `id` is a key of `touchstone.coordinates.COORDINATES`, which reads from a planned test where it lies on the axis;
    the points of any other axis have no order between them.
    `measures` are what the points report. `includes_test` says that the test itself differs from them in nothing else.
    """

    id: str
    measures: tuple[Measure, ...]
    points: tuple[Point, ...]
    includes_test: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """One test of the user's plan as data.

    `workload` gives the requests for each profile. `requires` names what the machine or engine must have, by the keys
    of `touchstone.running.planning.REQUIREMENTS`; the orchestrator says "not measured" with the reason where it is
    absent. The options of the arms, and `engine_options` that all arms share in a profile, are required of the engine
    as well; one that is False is not, for what an engine does not have is off already.

    In paired blocks the first arm is the baseline and every other one a treatment; `margins` says within which ratio
    they count as equivalent. `repeat_last` lets each process end with its last run once more, outside all metrics.
    `scaling` holds the arms against one device of another test, whose prompts they then share. Each point of `sweep`
    becomes an experiment of its own, with the id `<plan_id>@<name of the point>` and its `axis`.
    Arms that name engines compare these: each option that they share holds for an engine that has it, and each engine
    runs in processes of its own. `without` names engines that are left out, each with the reason, and
    `warmup_output_tokens` the most output tokens of a warm-up, where its prompts alone touch every shape.
    `steady` says that what is measured barely varies, so that fewer processes show it; `profile_devices` ends each
    process with a run of each arm under a profiler, which is not timed.
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
    scaling: Scaling | None = None
    steady: bool = False
    profile_devices: bool = False
    sweep: tuple[Axis, ...] = ()
    axis: str | None = None
    without: Mapping[str, Bilingual] = field(default_factory=dict)
    warmup_output_tokens: int | None = None

    @property
    def compares_engines(self) -> bool:
        """Whether the arms are engines."""
        return any(arm.engine is not None for arm in self.arms)


def load_experiments(folder: Path = BENCH) -> tuple[Experiment, ...]:
    """Load every bench file's EXPERIMENT, ordered by the plan's numbers, each followed by the points of its sweep.

    ExperimentError names what is wrong.
    """
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise ExperimentError(f"{folder} holds no bench files; run from a clone of the repository")
    declared = sorted((_load(path) for path in paths), key=lambda experiment: experiment.plan_id)
    experiments = [each for experiment in declared for each in (experiment, *points_of(experiment))]
    ids = [experiment.plan_id for experiment in experiments]
    if twice := sorted({plan_id for plan_id in ids if ids.count(plan_id) > 1}):
        raise ExperimentError(f"{folder}: test {', '.join(twice)} is declared by more than one bench file")
    return tuple(experiments)


def family_of(test_id: str) -> str:
    """Name the test of the plan that a test or a point of its sweep belongs to: "2.1" for "2.1@hit-25"."""
    return test_id.partition(AT)[0]


def is_point(test_id: str) -> bool:
    """Tell whether an id is that of a point of a sweep."""
    return AT in test_id


def points_of(experiment: Experiment) -> tuple[Experiment, ...]:
    """Make an experiment of each point of the sweep: the same comparison under another workload or other options."""
    return tuple(_at(experiment, axis, point) for axis in experiment.sweep for point in axis.points)


def _at(experiment: Experiment, axis: Axis, point: Point) -> Experiment:
    if _POINT_NAME.fullmatch(point.name) is None:
        raise ExperimentError(
            f"test {experiment.plan_id}: a point is named {point.name!r}; use lower-case words and numbers joined by -"
        )
    options = {
        profile: {**experiment.engine_options.get(profile, {}), **point.engine_options.get(profile, {})}
        for profile in point.workload
    }
    return replace(
        experiment,
        plan_id=f"{experiment.plan_id}{AT}{point.name}",
        title=Bilingual(f"{experiment.title.en}, {point.name}", f"{experiment.title.zh}，{point.name}"),
        workload=point.workload,
        measures=axis.measures,
        engine_options=options,
        without=point.without,
        sweep=(),
        axis=axis.id,
    )


_POINT_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


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
