"""Several engines behind one front door: each in a process of its own, with its own model, scheduler and KV cache.

The front door numbers requests, sends each to the engine with the least to do, and gathers what comes back. Messages
are one a request on the way in; on the way back one a step that ends requests, and now and then the tokens so far.
"""

from __future__ import annotations

import select
from array import array
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.config import EngineConfig
from nanoinfer.engine import Engine, Intake
from nanoinfer.execution.build import build_execution
from nanoinfer.execution.channel import Channel, Kind, Message
from nanoinfer.execution.cuda_graphs import GraphFacts
from nanoinfer.execution.devices import DeviceMemory
from nanoinfer.execution.meeting import Meeting, accept, engine_meeting
from nanoinfer.execution.memory import MemoryFacts
from nanoinfer.execution.profile import DeviceProfile
from nanoinfer.execution.remote import build_remote
from nanoinfer.execution.workers import Worker, WorkerError, Workers, spawn
from nanoinfer.kvcache.cache import KVCache
from nanoinfer.model.config import ModelConfig
from nanoinfer.placement import Dispatcher
from nanoinfer.request import (
    FinishReason,
    Request,
    RequestFacts,
    RequestOutput,
    SamplingParams,
    StepFacts,
)
from nanoinfer.scheduling import make_scheduler
from nanoinfer.scheduling.plan import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

POLL_NS = 500_000_000
PROGRESS_STEPS = 64
_PHASES = tuple(phase.value for phase in Phase)
_UNKNOWN = -1  # an integer that is None
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_engine(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path,
    *,
    devices: Sequence[torch.device],
    launched: Meeting | None = None,
    name: str = "",
) -> Engine:
    """Build one engine on one device in this process, or on several with a process each."""
    if len(devices) == 1:
        execution = build_execution(replace(config, device=str(devices[0])), model_config, folder)
    else:
        execution = build_remote(config, model_config, folder, devices=devices, launched=launched, name=name)
    return Engine(config, model_config, execution)


# --- the front door ---------------------------------------------------------------------------------------------------


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
        """Send a request made by `make_request` to an engine."""
        index = self._dispatcher.place(request)
        self._unfinished[request.request_id] = Partial(request)
        facts = {
            "request_id": request.request_id,
            "arrival_ns": request.arrival_ns + self._clock_offsets_ns[index],
            "sampling": asdict(request.sampling),
        }
        self._workers.send(index, Kind.ADD, facts, torch.tensor(request.token_ids))

    def cancel(self, request_id: int) -> RequestOutput | None:
        """End a request now and return what it has so far; None when no such request is unfinished."""
        index = self._dispatcher.engine_of(request_id)
        if index is None:
            return None
        self._workers.send(index, Kind.CANCEL, {"request_id": request_id})
        self._outputs(index, self._answer(index, Kind.CANCELLED))
        found = [output for output in self._finished if output.request_id == request_id]
        self._finished = [output for output in self._finished if output.request_id != request_id]
        return found[0] if found else None

    def step(self, until_ns: int | None = None) -> list[RequestOutput]:
        """Wait until requests finish, or until a host reading, and return those that did."""
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
            rows = self._answer(index, Kind.STEP_FACTS).integers.view(-1, _STEP_FIELDS).tolist()
            found += [_step_facts(row, index, self._clock_offsets_ns[index]) for row in rows]
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
            found += [DeviceMemory(one["device"], MemoryFacts(**one["facts"]), one["bytes_in_use"]) for one in devices]
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


# --- an engine's process ----------------------------------------------------------------------------------------------


def serve_engine(channel: Channel, setup: Mapping[str, Any]) -> None:
    """Build an engine and let it work on what it is sent until told to close."""
    config, folder = EngineConfig(**setup["config"]), Path(setup["folder"])
    meeting = setup["meeting"]
    engine = start_engine(
        config,
        ModelConfig.from_folder(folder),
        folder,
        devices=[torch.device(device) for device in setup["devices"]],
        launched=None if meeting is None else Meeting(**meeting),
        name=setup["name"],
    )
    channel.send(Kind.READY, _engine_facts(engine))
    EngineServer(engine, channel).serve()
    engine.close()


