"""A made-up run folder of the paper profile's full size, as a program: `python -m` it with FOLDER.

It holds every test that the plan of one machine with eight GPUs holds, with canary, telemetry and memory, and traces
as an engine that schedules continuously would leave them. The speeds are invented; their size is what counts.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.touchstone.factories import make_environment, make_memory
from tests.touchstone.machine_samples import QWEN3_0_6B, gpu, telemetry
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.registry import load_adapter
from touchstone.experiment import Profile, is_point, load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import (
    Attempt,
    Canary,
    CanaryReading,
    DeviceMemory,
    EngineFacts,
    EntryKind,
    GraphCapture,
    Measurement,
    ModelSpec,
    RunEvent,
)
from touchstone.running.models import QWEN3_0_6B_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.workload import at_rate, build, derive_seed, of_arm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from touchstone.engines.base import GenerationRequest
    from touchstone.experiment import Experiment
    from touchstone.records import ArmSpec, Environment, PlannedTest, RunPlan, UnitPlan

Json = dict[str, Any]

MOMENT = "2026-03-04T05:06:07.000+00:00"
GPU = {"name": "Made-up GPU", "memory_bytes": 141_000_000_000, "compute_capability": "9.0", "power_limit_w": 700.0}
BLOCK = 16
MAX_SEQS, MAX_TOKENS = 256, 8192
RATE_AT_FULL_LOAD = 30.0
MEMORY_TESTS = frozenset({"1.3", "3.1", "3.2", "3.3"})
PREFILL_NS_PER_TOKEN, DECODE_NS, DECODE_NS_PER_SEQUENCE = 8_000, 2_000_000, 20_000


def write_paper_size_run(
    folder: Path, tests: Sequence[str] = (), profile: Profile = Profile.PAPER, num_gpus: int = 8
) -> Mapping[str, Experiment]:
    """Write the run and return the experiments that it was planned from; `tests` empty means all but the code's."""
    experiments = load_experiments()
    environment = make_environment(gpus=tuple(GPU | {"index": index} for index in range(num_gpus)))
    plan = _plan(folder, experiments, environment, tests, profile)
    planned = {test.test_id: test for test in plan.tests}
    with Ledger.create(folder / LEDGER_NAME) as ledger:
        ledger.append(EntryKind.ENVIRONMENT, environment)
        ledger.append(EntryKind.PLAN, plan)
        ledger.append(EntryKind.EVENT, RunEvent(event="started", at=MOMENT, detail=None))
        for unit in plan.units:
            ledger.append(EntryKind.ATTEMPT, _attempt(folder, plan, planned[unit.test_id], unit, environment))
        ledger.append(EntryKind.EVENT, RunEvent(event="finished", at=MOMENT, detail=None))
    return {experiment.plan_id: experiment for experiment in experiments}


def _plan(
    folder: Path, experiments: Sequence[Experiment], environment: Environment, tests: Sequence[str], profile: Profile
) -> RunPlan:
    shape = folder / "shape"
    shape.mkdir(parents=True)
    (shape / "config.json").write_text(json.dumps(QWEN3_0_6B_CONFIG), encoding="utf-8")
    model = ChosenModel(ModelSpec(source="made up", weights="synthetic", note=None), shape, 0)
    names = tuple(tests) or tuple(one.plan_id for one in experiments if not is_point(one.plan_id))
    request = RunRequest(profile=profile, engine="nanoinfer", device="cuda", dtype="float16", seed=0, only=names)
    engine = load_adapter("nanoinfer").capabilities()
    engine = replace(engine, options=engine.options | {"tensor_parallel_size", "data_parallel_size"})
    return make_plan(request, experiments, environment, model, engine)


