"""Synthetic traces and run folders whose every number can be worked out by hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import (
    SCHEMA_VERSION,
    ArmSpec,
    Attempt,
    Canary,
    EngineFacts,
    EntryKind,
    Environment,
    Hardware,
    Lengths,
    Measurement,
    MemoryParts,
    ModelSpec,
    NotMeasured,
    PlannedTest,
    RequestTrace,
    RunPlan,
    Software,
    Source,
    StepTrace,
    Trace,
    UnitPlan,
    WorkloadSpec,
)
from touchstone.trace import store_trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from touchstone.records import QualityAttempt, Scalar

MS = 1_000_000
OFFSET_NS = 123_457  # so that no clock reading is a whole millisecond, as none of a true clock is
MOMENT = "2026-03-04T05:06:07.000+00:00"


def output_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_trace(
    *,
    prompts: Sequence[int] = (100, 100),
    outputs: int = 3,
    cached: Sequence[int] | None = None,
    prefill_ms: float = 100,
    decode_ms: float = 10,
    arrivals_ms: Sequence[float] | None = None,
    launch_ms: float = 1,
    device_ms: float | None = None,
    answer: str = "answer",
) -> Trace:
    """One prefill step for all requests, then decode steps for all, back to back from time 0; all times in ms."""
    cached = cached if cached is not None else [0] * len(prompts)
    arrivals = arrivals_ms if arrivals_ms is not None else [0] * len(prompts)
    ends = [OFFSET_NS + round(prefill_ms * MS + step * decode_ms * MS) for step in range(outputs)]
    begins = [OFFSET_NS, *ends[:-1]]
    steps = tuple(
        StepTrace(
            kind="prefill" if index == 0 else "decode",
            prefill_tokens=sum(prompts) - sum(cached) if index == 0 else 0,
            decode_tokens=0 if index == 0 else len(prompts),
            batch=len(prompts),
            graph=False,
            begin_ns=begin,
            launched_ns=begin + round(launch_ms * MS),
            end_ns=end,
            device_ns=None if device_ms is None else round(device_ms * MS),
        )
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )
    requests = tuple(
        RequestTrace(
            request_id=index,
            arrival_ns=OFFSET_NS + round(arrivals[index] * MS),
            scheduled_ns=OFFSET_NS + round(arrivals[index] * MS),
            prompt_tokens=prompt,
            cached_tokens=cached[index],
            requested_tokens=outputs,
            emissions=tuple(range(outputs)),
            finish_reason="length",
            output_sha256=output_hash(f"{answer}{index}"),
            distinct_tokens=min(2, outputs),
            preemptions=0,
        )
        for index, prompt in enumerate(prompts)
    )
    return Trace(
        duration_ns=ends[-1] + MS,
        emission_times_ns=tuple(ends),
        requests=requests,
        steps=steps,
        peak_concurrency=len(prompts),
        peak_kv_blocks_used=5,
        output_sha256=output_hash(answer),
    )


def make_memory(**changes: int | None) -> MemoryParts:
    """2 GB weights, 3 GB pool, 1 GB activations, 0.5 GB context: 6.5 GB in all."""
    facts: dict[str, object] = {
        "device": "cpu",
        "weights_bytes": 2_000_000_000,
        "kv_pool_bytes": 3_000_000_000,
        "kv_block_bytes": 300_000_000,
        "kv_used_peak_bytes": 1_500_000_000,
        "activations_peak_bytes": 1_000_000_000,
        "cuda_graphs_bytes": 0,
        "context_and_other_bytes": 500_000_000,
        "device_total_peak_bytes": 6_500_000_000,
        "residual_bytes": 0,
        "method": "made up",
    }
    return MemoryParts.model_validate(facts | changes)


def make_engine(**settings: Scalar) -> EngineFacts:
    return EngineFacts(name="fake engine", version="9.8.7", settings={"block_size": 16, **settings}, model={})


def make_environment(**changes: object) -> Environment:
    """Make an environment; `changes` are facts of the hardware."""
    described: dict[str, object] = {
        "host_id": "0123456789ab",
        "cpu_model": "Made-up CPU",
        "cpu_physical_cores": 2,
        "cpu_logical_cores": 4,
        "cpu_usable_cores": 2,
        "cgroup_cpu_cores": None,
        "cgroup_memory_bytes": None,
        "memory_bytes": 16_000_000_000,
        "gpus": (),
    }
    hardware = Hardware.model_validate(described | changes)
    software = Software(os="Linux", kernel="6", python="3.11", driver=None, cuda=None, packages={"torch": "2.13"})
    source = Source(commit="c" * 40, dirty=False, diff_sha256=None, lock_sha256=None)
    facts = {"hardware": hardware, "software": software, "source": source}
    plain = {name: record.model_dump(mode="json") for name, record in facts.items()}
    return Environment(**facts, fingerprint=sha256_hex(canonical_json(plain)))


def make_workload(**changes: object) -> WorkloadSpec:
    lengths = Lengths(low=100, high=100)
    facts: dict[str, object] = {
        "num_requests": 2,
        "input_tokens": lengths,
        "output_tokens": Lengths(low=3, high=3),
    }
    return WorkloadSpec.model_validate(facts | changes)


def _later(trace: Trace, elapsed_ns: int) -> Trace:
    """Let the timed region end some nanoseconds later: two true regions are never equally long."""
    return trace.model_copy(update={"duration_ns": trace.duration_ns + elapsed_ns})


def pair_seed(unit: UnitPlan, position: int) -> int:
    """Give each pair of runs of a process prompts of its own."""
    return 100 * unit.seed + position // len(set(unit.arm_order))


@dataclass
class FakeRun:
    """A run folder in the making: planned tests with their attempts, written in one go."""

    path: Path
    tests: list[PlannedTest] = field(default_factory=list)
    units: list[UnitPlan] = field(default_factory=list)
    attempts: list[tuple[UnitPlan, int, str | None, list[tuple[str, Trace]], MemoryParts | None]] = field(
        default_factory=list
    )
    not_measured: list[NotMeasured] = field(default_factory=list)
    quality: QualityAttempt | None = None
    engine: EngineFacts = field(default_factory=make_engine)
    canary: Canary | None = None
    repeated: Trace | None = None
    environment: Environment = field(default_factory=make_environment)
    seed: int = 1

    def plan_test(
        self,
        test_id: str,
        *,
        processes: int,
        order: Sequence[str] = ("default",),
        arms: Mapping[str, Mapping[str, Scalar]] | None = None,
        workload: WorkloadSpec | None = None,
    ) -> list[UnitPlan]:
        arms = arms if arms is not None else {name: {} for name in dict.fromkeys(order)}
        self.tests.append(
            PlannedTest(
                test_id=test_id,
                engine="fake",
                arms=tuple(ArmSpec(name=name, options=dict(options)) for name, options in arms.items()),
                workload=workload or make_workload(),
                num_processes=processes,
                num_repetitions=1,
                num_warmups=1,
                estimated_s=1.0,
            )
        )
        units = [
            UnitPlan(
                unit_id=f"{test_id}-p{process}",
                test_id=test_id,
                process=process,
                arm_order=tuple(order),
                num_warmups=1,
                num_repetitions=1,
                seed=process,
            )
            for process in range(processes)
        ]
        self.units += units
        return units

    def attempt(
        self, unit: UnitPlan, traces: Sequence[Trace], *, invalid: str | None = None, memory: MemoryParts | None = None
    ) -> None:
        """Record one attempt: the traces in the order of the unit's arms, repeated as often as there are traces."""
        number = 1 + sum(other.unit_id == unit.unit_id for other, *_ in self.attempts)
        arms = [unit.arm_order[index % len(unit.arm_order)] for index in range(len(traces))]
        self.attempts.append((unit, number, invalid, list(zip(arms, traces, strict=True)), memory))

    def add_instrument(self, *, placebo: float = 1.0, control: float = 1.1, blocks: int = 6) -> None:
        """Plan and record the instrument's own test; the two ratios are what its blocks show."""
        order = ("baseline", "placebo", "control")
        units = self.plan_test("0.1", processes=blocks, order=(*order, *reversed(order)))
        arms = (*self.tests[-1].arms[:2], self.tests[-1].arms[2].model_copy(update={"extra_output": 0.1}))
        self.tests[-1] = self.tests[-1].model_copy(update={"arms": arms, "margin": 0.05})
        slower = {"baseline": 1.0, "placebo": placebo, "control": control}
        for unit in units:
            scatter = 1 + 0.001 * (unit.process % 3)
            self.attempt(
                unit,
                [
                    make_trace(
                        prefill_ms=100 * slower[arm] * (scatter if arm != "baseline" else 1),
                        decode_ms=0.1,
                    )
                    for arm in unit.arm_order
                ],
            )

    def write(self) -> Path:
        environment, plan = self.environment, self._plan()
        with Ledger.create(self.path / LEDGER_NAME) as ledger:
            ledger.append(EntryKind.ENVIRONMENT, environment)
            ledger.append(EntryKind.PLAN, plan)
            elapsed = 0
            for unit, number, invalid, timed, memory in self.attempts:
                distinct = [(arm, _later(trace, elapsed + index)) for index, (arm, trace) in enumerate(timed)]
                elapsed += len(timed)
                body = self._attempt(unit, number, invalid, distinct, memory, environment, plan)
                ledger.append(EntryKind.ATTEMPT, body)
            if self.quality is not None:
                ledger.append(EntryKind.QUALITY, self.quality)
        return self.path

    def _plan(self) -> RunPlan:
        facts = {
            "schema_version": SCHEMA_VERSION,
            "profile": "smoke",
            "seed": self.seed,
            "engine": "fake",
            "device": "cpu",
            "dtype": "float32",
            "model": ModelSpec(source="made on the spot", weights="loaded", note=None).model_dump(),
            "engine_options": {},
            "canary_limit": 2.0,
            "tests": [test.model_dump(mode="json") for test in self.tests],
            "units": [unit.model_dump(mode="json") for unit in self.units],
            "not_measured": [item.model_dump(mode="json") for item in self.not_measured],
        }
        return RunPlan.model_validate({**facts, "plan_sha256": sha256_hex(canonical_json(facts))})

    def _attempt(
        self,
        unit: UnitPlan,
        number: int,
        invalid: str | None,
        timed: list[tuple[str, Trace]],
        memory: MemoryParts | None,
        environment: Environment,
        plan: RunPlan,
    ) -> Attempt:
        measurements = tuple(
            Measurement(
                unit_id=unit.unit_id,
                test_id=unit.test_id,
                arm=arm,
                position=position,
                repetition=position // len(unit.arm_order),
                seed=pair_seed(unit, position),
                started_at=MOMENT,
                trace_sha256=store_trace(self.path, trace),
                memory=memory,
                canary=self.canary,
            )
            for position, (arm, trace) in enumerate(timed)
        )
        return Attempt(
            unit_id=unit.unit_id,
            test_id=unit.test_id,
            attempt=number,
            valid=invalid is None,
            reason=invalid,
            started_at=MOMENT,
            ended_at=MOMENT,
            environment_fingerprint=environment.fingerprint,
            plan_sha256=plan.plan_sha256,
            engine=self.engine,
            startup_s=0.1,
            measurements=measurements,
            repeated=None
            if self.repeated is None
            else measurements[-1].model_copy(update={"trace_sha256": store_trace(self.path, self.repeated)}),
        )
