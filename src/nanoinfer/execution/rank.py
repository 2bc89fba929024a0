"""One rank of a tensor-parallel engine: it builds its part of the model and computes the steps that it is sent."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import torch

from nanoinfer.config import EngineConfig
from nanoinfer.execution.build import build_execution
from nanoinfer.execution.channel import Channel, Kind
from nanoinfer.execution.collectives import join
from nanoinfer.execution.devices import bytes_before_model, device_bytes_in_use, resolve_device, resolve_dtype
from nanoinfer.execution.meeting import Meeting
from nanoinfer.execution.profile import Profiler
from nanoinfer.execution.serving import report_failure, settle
from nanoinfer.execution.wire import decode
from nanoinfer.model.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from nanoinfer.execution.contract import Execution, Handle
    from nanoinfer.execution.runner import Runner

UNTIMED = -1  # device time of a step where there is no device to time


def serve_rank(channel: Channel, setup: Mapping[str, Any]) -> None:
    """Build what the setup asks for, then compute every step until told to close."""
    config = replace(EngineConfig(**setup["config"]), device=setup["device"])
    folder = Path(setup["folder"])
    device = resolve_device(setup["device"])
    rank: int = setup["rank"]
    model_config, dtype = ModelConfig.from_folder(folder), resolve_dtype(config.dtype, device)
    parallel = join(
        Meeting(**setup["meeting"]).store(),
        rank=rank,
        size=config.tensor_parallel_size,
        device=device,
        dtype=dtype,
        all_reduce=config.all_reduce,
        largest_bytes=config.max_num_batched_tokens * model_config.hidden_size * dtype.itemsize,
    )
    bytes_before = bytes_before_model(device)
    execution = build_execution(config, model_config, folder, parallel)
    settle()
    channel.send(Kind.READY, _facts(execution) | {"device_bytes_before": bytes_before})
    channel.pin_memory = device.type == "cuda"
    runner = cast("Runner", execution.runner)
    profiler = Profiler(device)
    report = _report_tokens(channel, device) if rank == 0 else _forget
    while (message := channel.receive()).kind is not Kind.CLOSE:
        if message.kind is Kind.STEP:
            report(runner.compute(decode(message.integers)))
        elif message.kind is Kind.MEMORY:
            channel.send(Kind.MEMORY, {"device_bytes_in_use": device_bytes_in_use(device)})
        elif message.kind is Kind.START_PROFILE:
            profiler.start()
            channel.send(Kind.START_PROFILE)
        elif message.kind is Kind.STOP_PROFILE:
            profile = profiler.stop()
            channel.send(Kind.STOP_PROFILE, {"profile": None if profile is None else asdict(profile)})


def _facts(execution: Execution) -> dict[str, Any]:
    """Return what the front door must know of this rank."""
    return {
        "device": str(execution.device),
        "dtype": str(execution.dtype).removeprefix("torch."),
        "num_blocks": execution.num_blocks,
        "max_model_len": execution.max_model_len,
        "block_bytes": execution.block_bytes,
        "pool_bytes": execution.pool_bytes,
        "weights_bytes": execution.weights_bytes,
        "activations_peak_bytes": execution.activations_peak_bytes,
        "graphs": None if execution.graphs is None else asdict(execution.graphs),
    }


def _forget(_handle: Handle) -> None:
    """Every rank samples the same tokens; one of them tells."""


def _report_tokens(channel: Channel, device: torch.device) -> Callable[[Handle], None]:
    """Start the thread that waits for tokens and sends them, and return what hands it a step.

    So the next step is launched while this one's tokens are on their way.
    """
    handles: SimpleQueue[Handle] = SimpleQueue()

    def report() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a new thread's is the first one
        try:
            while True:
                channel.send(Kind.TOKENS, integers=_timed_tokens(handles.get()))
        except BaseException as error:  # noqa: BLE001  the main thread waits for messages and would not notice
            report_failure(channel, error)
            os._exit(1)

    threading.Thread(target=report, name="tokens", daemon=True).start()
    return handles.put


def _timed_tokens(handle: Handle) -> Tensor:
    """Wait for a step; returns its time on the device, then its tokens."""
    tokens = handle.tokens()
    device_ns = handle.device_ns()
    return torch.tensor([UNTIMED if device_ns is None else device_ns, *tokens])
