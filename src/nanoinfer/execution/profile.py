"""What a GPU did between two moments, kernel by kernel, and how much of it was talking to other GPUs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

# NCCL's kernels, and those for symmetric memory; the time includes the wait for a rank that comes later.
_COMMUNICATION = ("nccl", "_push_kernel", "_share_kernel")


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
        return _profile(str(self._device), _spans_ns(trace, "CUDA"))


def _spans_ns(trace: torch.profiler.profile, device_type: str) -> list[tuple[int, int, str]]:
    """List (begin, end, name) of what was recorded on a kind of device, ordered by begin.

    These are Kineto's own events: `trace.events()` makes an object of each of 100,000 kernels, which takes ten seconds.
    """
    recorder = trace.profiler
    if recorder is None or recorder.kineto_results is None:
        return []
    return sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in recorder.kineto_results.events()
        if event.device_type().name == device_type and event.duration_ns() > 0
    )


def _profile(device: str, spans_ns: Iterable[tuple[int, int, str]]) -> DeviceProfile | None:
    """Add up (begin, end, name), ordered by begin; None where there are none."""
    begin_ns, reached_ns, busy_ns = None, 0, 0
    kernels_ns: defaultdict[str, int] = defaultdict(int)
    for begin, end, name in spans_ns:
        if begin_ns is None:
            begin_ns = reached_ns = begin
        busy_ns += max(0, end - max(begin, reached_ns))
        reached_ns = max(reached_ns, end)
        kernels_ns[name] += end - begin
    if begin_ns is None:
        return None
    return DeviceProfile(
        device=device,
        span_ns=reached_ns - begin_ns,
        busy_ns=busy_ns,
        communication_ns=sum(ns for name, ns in kernels_ns.items() if any(one in name for one in _COMMUNICATION)),
        kernels_ns=dict(kernels_ns),
    )