def _engine_facts(engine: Engine) -> dict[str, Any]:
    return {
        "dtype": str(engine.dtype).removeprefix("torch."),
        "max_model_len": engine.max_model_len,
        "num_blocks": engine.num_blocks,
        "graphs": None if engine.graphs is None else asdict(engine.graphs),
        "boot_id": boot_id(),
    }


def boot_id() -> str:
    """Name this machine's present run; processes that share it share a clock."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class EngineServer:
    """Steps an engine while it has work, and does what messages ask between the steps.

    Tokens are sent on every PROGRESS_STEPS steps: thousands of requests may end in the same step, and what the front
    door has taken in before does not hold it up then.
    """

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self.engine = engine
        self.channel = channel
        self._requests: dict[int, Request] = {}
        self._num_sent: dict[int, int] = {}  # output tokens that the front door has of each unfinished request

    def serve(self) -> None:
        """Work until told to close."""
        waiting, num_steps = select.poll(), 0
        waiting.register(self.channel, select.POLLIN)
        while True:
            while not self.engine.has_unfinished or waiting.poll(0):
                message = self.channel.receive()
                if message.kind is Kind.CLOSE:
                    return
                self._obey(message)
            if finished := self.engine.step():
                self._send_ends(Kind.FINISHED, finished)
            num_steps += 1
            if num_steps % PROGRESS_STEPS == 0:
                self._send_progress()

    def _send_ends(self, kind: Kind, outputs: Sequence[RequestOutput]) -> None:
        """Send what the front door does not have of requests that have ended."""
        sent = [self._num_sent.pop(output.request_id) for output in outputs]
        for output in outputs:
            del self._requests[output.request_id]
        self.channel.send(kind, *pack_ends(outputs, sent))

    def _send_progress(self) -> None:
        """Send the tokens that are new since the last time."""
        new = []
        for number, request in self._requests.items():
            begin, end = self._num_sent[number], len(request.token_times_ns)
            if end > begin:
                new.append((number, request.output_token_ids[begin:end], request.token_times_ns[begin:end]))
                self._num_sent[number] = end
        if new:
            facts = {"requests": [{"request_id": number, "num_tokens": len(tokens)} for number, tokens, _ in new]}
            self.channel.send(Kind.PROGRESS, facts, _end_to_end([tokens for _, tokens, _ in new], [t for *_, t in new]))

    def _obey(self, message: Message) -> None:
        engine, facts = self.engine, message.facts
        match message.kind:
            case Kind.ADD:
                self._add(_request(facts, message.integers))
            case Kind.CANCEL:
                output = engine.cancel(facts["request_id"])
                self._send_ends(Kind.CANCELLED, [] if output is None else [output])
            case Kind.STEP_FACTS:
                rows = [_step_integers(step) for step in engine.take_step_facts()]
                self.channel.send(Kind.STEP_FACTS, integers=torch.tensor(rows, dtype=torch.int64).flatten())
            case Kind.MEMORY:
                self.channel.send(Kind.MEMORY, {"devices": [asdict(one) for one in engine.memory_by_device()]})
            case Kind.CLOCK:
                self.channel.send(Kind.CLOCK, {"now_ns": perf_counter_ns()})
            case Kind.START_PROFILE:
                engine.start_profile()
                self.channel.send(Kind.START_PROFILE)
            case Kind.STOP_PROFILE:
                profiles = [None if one is None else asdict(one) for one in engine.stop_profile()]
                self.channel.send(Kind.STOP_PROFILE, {"profiles": profiles})
            case Kind.RESET_PEAKS:
                engine.reset_peaks()
            case Kind.RESET_PREFIX_CACHE:
                engine.reset_prefix_cache()
            case _:
                raise ValueError(f"an engine does not understand {message.kind.name}")

    def _add(self, request: Request) -> None:
        self.engine.add(request)
        self._requests[request.request_id] = request
        self._num_sent[request.request_id] = 0


def _request(facts: Mapping[str, Any], token_ids: Tensor) -> Request:
    sampling = SamplingParams(**facts["sampling"] | {"stop_token_ids": tuple(facts["sampling"]["stop_token_ids"])})
    return Request(facts["request_id"], token_ids.tolist(), len(token_ids), sampling, facts["arrival_ns"])


# --- results as integers ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Partial:
    """What the front door has of a request so far; times are readings of its own clock."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)

    def output(self, facts: Mapping[str, Any], clock_offset_ns: int) -> RequestOutput:
        """Freeze the request as its engine ended it."""
        request, scheduled_ns = self.request, facts["scheduled_ns"]
        return RequestOutput(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.token_ids),
            token_ids=tuple(self.token_ids),
            text=None,
            finish_reason=FinishReason(facts["finish_reason"]),
            facts=RequestFacts(
                arrival_ns=request.arrival_ns,
                scheduled_ns=None if scheduled_ns is None else scheduled_ns - clock_offset_ns,
                token_times_ns=tuple(self.times_ns),
                num_prompt_tokens=request.num_prompt_tokens,
                num_cached_tokens=facts["num_cached_tokens"],
                num_preemptions=facts["num_preemptions"],
            ),
        )


