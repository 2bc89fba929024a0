"""nanoinfer under the instrument: its requests, facts and memory in Touchstone's words."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer import LLM, ConfigError, EngineConfig, RequestError, SamplingParams
from nanoinfer.version import VERSION
from touchstone.clock import timed_region
from touchstone.engines.base import Capabilities, EngineError
from touchstone.engines.live_bytes import LiveBytes
from touchstone.engines.several_devices import parts_of_devices, peak_concurrency, resident_bytes_of_all
from touchstone.records import DeviceWork, EngineFacts, GraphCapture, MemoryParts, RequestTrace, StepTrace, Trace
from touchstone.trace import outputs_sha256, tokens_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nanoinfer import RequestOutput, StepFacts
    from nanoinfer.execution.profile import DeviceProfile
    from touchstone.engines.base import EngineSpec, GenerationRequest
    from touchstone.records import Scalar

_SET_BY_THE_SPEC = frozenset({"model", "tokenizer", "revision", "weights", "device", "dtype"})


def capabilities() -> Capabilities:
    """Every field of EngineConfig is a switch, except those that the run itself decides."""
    options = frozenset(field.name for field in fields(EngineConfig)) - _SET_BY_THE_SPEC
    return Capabilities(
        options=options,
        reports_steps=True,
        reports_cached_tokens=True,
        reports_memory_parts=True,
        profiles_devices=True,
        forgets_prompts=True,
        what_is_wrong=_what_is_wrong,
    )


def _what_is_wrong(options: Mapping[str, Scalar]) -> str | None:
    try:
        EngineConfig.from_options("any", **options)
    except ConfigError as error:
        return str(error)
    return None


def build(spec: EngineSpec) -> NanoinferEngine:
    """Load the model; EngineError when nanoinfer refuses a setting."""
    return NanoinferEngine(spec)


class NanoinferEngine:
    """One LLM, driven by Touchstone's requests."""

    def __init__(self, spec: EngineSpec) -> None:
        self.capabilities = capabilities()
        self._device = spec.device
        self._devices = _devices(spec)
        self._bytes_before = sum(_bytes_in_use(device) for device in self._devices)
        self._library_bytes_before = _library_bytes(spec.device)
        self._instrument_bytes = [_allocated_bytes(device) for device in self._devices]
        options: dict[str, Any] = dict(spec.options)
        if spec.synthetic_seed is not None:
            options |= {"weights": "synthetic", "seed": spec.synthetic_seed}
        try:
            self._llm = LLM(spec.model, device=spec.device, dtype=spec.dtype, **options)
        except (ConfigError, OSError) as error:
            raise EngineError(str(error)) from error
        _forget_peak_bytes(spec.device)
        self._num_devices = _num_ranks(spec)
        self._last_run: tuple[Sequence[GenerationRequest], int | None] = (), None

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1`."""
        return self._llm.vocab_size

    def facts(self) -> EngineFacts:
        """Say what ran: settings in force and the model's shape; no path of this machine."""
        llm = self._llm
        model = _scalars(asdict(llm.model_config)) | {
            "dtype": str(llm.dtype).removeprefix("torch."),
            "weights_bytes": llm.memory().weights_bytes,
        }
        settings = {name: value for name, value in _scalars(asdict(llm.config)).items() if name not in _PATHS}
        settings |= {
            "device": str(llm.device),
            "dtype": str(llm.dtype).removeprefix("torch."),
            "num_kv_blocks": llm.num_kv_blocks,
            "max_model_len": llm.max_model_len,
            "torch_threads": torch.get_num_threads(),
        }
        return EngineFacts(
            name="nanoinfer",
            version=VERSION,
            settings=settings,
            model=model,
            graphs=None if llm.cuda_graphs is None else GraphCapture(**asdict(llm.cuda_graphs)),
            shares_at_admission=True if llm.config.data_parallel_size == 1 else None,
        )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end and tell what happened."""
        self._llm.reset_peaks()
        self._llm.take_step_facts()
        self._last_run = requests, concurrency
        try:
            with timed_region(*self._devices) as region:
                outputs = self._run(requests, concurrency)
        except RequestError as error:
            raise EngineError(str(error)) from error
        steps = self._llm.take_step_facts()
        times = sorted({time for output in outputs for time in output.facts.token_times_ns})
        index_of = {time: index for index, time in enumerate(times)}
        traces = tuple(
            _request_trace(request, output, index_of, region.begin_ns, planned=concurrency is None)
            for request, output in zip(requests, outputs, strict=True)
        )
        return Trace(
            duration_ns=region.duration_ns,
            emission_times_ns=tuple(time - region.begin_ns for time in times),
            requests=traces,
            steps=tuple(_step_trace(step, region.begin_ns) for step in steps),
            peak_concurrency=peak_concurrency(steps),
            peak_kv_blocks_used=self._peak_blocks(),
            output_sha256=outputs_sha256(trace.output_sha256 for trace in traces),
        )

    def _peak_blocks(self) -> int:
        """Count the most blocks in use, over all replicas; the ranks of one engine share the blocks."""
        told = [one.facts for one in self._llm.memory_by_device()]
        return sum(one.kv_used_peak_bytes // one.kv_block_bytes for one in told) // self._ranks_an_engine

    @property
    def _ranks_an_engine(self) -> int:
        return self._llm.config.tensor_parallel_size

    def _parts_of_devices(self) -> MemoryParts:
        told = self._llm.memory_by_device()
        return parts_of_devices(
            told,
            device=self._device,
            ranks_an_engine=self._ranks_an_engine,
            before_bytes=self._bytes_before,
            host_bytes=None if _is_gpu(self._device) else resident_bytes_of_all(),
            instrument_bytes=self._instrument_bytes if _is_gpu(self._device) else [None] * len(told),
        )

    def profile(
        self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None
    ) -> tuple[DeviceWork, ...] | None:
        """Run requests under the engine's own profiler; None on a processor, where no kernels are recorded."""
        self._llm.start_profile()
        self._run(requests, concurrency)
        profiles = [profile for profile in self._llm.stop_profile() if profile is not None]
        return tuple(_device_work(profile) for profile in profiles) or None

    def forget_prompts(self) -> bool:
        """Forget what all requests so far have left in the prefix cache."""
        self._llm.reset_prefix_cache()
        return True

    def memory(self) -> MemoryParts:
        """Hold the parts that the engine knows against the device's own total, or the process's resident memory."""
        if self._num_devices > 1:
            return self._parts_of_devices()
        facts = self._llm.memory()
        total = _peak_bytes(self._device)
        context = self._bytes_before + _library_bytes(self._device) - self._library_bytes_before
        activations = facts.activations_peak_bytes
        if activations is None:
            activations = self._count_activations()
        graphs = facts.cuda_graphs_bytes or 0
        known = facts.weights_bytes + facts.kv_pool_bytes + context + activations + graphs
        return MemoryParts(
            device=self._device,
            weights_bytes=facts.weights_bytes,
            kv_pool_bytes=facts.kv_pool_bytes,
            kv_block_bytes=facts.kv_block_bytes,
            kv_used_peak_bytes=facts.kv_used_peak_bytes,
            activations_peak_bytes=activations,
            cuda_graphs_bytes=facts.cuda_graphs_bytes,
            context_and_other_bytes=context,
            instrument_bytes=self._instrument_bytes[0],
            device_total_peak_bytes=total,
            residual_bytes=total - known,
            method=_GPU_METHOD if _is_gpu(self._device) else _CPU_METHOD,
        )

    def close(self) -> None:
        """Release weights and KV cache."""
        self._llm.close()

    def _count_activations(self) -> int:
        """Run the last requests once more, untimed, and count the temporaries alive at the peak."""
        with LiveBytes() as meter:
            self._run(*self._last_run)
        peak: int = meter.peak_bytes  # an untyped base class makes it Any
        return peak

    def _run(self, requests: Sequence[GenerationRequest], concurrency: int | None) -> list[RequestOutput]:
        settings = [_sampling(request) for request in requests]
        if concurrency is None:
            return self._at_their_arrival(requests, settings)
        return self._closed_loop(requests, settings, concurrency)

    def _at_their_arrival(
        self, requests: Sequence[GenerationRequest], settings: Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        prompts = [request.prompt_token_ids for request in requests]
        arrivals = [request.arrival_ns / 1e9 for request in requests]
        return self._llm.generate(prompts, settings, arrival_s=arrivals)

    def _closed_loop(
        self, requests: Sequence[GenerationRequest], settings: Sequence[SamplingParams], concurrency: int
    ) -> list[RequestOutput]:
        """Let a request arrive whenever fewer than `concurrency` are in flight."""
        finished: dict[int, RequestOutput] = {}
        ids: list[int] = []
        while len(finished) < len(requests):
            while len(ids) < len(requests) and len(ids) - len(finished) < concurrency:
                ids.append(self._llm.add_request(requests[len(ids)].prompt_token_ids, settings[len(ids)]))
            finished |= {output.request_id: output for output in self._llm.step()}
        return [finished[request_id] for request_id in ids]


def _device_work(profile: DeviceProfile) -> DeviceWork:
    return DeviceWork(
        device=profile.device,
        span_ns=profile.span_ns,
        busy_ns=profile.busy_ns,
        communication_ns=profile.communication_ns,
    )


def _devices(spec: EngineSpec) -> tuple[str, ...]:
    """Name the devices of an engine: the one asked for, and those after it; CPUs are all the same one."""
    if not _is_gpu(spec.device):
        return (spec.device,)
    first = int(spec.device.partition(":")[2] or 0)
    return tuple(f"cuda:{first + offset}" for offset in range(_num_ranks(spec)))


def _num_ranks(spec: EngineSpec) -> int:
    sizes = (spec.options.get(name) or 1 for name in ("tensor_parallel_size", "data_parallel_size"))
    return math.prod(int(size) for size in sizes)


_PATHS = frozenset({"model", "tokenizer", "revision"})


def _scalars(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Keep what a record can hold; anything nested is written as text."""
    return {
        name: value if value is None or isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }


def _sampling(request: GenerationRequest) -> SamplingParams:
    return SamplingParams(
        temperature=request.temperature,
        max_tokens=request.num_output_tokens,
        ignore_eos=True,
        seed=None if request.temperature == 0 else request.request_id,
    )


def _request_trace(
    request: GenerationRequest, output: RequestOutput, index_of: Mapping[int, int], begin_ns: int, *, planned: bool
) -> RequestTrace:
    """Tell what happened to a request; one whose arrival was planned arrived then, however late it was handed over."""
    facts = output.facts
    return RequestTrace(
        request_id=request.request_id,
        arrival_ns=request.arrival_ns if planned else facts.arrival_ns - begin_ns,
        scheduled_ns=None if facts.scheduled_ns is None else facts.scheduled_ns - begin_ns,
        prompt_tokens=facts.num_prompt_tokens,
        cached_tokens=facts.num_cached_tokens,
        requested_tokens=request.num_output_tokens,
        emissions=tuple(index_of[time] for time in facts.token_times_ns),
        finish_reason=output.finish_reason.value,
        output_sha256=tokens_sha256(output.token_ids),
        distinct_tokens=len(set(output.token_ids)),
        preemptions=facts.num_preemptions,
    )


def _step_trace(step: StepFacts, begin_ns: int) -> StepTrace:
    return StepTrace.model_validate(
        {
            "kind": step.phase,
            "prefill_tokens": step.num_prefill_tokens,
            "decode_tokens": step.num_decode_tokens,
            "batch": step.num_requests,
            "graph": step.graph,
            "begin_ns": step.begin_ns - begin_ns,
            "launched_ns": step.launched_ns - begin_ns,
            "end_ns": step.end_ns - begin_ns,
            "device_ns": step.device_ns,
            "rank": step.rank,
        }
    )


# --- the device's own totals ----------------------------------------------------------------------------------------

_GPU_METHOD = (
    "weights: unique storages; activations: the allocator's peak in the largest step; KV: the pool and the most blocks "
    "in use; context: device memory in use before the engine existed; instrument: what this process's allocator held "
    "then, a part of it; total: device memory in use after the runs, which the caching allocator does not give back; "
    "residual: total less the parts"
)
_CPU_METHOD = (
    "weights: unique storages; activations: most bytes of temporary tensors alive at one time, counted in one more run "
    "of the same requests; KV: the pool and the most blocks in use; context: resident memory of the process before the "
    "engine existed, and the library code paged in since then; total: the kernel's peak of resident memory since the "
    "engine was ready; residual: total less the parts, negative where the pool was not touched to its end"
)


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _bytes_in_use(device: str) -> int:
    """Device memory in use by everyone, CUDA's context included; without a GPU the resident memory of this process."""
    if _is_gpu(device):
        torch.zeros(1, device=device)
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return _status_bytes("VmRSS")


def _allocated_bytes(device: str) -> int | None:
    """Device memory that this process's allocator holds: before an engine is there, the instrument's own."""
    return int(torch.cuda.memory_reserved(device)) if _is_gpu(device) else None


def _library_bytes(device: str) -> int:
    """Resident pages that mirror files: the code of libraries, which comes in as it is first used."""
    return 0 if _is_gpu(device) else _status_bytes("RssFile")


def _peak_bytes(device: str) -> int:
    return _bytes_in_use(device) if _is_gpu(device) else _status_bytes("VmHWM")


def _forget_peak_bytes(device: str) -> None:
    """Let the kernel count the peak of resident memory from now on, without what loading the weights took.

    Where the kernel forbids that, the peak counts from the start of the process.
    """
    if not _is_gpu(device):
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
