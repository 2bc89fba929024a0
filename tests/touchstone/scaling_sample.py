"""A run of the scaling tests as this machine's planner plans it, with made-up times whose speed-ups are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.touchstone.factories import MOMENT, make_engine, make_environment, make_memory, make_trace
from touchstone.engines.base import Capabilities
from touchstone.experiment import Profile, load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import (
    Attempt,
    Canary,
    CanaryReading,
    DeviceMemory,
    DeviceWork,
    EntryKind,
    Gpu,
    Measurement,
    MemoryParts,
    ModelSpec,
)
from touchstone.running.models import TINY_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.running.worker import schedule, timed_seed
from touchstone.trace import store_trace
from touchstone.workload import of_arm

if TYPE_CHECKING:
    from pathlib import Path

    from touchstone.experiment import Experiment
    from touchstone.records import ArmSpec, PlannedTest, RunPlan, Trace, UnitPlan

TESTS = ("3.1", "3.2", "3.3")
GB = 10**9
POOL_BYTES = 3 * GB
OPTIONS = frozenset({"max_num_seqs", "max_model_len", "kv_cache_bytes", "tensor_parallel_size", "data_parallel_size"})
# What one device does in a second, and how many times as much several do.
REQUESTS_PER_S = {"full": 160.0, "light": 100.0}
SPEEDUPS = {
    "TP": {2: 1.6, 4: 2.2, 8: 2.5},
    "DP": {2: 1.8, 4: 3.0, 8: 4.4},
    "DP light": {2: 1.95, 4: 3.8, 8: 7.4},
    "DP full": {2: 1.98, 4: 3.92, 8: 7.7},
    "TP light": {2: 1.5, 4: 2.0, 8: 2.3},
    "TP full": {2: 1.7, 4: 2.6, 8: 3.4},
}
SHARES = {2: 0.125, 4: 0.25}  # of their devices' time that the tensor-parallel arms add up in
SPAN_NS = 80_000_000


def speedup_of(arm: ArmSpec) -> float:
    """Look up how many times as fast as one device an arm is made to be."""
    if arm.num_gpus == 1:
        return 1.0
    kind, _, *load = arm.name.split(" ")
    return SPEEDUPS[" ".join([kind, *load])][arm.num_gpus]


def plan_scaling(num_gpus: int, folder: Path, only: tuple[str, ...] = TESTS) -> tuple[RunPlan, dict[str, Experiment]]:
    """Plan the scaling tests for a machine with so many GPUs."""
    experiments = load_experiments()
    capabilities = Capabilities(OPTIONS, reports_steps=True, reports_cached_tokens=True, reports_memory_parts=True)
    shape = folder / "model"
    shape.mkdir(parents=True, exist_ok=True)
    (shape / "config.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    model = ChosenModel(ModelSpec(source="made on the spot", weights="synthetic", note=None), shape, None)
    device = "cuda" if num_gpus else "cpu"
    request = RunRequest(Profile.SMOKE, "nanoinfer", device, "float16", 0, only)
    plan = make_plan(request, experiments, machine(num_gpus), model, capabilities)
    return plan, {experiment.plan_id: experiment for experiment in experiments}


def machine(num_gpus: int):
    """Make an environment with so many GPUs of 80 GB."""
    return make_environment(
        gpus=[
            Gpu(index=index, name="Made-up GPU", memory_bytes=80 * GB, compute_capability="9.0", power_limit_w=None)
            for index in range(num_gpus)
        ]
    )


def write_scaling_run(
    run_dir: Path, num_gpus: int = 4, only: tuple[str, ...] = TESTS, failing: frozenset[str] = frozenset()
) -> dict[str, Experiment]:
    """Write a run folder; attempts of the arms in `failing` are invalid, twice each."""
    plan, experiments = plan_scaling(num_gpus, run_dir, only)
    environment = machine(num_gpus)
    tests = {test.test_id: test for test in plan.tests}
    with Ledger.create(run_dir / LEDGER_NAME) as ledger:
        ledger.append(EntryKind.ENVIRONMENT, environment)
        ledger.append(EntryKind.PLAN, plan)
        for number, unit in enumerate(plan.units):
            failed = unit.arm_order[0] in failing
            for attempt in (1, 2) if failed else (1,):
                body = Attempt(
                    unit_id=unit.unit_id,
                    test_id=unit.test_id,
                    attempt=attempt,
                    valid=not failed,
                    reason="the engine broke" if failed else None,
                    started_at=MOMENT,
                    ended_at=MOMENT,
                    environment_fingerprint=environment.fingerprint,
                    plan_sha256=plan.plan_sha256,
                    engine=make_engine().model_copy(update={"name": "nanoinfer"}),
                    startup_s=1.0,
                    measurements=() if failed else tuple(_runs(run_dir, tests[unit.test_id], unit, number)),
                    device_work=None if failed else _work_of(tests[unit.test_id], unit),
                )
                ledger.append(EntryKind.ATTEMPT, body)
    return experiments


def _runs(run_dir: Path, test: PlannedTest, unit: UnitPlan, number: int):
    for position, pair, name in schedule(unit):
        arm = next(arm for arm in test.arms if arm.name == name)
        jitter = 1 + 0.002 * (unit.process - 1) + 0.0003 * ((7 * number + position) % 5)
        trace = trace_of(test, arm, jitter).model_copy(update={"output_sha256": f"{number:064x}"})
        reading = CanaryReading(flops_per_s=6e14, bytes_per_s=4e12, operation_s=3e-6)
        canaries = [Canary(before=reading, after=reading)] * arm.num_gpus
        yield Measurement(
            unit_id=unit.unit_id,
            test_id=unit.test_id,
            arm=name,
            position=position,
            repetition=pair,
            seed=timed_seed(unit, pair),
            started_at=MOMENT,
            trace_sha256=store_trace(run_dir, trace),
            memory=memory_of(arm),
            canary=canaries[0],
            other_canaries=tuple(canaries[1:]),
        )


def _work_of(test: PlannedTest, unit: UnitPlan) -> tuple[DeviceWork, ...]:
    """What a unit's devices did under its profiler: only tensor parallelism adds up between them."""
    arm = next(arm for arm in test.arms if arm.name == unit.arm_order[0])
    spent = round(SPAN_NS * SHARES[arm.num_gpus]) if arm.name.startswith("TP") else 0
    return tuple(
        DeviceWork(device=f"cuda:{index}", span_ns=SPAN_NS, busy_ns=SPAN_NS - 1000, communication_ns=spent)
        for index in range(arm.num_gpus)
    )


