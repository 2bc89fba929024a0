"""One fresh process: build the engine(s), warm up with other prompts, time the runs, hand everything back by file.

Started by the orchestrator as `python -m touchstone.running.worker`, with the requests on its standard input: one a
unit, as a rule a single one. The units of a test and of the points of its sweep follow each other in one process, on
the same engines as long as they ask for the same settings.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from touchstone.canonical import StorageError, atomic_write, canonical_json
from touchstone.clock import now_ns, seconds_since, utc_now
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.registry import build_engine
from touchstone.records import (
    ArmSpec,
    Canary,
    CanaryReading,
    DeviceWork,
    EngineFacts,
    Measurement,
    Record,
    Scalar,
    UnitPlan,
    WorkloadSpec,
)
from touchstone.telemetry import TelemetrySampler
from touchstone.trace import store_trace, what_is_wrong
from touchstone.workload import all_at_once, at_rate, build, derive_seed, of_arm, with_short_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from touchstone.canary import MachineCanaries
    from touchstone.engines.base import Engine, ForgettingEngine, GenerationRequest, ProfilingEngine

STORAGE_FAILED = os.EX_IOERR
_PR_SET_PDEATHSIG = 1
_NS_PER_S = 1e9
PROFILE_OUTPUT_TOKENS = 64  # at most, of a request under the profiler


class WorkerRequest(Record):
    """All that a worker is told about a unit. `options` are shared by the arms; `parent_pid` is who waits for it."""

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
    profile_devices: bool = False
    warmup_output_tokens: int | None = None
    read_canary: bool = True
    run_dir: str
    result_file: str
    parent_pid: int


class WorkerRequests(Record):
    """The units of one process, in their order."""

    requests: tuple[WorkerRequest, ...]


class WorkerResult(Record):
    """What a worker hands back. `reason` says why its runs are not valid; None when they are."""

    engine: EngineFacts | None
    startup_s: float | None
    measurements: tuple[Measurement, ...]
    reason: str | None
    repeated: Measurement | None = None
    device_work: tuple[DeviceWork, ...] | None = None


def main() -> None:
    """Do the work of each request and write its result; an error becomes the result's reason.

    Where the disk takes no trace or no result the status is STORAGE_FAILED: that says nothing of the engine.
    """
    requests = WorkerRequests.model_validate_json(sys.stdin.buffer.read()).requests
    _die_with(requests[0].parent_pid)
    try:
        _work_off(requests)
    except StorageError:
        with suppress(OSError):  # the log lies on the same disk
            traceback.print_exc()
        os._exit(STORAGE_FAILED)  # an ordinary exit flushes the log once more, and another status would come of it


def _work_off(requests: Sequence[WorkerRequest]) -> None:
    """Measure every unit, and profile those that ask for it once nothing more is timed on their engines.

    A profiler leaves memory and hooks behind in its process, and what is measured after it would have both.
    """
    with Engines() as engines:
        canaries = _canaries(requests)  # before the engines, whose memory is measured
        to_profile: list[tuple[WorkerRequest, WorkerResult]] = []
        for request in requests:
            if not engines.serve(request):
                _profile(to_profile, engines)
            result = _attempt(partial(run_unit, request, engines, canaries), engines)
            if request.profile_devices and result.reason is None:
                to_profile.append((request, result))
            else:
                _hand_over(request, result)
        _profile(to_profile, engines)


def _profile(measured: list[tuple[WorkerRequest, WorkerResult]], engines: Engines) -> None:
    """Add to each result what the devices did in one more run of each arm, and hand it over."""
    for request, result in measured:
        _hand_over(request, _attempt(partial(_with_device_work, request, result, engines), engines))
    measured.clear()


def _attempt(work: Callable[[], WorkerResult], engines: Engines) -> WorkerResult:
    try:
        return work()
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  whatever an engine raises makes this attempt invalid, with its reason
        with suppress(OSError):
            traceback.print_exc()
        engines.close()  # what raised is not trusted with the next unit
        reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        return WorkerResult(engine=None, startup_s=None, measurements=(), reason=reason)


def _hand_over(request: WorkerRequest, result: WorkerResult) -> None:
    atomic_write(Path(request.result_file), canonical_json(result))


def run_unit(request: WorkerRequest, engines: Engines, canaries: MachineCanaries | None) -> WorkerResult:
    """Build one engine for each arm of the unit, warm up, and time the runs in the planned order."""
    by_arm, startup_s = engines.of(request)
    _warm_up(request, by_arm)
    _settle_garbage()
    bench = _Bench(request, by_arm, canaries)
    measurements = tuple(bench.time(*planned) for planned in schedule(request.unit))
    repeated = bench.time_again(measurements[-1]) if request.repeat_last else None
    return WorkerResult(
        engine=_facts(bench.facts),
        startup_s=startup_s,
        measurements=measurements,
        reason=bench.reason,
        repeated=repeated,
    )


def _with_device_work(request: WorkerRequest, result: WorkerResult, engines: Engines) -> WorkerResult:
    return result.model_copy(update={"device_work": _device_work(request, engines.that_measured(request))})


class Engines:
    """The engines of the process by arm: kept while the next unit wants the same ones, else closed before its own.

    Each unit finds them cold: they forget the prompts of the units before. Tests may share their prompts, and an engine
    that cannot forget is built anew for prompts that it has answered.

    Engines that refused to start are not started again for the next unit of the process: that can take half a minute
    each time, and the units have another attempt in a process of their own.
    """

    def __init__(self) -> None:
        self._specs: dict[str, EngineSpec] = {}
        self._engines: dict[str, Engine] = {}
        self._answered: set[int] = set()
        self._refused: tuple[list[EngineSpec], str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, request: WorkerRequest) -> tuple[dict[str, Engine], float | None]:
        """Return the engines of a unit, and the seconds that building them took; None where they were there."""
        specs = _specs(request)
        if self.serve(request) and (self._forget_prompts() or request.unit.seed not in self._answered):
            self._specs, self._engines = specs, dict(zip(specs, self._engines.values(), strict=True))
            self._answered.add(request.unit.seed)
            return self._engines, None
        self.close()
        wanted = list(specs.values())
        if self._refused is not None and self._refused[0] == wanted:
            raise EngineError(self._refused[1])
        begin_ns = now_ns()
        try:
            for name, spec in specs.items():
                self._engines[name] = build_engine(spec)
        except EngineError as error:
            self._refused = wanted, str(error)  # the error itself would keep what was half built
            raise
        self._specs = specs
        self._answered.add(request.unit.seed)
        return self._engines, seconds_since(begin_ns)

    def that_measured(self, request: WorkerRequest) -> Mapping[str, Engine]:
        """Return the engines of a unit that was measured on them; they are built again where they are gone."""
        if not self._are_those_of(request):
            return self.of(request)[0]
        return dict(zip(_specs(request), self._engines.values(), strict=True))

    def serve(self, request: WorkerRequest) -> bool:
        """Whether the engines that are there are those that a unit wants, and its prompts can be new to them."""
        forgetful = all(engine.capabilities.forgets_prompts for engine in self._engines.values())
        return self._are_those_of(request) and (forgetful or request.unit.seed not in self._answered)

    def _are_those_of(self, request: WorkerRequest) -> bool:
        """Whether the settings are the same, whatever the arms are called."""
        return list(_specs(request).values()) == list(self._specs.values())

    def _forget_prompts(self) -> bool:
        """Empty every prefix cache that can be emptied, and tell whether all engines have forgotten."""
        forgotten = [
            engine.capabilities.forgets_prompts and cast("ForgettingEngine", engine).forget_prompts()
            for engine in self._engines.values()
        ]
        return all(forgotten)

    def close(self) -> None:
        """Release every engine, the last one first, and what it held of the device: the next one sizes itself by that.

        An engine may refer to itself, and the memory of a captured graph is nobody else's to reuse until it is gone.
        """
        engines, self._engines, self._specs = self._engines, {}, {}
        self._answered.clear()
        gc.unfreeze()
        while engines:
            engines.popitem()[1].close()
        gc.collect()
        torch = sys.modules.get("torch")  # a process whose engines compute elsewhere need not load it
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def timed_seed(unit: UnitPlan, pair: int) -> int:
    """Return the seed of the prompts of a pair of runs (or of a repetition): equal for its arms, new for each pair."""
    return derive_seed(unit.seed, "timed", pair)


def schedule(unit: UnitPlan) -> Iterator[tuple[int, int, str]]:
    """Yield (position, pair, arm) of every timed run; each arm runs once in a pair, on the pair's own prompts."""
    num_arms = len(set(unit.arm_order))
    for position, arm in enumerate(unit.arm_order * unit.num_repetitions):
        yield position, position // num_arms, arm


