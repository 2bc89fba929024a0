"""Nano-vLLM under the instrument: its `LLM`, driven through its own `step`.

What a step schedules is overheard from the scheduler's answer, because `step` returns token counts only. Nano-vLLM
joins a process group, so one process holds one engine; it always caches prefixes and does not sample greedily.
"""

from __future__ import annotations

import gc
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from touchstone.clock import now_ns, timed_region
from touchstone.engines.base import Capabilities, EngineError
from touchstone.engines.model_facts import checkpoint_folder, model_facts, read_config
from touchstone.engines.recording import Recording, drive
from touchstone.records import EngineFacts, StepTrace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.engines.base import EngineSpec, GenerationRequest
    from touchstone.engines.recording import Progress
    from touchstone.records import Trace

# Ours -> Nano-vLLM's. `cuda_graphs` is the opposite of its `enforce_eager`.
_SAME: dict[str, str] = {
    "block_size": "kvcache_block_size",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "memory_fraction": "gpu_memory_utilization",
    "tensor_parallel_size": "tensor_parallel_size",
}
# Nano-vLLM refuses temperature 0 and divides the logits by what it is given: at this one the most likely token has all
# of the probability unless the logits of two differ by less than 1e-4.
GREEDY_TEMPERATURE = 1e-6
_LARGEST_GRAPH = 512  # larger decode batches run kernel by kernel


def capabilities() -> Capabilities:
    """One position of scheduling and prefix cache; steps without the moment of their launch."""
    return Capabilities(
        options=frozenset({*_SAME, "cuda_graphs", "prefix_cache", "scheduling"}),
        reports_steps=True,
        reports_cached_tokens=True,
        reports_memory_parts=False,
        unreported="Nano-vLLM sizes its KV pool by what memory is free and does not tell temporaries and graphs apart",
        fixed={"prefix_cache": True, "scheduling": "separated"},
        alone=True,
        needs_checkpoint=True,
        needs_gpu=True,
    )


def build(spec: EngineSpec) -> NanoVllmEngine:
    """Load the model; EngineError when Nano-vLLM cannot take the settings."""
    return NanoVllmEngine(spec)


