"""vLLM under the instrument: its offline `LLM`, driven through the engine's own `step`, so that each token has a time.

The engine core runs in a process of its own, as vLLM starts it by default; a token's time is when its id has reached
this process, where a user of vLLM first sees it.
"""

from __future__ import annotations

import gc
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from touchstone.clock import now_ns, timed_region
from touchstone.engines.base import Capabilities, EngineError
from touchstone.engines.model_facts import checkpoint_folder, model_facts, read_config
from touchstone.engines.recording import Recording, drive
from touchstone.records import EngineFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.engines.base import EngineSpec, GenerationRequest
    from touchstone.engines.recording import Progress
    from touchstone.records import Scalar, Trace

# Ours -> vLLM's, for settings that mean the same. `cuda_graphs` is the opposite of vLLM's `enforce_eager`.
_SAME: dict[str, str] = {
    "block_size": "block_size",
    "kv_cache_bytes": "kv_cache_memory_bytes",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "memory_fraction": "gpu_memory_utilization",
    "prefix_cache": "enable_prefix_caching",
    "tensor_parallel_size": "tensor_parallel_size",
}
_SPARE_FRACTION = 0.1  # of device memory, for weights and temporaries beside a KV pool of given size
_LARGEST_FRACTION = 0.92  # vLLM's own default


def capabilities() -> Capabilities:
    """Offer settings only: steps and memory stay inside the engine core, which reports neither to whoever calls it."""
    return Capabilities(
        options=frozenset({*_SAME, "cuda_graphs", "scheduling"}),
        reports_steps=False,
        reports_cached_tokens=True,
        reports_memory_parts=False,
        unreported="vLLM's engine core runs in a process of its own and tells neither its steps nor its memory parts",
        fixed={"scheduling": "mixed"},
        needs_checkpoint=True,
        needs_gpu=True,
        forgets_prompts=True,
    )


def build(spec: EngineSpec) -> VllmEngine:
    """Load the model; EngineError when vLLM refuses a setting."""
    return VllmEngine(spec)


