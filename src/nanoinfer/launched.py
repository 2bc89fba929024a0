"""Processes that torchrun has started: the first one keeps the front door, the others serve it and then end.

    torchrun --nproc-per-node 4 script.py        RANK, WORLD_SIZE, MASTER_ADDR ... are in the environment

Every process runs the same script up to the same `LLM(...)`. Ranks are counted engine by engine: with a tensor-parallel
size of 2, ranks 0 and 1 are the first engine, 2 and 3 the second.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from nanoinfer.engine_process import serve_engine
from nanoinfer.execution.devices import consecutive_devices
from nanoinfer.execution.meeting import connect, engine_meeting
from nanoinfer.execution.rank import serve_rank
from nanoinfer.execution.serving import serve
from nanoinfer.execution.workers import set_environment

if TYPE_CHECKING:
    from pathlib import Path

    from nanoinfer.config import EngineConfig
    from nanoinfer.execution.meeting import Launched

ROLES = {"rank": serve_rank, "engine": serve_engine}


def serve_launched(launched: Launched, config: EngineConfig, folder: Path) -> NoReturn:
    """Be one of the processes behind the front door, and end with it."""
    set_environment()
    device = str(consecutive_devices(config.device, launched.local_rank + 1)[-1])
    engine, rank = divmod(launched.rank, config.tensor_parallel_size)
    own: dict[str, Any] = {"folder": str(folder)}
    if rank == 0:
        door, place = launched.meeting, engine
        own["devices"] = [device] * config.tensor_parallel_size
    else:
        door, place = engine_meeting(launched.meeting, engine), rank
        own["device"] = device
    status = serve(connect(door, place), ROLES, parent=None, own=own)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing after `LLM(...)` is this process's to run