def _attempt(folder: Path, plan: RunPlan, test: PlannedTest, unit: UnitPlan, environment: Environment) -> Attempt:
    arms = {arm.name: arm for arm in test.arms}
    num_arms = len(set(unit.arm_order))
    measurements = []
    for position, arm in enumerate(unit.arm_order * unit.num_repetitions):
        seed = derive_seed(unit.seed, "timed", position // num_arms)
        measurements.append(_measurement(folder, test, unit, arms[arm], position, position // num_arms, seed))
    last = measurements[-1]
    repeated = (
        _measurement(folder, test, unit, arms[last.arm], last.position + 1, last.repetition, last.seed)
        if test.repeat_last
        else None
    )
    return Attempt(
        unit_id=unit.unit_id,
        test_id=unit.test_id,
        attempt=1,
        valid=True,
        reason=None,
        started_at=MOMENT,
        ended_at=MOMENT,
        environment_fingerprint=environment.fingerprint,
        plan_sha256=plan.plan_sha256,
        engine=EngineFacts(
            name="nanoinfer",
            version="0",
            settings={"block_size": BLOCK, "num_kv_blocks": 40_000},
            model=QWEN3_0_6B,
            shares_at_admission=True,
        ),
        startup_s=20.0,
        measurements=tuple(measurements),
        repeated=repeated,
    )


def _measurement(
    folder: Path, test: PlannedTest, unit: UnitPlan, arm: ArmSpec, position: int, repetition: int, seed: int
) -> Measurement:
    assert test.workload is not None
    rate = None if test.workload.load is None else RATE_AT_FULL_LOAD * test.workload.load
    workload = at_rate(of_arm(test.workload, arm), rate)
    chance = random.Random(f"{unit.unit_id} {position}")
    speed = chance.uniform(0.99, 1.01)
    engine = _Scheduler(arm.options, test.engine_options, speed, chance)
    trace = engine.trace(build(workload, 1000, seed), workload.concurrency)
    data = canonical_json(trace)
    name = sha256_hex(data)
    (folder / "traces").mkdir(exist_ok=True)
    (folder / "traces" / f"{name}.json.gz").write_bytes(gzip.compress(data, compresslevel=1, mtime=0))
    reading = CanaryReading(flops_per_s=6e14 * speed, bytes_per_s=4e12 * speed, operation_s=3e-6)
    canaries = [Canary(before=reading, after=reading)] * arm.num_gpus
    return Measurement(
        unit_id=unit.unit_id,
        test_id=unit.test_id,
        arm=arm.name,
        position=position,
        repetition=repetition,
        seed=seed,
        started_at=MOMENT,
        trace_sha256=name,
        memory=make_memory(device="cuda", devices=_devices(arm.num_gpus)) if test.test_id in MEMORY_TESTS else None,
        canary=canaries[0],
        other_canaries=tuple(canaries[1:]),
        telemetry=telemetry(trace["duration_ns"] / 1e9, gpus=tuple(gpu(index=index) for index in range(arm.num_gpus))),
        request_rate_per_s=rate,
        graphs=GraphCapture(num_graphs=20, capture_s=1.5, capture_bytes=10**8)
        if arm.options.get("cuda_graphs")
        else None,
    )


def _devices(count: int) -> tuple[DeviceMemory, ...]:
    one = {"kv_pool_bytes": 3_000_000_000, "total_peak_bytes": 6_500_000_000}
    return tuple(DeviceMemory(device=f"cuda:{index}", **one) for index in range(count)) if count > 1 else ()


@dataclass
class _Sequence:
    request: GenerationRequest
    arrival_ns: int
    cached: int
    scheduled_ns: int = 0
    emissions: list[int] = field(default_factory=list)


class _Scheduler:
    """Prefills as many waiting prompts as fit a step, else decodes all; or both in one step where it is to mix them."""

    def __init__(
        self, options: Mapping[str, Any], shared: Mapping[str, Any], speed: float, chance: random.Random
    ) -> None:
        ranks = int(options.get("tensor_parallel_size", 1)) * int(options.get("data_parallel_size", 1))
        self._speed, self._chance = speed * (0.6 * ranks if ranks > 1 else 1), chance
        self._mixed = options.get("scheduling") == "mixed"
        self._graph = options.get("cuda_graphs", True)
        self._max_seqs = int(shared.get("max_num_seqs") or MAX_SEQS)
        self._max_tokens = int(shared.get("max_num_batched_tokens") or MAX_TOKENS)
        self._hits = options.get("prefix_cache") is True
        self._now = 1_000 + chance.randrange(1_000)
        self._moments: list[int] = []
        self._steps: list[Json] = []
        self._done: list[Json] = []

    def trace(self, requests: Sequence[GenerationRequest], concurrency: int | None) -> Json:
        """Run requests to their end."""
        seen: set[tuple[int, ...]] = set()
        for group in [[request] for request in requests] if concurrency == 1 else [list(requests)]:
            self._run([_Sequence(item, self._now + item.arrival_ns, self._cached(item, seen)) for item in group])
        self._done.sort(key=lambda row: row["request_id"])
        return {
            "duration_ns": self._now + 500,
            "emission_times_ns": self._moments,
            "requests": self._done,
            "steps": self._steps,
            "peak_concurrency": min(self._max_seqs, concurrency or len(requests)),
            "peak_kv_blocks_used": 30_000,
            "output_sha256": sha256_hex(b""),
        }

    def _cached(self, request: GenerationRequest, seen: set[tuple[int, ...]]) -> int:
        """Count the whole blocks at the beginning that an earlier prompt had, if the cache is on."""
        ids, hit = request.prompt_token_ids, 0
        for end in range(BLOCK, len(ids), BLOCK):
            hit = end if self._hits and ids[:end] in seen else hit
            seen.add(ids[:end])
        return hit

    def _run(self, waiting: list[_Sequence]) -> None:
        running: list[_Sequence] = []
        while waiting or running:
            if not running:
                self._now = max(self._now, waiting[0].arrival_ns)
            admitted = self._admit(waiting, running)
            self._step(admitted, running if self._mixed or not admitted else [])
            running += admitted
            self._done += [_told(one) for one in running if len(one.emissions) == one.request.num_output_tokens]
            running = [one for one in running if len(one.emissions) < one.request.num_output_tokens]

    def _admit(self, waiting: list[_Sequence], running: Sequence[_Sequence]) -> list[_Sequence]:
        admitted: list[_Sequence] = []
        tokens = len(running) if self._mixed else 0
        while waiting and waiting[0].arrival_ns <= self._now and len(running) + len(admitted) < self._max_seqs:
            tokens += len(waiting[0].request.prompt_token_ids) - waiting[0].cached
            if admitted and tokens > self._max_tokens:
                break
            admitted.append(waiting.pop(0))
        return admitted

    def _step(self, admitted: Iterable[_Sequence], decoded: Sequence[_Sequence]) -> None:
        admitted = list(admitted)
        prefill = sum(len(one.request.prompt_token_ids) - one.cached for one in admitted)
        cost = PREFILL_NS_PER_TOKEN * prefill + (DECODE_NS + DECODE_NS_PER_SEQUENCE * len(decoded) if decoded else 0)
        begin, taken = self._now, int(cost / self._speed) + self._chance.randrange(5_000)
        self._now += taken
        for one in admitted:
            one.scheduled_ns = begin
        for one in (*admitted, *decoded):
            one.emissions.append(len(self._moments))
        self._moments.append(self._now)
        self._steps.append(
            {
                "kind": "mixed" if admitted and decoded else "prefill" if admitted else "decode",
                "prefill_tokens": prefill,
                "decode_tokens": len(decoded),
                "batch": len(admitted) + len(decoded),
                "graph": bool(self._graph and not admitted),
                "begin_ns": begin,
                "launched_ns": begin + taken // 4,
                "end_ns": self._now,
                "device_ns": int(taken * 0.9),
            }
        )


def _told(one: _Sequence) -> Json:
    return {
        "request_id": one.request.request_id,
        "arrival_ns": one.arrival_ns,
        "scheduled_ns": one.scheduled_ns,
        "prompt_tokens": len(one.request.prompt_token_ids),
        "cached_tokens": one.cached,
        "requested_tokens": one.request.num_output_tokens,
        "emissions": one.emissions,
        "finish_reason": "length",
        "output_sha256": sha256_hex(str(one.request.request_id).encode()),
        "distinct_tokens": 100,
        "preemptions": 0,
    }


if __name__ == "__main__":
    write_paper_size_run(Path(sys.argv[1]), tuple(sys.argv[2:]))
