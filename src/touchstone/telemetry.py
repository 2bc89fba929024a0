"""What happens to the machine during a timed run: counters read at both ends, and a thread that samples in between.

A value that the machine does not give is None, never 0.
"""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from threading import Event, Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psutil
import pynvml

from touchstone.clock import now_ns, seconds_since
from touchstone.environment import group_directories
from touchstone.records import GpuTelemetry, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = TypeVar("Value")

# One sample costs about 0.3 ms of one core and of the interpreter's lock: at five a second 0.15 % of the run, a
# twentieth of what the canary allows. The drivers renew clocks and power about ten times a second, so sampling faster
# would mostly read the same value again.
INTERVAL_S = 0.2
# The kernel counts busy time in ticks of 10 ms: below this length a mean over cores would be made of a few ticks.
MIN_S_FOR_BUSY_CORES = 0.5

_SLOWDOWN_FIELDS: Mapping[str, int] = MappingProxyType(
    {
        "software power cap": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP,
        "software thermal": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
        "hardware thermal": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
        "power brake": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
    }
)
_NS_PER_S, _US_PER_S, _MW_PER_W, _MJ_PER_J = 1e9, 1e6, 1e3, 1e3


class TelemetrySampler:
    """Watches the machine while a with block runs; `result` afterwards tells what it saw.

    `gpu_uuids` are the devices that the run uses, as the driver names them; without any, only the host is watched.
    """

    def __init__(self, gpu_uuids: Sequence[str] = (), interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._uuids = tuple(gpu_uuids)
        self._result: Telemetry | None = None

    @property
    def result(self) -> Telemetry:
        """What was seen; RuntimeError before the end of the block."""
        if self._result is None:
            raise RuntimeError("telemetry has not ended yet; read its result after the with block")
        return self._result

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._gpus = _open_gpus(self._uuids, self._stack)
        self._stop = Event()
        self._num_samples = 0
        self._begin_ns = now_ns()
        self._before = _HostCounters.read()
        self._thread = Thread(target=self._sample, name="telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        duration_s = seconds_since(self._begin_ns)
        after = _HostCounters.read()
        with self._stack:
            self._result = Telemetry(
                duration_s=duration_s,
                interval_s=self._interval_s,
                num_samples=self._num_samples,
                load_average=_known(lambda: os.getloadavg()[0]),
                throttled_s=_difference(after.throttled_s, self._before.throttled_s),
                voluntary_switches=after.voluntary - self._before.voluntary,
                involuntary_switches=after.involuntary - self._before.involuntary,
                other_busy_cores=_other_busy_cores(self._before, after, duration_s),
                gpus=tuple(gpu.summary() for gpu in self._gpus),
            )

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            for gpu in self._gpus:
                gpu.sample()
            self._num_samples += 1


# --- the host -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _HostCounters:
    """Counters that only grow; a difference of two readings is what happened in between."""

    voluntary: int
    involuntary: int
    machine_busy_s: float | None
    own_busy_s: float
    throttled_s: float | None

    @classmethod
    def read(cls) -> _HostCounters:
        own = resource.getrusage(resource.RUSAGE_SELF)
        return cls(
            voluntary=own.ru_nvcsw,
            involuntary=own.ru_nivcsw,
            machine_busy_s=_machine_busy_s(),
            own_busy_s=own.ru_utime + own.ru_stime + _children_busy_s(),
            throttled_s=throttled_s(group_directories(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))),
        )


def _machine_busy_s() -> float | None:
    """Seconds that all cores of the machine have been busy; None where the kernel counts nothing (some sandboxes)."""
    times = _known(psutil.cpu_times)
    if times is None:
        return None
    busy = times.user + times.system + sum(getattr(times, name, 0.0) for name in ("nice", "irq", "softirq"))
    return float(busy) if busy > 0 else None


def _children_busy_s() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def _other_busy_cores(before: _HostCounters, after: _HostCounters, duration_s: float) -> float | None:
    machine = _difference(after.machine_busy_s, before.machine_busy_s)
    if machine is None or machine == 0 or duration_s < MIN_S_FOR_BUSY_CORES:
        return None
    return max(0.0, machine - (after.own_busy_s - before.own_busy_s)) / duration_s


def throttled_s(groups: Sequence[Path]) -> float | None:
    """Read for how long CPU quotas have stopped these control groups, version 2 or 1; None where no group counts it.

    A quota may stand at any level; where several count, the one that was stopped longest bounds the run.
    """
    found = [seconds for group in groups if (seconds := _throttled_by(group)) is not None]
    return max(found, default=None)


def _throttled_by(group: Path) -> float | None:
    try:
        lines = (group / "cpu.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counters = dict(line.split(maxsplit=1) for line in lines)
    if "throttled_usec" in counters:
        return int(counters["throttled_usec"]) / _US_PER_S
    return int(counters["throttled_time"]) / _NS_PER_S if "throttled_time" in counters else None


# --- GPUs -----------------------------------------------------------------------------------------------------------


def _open_gpus(uuids: Sequence[str], stack: ExitStack) -> tuple[_Gpu, ...]:
    if not uuids:
        return ()
    pynvml.nvmlInit()
    stack.callback(pynvml.nvmlShutdown)
    return tuple(_Gpu(pynvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in uuids)


@dataclass(slots=True)
class _Gpu:
    """One device under watch: counters at the beginning, lists of samples."""

    handle: Any
    sm_clocks: list[float] = field(default_factory=list)
    memory_clocks: list[float] = field(default_factory=list)
    powers: list[float] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    energy_before: float | None = None
    slowdowns_before: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self.energy_before = self._energy_j()
        self.slowdowns_before = self._slowdowns_s()

    def sample(self) -> None:
        """Read what has a value at every moment; what the driver refuses is left out."""
        clock, handle = pynvml.nvmlDeviceGetClockInfo, self.handle
        _collect(self.sm_clocks, lambda: float(clock(handle, pynvml.NVML_CLOCK_SM)))
        _collect(self.memory_clocks, lambda: float(clock(handle, pynvml.NVML_CLOCK_MEM)))
        _collect(self.powers, lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / _MW_PER_W)
        _collect(self.temperatures, lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)))
        _collect(self.others, lambda: _num_others(handle))

    def summary(self) -> GpuTelemetry:
        """Sum up the samples and take the counters' differences; one more sample, so that a short run has one."""
        self.sample()
        return GpuTelemetry(
            index=pynvml.nvmlDeviceGetIndex(self.handle),
            sm_clock_min_mhz=min(self.sm_clocks, default=None),
            sm_clock_median_mhz=median(self.sm_clocks) if self.sm_clocks else None,
            memory_clock_median_mhz=median(self.memory_clocks) if self.memory_clocks else None,
            power_mean_w=fmean(self.powers) if self.powers else None,
            energy_j=_difference(self._energy_j(), self.energy_before),
            temperature_max_c=max(self.temperatures, default=None),
            slowdown_s=self._slowdown_differences(),
            other_processes=max(self.others, default=None),
        )

    def _energy_j(self) -> float | None:
        return _known(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / _MJ_PER_J)

    def _slowdowns_s(self) -> dict[str, float] | None:
        values = _known(lambda: pynvml.nvmlDeviceGetFieldValues(self.handle, list(_SLOWDOWN_FIELDS.values())))
        if values is None:
            return None
        told = zip(_SLOWDOWN_FIELDS, values, strict=True)
        return {name: value.value.ullVal / _NS_PER_S for name, value in told if value.nvmlReturn == pynvml.NVML_SUCCESS}

    def _slowdown_differences(self) -> dict[str, float] | None:
        now = self._slowdowns_s()
        if not now or self.slowdowns_before is None:
            return None
        grown = {name: seconds - self.slowdowns_before.get(name, seconds) for name, seconds in now.items()}
        return {name: seconds for name, seconds in grown.items() if seconds > 0}


def _num_others(handle: Any) -> int:  # noqa: ANN401  NVML's handles have no type
    """Count processes on the device that are not this one, its parent or its children.

    Where the driver counts in another process namespace our own number is not in its list; one entry is ours then.
    """
    found = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    own = {os.getpid(), os.getppid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return len(found - own) if found & own else max(0, len(found) - 1)


# --- small parts ----------------------------------------------------------------------------------------------------


def _known(read: Callable[[], Value]) -> Value | None:
    """Return what the machine says; None where it does not say."""
    try:
        return read()
    except (pynvml.NVMLError, OSError, psutil.Error):
        return None


def _collect(samples: list[Value], read: Callable[[], Value]) -> None:
    if (value := _known(read)) is not None:
        samples.append(value)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
