"""One of several engines, in a process of its own: it works on what it is sent until it is told to close."""

from __future__ import annotations

import select
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.config import EngineConfig
from nanoinfer.engine import Engine
from nanoinfer.execution.build import build_execution
from nanoinfer.execution.channel import Kind
from nanoinfer.execution.devices import bytes_before_model
from nanoinfer.execution.meeting import Meeting
from nanoinfer.execution.remote import build_remote
from nanoinfer.execution.serving import settle
from nanoinfer.model.config import ModelConfig
from nanoinfer.results import end_to_end, pack_ends, step_integers, unpack_requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nanoinfer.execution.channel import Channel, Message
    from nanoinfer.request import Request

PROGRESS_STEPS = 64
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


def serve_engine(channel: Channel, setup: Mapping[str, Any]) -> None:
    """Build an engine and let it work on what it is sent until told to close."""
    config, folder = EngineConfig(**setup["config"]), Path(setup["folder"])
    meeting, devices = setup["meeting"], [torch.device(device) for device in setup["devices"]]
    bytes_before = bytes_before_model(devices[0]) if len(devices) == 1 else None
    engine = start_engine(
        config,
        ModelConfig.from_folder(folder),
        folder,
        devices=devices,
        launched=None if meeting is None else Meeting(**meeting),
        name=setup["name"],
    )
    settle()
    channel.send(Kind.READY, _engine_facts(engine))
    EngineServer(engine, channel, bytes_before).serve()
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
    door has taken in before does not hold it up then. `bytes_before` of the device, where there is one of this
    process's own, as in DeviceMemory.
    """

    def __init__(self, engine: Engine, channel: Channel, bytes_before: int | None) -> None:
        self.engine = engine
        self.channel = channel
        self._bytes_before = bytes_before
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
            if finished := self.engine.advance():
                self._send_ends(Kind.FINISHED, finished)
            num_steps += 1
            if num_steps % PROGRESS_STEPS == 0:
                self._send_progress()

    def _send_ends(self, kind: Kind, requests: Sequence[Request]) -> None:
        """Send what the front door does not have of requests that have ended."""
        sent = [self._num_sent.pop(request.request_id) for request in requests]
        for request in requests:
            del self._requests[request.request_id]
        self.channel.send(kind, *pack_ends(requests, sent))

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
            self.channel.send(
                Kind.PROGRESS, facts, end_to_end([*(tokens for _, tokens, _ in new), *(times for *_, times in new)])
            )

    def _obey(self, message: Message) -> None:
        engine, facts = self.engine, message.facts
        match message.kind:
            case Kind.ADD:
                self._add(unpack_requests(message))
            case Kind.CANCEL:
                number = facts["request_id"]
                self._send_ends(Kind.CANCELLED, [self._requests[number]] if engine.cancel(number) else [])
            case Kind.STEP_FACTS:
                rows = [step_integers(step) for step in engine.take_step_facts()]
                self.channel.send(Kind.STEP_FACTS, integers=torch.tensor(rows, dtype=torch.int64).flatten())
            case Kind.MEMORY:
                self.channel.send(Kind.MEMORY, {"devices": self._memory()})
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

    def _memory(self) -> list[dict[str, Any]]:
        told = self.engine.memory_by_device()
        if self._bytes_before is not None:
            told = [replace(one, bytes_before=self._bytes_before) for one in told]
        return [asdict(one) for one in told]

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.add(request)
            self._requests[request.request_id] = request
            self._num_sent[request.request_id] = 0
