"""One fresh process: build the engine(s), warm up with other prompts, time the runs, hand everything back by file.

Started by the orchestrator as `python -m touchstone.running.worker`, with the request on its standard input.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from touchstone.canonical import atomic_write, canonical_json
from touchstone.clock import now_ns, seconds_since, utc_now
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.registry import build_engine
from touchstone.records import ArmSpec, Canary, EngineFacts, Measurement, Record, Scalar, UnitPlan, WorkloadSpec
from touchstone.telemetry import TelemetrySampler
from touchstone.trace import store_trace, what_is_wrong
from touchstone.workload import build, derive_seed, with_extra_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from touchstone.canary import MachineCanary
    from touchstone.engines.base import Engine, GenerationRequest

_PR_SET_PDEATHSIG = 1


class WorkerRequest(Record):
    """All that a worker is told. `options` are shared by the arms; `parent_pid` is who waits for it."""

    unit: UnitPlan
    engine: str
    model_folder: str
    synthetic_seed: int | None
    device: str
    dtype: str
    options: dict[str, Scalar]
    arms: tuple[ArmSpec, ...]
    workload: WorkloadSpec
    measure_memory: bool
    repeat_last: bool = False
    read_canary: bool = True
    run_dir: str
    result_file: str
    parent_pid: int


class WorkerResult(Record):
    """What a worker hands back. `reason` says why its runs are not valid; None when they are."""

    engine: EngineFacts | None
    startup_s: float | None
    measurements: tuple[Measurement, ...]
    reason: str | None
    repeated: Measurement | None = None


def main() -> None:
    """Read the request, do the work, write the result; an error becomes the result's reason and status 1."""
    request = WorkerRequest.model_validate_json(sys.stdin.buffer.read())
    _die_with(request.parent_pid)
    try:
        result = run_unit(request)
    except Exception as error:  # noqa: BLE001  whatever an engine raises makes this attempt invalid, with its reason
        traceback.print_exc()
        reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        result = WorkerResult(engine=None, startup_s=None, measurements=(), reason=reason)
    atomic_write(Path(request.result_file), canonical_json(result))
    sys.exit(0 if result.reason is None else 1)


def run_unit(request: WorkerRequest) -> WorkerResult:
    """Build one engine for each arm of the unit, warm up, and time the runs in the planned order."""
    with ExitStack() as stack:
        canary = _canary(request)  # before the engines, whose memory is measured
        begin_ns = now_ns()
        engines: dict[str, Engine] = {}
        for arm in request.arms:
            engines[arm.name] = build_engine(_spec(request, arm))
            stack.callback(engines[arm.name].close)
        startup_s = seconds_since(begin_ns)
        _warm_up(request, engines)
        bench = _Bench(request, engines, canary)
        measurements = tuple(bench.time(*planned) for planned in schedule(request.unit))
        repeated = bench.time_again(measurements[-1]) if request.repeat_last else None
        facts = _facts({name: engine.facts() for name, engine in engines.items()})
    return WorkerResult(
        engine=facts, startup_s=startup_s, measurements=measurements, reason=bench.reason, repeated=repeated
    )


def timed_seed(unit: UnitPlan, pair: int) -> int:
    """Return the seed of the prompts of a pair of runs (or of a repetition): equal for its arms, new for each pair."""
    return derive_seed(unit.seed, "timed", pair)


def schedule(unit: UnitPlan) -> Iterator[tuple[int, int, str]]:
    """Yield (position, pair, arm) of every timed run; each arm runs once in a pair, on the pair's own prompts."""
    num_arms = len(set(unit.arm_order))
    for position, arm in enumerate(unit.arm_order * unit.num_repetitions):
        yield position, position // num_arms, arm


def _spec(request: WorkerRequest, arm: ArmSpec) -> EngineSpec:
    return EngineSpec(
        engine=request.engine,
        model=request.model_folder,
        device=request.device,
        dtype=request.dtype,
        synthetic_seed=request.synthetic_seed,
        options=request.options | arm.options,
    )