class NanoVllmEngine:
    """One `nanovllm.LLM`, driven by Touchstone's requests."""

    def __init__(self, spec: EngineSpec) -> None:
        import nanovllm  # noqa: PLC0415  only when asked for

        self.capabilities = capabilities()
        self._spec = spec
        self._config = read_config(checkpoint_folder(spec))
        _check_dtype(spec, self._config)
        self._sampling_params = nanovllm.SamplingParams
        options = {name: value for name, value in spec.options.items() if value is not None}
        self._cuda_graphs = bool(options.get("cuda_graphs", True))
        arguments = {_SAME[name]: value for name, value in options.items() if name in _SAME}
        try:
            self._llm: Any = nanovllm.LLM(spec.model, enforce_eager=not self._cuda_graphs, **arguments)
        except (AssertionError, ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"Nano-vLLM cannot be started: {type(error).__name__} {error}") from error

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1`."""
        return int(self._config["vocab_size"])

    def facts(self) -> EngineFacts:
        """Say what ran: settings in force and the model's shape."""
        config, spec = self._llm.model_runner.config, self._spec
        return EngineFacts(
            name="nano-vllm",
            version=_version(),
            settings={name: getattr(config, theirs) for name, theirs in _SAME.items()}
            | {
                "device": spec.device,
                "dtype": spec.dtype,
                "cuda_graphs": self._cuda_graphs,
                "num_kv_blocks": config.num_kvcache_blocks,
                "prefix_cache": True,
                "scheduling": "separated",
                "greedy": f"temperature {GREEDY_TEMPERATURE:g}",
            },
            model=model_facts(self._config, spec.dtype),
        )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end and tell what happened."""
        with timed_region(self._spec.device) as region:
            recording = Recording(region.begin_ns)
            steps = _Steps(self._llm, self._sampling_params, recording, cuda_graphs=self._cuda_graphs)
            try:
                drive(requests, concurrency, recording, steps)
            finally:
                steps.stop_listening()
        return recording.trace(
            requests,
            region,
            steps=steps.steps,
            peak_concurrency=max((step.batch for step in steps.steps), default=0),
            peak_kv_blocks_used=steps.peak_blocks,
        )

    def memory(self) -> None:
        """Tell nothing: see `Capabilities.unreported`."""

    def close(self) -> None:
        """Leave the process group and release the device."""
        import atexit  # noqa: PLC0415  Nano-vLLM registers its exit, which works once

        atexit.unregister(self._llm.exit)
        self._llm.exit()
        del self._llm
        gc.collect()


class _Steps:
    """One run: overhears the scheduler, and gives every token its time."""

    def __init__(self, llm: Any, sampling_params: Any, recording: Recording, *, cuda_graphs: bool) -> None:  # noqa: ANN401  Nano-vLLM's own, which may not be installed
        self.steps: list[StepTrace] = []
        self.peak_blocks = 0
        self._llm, self._sampling_params, self._recording = llm, sampling_params, recording
        self._cuda_graphs = cuda_graphs
        self._in_flight: dict[int, tuple[Any, Progress]] = {}
        self._scheduled: list[tuple[Any, int]] = []  # sequences of this step, and how long they were before it
        self._num_prefill_tokens: int | None = None  # of this step; None where it decodes
        self._scheduler = llm.scheduler
        self._listen()

    def submit(self, progress: Progress) -> None:
        """Queue a request; the sequence that Nano-vLLM makes of it is the last of its queue."""
        request = progress.request
        sampling = self._sampling_params(
            temperature=max(request.temperature, GREEDY_TEMPERATURE),
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
        )
        self._llm.add_request(list(request.prompt_token_ids), sampling)
        sequence = self._scheduler.waiting[-1]
        progress.preemptions = 0
        self._in_flight[sequence.seq_id] = sequence, progress

    def step(self) -> int:
        """Do a step, give the requests of its batch their tokens, and return how many ended."""
        begin_ns = now_ns()
        ended, _ = self._llm.step()
        at_ns = now_ns()
        moment = self._recording.moment(at_ns)
        for sequence, length in self._scheduled:
            if sequence.num_tokens > length:
                self._recording.emit(self._in_flight[sequence.seq_id][1], (sequence.last_token,), moment)
        self.steps.append(self._told(begin_ns - self._recording.begin_ns, at_ns - self._recording.begin_ns))
        for name, _ in ended:
            del self._in_flight[name]
        return len(ended)

    def stop_listening(self) -> None:
        """Give the scheduler its own methods back."""
        del self._scheduler.schedule, self._scheduler.preempt

    def _listen(self) -> None:
        """Overhear what is scheduled and who is preempted, on this scheduler alone."""
        schedule, preempt = self._scheduler.schedule, self._scheduler.preempt

        def overheard_schedule() -> tuple[list[Any], bool]:
            sequences, is_prefill = schedule()
            self._hear(sequences, is_prefill=is_prefill)
            return sequences, is_prefill

        def overheard_preempt(sequence: Any) -> None:  # noqa: ANN401  a sequence of Nano-vLLM's
            progress = self._in_flight[sequence.seq_id][1]
            progress.preemptions = (progress.preemptions or 0) + 1
            preempt(sequence)

        self._scheduler.schedule, self._scheduler.preempt = overheard_schedule, overheard_preempt

    def _hear(self, sequences: Sequence[Any], *, is_prefill: bool) -> None:
        """Note what a step will do before it does it."""
        self._scheduled = [(sequence, sequence.num_tokens) for sequence in sequences]
        self._num_prefill_tokens = None
        self.peak_blocks = max(self.peak_blocks, len(self._scheduler.block_manager.used_block_ids))
        if not is_prefill:
            return
        self._num_prefill_tokens = sum(sequence.num_scheduled_tokens for sequence in sequences)
        at_ns = now_ns()
        for sequence in sequences:
            progress = self._in_flight[sequence.seq_id][1]
            if progress.cached_tokens is None:  # later parts of a long prompt count what was computed as cached
                progress.scheduled_ns, progress.cached_tokens = at_ns, sequence.num_cached_tokens

    def _told(self, begin_ns: int, end_ns: int) -> StepTrace:
        batch, prefill = len(self._scheduled), self._num_prefill_tokens
        return StepTrace(
            kind="decode" if prefill is None else "prefill",
            prefill_tokens=prefill or 0,
            decode_tokens=batch if prefill is None else 0,
            batch=batch,
            graph=self._cuda_graphs and prefill is None and batch <= _LARGEST_GRAPH,
            begin_ns=begin_ns,
            launched_ns=None,
            end_ns=end_ns,
            device_ns=None,
        )


def _check_dtype(spec: EngineSpec, config: dict[str, Any]) -> None:
    """Nano-vLLM computes in the type that config.json names, whatever it is asked for."""
    told = str(config.get("dtype") or config.get("torch_dtype"))
    if told != spec.dtype:
        raise EngineError(f"Nano-vLLM takes its dtype from config.json, which says {told}; use --dtype {told}")


def _version() -> str:
    try:
        return version("nano-vllm")
    except PackageNotFoundError:  # a checkout on the path, without metadata
        return "a source tree of unknown version"
