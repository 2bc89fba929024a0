"""The loop: schedule, launch, commit. Everything else is somebody else's work."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from nanoinfer.execution.devices import DeviceMemory, device_bytes_in_use
from nanoinfer.execution.memory import MemoryFacts
from nanoinfer.execution.profile import DeviceProfile, Profiler
from nanoinfer.kvcache.cache import KVCache
from nanoinfer.request import FinishReason, Request, RequestError, RequestFacts, RequestOutput, StepFacts
from nanoinfer.scheduling import make_scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from nanoinfer.config import EngineConfig
    from nanoinfer.execution.contract import Execution, Handle
    from nanoinfer.execution.cuda_graphs import GraphFacts
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.request import SamplingParams
    from nanoinfer.scheduling.plan import StepPlan
    from nanoinfer.scheduling.scheduler import Scheduler


# Nobody need ever take the facts of steps: an engine that serves for days keeps the latest only.
MAX_STEP_FACTS = 1 << 18


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that the device works on; `begin_ns` and `launched_ns` as in StepFacts."""

    plan: StepPlan
    handle: Handle
    begin_ns: int
    launched_ns: int


class Intake:
    """Makes requests that can run, and numbers them."""

    def __init__(self, scheduler: Scheduler, vocab_size: int) -> None:
        self._scheduler = scheduler
        self._vocab_size = vocab_size
        self._next_id = 0

    def make_request(self, token_ids: Sequence[int], sampling: SamplingParams, arrival_ns: int) -> Request:
        """Give a request its number; RequestError when it can never run."""
        ids = array("q", token_ids)
        self._check_token_ids(ids)
        request = Request(self._next_id, ids, len(ids), sampling, arrival_ns)
        self._scheduler.check_fits(request)  # asked here too, so that a whole batch is refused before anything runs
        self._next_id += 1
        return request

    def _check_token_ids(self, ids: array[int]) -> None:
        if not ids:
            raise RequestError("a prompt is empty; give at least one token")
        worst = np.frombuffer(ids, np.uint64).argmax()  # a negative id looks larger than any other
        if not 0 <= ids[worst] < self._vocab_size:
            raise RequestError(f"token id {ids[worst]} is outside the vocabulary of {self._vocab_size} tokens")


