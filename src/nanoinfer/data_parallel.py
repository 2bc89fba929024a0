"""Several engines behind one front door: each in a process of its own, with its own model, scheduler and KV cache.

The front door numbers requests, places each with the engine that has the least to do, and gathers what comes back.
Requests travel together, as many as fill a step; so do the tokens that come back now and then, and the requests that a
step ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.engine import Intake
from nanoinfer.engine_process import boot_id
from nanoinfer.execution.channel import Kind, Message
from nanoinfer.execution.cuda_graphs import GraphFacts
from nanoinfer.execution.devices import DeviceMemory
from nanoinfer.execution.meeting import Meeting, accept, engine_meeting
from nanoinfer.execution.memory import MemoryFacts
from nanoinfer.execution.profile import DeviceProfile
from nanoinfer.execution.workers import Worker, WorkerError, Workers, spawn
from nanoinfer.kvcache.cache import KVCache
from nanoinfer.placement import Dispatcher
from nanoinfer.results import STEP_FIELDS, Partial, pack_requests, step_facts, take_in_tokens
from nanoinfer.scheduling import make_scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nanoinfer.config import EngineConfig
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.request import Request, RequestOutput, SamplingParams, StepFacts

POLL_NS = 500_000_000


@dataclass(slots=True)
class _Parcel:
    """Requests that are placed with an engine and not sent yet, and the tokens of their prompts."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: int = 0


class DataParallelEngine:
    """What `Engine` is, made of several; steps happen in the engines, and `step` waits for what they finish."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        folder: Path,
        *,
        devices: Sequence[torch.device],
        launched: Meeting | None = None,
    ) -> None:
        self._workers = _start(config, folder, devices=devices, launched=launched)
        try:
            self._ready = [
                self._workers.receive(index, Kind.READY, limited=False).facts for index in self._each_engine()
            ]
            self._clock_offsets_ns = [self._clock_offset_ns(index) for index in self._each_engine()]
        except BaseException:
            self._workers.close()
            raise
        self.dtype: torch.dtype = getattr(torch, self._ready[0]["dtype"])
        self.device = devices[0]
        self.max_model_len: int = min(facts["max_model_len"] for facts in self._ready)
        self.num_blocks: int = sum(facts["num_blocks"] for facts in self._ready)
        graphs = self._ready[0]["graphs"]
        self.graphs = None if graphs is None else GraphFacts(**graphs)
        self._intake = Intake(_gauge(config, self._ready), model_config.vocab_size)
        self._dispatcher = Dispatcher(len(self._ready), config.placement, config.block_size)
        self._full_step = config.max_num_batched_tokens
        self._to_send = [_Parcel() for _ in self._ready]
        self._unfinished: dict[int, Partial] = {}
        self._finished: list[RequestOutput] = []

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to wait for."""
        return bool(self._unfinished or self._finished)

    def make_request(self, token_ids: Sequence[int], sampling: SamplingParams, arrival_ns: int) -> Request:
        """Give a request its number; RequestError when no engine can ever run it."""
        return self._intake.make_request(token_ids, sampling, arrival_ns)

    def add(self, request: Request) -> None:
        """Place a request made by `make_request`; it is sent at the next `step`, or when as many as fill one wait."""
        index = self._dispatcher.place(request)
        self._unfinished[request.request_id] = Partial(request)
        parcel = self._to_send[index]
        parcel.requests.append(request)
        parcel.num_tokens += request.num_prompt_tokens
        if parcel.num_tokens >= self._full_step:
            self._send(index)

    def cancel(self, request_id: int) -> RequestOutput | None:
        """End a request now and return what it has so far; None when no such request is unfinished."""
        index = self._dispatcher.engine_of(request_id)
        if index is None:
            return None
        self._send(index)
        self._workers.send(index, Kind.CANCEL, {"request_id": request_id})
        self._outputs(index, self._answer(index, Kind.CANCELLED))
        found = [output for output in self._finished if output.request_id == request_id]
        self._finished = [output for output in self._finished if output.request_id != request_id]
        return found[0] if found else None

    def step(self, until_ns: int | None = None) -> list[RequestOutput]:
        """Wait until requests finish, or until a host reading, and return those that did."""
        for index in self._each_engine():
            self._send(index)
        while self._unfinished and not self._finished:
            now_ns = perf_counter_ns()
            left_ns = POLL_NS if until_ns is None else until_ns - now_ns
            if left_ns <= 0:
                break
            for index in self._workers.poll(min(left_ns, POLL_NS) / 1e9):
                self._take_in(index)
        finished, self._finished = self._finished, []
        return finished

    def take_step_facts(self) -> tuple[StepFacts, ...]:
        """Return the facts of all steps of all engines since the last call, in the order of their ends."""
        found: list[StepFacts] = []
        self._workers.broadcast(Kind.STEP_FACTS)
        for index in self._each_engine():
            rows = self._answer(index, Kind.STEP_FACTS).integers.view(-1, STEP_FIELDS).tolist()
            found += [step_facts(row, index, self._clock_offsets_ns[index]) for row in rows]
        return tuple(sorted(found, key=lambda step: step.end_ns))

    def memory(self) -> MemoryFacts:
        """Where the bytes are on the first device; the peak of used blocks counts from the last `reset_peaks`."""
        return self.memory_by_device()[0].facts

    def memory_by_device(self) -> list[DeviceMemory]:
        """Where the bytes are on every device, engine by engine."""
        self._workers.broadcast(Kind.MEMORY)
        found = []
        for index in self._each_engine():
            devices = self._answer(index, Kind.MEMORY).facts["devices"]
            found += [DeviceMemory(**one | {"facts": MemoryFacts(**one["facts"])}) for one in devices]
        return found

    def start_profile(self) -> None:
        """Record from now on what every device does."""
        self._workers.broadcast(Kind.START_PROFILE)
        for index in self._each_engine():
            self._answer(index, Kind.START_PROFILE)

    def stop_profile(self) -> list[DeviceProfile | None]:
        """Return what each device did since `start_profile`, engine by engine; None for a CPU."""
        self._workers.broadcast(Kind.STOP_PROFILE)
        found = [
            one for index in self._each_engine() for one in self._answer(index, Kind.STOP_PROFILE).facts["profiles"]
        ]
        return [None if one is None else DeviceProfile(**one) for one in found]

    def reset_peaks(self) -> None:
        """Count the peaks of used blocks from now on."""
        self._workers.broadcast(Kind.RESET_PEAKS)

    def reset_prefix_cache(self) -> None:
        """Let all engines forget which blocks hold which tokens."""
        self._workers.broadcast(Kind.RESET_PREFIX_CACHE)
        self._dispatcher.forget_prefixes()

    def close(self) -> None:
        """End all engines."""
        self._workers.close()

    def _send(self, index: int) -> None:
        """Send the requests that wait for an engine."""
        requests = self._to_send[index].requests
        if requests:
            self._to_send[index] = _Parcel()
            self._workers.send(index, Kind.ADD, *pack_requests(requests, self._clock_offsets_ns[index]))

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _each_engine(self) -> range:
        return range(len(self._workers.all))

    def _take_in(self, index: int) -> None:
        """Empty an engine's inbox, in which nothing but results can be."""
        inbox = self._workers.all[index].inbox
        while inbox:
            self._note(index, inbox.popleft())

    def _answer(self, index: int, kind: Kind) -> Message:
        """Wait for an engine's answer; results that it had before come first."""
        inbox = self._workers.all[index].inbox
        while True:
            while not inbox:
                self._workers.poll(POLL_NS / 1e9)
            message = inbox.popleft()
            if message.kind is kind:
                return message
            self._note(index, message)

    def _note(self, index: int, message: Message) -> None:
        if message.kind not in {Kind.PROGRESS, Kind.FINISHED}:
            raise WorkerError(f"engine {index} sent {message.kind.name}, which nobody asked for")
        self._outputs(index, message)

    def _outputs(self, index: int, message: Message) -> None:
        """Take in tokens, and the requests that end with them."""
        offset_ns = self._clock_offsets_ns[index]
        take_in_tokens(message, self._unfinished, offset_ns)
        for facts in message.facts["requests"]:
            if "finish_reason" in facts:
                partial = self._unfinished.pop(facts["request_id"])
                self._dispatcher.finish(partial.request.request_id)
                self._finished.append(partial.output(facts, offset_ns))

    def _clock_offset_ns(self, index: int) -> int:
        """Return what to add to a reading of this process's clock to get that of an engine.

        Processes since one boot of one machine share a clock. Others are asked, and the answer taken for the middle of
        the wait (Cristian, 1989).
        """
        if self._ready[index]["boot_id"] == boot_id():
            return 0
        asked_ns = perf_counter_ns()
        self._workers.send(index, Kind.CLOCK)
        theirs_ns: int = self._workers.receive(index, Kind.CLOCK).facts["now_ns"]
        return theirs_ns - (asked_ns + perf_counter_ns()) // 2