def _specs(request: WorkerRequest) -> dict[str, EngineSpec]:
    return {arm.name: _spec(request, arm) for arm in request.arms}


def _spec(request: WorkerRequest, arm: ArmSpec) -> EngineSpec:
    return EngineSpec(
        engine=arm.engine or request.engine,
        model=request.model_folder,
        device=request.device,
        dtype=request.dtype,
        synthetic_seed=request.synthetic_seed,
        options=arm.options if arm.engine else request.options | arm.options,
    )


def _warm_up(request: WorkerRequest, engines: Mapping[str, Engine]) -> None:
    """Run the workload at full size on prompts that are never timed, so that no prefix of theirs helps later.

    A load warms up all at once, which is the shortest way through the same work.
    """
    workload = with_short_output(all_at_once(request.workload), request.warmup_output_tokens)
    for index in range(request.unit.num_warmups):
        for arm, engine in engines.items():
            seed = derive_seed(request.unit.seed, "warm-up", index)
            prompts = _prompts(request, workload, arm, engine, seed)
            engine.generate(prompts, concurrency=request.workload.concurrency)


def _device_work(request: WorkerRequest, engines: Mapping[str, Engine]) -> tuple[DeviceWork, ...] | None:
    """Run prompts that were never timed once more under a profiler, on the engine of each arm that has one.

    Of a long run 512 steps of hundreds of kernels each would be recorded, and all look alike: it is cut short. Units of
    one seed have prompts of their own here, so that no prefix of another's profile helps.
    """
    seed = derive_seed(request.unit.seed, "profile", request.unit.unit_id)
    workload = with_short_output(all_at_once(request.workload), PROFILE_OUTPUT_TOKENS)
    work: list[DeviceWork] = []
    for arm, engine in engines.items():
        if engine.capabilities.profiles_devices:
            prompts = _prompts(request, workload, arm, engine, seed)
            told = cast("ProfilingEngine", engine).profile(prompts, concurrency=request.workload.concurrency)
            work += [device.model_copy(update={"arm": arm}) for device in told or ()]
    return tuple(work) or None


