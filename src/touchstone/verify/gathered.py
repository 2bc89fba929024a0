"""What the ledger and the traces hold about each planned test, arranged for the working out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.custody import OUTSIDE_REASONS
from touchstone.verify.observed import METRICS, Observation, Value, observe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from touchstone.verify.custody import Evidence

Json: TypeAlias = "dict[str, Any]"

MAX_INVALID_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class TimedRun:
    """One timed run of a valid process."""

    unit_id: str
    position: int
    arm: str
    facts: Observation
    seed: int
    settings: Json
    engine: Json | None
    _worked_out: dict[str, Value | None] = field(default_factory=dict, compare=False, repr=False)

    def value(self, metric: str) -> Value | None:
        """Work a metric of the run out; once, however many statistics, effects and examples ask for it."""
        if metric not in self._worked_out:
            self._worked_out[metric] = METRICS[metric].compute(self.facts)
        return self._worked_out[metric]


@dataclass(frozen=True, slots=True)
class TestEvidence:
    """What the ledger holds about one planned test: its runs by process, the repeats by unit, and its attempts."""

    planned: Json
    units_of_arms: Mapping[str, int]
    arms_of_units: Mapping[str, list[str]]
    attempts: tuple[Json, ...]
    lines: tuple[int, ...]
    processes: tuple[tuple[TimedRun, ...], ...]
    repeated: Mapping[str, Observation]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the baseline first."""
        return tuple(arm["name"] for arm in self.planned["arms"])

    @property
    def num_valid(self) -> int:
        """Number of valid attempts."""
        return sum(attempt["valid"] for attempt in self.attempts)

    @property
    def published(self) -> bool:
        """Whether at most a fifth of the attempts was invalid, those apart that were stopped from outside."""
        return _at_most_a_fifth_invalid(self.attempts)

    def published_for(self, arm: str) -> bool:
        """Whether an arm's numbers may be printed: an engine answers for its own attempts, any other arm for all."""
        if not any(row["engine"] for row in self.planned["arms"]):
            return self.published
        return _at_most_a_fifth_invalid(
            [attempt for attempt in self.attempts if arm in self.arms_of_units.get(attempt["unit_id"], [])]
        )

    def of_arm(self, arm: str) -> list[list[TimedRun]]:
        """Select the runs of an arm, a list a process."""
        return [[run for run in process if run.arm == arm] for process in self.processes]


def _at_most_a_fifth_invalid(attempts: Sequence[Json]) -> bool:
    judged = [attempt for attempt in attempts if attempt["reason"] not in OUTSIDE_REASONS]
    return sum(not attempt["valid"] for attempt in judged) <= MAX_INVALID_SHARE * len(judged)


def gather(evidence: Evidence) -> dict[str, TestEvidence]:
    """Arrange the evidence by planned test."""
    return {test["test_id"]: _gather(evidence, test) for test in evidence.plan["tests"]}


def _gather(evidence: Evidence, planned: Json) -> TestEvidence:
    test_id = planned["test_id"]
    records = [record for record in evidence.of_kind("attempt") if record.body["test_id"] == test_id]
    units = [unit for unit in evidence.plan["units"] if unit["test_id"] == test_id]
    chosen = _first_valid([record.body for record in records], {unit["unit_id"] for unit in units})
    return TestEvidence(
        planned=planned,
        units_of_arms=Counter(arm for unit in units for arm in dict.fromkeys(unit["arm_order"])),
        arms_of_units={unit["unit_id"]: unit["arm_order"] for unit in evidence.plan["units"]},
        attempts=tuple(record.body for record in records),
        lines=tuple(record.line for record in records),
        processes=tuple(tuple(_runs(evidence, attempt, planned)) for attempt in chosen.values()),
        repeated={
            name: observe(evidence.traces[attempt["repeated"]["trace_sha256"]], attempt["repeated"], attempt["engine"])
            for name, attempt in chosen.items()
            if attempt.get("repeated") is not None
        },
    )


def _first_valid(attempts: Iterable[Json], names: Collection[str]) -> dict[str, Json]:
    """Return the attempt that counts for each planned unit that has one, in the ledger's order."""
    chosen: dict[str, Json] = {}
    for attempt in attempts:
        if attempt["valid"] and attempt["unit_id"] in names:
            chosen.setdefault(attempt["unit_id"], attempt)
    return chosen


def _runs(evidence: Evidence, attempt: Json, planned: Json) -> Iterator[TimedRun]:
    for run in sorted(attempt["measurements"], key=lambda run: int(run["position"])):
        facts = observe(evidence.traces[run["trace_sha256"]], run, attempt["engine"], planned)
        facts = replace(facts, device_work=_profiled(attempt, run["arm"]))
        settings = {} if attempt["engine"] is None else attempt["engine"]["settings"]
        yield TimedRun(attempt["unit_id"], run["position"], run["arm"], facts, run["seed"], settings, attempt["engine"])


def _profiled(attempt: Json, arm: str) -> list[Json]:
    """List what the devices did while an arm was profiled; an attempt that names no arms has a single one."""
    return [device for device in attempt.get("device_work") or [] if device.get("arm") is None or device["arm"] == arm]
