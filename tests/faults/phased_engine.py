"""An adapter that tells in which phase its process is, and there does what the environment asks for, once.

PHASE   environment, build, warm-up, timed or reporting; MARKER is the file that is written when it is reached
FAULT   kill: the process kills itself; linger: it waits to be killed; fill: it takes all the room on the disk of the
        run's folder, and MARKER names the file that holds it; clock: every later reading of the wall clock is an hour
        earlier than the one before; raise: an error whose message is the environment's MESSAGE
"""

import os
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from tests.touchstone.fake_engine import FakeEngine, capabilities
from touchstone import clock

__all__ = ["build", "capabilities"]

PHASES = ("environment", "build", "warm-up", "timed", "reporting")

# Of the quick profile: one warm-up of each of two arms, and one timed run, so that a trace is stored already.
_RUNS_BEFORE_TIMED = 3
_runs = []


def reach(phase):
    marker = Path(os.environ.get("MARKER", "."))
    if os.environ.get("PHASE") != phase or marker.exists():
        return
    fault = os.environ["FAULT"]
    tell(marker, fill() if fault == "fill" else os.getpid())
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "linger":
        time.sleep(300)
    if fault == "raise":
        raise RuntimeError(os.environ["MESSAGE"])
    if fault == "clock":
        clock.datetime = SteppingBack


class SteppingBack(datetime):
    readings: ClassVar = [datetime.now(UTC)]

    @classmethod
    def now(cls, _zone=None):
        cls.readings.append(cls.readings[-1] - timedelta(hours=1))
        return cls.readings[-1]


def tell(marker, content):
    marker.with_suffix(".new").write_text(str(content))
    marker.with_suffix(".new").replace(marker)


def fill():
    """Write until the disk is full. The log is the one file of the run that this process has open."""
    filler = Path("/proc/self/fd/1").readlink().parents[2] / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


class PhasedEngine(FakeEngine):
    def generate(self, requests, *, concurrency=None):
        _runs.append(len(requests))
        if len(_runs) == 1:
            reach("warm-up")
        if len(_runs) > _RUNS_BEFORE_TIMED:
            reach("timed")
        return super().generate(requests, concurrency=concurrency)

    def close(self):
        reach("reporting")  # the result is written then, and the process not yet ended in peace


def build(spec):
    reach("build")
    return PhasedEngine(spec)


if Path(sys.argv[0]).name == "worker.py":  # planning imports the adapter too
    reach("environment")
