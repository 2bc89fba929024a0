"""A run that compares engines, as the planner plans it, with made-up times whose ratios are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.touchstone.factories import MOMENT, make_trace
from tests.touchstone.scaling_sample import machine
from touchstone.engines.base import Capabilities
from touchstone.experiment import Profile, load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import Attempt, Canary, CanaryReading, EngineFacts, EntryKind, Measurement, ModelSpec, RunEvent
from touchstone.running.models import TINY_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.running.worker import schedule, timed_seed
from touchstone.trace import store_trace

if TYPE_CHECKING:
    from pathlib import Path

    from touchstone.experiment import Experiment
    from touchstone.records import PlannedTest, RunPlan, Trace, UnitPlan

ENGINES = ("nanoinfer", "vllm", "transformers")
TIMES = {"nanoinfer": 1.0, "vllm": 1.25, "transformers": 4.0}  # over the first engine's
REPORTS_STEPS = {"nanoinfer"}
READING = CanaryReading(flops_per_s=6e11, bytes_per_s=1.2e10, operation_s=3e-6)
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "dtype": "float16",
}


def capabilities(engine: str) -> Capabilities:
    """Say what a made-up engine can do."""
    return Capabilities(
        frozenset({"prefix_cache", "max_model_len", "kv_cache_bytes"}),
        reports_steps=engine in REPORTS_STEPS,
        reports_cached_tokens=True,
        reports_memory_parts=False,
        unreported="it is made up",
    )


def plan_peers(folder: Path) -> tuple[RunPlan, dict[str, Experiment]]:
    """Plan the comparison of three engines on one GPU."""
    experiments = load_experiments()
    shape = folder / "model"
    shape.mkdir(parents=True, exist_ok=True)
    (shape / "config.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    model = ChosenModel(ModelSpec(source="made on the spot", weights="synthetic", note=None), shape, None)
    first, *others = ENGINES
    request = RunRequest(Profile.SMOKE, first, "cuda", "float16", 0, ("5.1",), peers=tuple(others))
    peers = {engine: capabilities(engine) for engine in others}
    plan = make_plan(request, experiments, machine(1), model, capabilities(first), peers)
    return plan, {experiment.plan_id: experiment for experiment in experiments}


def write_peers_run(
    run_dir: Path, failing: frozenset[str] = frozenset(), *, finished: bool = False, working: str = ""
) -> dict[str, Experiment]:
    """Write a run folder; every attempt of the engines in `failing` is invalid, but of the unit named in `working`."""
    plan, experiments = plan_peers(run_dir)
    environment = machine(1)
    tests = {test.test_id: test for test in plan.tests}
    with Ledger.create(run_dir / LEDGER_NAME) as ledger:
        ledger.append(EntryKind.ENVIRONMENT, environment)
        ledger.append(EntryKind.PLAN, plan)
        for number, unit in enumerate(plan.units):
            engine = unit.arm_order[0]
            failed = engine in failing and unit.unit_id != working
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
                    engine=facts_of(engine, unit.test_id),
                    startup_s=1.0,
                    measurements=() if failed else tuple(_runs(run_dir, tests[unit.test_id], unit, number)),
                )
                ledger.append(EntryKind.ATTEMPT, body)
        if finished:
            ledger.append(EntryKind.EVENT, RunEvent(event="finished", at=MOMENT, detail=None))
    return experiments


def facts_of(engine: str, test_id: str) -> EngineFacts:
    """Say what a made-up engine says of itself."""
    settings = {"prefix_cache": test_id.endswith("w4"), "max_num_seqs": 256, "greedy": "by | bar"}
    if engine == "transformers":  # as a server's adapter says
        settings["timing"] = "client side"
    return EngineFacts(name=engine, version=f"{len(engine)}.0", settings=settings, model=MODEL)


def _runs(run_dir: Path, test: PlannedTest, unit: UnitPlan, number: int):
    for position, pair, name in schedule(unit):
        trace = trace_of(test, name, unit.process).model_copy(update={"output_sha256": f"{number:064x}"})
        yield Measurement(
            unit_id=unit.unit_id,
            test_id=unit.test_id,
            arm=name,
            position=position,
            repetition=pair,
            seed=timed_seed(unit, pair),
            started_at=MOMENT,
            trace_sha256=store_trace(run_dir, trace),
            memory=None,
            canary=Canary(before=READING, after=READING),
        )


def jitter(engine: str, process: int) -> float:
    """Scatter rounds by a tenth of a per cent, each engine in its own way."""
    return 1 + 0.001 * ((process + len(engine)) % 3 - 1)


def trace_of(test: PlannedTest, engine: str, process: int) -> Trace:
    """One prefill and decode steps for all requests, slower by what the engine's factor says."""
    spec = test.workload
    factor = TIMES[engine] * jitter(engine, process)
    trace = make_trace(
        prompts=[spec.input_tokens.high + process] * spec.num_requests,
        outputs=spec.output_tokens.high,
        cached=[8 if test.test_id.endswith("w4") else 0] * spec.num_requests,
        prefill_ms=8.003 * factor,
        decode_ms=0.5007 * factor,
    )
    return trace if engine in REPORTS_STEPS else trace.model_copy(update={"steps": None})