def trace_of(test: PlannedTest, arm: ArmSpec, jitter: float) -> Trace:
    """One prefill for all requests and decode steps for all, together as long as the arm's speed-up says."""
    spec = of_arm(test.workload, arm)
    load = "light" if "light" in arm.name else "full"
    total_ms = 1000 * spec.num_requests / REQUESTS_PER_S[load] / speedup_of(arm) * jitter
    outputs = spec.output_tokens.high
    return make_trace(
        prompts=[spec.input_tokens.high] * spec.num_requests,
        outputs=outputs,
        prefill_ms=0.2 * total_ms,
        decode_ms=0.8 * total_ms / (outputs - 1),
    )


def memory_of(arm: ArmSpec) -> MemoryParts:
    """Sum up an arm's devices, each with the same pool."""
    p = arm.num_gpus
    devices = tuple(
        DeviceMemory(device=f"cuda:{index}", kv_pool_bytes=POOL_BYTES, total_peak_bytes=6_500_000_000 + index)
        for index in range(p)
    )
    total = sum(device.total_peak_bytes for device in devices)
    return make_memory(
        device="cuda",
        weights_bytes=2 * GB * p,
        kv_pool_bytes=POOL_BYTES * p,
        activations_peak_bytes=GB * p,
        context_and_other_bytes=GB // 2 * p,
        device_total_peak_bytes=total,
        residual_bytes=total - 6_500_000_000 * p,
        devices=devices if p > 1 else (),
    )