def pack_ends(outputs: Sequence[RequestOutput], num_sent: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
    """Lay requests out that have ended: facts one by one, and end to end the tokens that were not sent before."""
    facts = {
        "requests": [
            {
                "request_id": output.request_id,
                "num_tokens": len(output.token_ids) - sent,
                "finish_reason": output.finish_reason.value,
                "scheduled_ns": output.facts.scheduled_ns,
                "num_cached_tokens": output.facts.num_cached_tokens,
                "num_preemptions": output.facts.num_preemptions,
            }
            for output, sent in zip(outputs, num_sent, strict=True)
        ]
    }
    tokens = [output.token_ids[sent:] for output, sent in zip(outputs, num_sent, strict=True)]
    times = [output.facts.token_times_ns[sent:] for output, sent in zip(outputs, num_sent, strict=True)]
    return facts, _end_to_end(tokens, times)


def _end_to_end(tokens: Sequence[Sequence[int]], times_ns: Sequence[Sequence[int]]) -> Tensor:
    """All tokens, then all their times, as integers."""
    integers = array("q", chain.from_iterable(chain(tokens, times_ns)))
    return torch.frombuffer(integers, dtype=torch.int64) if integers else torch.empty(0, dtype=torch.int64)


def take_in_tokens(message: Message, partials: Mapping[int, Partial], clock_offset_ns: int) -> None:
    """Append a message's tokens to their requests; `clock_offset_ns` is what the engine's clock is ahead of ours."""
    listed = message.facts["requests"]
    bounds = [0, *accumulate(facts["num_tokens"] for facts in listed)]
    tokens = message.integers[: bounds[-1]].tolist()
    times = (message.integers[bounds[-1] :] - clock_offset_ns).tolist()
    for facts, (begin, end) in zip(listed, pairwise(bounds), strict=True):
        partial = partials[facts["request_id"]]
        partial.token_ids += tokens[begin:end]
        partial.times_ns += times[begin:end]


_STEP_FIELDS = 9


def _step_integers(step: StepFacts) -> list[int]:
    return [
        _PHASES.index(step.phase),
        step.num_prefill_tokens,
        step.num_decode_tokens,
        step.num_requests,
        step.begin_ns,
        step.launched_ns,
        step.end_ns,
        _UNKNOWN if step.device_ns is None else step.device_ns,
        int(step.graph),
    ]


def _step_facts(row: Sequence[int], rank: int, clock_offset_ns: int) -> StepFacts:
    phase, num_prefill, num_decode, num_requests, begin_ns, launched_ns, end_ns, device_ns, graph = row
    return StepFacts(
        phase=_PHASES[phase],
        num_prefill_tokens=num_prefill,
        num_decode_tokens=num_decode,
        num_requests=num_requests,
        begin_ns=begin_ns - clock_offset_ns,
        launched_ns=launched_ns - clock_offset_ns,
        end_ns=end_ns - clock_offset_ns,
        device_ns=None if device_ns == _UNKNOWN else device_ns,
        graph=bool(graph),
        rank=rank,
    )