def _settle_garbage() -> None:
    """Keep what lives for good out of later collections: going through a million objects takes a tenth of a second.

    It would fall into whichever timed run happens to set it off, so every engine gets the same settled heap.
    """
    gc.collect()
    gc.freeze()


def _request_rate(request: WorkerRequest, engines: Mapping[str, Engine]) -> float | None:
    """Measure what a load is a share of, and return the arrival rate that it comes to; None without a load.

    It is the rate at which the baseline's engine, warm by now, serves prompts of the same law all at once.
    """
    load, baseline = request.workload.load, request.arms[0].name
    if load is None:
        return None
    seed = derive_seed(request.unit.seed, "full load")
    prompts = _prompts(request, all_at_once(request.workload), baseline, engines[baseline], seed)
    return load * len(prompts) / (engines[baseline].generate(prompts).duration_ns / _NS_PER_S)


def _prompts(
    request: WorkerRequest, workload: WorkloadSpec, arm: str, engine: Engine, seed: int
) -> list[GenerationRequest]:
    return build(of_arm(workload, _arm_spec(request, arm)), engine.vocabulary_size, seed)


def _arm_spec(request: WorkerRequest, arm: str) -> ArmSpec:
    return next(spec for spec in request.arms if spec.name == arm)


class _Bench:
    """Times single runs, each between two canary readings and under telemetry. `facts` are what the engines say.

    The reading after a run is also the one before the next. `reason` says why the first run that was not the work asked
    for was not; None while all were.
    """

    def __init__(self, request: WorkerRequest, engines: Mapping[str, Engine], canaries: MachineCanaries | None) -> None:
        self.reason: str | None = None
        self._request, self._engines, self._canaries = request, engines, canaries
        self._readings: tuple[CanaryReading, ...] = ()
        self._gpus = _gpu_uuids(request.device)
        self._rate = _request_rate(request, engines)
        self._workload = at_rate(request.workload, self._rate)
        self.facts = {name: engine.facts() for name, engine in engines.items()}

    def time(self, position: int, pair: int, arm: str) -> Measurement:
        """Run an arm once on the prompts of its pair and store the trace."""
        request, engine, seed = self._request, self._engines[arm], timed_seed(self._request.unit, pair)
        prompts = _prompts(request, self._workload, arm, engine, seed)
        gc.collect()  # what the run before left behind is not this run's to sweep up
        started_at = utc_now()
        num_gpus = _arm_spec(request, arm).num_gpus
        before = self._readings if len(self._readings) == num_gpus else self._read(num_gpus)
        with TelemetrySampler(self._gpus[:num_gpus]) as telemetry:
            trace = engine.generate(prompts, concurrency=request.workload.concurrency)
        self._readings = self._read(num_gpus)
        canaries = [Canary(before=one, after=other) for one, other in zip(before, self._readings, strict=True)]
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
            canary=canaries[0] if canaries else None,
            other_canaries=tuple(canaries[1:]),
            telemetry=telemetry.result,
            request_rate_per_s=self._rate,
            graphs=self.facts[arm].graphs,
        )

    def _read(self, num_gpus: int) -> tuple[CanaryReading, ...]:
        return self._canaries.read(num_gpus) if self._canaries else ()

    def time_again(self, last: Measurement) -> Measurement:
        """Run the last run's prompts once more on the same engine, which has just answered them."""
        return self.time(last.position + 1, last.repetition, last.arm)


