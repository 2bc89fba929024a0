"""A synthetic run folder with every kind of outcome: stable, unstable, insufficient, invalid, exact, not measured."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.experiment import Design, Profile, load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import (
    ArmSpec,
    Attempt,
    Canary,
    CanaryReading,
    ClockUse,
    CodeMetrics,
    EngineFacts,
    EntryKind,
    Environment,
    FileMetrics,
    FunctionMetrics,
    Gpu,
    Hardware,
    Measurement,
    MemoryParts,
    ModelSpec,
    NotMeasured,
    PlannedTest,
    QualityAttempt,
    RequestTrace,
    RunEvent,
    RunPlan,
    Software,
    Source,
    StepTrace,
    Telemetry,
    Trace,
    UnitPlan,
)
from touchstone.trace import store_trace

if TYPE_CHECKING:
    from pathlib import Path

    from touchstone.experiment import Experiment

WHEN = "2026-02-19T08:00:00.000+00:00"
NO_HASH = sha256_hex(b"no output")
REPETITIONS = 2
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "dtype": "float32",
}

# test id -> processes planned, spread of their speeds, how many attempts are invalid
OUTCOMES = {
    "1.1": (6, 0.004, 1),  # stable, with one invalid attempt that was repeated
    "1.2": (6, 0.15, 0),  # unstable
    "1.3": (2, 0.004, 0),  # insufficient
    "2.1": (6, 0.004, 0),  # a comparison
    "3.1": (6, 0.004, 3),  # invalid: too many attempts failed
    "0.1": (6, 0.004, 0),  # placebo and control that pass
}


def write_sample_run(run_dir: Path) -> dict[str, Experiment]:
    """Write a ledger with traces and return the experiments that it was planned from."""
    experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    environment, plan = sample_environment(), sample_plan(experiments)
    with Ledger.create(run_dir / LEDGER_NAME) as ledger:
        ledger.append(EntryKind.ENVIRONMENT, environment)
        ledger.append(EntryKind.PLAN, plan)
        ledger.append(EntryKind.EVENT, RunEvent(event="started", at=WHEN, detail=None))
        for unit in plan.units:
            failures = OUTCOMES[unit.test_id][2]
            failed = unit.process < failures
            if failed:
                ledger.append(EntryKind.ATTEMPT, _attempt(run_dir, environment, plan, unit, attempt=1, valid=False))
            ledger.append(EntryKind.ATTEMPT, _attempt(run_dir, environment, plan, unit, attempt=1 + failed, valid=True))
        ledger.append(EntryKind.QUALITY, sample_quality(environment, plan))
        ledger.append(EntryKind.EVENT, RunEvent(event="finished", at=WHEN, detail=None))
    return experiments


def sample_environment() -> Environment:
    hardware = Hardware(
        host_id="0123456789ab",
        cpu_model="Example|CPU_9000 `fast` $5",
        cpu_physical_cores=None,
        cpu_logical_cores=8,
        cpu_usable_cores=4,
        cgroup_cpu_cores=3.5,
        cgroup_memory_bytes=None,
        memory_bytes=33_554_432_000,
        gpus=(
            Gpu(
                index=0, name="Example GPU", memory_bytes=24_000_000_000, compute_capability="8.6", power_limit_w=350.0
            ),
        ),
    )
    packages = {"torch": "2.13.0", "numpy": "2.4.6"}
    software = Software(os="Linux", kernel="6.1", python="3.12.3", driver="570.124.04", cuda="12.8", packages=packages)
    source = Source(
        commit="0" * 40,
        dirty=True,
        diff_sha256=sha256_hex(b"diff"),
        lock_sha256=sha256_hex(b"lock"),
        clock=ClockUse(num_files=123, readers=("clock.py",), unreadable=()),
    )
    parts = {
        name: part.model_dump(mode="json")
        for name, part in {"hardware": hardware, "software": software, "source": source}.items()
    }
    return Environment(
        hardware=hardware, software=software, source=source, fingerprint=sha256_hex(canonical_json(parts))
    )


def sample_plan(experiments: dict[str, Experiment]) -> RunPlan:
    tests, units = [], []
    for test_id, (processes, _, _) in OUTCOMES.items():
        experiment = experiments[test_id]
        arms = tuple(
            ArmSpec(name=arm.name, options=dict(arm.options), extra_output=arm.extra_output) for arm in experiment.arms
        )
        names = tuple(arm.name for arm in arms)
        order = (*names, *reversed(names)) if len(names) > 1 else names
        tests.append(
            PlannedTest(
                test_id=test_id,
                engine="nanoinfer",
                arms=arms,
                workload=experiment.workload[Profile.SMOKE],
                num_processes=processes,
                num_repetitions=REPETITIONS,
                num_warmups=1,
                estimated_s=1.0,
                margin=experiment.margins[Profile.SMOKE] if experiment.design is Design.PAIRED_BLOCKS else None,
            )
        )
        units += [
            UnitPlan(
                unit_id=f"{test_id}-{process}",
                test_id=test_id,
                process=process,
                arm_order=order,
                num_warmups=1,
                num_repetitions=REPETITIONS,
                seed=process,
            )
            for process in range(processes)
        ]
    plan = RunPlan(
        schema_version="1.0",
        profile="smoke",
        seed=7,
        engine="nanoinfer",
        device="cpu",
        dtype="float32",
        model=ModelSpec(source="made on the spot", weights="synthetic", note="no GPU was found"),
        engine_options={"prefix_cache": False},
        tests=tuple(tests),
        units=tuple(units),
        not_measured=tuple(
            NotMeasured(test_id=test_id, reason="needs 2 GPUs", reason_zh="需要 2 块 GPU") for test_id in ("3.2", "3.3")
        ),
        canary_limit=2.0,
        plan_sha256="0" * 64,
    )
    facts = plan.model_dump(mode="json", exclude={"plan_sha256"})
    return plan.model_copy(update={"plan_sha256": sha256_hex(canonical_json(facts))})


def _attempt(
    run_dir: Path, environment: Environment, plan: RunPlan, unit: UnitPlan, *, attempt: int, valid: bool
) -> Attempt:
    return Attempt(
        unit_id=unit.unit_id,
        test_id=unit.test_id,
        attempt=attempt,
        valid=valid,
        reason=None if valid else "the canary moved by 4.2 %",
        started_at=WHEN,
        ended_at=WHEN,
        environment_fingerprint=environment.fingerprint,
        plan_sha256=plan.plan_sha256,
        engine=EngineFacts(
            name="nanoinfer",
            version="0.1.0",
            settings={"block_size": 16, "num_kv_blocks": 512, "prefix_cache": False},
            model={"architecture": "Qwen3ForCausalLM", "parameters": 1_234_567, "tied": True, **SHAPE},
        ),
        startup_s=1.5,
        measurements=tuple(_measurements(run_dir, unit)) if valid else (),
    )


def _measurements(run_dir: Path, unit: UnitPlan):
    spread = OUTCOMES[unit.test_id][1]
    chance = random.Random(f"{unit.unit_id}")
    process_speed = 1 + spread * (unit.process - 2.5) / 2.5
    runs = [arm for arm in unit.arm_order for _ in range(REPETITIONS)]
    for position, arm in enumerate(runs):
        speed = process_speed * chance.uniform(0.999, 1.001)
        output = 6 if arm == "control" else 5
        trace = sample_trace(speed=speed, cached=24 if arm == "on" else 0, output=output)
        yield Measurement(
            unit_id=unit.unit_id,
            test_id=unit.test_id,
            arm=arm,
            position=position,
            repetition=position,
            seed=position,
            started_at=WHEN,
            trace_sha256=store_trace(run_dir, trace),
            memory=sample_memory() if unit.test_id == "1.3" else None,
            canary=Canary(before=sample_reading(1.0), after=sample_reading(speed)),
            telemetry=sample_telemetry(position),
        )


def sample_reading(speed: float) -> CanaryReading:
    return CanaryReading(flops_per_s=8e10 * speed, bytes_per_s=5e10 * speed, operation_s=5e-6)


def sample_telemetry(position: int) -> Telemetry:
    return Telemetry(
        duration_s=0.5,
        interval_s=0.2,
        num_samples=2,
        load_average=1.25,
        throttled_s=None,
        voluntary_switches=10,
        involuntary_switches=position,
        other_busy_cores=0.12,
        gpus=(),
    )


def sample_trace(*, speed: float, cached: int, requests: int = 8, prompt: int = 64, output: int = 5) -> Trace:
    """Make one prefill step a request, then decode steps of the whole batch."""
    prefill_ns = int(1e6 * (prompt - cached) / prompt / speed)
    decode_ns = int(4e5 / speed)
    steps, emissions, now = [], [], 1000
    first: list[int] = []
    scheduled: list[int] = []
    for _ in range(requests):
        steps.append(_step("prefill", prompt - cached, 0, now, prefill_ns))
        scheduled.append(now)
        now += prefill_ns
        first.append(len(emissions))
        emissions.append(now)
    for _ in range(output - 1):
        steps.append(_step("decode", 0, requests, now, decode_ns))
        now += decode_ns
        emissions.append(now)
    return Trace(
        duration_ns=now + 1000,
        emission_times_ns=tuple(emissions),
        requests=tuple(
            RequestTrace(
                request_id=index,
                arrival_ns=0,
                scheduled_ns=scheduled[index],
                prompt_tokens=prompt,
                cached_tokens=cached,
                requested_tokens=output,
                emissions=(first[index], *range(requests, requests + output - 1)),
                finish_reason="length",
                output_sha256=NO_HASH,
                distinct_tokens=4,
                preemptions=0,
            )
            for index in range(requests)
        ),
        steps=tuple(steps),
        peak_concurrency=requests,
        peak_kv_blocks_used=40,
        output_sha256=NO_HASH,
    )


def _step(kind: str, prefill: int, decode: int, begin: int, length: int) -> StepTrace:
    return StepTrace(
        kind=kind,
        prefill_tokens=prefill,
        decode_tokens=decode,
        batch=max(decode, 1),
        graph=False,
        begin_ns=begin,
        launched_ns=begin + length // 5,
        end_ns=begin + length,
        device_ns=None,
    )


def sample_memory() -> MemoryParts:
    parts = {
        "weights_bytes": 120_000_000,
        "kv_pool_bytes": 512_000_000,
        "activations_peak_bytes": 30_000_000,
        "cuda_graphs_bytes": None,
        "context_and_other_bytes": 310_000_000,
    }
    total = 980_000_000
    return MemoryParts(
        device="cpu",
        kv_block_bytes=1_000_000,
        kv_used_peak_bytes=40_000_000,
        device_total_peak_bytes=total,
        residual_bytes=total - sum(size or 0 for size in parts.values()),
        method="resident memory of the process",
        **parts,
    )


def sample_quality(environment: Environment, plan: RunPlan) -> QualityAttempt:
    chance = random.Random(4)
    functions = tuple(
        FunctionMetrics(
            file="src/engine/loop.py" if index % 3 else "src/engine/cache/pool.py",
            line=10 * index + 1,
            name=f"Pool.step_{index}",
            num_lines=5 + index,
            complexity_radon=(value := min(1 + int(chance.expovariate(0.5)), 14)),
            complexity_lizard=value + (index == 3),
            difference_causes=("assert",) if index == 3 else (),
        )
        for index in range(60)
    )
    return QualityAttempt(
        test_id="4.1",
        environment_fingerprint=environment.fingerprint,
        plan_sha256=plan.plan_sha256,
        measured_at=WHEN,
        code=CodeMetrics(
            tree="src",
            tree_sha256=sha256_hex(b"tree"),
            radon_version="6.0.1",
            lizard_version="1.24.3",
            python_version="3.12.3",
            files=(_file("src/engine/loop.py", "engine", 40), _file("src/engine/cache/pool.py", "engine.cache", 20)),
            functions=functions,
            differences={"assert": 1},
            unexplained=(),
        ),
    )


def _file(name: str, package: str, functions: int) -> FileMetrics:
    return FileMetrics(
        file=name,
        package=package,
        physical_lines=20 * functions,
        source_lines=15 * functions,
        functions=functions,
        classes=2,
        functions_radon=functions,
        functions_lizard=functions,
        classes_radon=2,
        naive_lines=20 * functions + 1,
        naive_functions=functions + 3,
        naive_classes=4,
        error=None,
    )
