"""An adapter that tells in which phase its process is, and there does what the environment asks for, once.

PHASE   environment, build, warm-up, timed or reporting; MARKER is the file that is written when it is reached
FAULT   kill: the process kills itself; linger: it waits to be killed
"""

import os
import signal
import sys
import time
from pathlib import Path

from tests.touchstone.fake_engine import FakeEngine, capabilities

__all__ = ["build", "capabilities"]

PHASES = ("environment", "build", "warm-up", "timed", "reporting")

# Of the quick profile: one warm-up of each of two arms, and one timed run, so that a trace is stored already.
_RUNS_BEFORE_TIMED = 3
_runs = []


def reach(phase):
    marker = Path(os.environ.get("MARKER", "."))
    if os.environ.get("PHASE") != phase or marker.exists():
        return
    marker.with_suffix(".new").write_text(str(os.getpid()))
    marker.with_suffix(".new").replace(marker)
    if os.environ["FAULT"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)


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
