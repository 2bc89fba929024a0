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
from touchstone.records import ArmSpec, EngineFacts, Measurement, Record, Scalar, UnitPlan, WorkloadSpec
from touchstone.trace import store_trace, what_is_wrong
from touchstone.workload import build, derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from touchstone.engines.base import Engine

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
    run_dir: str
    result_file: str
    parent_pid: int


class WorkerResult(Record):
    """What a worker hands back. `reason` says why its runs are not valid; None when they are."""

    engine: EngineFacts | None
    startup_s: float | None
    measurements: tuple[Measurement, ...]
    reason: str | None


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
        begin_ns = now_ns()
        engines: dict[str, Engine] = {}
        for arm in request.arms:
            engines[arm.name] = build_engine(_spec(request, arm))
            stack.callback(engines[arm.name].close)
        startup_s = seconds_since(begin_ns)
        _warm_up(request, engines)
        measurements, reason = _timed_runs(request, engines)
        facts = _facts({name: engine.facts() for name, engine in engines.items()})
    return WorkerResult(engine=facts, startup_s=startup_s, measurements=measurements, reason=reason)


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
        for engine in engines.values():
            prompts = build(request.workload, engine.vocabulary_size, derive_seed(request.unit.seed, "warm-up", index))
            engine.generate(prompts, concurrency=request.workload.concurrency)


def _timed_runs(request: WorkerRequest, engines: Mapping[str, Engine]) -> tuple[tuple[Measurement, ...], str | None]:
    """Time every run of the schedule; the reason of the first one that is not the work asked for, if any."""
    measurements: list[Measurement] = []
    reason: str | None = None
    for position, pair, arm in schedule(request.unit):
        engine, seed = engines[arm], timed_seed(request.unit, pair)
        prompts = build(request.workload, engine.vocabulary_size, seed)
        started_at = utc_now()
        trace = engine.generate(prompts, concurrency=request.workload.concurrency)
        if (wrong := what_is_wrong(trace, prompts)) is not None:
            reason = reason or f"run {position} of arm {arm!r}: {wrong}"
        measurements.append(
            Measurement(
                unit_id=request.unit.unit_id,
                test_id=request.unit.test_id,
                arm=arm,
                position=position,
                repetition=pair,
                seed=seed,
                started_at=started_at,
                trace_sha256=store_trace(Path(request.run_dir), trace),
                memory=engine.memory() if request.measure_memory else None,
            )
        )
    return tuple(measurements), reason


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
