"""How long each test will take: an estimate for `--dry-run` and the progress bar; no result is made from it.

It walks through the plan as the orchestrator does: a process is started once for all its units, and engines once for
the units that follow each other on the same settings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from touchstone.running.sizes import kv_bytes_per_token, num_parameters
from touchstone.running.worker import PROFILE_OUTPUT_TOKENS
from touchstone.workload import all_at_once, of_arm, with_short_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.records import ArmSpec, PlannedTest, UnitPlan, WorkloadSpec

CODE_METRICS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Rough speeds of a kind of machine, in seconds.

    process_s      start of a process, imports, first canary, first use of the device, end
    engine_s       one engine made ready on one device
    others_s       more, where the engine has several devices: their processes start and meet
    peer_s         more, for an engine that is compared with ours: it loads weights from disk, and some compile
    unit_s, run_s  around a unit and around each of its runs: canary, telemetry, garbage, trace
    step_s         least time of a decode step
    launched_s     more in a decode step without a graph: the host starts each operation
    prefill_s      least time of a step with prompts in it, also mixed; by itself it was not measured
    exchange_s     more in a step that several devices share
    profile_s      to read what the profiler recorded of a run
    cold_s         what compiles in the first processes of a run on a new machine, and is found again by later ones
    """

    process_s: float
    engine_s: float
    others_s: float
    peer_s: float
    unit_s: float
    run_s: float
    step_s: float
    launched_s: float
    prefill_s: float
    exchange_s: float
    profile_s: float
    cold_s: float
    flops_per_s: float
    bytes_per_s: float


COSTS: Mapping[str, Costs] = MappingProxyType(
    {
        # Two cores of a laptop or a shared machine, with the tiny model.
        "cpu": Costs(
            process_s=3.5,
            engine_s=0.5,
            others_s=3.0,
            peer_s=1.0,
            unit_s=0.0,
            run_s=0.0,
            step_s=0.004,
            launched_s=0.0,
            prefill_s=0.0,
            exchange_s=0.001,
            profile_s=0.0,
            cold_s=0.0,
            flops_per_s=2e10,
            bytes_per_s=1e10,
        ),
        # An H200-class GPU, in round guides; `tests/touchstone/test_estimate.py` keeps estimates of that size.
        "cuda": Costs(
            process_s=6.0,
            engine_s=2.0,
            others_s=7.0,
            peer_s=30.0,
            unit_s=0.4,
            run_s=0.38,
            step_s=0.0008,
            launched_s=0.011,
            prefill_s=0.005,
            exchange_s=0.0006,
            profile_s=0.6,
            cold_s=20.0,
            flops_per_s=5.5e14,
            bytes_per_s=4e12,
        ),
    }
)
_PROFILED = 1.3  # a profiler slows a run by about so much
_PREFILL_TOKENS = 8192  # of a prefill step, where a test sets no budget


@dataclass(frozen=True, slots=True)
class Machine:
    """What an estimate needs to know of machine and model; `shape` is the model's config.json."""

    device: str
    dtype: str
    shape: Mapping[str, Any]

    @property
    def costs(self) -> Costs:
        """Speeds of its kind."""
        return COSTS["cuda" if self.device.startswith("cuda") else "cpu"]


def seconds_by_test(
    units: Sequence[UnitPlan], tests: Mapping[str, PlannedTest], engines: Mapping[str, bytes], machine: Machine
) -> dict[str, float]:
    """Estimate the seconds of each test from the units in their order.

    `engines` tells of each unit by which settings its engines are known again. What units share is charged to the first
    of them.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    held: dict[str, bytes] = {}
    for unit in units:
        test, process = tests[unit.test_id], unit.shared_process or unit.unit_id
        if test.workload is None:
            seconds[unit.test_id] += CODE_METRICS_S
            continue
        if process not in held:
            seconds[unit.test_id] += machine.costs.process_s
        arms = [arm for arm in test.arms if arm.name in unit.arm_order]
        if held.get(process) != engines[unit.unit_id]:
            seconds[unit.test_id] += sum(_engine_s(arm, test, machine) for arm in arms)
            held[process] = engines[unit.unit_id]
        seconds[unit.test_id] += _unit_s(unit, test, test.workload, arms, machine)
    return dict(seconds)


def total_s(tests: Sequence[PlannedTest], device: str) -> float:
    """Add up a plan: its tests, and what compiles at first on a machine that has never run it."""
    return sum(test.estimated_s for test in tests) + Machine(device, "", {}).costs.cold_s


def _engine_s(arm: ArmSpec, test: PlannedTest, machine: Machine) -> float:
    costs = machine.costs
    is_peer = arm.engine is not None and arm.engine != test.engine
    return costs.engine_s + (costs.others_s if arm.num_gpus > 1 else 0.0) + (costs.peer_s if is_peer else 0.0)


def _unit_s(
    unit: UnitPlan, test: PlannedTest, workload: WorkloadSpec, arms: Sequence[ArmSpec], machine: Machine
) -> float:
    """Estimate warm-ups, the run that finds out what a load is a share of, timed runs and the profiled one."""
    costs, seconds = machine.costs, 0.0
    for arm in arms:
        spec = all_at_once(of_arm(workload, arm))
        timed = generate_s(spec, arm, test.engine_options, machine)
        warm_up = generate_s(with_short_output(spec, test.warmup_output_tokens), arm, test.engine_options, machine)
        runs = unit.arm_order.count(arm.name) * unit.num_repetitions + test.repeat_last
        waiting = timed * max(0.0, 1 / workload.load - 1) if workload.load is not None else 0.0
        seconds += unit.num_warmups * warm_up + runs * (timed + waiting + costs.run_s)
        if test.profile_devices:
            short = generate_s(with_short_output(spec, PROFILE_OUTPUT_TOKENS), arm, test.engine_options, machine)
            seconds += short * _PROFILED + costs.profile_s
    probe = 0.0 if workload.load is None else generate_s(workload, arms[0], test.engine_options, machine)
    return costs.unit_s + seconds + probe


def generate_s(workload: WorkloadSpec, arm: ArmSpec, shared: Mapping[str, Any], machine: Machine) -> float:
    """Estimate one run, all requests at once: arithmetic, and steps that read the context of every running request.

    Several devices share arithmetic and memory traffic evenly, and take their steps at the same time.
    """
    costs, options, requests = machine.costs, {**shared, **arm.options}, workload.num_requests
    running = min(requests, workload.concurrency or requests, int(options.get("max_num_seqs") or requests))
    inputs = (workload.input_tokens.low + workload.input_tokens.high) / 2
    outputs = (workload.output_tokens.low + workload.output_tokens.high) / 2
    flops = 2 * num_parameters(machine.shape) * requests * (inputs + outputs)
    context = running * (inputs + outputs / 2) * kv_bytes_per_token(machine.shape, machine.dtype)
    steps = outputs * requests / running
    work = flops / costs.flops_per_s + steps * context / costs.bytes_per_s
    each = costs.step_s + (costs.launched_s if options.get("cuda_graphs") is False else 0.0)
    exchange = costs.exchange_s if arm.num_gpus > 1 else 0.0
    prefill_steps = _prefill_steps(requests * inputs, requests - running, options)
    return work / arm.num_gpus + steps * (each + exchange) + prefill_steps * costs.prefill_s


def _prefill_steps(prompt_tokens: float, waiting: int, options: Mapping[str, Any]) -> int:
    """Count the steps with prompts in them: by the token budget, and one for each request that waited its turn."""
    budget = int(options.get("max_num_batched_tokens") or _PREFILL_TOKENS)
    return math.ceil(prompt_tokens / budget) + waiting