class Engine:
    """Requests in, tokens out, over time.

    The overlap of host and device is this: up to `depth` steps are in flight. With a depth of 2, `step` launches step
    n + 1 and only then waits for the tokens of step n, so that planning, launching and committing happen while the
    device computes. What that costs: a stop token is noticed one step late, and the surplus token is dropped.
    """

    def __init__(self, config: EngineConfig, model_config: ModelConfig, execution: Execution) -> None:
        self.execution = execution
        self._config, self._eos_token_ids = config, frozenset(model_config.eos_token_ids)
        self._start_over()
        overlap = execution.device.type == "cuda" if config.overlap is None else config.overlap
        self.depth = 2 if overlap else 1
        self._profiler = Profiler(execution.device)
        self._intake = Intake(self.scheduler, model_config.vocab_size)
        self._step_facts: deque[StepFacts] = deque(maxlen=MAX_STEP_FACTS)

    def _start_over(self) -> None:
        """Forget all requests, all plans in flight, and what the cache holds."""
        config = self._config
        self.cache = KVCache(self.execution.num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self.scheduler = make_scheduler(
            config.scheduling,
            self.cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self.execution.max_model_len,
            eos_token_ids=self._eos_token_ids,
        )
        self._in_flight: deque[LaunchedStep] = deque()

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return bool(self._in_flight) or self.scheduler.has_unfinished

    # --- requests -----------------------------------------------------------------------------------------------------

    def make_request(self, token_ids: Sequence[int], sampling: SamplingParams, arrival_ns: int) -> Request:
        """Give a request its number; RequestError when it can never run."""
        return self._intake.make_request(token_ids, sampling, arrival_ns)

    def add(self, request: Request) -> None:
        """Queue a request made by `make_request`."""
        self.scheduler.add(request)

    def cancel(self, request_id: int) -> RequestOutput | None:
        """End a request now and return what it has so far; None when no such request is unfinished."""
        request = self.scheduler.cancel(request_id)
        return None if request is None else request_output(request)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def step(self, until_ns: int | None = None) -> list[RequestOutput]:  # noqa: ARG002  a step is short: it never waits
        """Do what `advance` does and return the results of the requests that it finished."""
        return [request_output(request) for request in self.advance()]

    def advance(self) -> list[Request]:
        """Launch the next step, commit the oldest one in flight, and return the requests that it finished.

        An error, or an interrupt, ends all requests: blocks were promised to hold what was perhaps never computed, and
        a later request must not find them. The engine is as good as new afterwards.
        """
        try:
            launched = self._launch()
            if not self._in_flight or (launched and len(self._in_flight) < self.depth):
                return []
            return self._commit()
        except BaseException:
            self._start_over()
            raise

    def _launch(self) -> bool:
        """Plan and launch one step; False when nothing can be planned now."""
        begin_ns = perf_counter_ns()
        plan = self.scheduler.schedule(begin_ns)
        if plan is None:
            return False
        handle = self.execution.runner.launch(plan)
        self._in_flight.append(LaunchedStep(plan, handle, begin_ns, perf_counter_ns()))
        return True

    def _commit(self) -> list[Request]:
        """Wait for the tokens of the oldest step in flight and hand them to the scheduler."""
        step = self._in_flight[0]
        self.cache.catch_up()  # here, where the host would wait for the device anyway
        sampled = step.handle.tokens()  # who interrupts the wait finds the step still in flight
        self._in_flight.popleft()
        end_ns = perf_counter_ns()
        self._step_facts.append(_step_facts(step, end_ns))
        return self.scheduler.commit(step.plan, sampled, end_ns)

    # --- facts --------------------------------------------------------------------------------------------------------

    def take_step_facts(self) -> tuple[StepFacts, ...]:
        """Return the facts of the steps committed since the last call, MAX_STEP_FACTS at most, and forget them."""
        facts = tuple(self._step_facts)
        self._step_facts.clear()
        return facts

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output."""
        return self.execution.max_model_len

    @property
    def num_blocks(self) -> int:
        """Blocks that requests can hold together."""
        return self.execution.num_blocks

    @property
    def device(self) -> torch.device:
        """Where the model runs; the first of several devices."""
        return self.execution.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, activations and KV cache."""
        return self.execution.dtype

    @property
    def graphs(self) -> GraphFacts | None:
        """What the capture of CUDA graphs cost on the first device; None where there are none."""
        return self.execution.graphs

    def memory_by_device(self) -> list[DeviceMemory]:
        """Where the bytes are on every device, in the order of the ranks."""
        execution = self.execution
        if execution.ranks is not None:
            return execution.ranks.memory(self.cache.peak_used)
        return [DeviceMemory(str(execution.device), self.memory(), device_bytes_in_use(execution.device))]

    def memory(self) -> MemoryFacts:
        """Where the bytes are on the first device; the peak of used blocks counts from the last `reset_peaks`."""
        execution = self.execution
        return MemoryFacts(
            weights_bytes=execution.weights_bytes,
            kv_pool_bytes=execution.pool_bytes,
            kv_block_bytes=execution.block_bytes,
            kv_used_peak_bytes=self.cache.peak_used * execution.block_bytes,
            activations_peak_bytes=execution.activations_peak_bytes,
            cuda_graphs_bytes=None if execution.graphs is None else execution.graphs.capture_bytes,
        )

    def reset_peaks(self) -> None:
        """Count the peak of used blocks from now on."""
        self.cache.reset_peak_used()

    def reset_prefix_cache(self) -> None:
        """Forget which blocks hold which tokens, so that the next requests compute everything."""
        self.cache.reset_prefix_cache()

    def start_profile(self) -> None:
        """Record from now on what every device does; there must be nothing to do and nothing in flight."""
        if self.execution.ranks is not None:
            self.execution.ranks.start_profile()
        else:
            self._profiler.start()

    def stop_profile(self) -> list[DeviceProfile | None]:
        """Return what each device did since `start_profile`; None for a CPU."""
        ranks = self.execution.ranks
        return [self._profiler.stop()] if ranks is None else ranks.stop_profile()

    def close(self) -> None:
        """End the processes that compute, where there are such."""
        if self.execution.ranks is not None:
            self.execution.ranks.close()


def _step_facts(step: LaunchedStep, end_ns: int) -> StepFacts:
    plan = step.plan
    return StepFacts(
        phase=plan.phase.value,
        num_prefill_tokens=plan.num_prefill_tokens,
        num_decode_tokens=plan.num_decode_tokens,
        num_requests=len(plan.decodes) + len(plan.prefills),
        begin_ns=step.begin_ns,
        launched_ns=step.launched_ns,
        end_ns=end_ns,
        device_ns=step.handle.device_ns(),
        graph=step.handle.graph,
    )


def request_output(request: Request) -> RequestOutput:
    """Freeze a finished request; its text is added by whoever has a tokenizer."""
    return RequestOutput(
        request_id=request.request_id,
        prompt_token_ids=tuple(request.token_ids[: request.num_prompt_tokens]),
        token_ids=tuple(request.output_token_ids),
        text=None,
        finish_reason=request.finish_reason or FinishReason.CANCELLED,
        facts=RequestFacts(
            arrival_ns=request.arrival_ns,
            scheduled_ns=request.scheduled_ns,
            token_times_ns=tuple(request.token_times_ns),
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
        ),
    )