def _warm_up(request: WorkerRequest, engines: Mapping[str, Engine]) -> None:
    """Run the workload at full size on prompts that are never timed, so that no prefix of theirs helps later."""
    for index in range(request.unit.num_warmups):
        for arm, engine in engines.items():
            prompts = _prompts(request, arm, engine, derive_seed(request.unit.seed, "warm-up", index))
            engine.generate(prompts, concurrency=request.workload.concurrency)


def _prompts(request: WorkerRequest, arm: str, engine: Engine, seed: int) -> list[GenerationRequest]:
    extra = next(spec.extra_output for spec in request.arms if spec.name == arm)
    return build(with_extra_output(request.workload, extra), engine.vocabulary_size, seed)


class _Bench:
    """Times single runs, each between two canary readings and under telemetry.

    `reason` says why the first run that was not the work asked for was not; None while all were.
    """

    def __init__(self, request: WorkerRequest, engines: Mapping[str, Engine], canary: MachineCanary | None) -> None:
        self.reason: str | None = None
        self._request, self._engines, self._canary = request, engines, canary
        self._gpus = _gpu_uuids(request.device)

    def time(self, position: int, pair: int, arm: str) -> Measurement:
        """Run an arm once on the prompts of its pair and store the trace."""
        request, engine, seed = self._request, self._engines[arm], timed_seed(self._request.unit, pair)
        prompts = _prompts(request, arm, engine, seed)
        started_at = utc_now()
        before = self._canary and self._canary.read()
        with TelemetrySampler(self._gpus) as telemetry:
            trace = engine.generate(prompts, concurrency=request.workload.concurrency)
        after = self._canary and self._canary.read()
        if (wrong := what_is_wrong(trace, prompts)) is not None:
            self.reason = self.reason or f"run {position} of arm {arm!r}: {wrong}"
        return Measurement(
            unit_id=request.unit.unit_id,
            test_id=request.unit.test_id,
            arm=arm,
            position=position,
            repetition=pair,
            seed=seed,
            started_at=started_at,
            trace_sha256=store_trace(Path(request.run_dir), trace),
            memory=engine.memory() if request.measure_memory else None,
            canary=Canary(before=before, after=after) if before and after else None,
            telemetry=telemetry.result,
        )

    def time_again(self, last: Measurement) -> Measurement:
        """Run the last run's prompts once more on the same engine, which has just answered them."""
        return self.time(last.position + 1, last.repetition, last.arm)


def _canary(request: WorkerRequest) -> MachineCanary | None:
    """Make the canary and read it once: its libraries' scratch memory must not be taken for the engine's later."""
    if not request.read_canary:
        return None
    from touchstone.canary import MachineCanary  # noqa: PLC0415  a run without it need not load torch

    canary = MachineCanary(request.device, request.dtype)
    canary.read()
    return canary


def _gpu_uuids(device: str) -> tuple[str, ...]:
    """Name the devices that this process sees, as the driver names them; none without a GPU."""
    if not device.startswith("cuda"):
        return ()
    import torch  # noqa: PLC0415  needed with a GPU only

    visible = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(f"GPU-{properties.uuid}" for properties in visible)


def _facts(of_arms: Mapping[str, EngineFacts]) -> EngineFacts:
    """Join what the arms' engines say: common settings by their name, differing ones as "arm.setting"."""
    first = next(iter(of_arms.values()))
    settings: dict[str, Scalar] = {}
    for name in dict.fromkeys(name for facts in of_arms.values() for name in facts.settings):
        values = {arm: facts.settings.get(name) for arm, facts in of_arms.items()}
        if len(set(values.values())) == 1:
            settings[name] = first.settings[name]
        else:
            settings |= {f"{arm}.{name}": value for arm, value in values.items()}
    return first.model_copy(update={"settings": settings})


def _die_with(parent_pid: int) -> None:
    """Let the kernel end this process when the orchestrator dies, however it dies; no orphan goes on."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        sys.exit(1)


if __name__ == "__main__":
    main()