def _canaries(requests: Sequence[WorkerRequest]) -> MachineCanaries | None:
    """Make a canary on each device that an arm uses, and read it once.

    Its libraries' scratch memory must not be taken for the engine's later.
    """
    request = requests[0]
    if not request.read_canary:
        return None
    from touchstone.canary import MachineCanaries  # noqa: PLC0415  a run without it need not load torch

    count = max(arm.num_gpus for one in requests for arm in one.arms)
    canaries = MachineCanaries(_devices(request.device, count), request.dtype)
    canaries.read(count)
    return canaries


def _devices(device: str, count: int) -> tuple[str, ...]:
    """Name the devices 0 .. count - 1; a processor stands for all of them at once, and so does a GPU that is named."""
    return tuple(f"cuda:{index}" for index in range(count)) if device == "cuda" else (device,)


def _gpu_uuids(device: str) -> tuple[str, ...]:
    """Name the devices that this process may use, as the driver names them; none without a GPU."""
    if not device.startswith("cuda"):
        return ()
    import torch  # noqa: PLC0415  needed with a GPU only

    usable = (torch.cuda.get_device_properties(name) for name in _devices(device, torch.cuda.device_count()))
    return tuple(f"GPU-{properties.uuid}" for properties in usable)


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
    same_graphs = len({facts.graphs for facts in of_arms.values()}) == 1
    return first.model_copy(update={"settings": settings} | ({} if same_graphs else {"graphs": None}))


def _die_with(parent_pid: int) -> None:
    """Let the kernel end this process when the orchestrator dies, however it dies; no orphan goes on."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        sys.exit(1)


if __name__ == "__main__":
    main()
