"""What a GPU did between two moments, kernel by kernel, and how much of it was talking to other GPUs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

# NCCL's kernels, and those for symmetric memory; the time includes the wait for a rank that comes later.
_COMMUNICATION = ("nccl", "_push_kernel", "one_shot_all_reduce", "two_shot_all_reduce")


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Device time of one GPU while it was profiled, in nanoseconds.

    span_ns           from the begin of the first kernel or copy to the end of the last
    busy_ns           part of the span in which at least one of them ran
    communication_ns  sum over the kernels that add up or gather between GPUs, waiting for peers included
    kernels_ns        sum by kernel name
    """

    device: str
    span_ns: int
    busy_ns: int
    communication_ns: int
    kernels_ns: dict[str, int]


class Profiler:
    """Records one GPU's work; there is nothing to record on a CPU, whose profile is None."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._trace: Any = None

    def start(self) -> None:
        """Record from now on."""
        if self._device.type != "cuda":
            return
        self._trace = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._trace.start()

    def stop(self) -> DeviceProfile | None:
        """Wait for the device and return what it did since `start`; None where nothing was recorded."""
        if self._trace is None:
            return None
        torch.cuda.synchronize(self._device)
        trace, self._trace = self._trace, None
        trace.stop()
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in trace.events()
            if event.device_type.name == "CUDA" and event.time_range.elapsed_us() > 0
        )
        return _profile(str(self._device), spans)


def _profile(device: str, spans_us: Iterable[tuple[float, float, str]]) -> DeviceProfile | None:
    """Add up (begin, end, name), ordered by begin; None where there are none."""
    begin_us, reached_us, busy_us = None, 0.0, 0.0
    by_name: defaultdict[str, float] = defaultdict(float)
    for begin, end, name in spans_us:
        if begin_us is None:
            begin_us = reached_us = begin
        busy_us += max(0.0, end - max(begin, reached_us))
        reached_us = max(reached_us, end)
        by_name[name] += end - begin
    if begin_us is None:
        return None
    kernels_ns = {name: round(us * 1000) for name, us in by_name.items()}
    return DeviceProfile(
        device=device,
        span_ns=round((reached_us - begin_us) * 1000),
        busy_ns=round(busy_us * 1000),
        communication_ns=sum(ns for name, ns in kernels_ns.items() if any(one in name for one in _COMMUNICATION)),
        kernels_ns=kernels_ns,
    )