def _start(config: EngineConfig, folder: Path, *, devices: Sequence[torch.device], launched: Meeting | None) -> Workers:
    size, each = config.data_parallel_size, config.tensor_parallel_size
    names = [f"engine {index}" for index in range(size)]
    num_spawned = size if launched is None else 1
    own = [spawn(names[index]) for index in range(num_spawned)]
    others = [] if launched is None else accept(launched, size - 1)
    joined = [Worker(name, channel, None) for name, channel in zip(names[num_spawned:], others, strict=True)]
    workers = Workers(own + joined, rank_timeout_s=config.rank_timeout_s)
    setup: dict[str, Any] = {
        "role": "engine",
        "config": asdict(config) | {"data_parallel_size": 1},
        "folder": str(folder),
        "num_threads": max(1, torch.get_num_threads() // len(devices)),
        "rank_timeout_s": config.rank_timeout_s,
    }
    for index in range(size):
        own_devices = [str(device) for device in devices[index * each : (index + 1) * each]]
        meeting = None if launched is None else engine_meeting(launched, index).as_facts()
        workers.send(
            index,
            Kind.SETUP,
            setup | {"devices": own_devices, "meeting": meeting, "name": f"{names[index]}, "},
        )
    return workers


def _gauge(config: EngineConfig, ready: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401  make_scheduler's type
    """Make the scheduler of the smallest engine, which runs nothing and only knows what fits."""
    cache = KVCache(min(facts["num_blocks"] for facts in ready), config.block_size, prefix_cache=False)
    return make_scheduler(
        config.scheduling,
        cache,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=min(facts["max_model_len"] for facts in ready),
        eos_token_ids=frozenset(),
    )
