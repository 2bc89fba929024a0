"""The only place in Touchstone that synchronizes a device and reads time; a test holds the package to it."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Region:
    """A stretch of work between two clock readings; `end_ns` is None while the work goes on."""

    begin_ns: int
    end_ns: int | None = None

    @property
    def duration_ns(self) -> int:
        """How long the work took; RuntimeError before its end."""
        if self.end_ns is None:
            raise RuntimeError("the timed region has not ended yet; read its duration after the with block")
        return self.end_ns - self.begin_ns


@contextmanager
def timed_region(*devices: str) -> Iterator[Region]:
    """Time the work inside, with all its devices idle at both readings.

    Without the first wait, work launched earlier would be charged to this region; without the second, work launched
    here would not be.
    """
    for device in devices:
        synchronize(device)
    region = Region(begin_ns=now_ns())
    yield region
    for device in devices:
        synchronize(device)
    region.end_ns = now_ns()


def synchronize(device: str) -> None:
    """Wait until a CUDA device has finished, for "cuda" alone every visible one; a CPU has nothing to wait for."""
    if not device.startswith("cuda"):
        return
    import torch  # noqa: PLC0415  the command line must not load torch to print its help

    _, numbered, index = device.partition(":")
    for each in (int(index),) if numbered else range(torch.cuda.device_count()):
        torch.cuda.synchronize(each)


def now_ns() -> int:
    """Return the host's monotonic clock, the one that `nanoinfer` stamps its facts with (`perf_counter_ns`)."""
    return time.perf_counter_ns()


def rest(seconds: float) -> None:
    """Do nothing for so long, so that a device may come back to its own speed."""
    time.sleep(seconds)


async def reach(moment_ns: int) -> None:
    """Let other tasks run until a reading of `now_ns` comes to this moment; return at once when it is past."""
    await asyncio.sleep(max(0, moment_ns - now_ns()) / 1e9)


def seconds_since(begin_ns: int) -> float:
    """Return the seconds that have passed since a reading of `now_ns`."""
    return (now_ns() - begin_ns) / 1e9


def utc_now() -> str:
    """Return the wall-clock time for records, ISO 8601 in UTC with milliseconds; never used to measure.

    The wall clock is read once in a process and carried on by the clock since boot, which runs through a suspension:
    whoever sets the wall clock back while a run is under way does not turn the order of its records round.
    """
    began, boot_ns = _wall_clock()
    passed = timedelta(microseconds=(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot_ns) // 1000)
    return (began + passed).isoformat(timespec="milliseconds")


@cache
def _wall_clock() -> tuple[datetime, int]:
    """Read the wall clock, and at the same moment the nanoseconds since boot."""
    return datetime.now(UTC), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