class VllmEngine:
    """One `vllm.LLM`, driven by Touchstone's requests."""

    def __init__(self, spec: EngineSpec) -> None:
        import vllm  # noqa: PLC0415  only when asked for
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415  likewise

        self.capabilities = capabilities()
        self._spec = spec
        self._config = read_config(checkpoint_folder(spec))
        self._sampling_params, self._delta = vllm.SamplingParams, RequestOutputKind.DELTA
        arguments = llm_arguments(spec, _device_memory_bytes())
        try:
            self._llm: Any = vllm.LLM(
                spec.model, dtype=spec.dtype, skip_tokenizer_init=True, generation_config="vllm", **arguments
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM cannot be started: {error}") from error

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1`."""
        return int(self._config["vocab_size"])

    def facts(self) -> EngineFacts:
        """Say what ran: the settings that vLLM settled on, and the model's shape."""
        return EngineFacts(
            name="vllm",
            version=version("vllm"),
            settings={"device": self._spec.device}
            | settings_in_force(self._llm.llm_engine.vllm_config)
            | switches_set(os.environ),
            model=model_facts(self._config, self._spec.dtype),
        )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end and tell what happened."""
        with timed_region(self._spec.device) as region:
            recording = Recording(region.begin_ns)
            drive(requests, concurrency, recording, _Steps(self, recording))
        return recording.trace(requests, region)

    def forget_prompts(self) -> bool:
        """Forget what all requests so far have left in the prefix cache; vLLM refuses while a block is in use."""
        return bool(self._llm.llm_engine.reset_prefix_cache())

    def memory(self) -> None:
        """Tell nothing: see `Capabilities.unreported`."""

    def close(self) -> None:
        """End the engine core's process, which releases the device."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

    def submit(self, progress: Progress, name: str) -> None:
        """Hand a request over as token ids."""
        request = progress.request
        sampling = self._sampling_params(
            temperature=request.temperature,
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._delta,
        )
        self._llm.llm_engine.add_request(name, {"prompt_token_ids": list(request.prompt_token_ids)}, sampling)

    def step(self) -> Sequence[Any]:
        """Wait for what the engine core hands back next."""
        outputs: Sequence[Any] = self._llm.llm_engine.step()
        return outputs


class _Steps:
    """The requests of one run in flight, by the name that vLLM knows them under."""

    def __init__(self, engine: VllmEngine, recording: Recording) -> None:
        self._engine, self._recording = engine, recording
        self._in_flight: dict[str, Progress] = {}

    def submit(self, progress: Progress) -> None:
        """Hand a request over."""
        name = str(progress.request.request_id)
        self._in_flight[name] = progress
        self._engine.submit(progress, name)

    def step(self) -> int:
        """Record the tokens that have come, and return how many requests ended."""
        outputs = self._engine.step()
        moment = self._recording.moment(now_ns())
        num_ended = 0
        for output in outputs:
            progress = self._in_flight[output.request_id]
            self._recording.emit(progress, output.outputs[0].token_ids, moment)
            if output.finished:
                progress.cached_tokens = output.num_cached_tokens
                num_ended += 1
        return num_ended


def llm_arguments(spec: EngineSpec, device_memory_bytes: int) -> dict[str, Scalar]:
    """Translate an engine's options into those of `vllm.LLM`.

    A KV pool of given size takes the place of vLLM's own sizing, whose share of the device is then no more than what
    must be free at the start; it leaves room for other engines of the process.
    """
    options = {name: value for name, value in spec.options.items() if value is not None}
    arguments: dict[str, Scalar] = {_SAME[name]: value for name, value in options.items() if name in _SAME}
    if "cuda_graphs" in options:
        arguments["enforce_eager"] = not options["cuda_graphs"]
    pool = options.get("kv_cache_bytes")
    if isinstance(pool, int) and "memory_fraction" not in options:
        wanted = pool / device_memory_bytes + _SPARE_FRACTION
        arguments["gpu_memory_utilization"] = round(min(wanted, _LARGEST_FRACTION), 3)
    return arguments


def settings_in_force(config: Any) -> dict[str, Scalar]:  # noqa: ANN401  a VllmConfig; vLLM may not be installed
    """Name the settings of a VllmConfig in Touchstone's words where it has them."""
    scheduler, cache, model, parallel = (
        getattr(config, f"{part}_config") for part in ("scheduler", "cache", "model", "parallel")
    )
    told: Mapping[str, object] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "async_scheduling": getattr(scheduler, "async_scheduling", None),
        "scheduling": "mixed",
        "max_model_len": model.max_model_len,
        "cuda_graphs": not model.enforce_eager,
        "compilation_mode": getattr(config.compilation_config, "mode", None),
        "cudagraph_mode": getattr(config.compilation_config, "cudagraph_mode", None),
        "prefix_cache": cache.enable_prefix_caching,
        "block_size": cache.block_size,
        "num_kv_blocks": cache.num_gpu_blocks,
        "kv_cache_bytes": getattr(cache, "kv_cache_memory_bytes", None),
        "memory_fraction": cache.gpu_memory_utilization,
        "tensor_parallel_size": parallel.tensor_parallel_size,
    }
    return {name: _scalar(value) for name, value in told.items()}


def switches_set(variables: Mapping[str, str]) -> dict[str, Scalar]:
    """Pick the environment variables by which vLLM's users choose other kernels; paths and logging are no settings."""
    return {name: value for name, value in sorted(variables.items()) if name.startswith("VLLM_USE_")}


def _scalar(value: object) -> Scalar:
    """Keep what a record can hold; an enumeration's value is its name."""
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]  # the line above has narrowed it
    return str(getattr(value, "name", value))


def _device_memory_bytes() -> int:
    import torch  # noqa: PLC0415  with the engine only

    return int(torch.cuda.get_device_properties(0).total_memory)
