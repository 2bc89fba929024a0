"""When a timed run is invalid for a reason of the machine, decided without looking at the run's own time.

The limits are part of the plan, so they are hashed before anything is measured.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.records import Canary, CanaryReading, Measurement, Telemetry

INTERRUPTED = "interrupted by the user"
KILLED = "the run was killed while this process was under way"
# What ends an attempt from outside says nothing of engine or machine: it neither uses up the one repeat nor counts to
# the invalid attempts of which too many withhold a number. It stays in the ledger and in the number of attempts.
STOPPED_FROM_OUTSIDE = frozenset({INTERRUPTED, KILLED})

# How far a canary may move: larger rate / smaller rate - 1.
#
# Paper: 3 %. Half of the plan's ±5 % must not be the machine's.
# GPU in a short run: 10 %. A short run begins before the clocks have settled.
# CPU in a short run: a factor of 3. A laptop or a shared machine changes its clocks and its neighbours all the time;
# 3 % would leave no run valid, and one busy neighbour on the core's other thread already halves a rate. Beyond a factor
# of 3 the core was not this run's. What lies between 3 % and that is printed with the numbers, and shows in their
# spread and in the placebo.
PAPER_CANARY_LIMIT = 0.03
GPU_CANARY_LIMIT = 0.10
CPU_CANARY_LIMIT = 2.0

# More than 1 % of a run stopped by the CPU quota is a fifth of the plan's ±5 % and not the engine's.
MAX_THROTTLED_SHARE = 0.01
# Half a core busy with other work beside the run: its caches and its memory bandwidth are shared.
MAX_OTHER_BUSY_CORES = 0.5
# A hardware or thermal slowdown for more than 1 % of the run. The software power cap is not among them: a device at
# full load runs at its power limit by design.
MAX_SLOWDOWN_SHARE = 0.01
DISTURBING_SLOWDOWNS = frozenset({"software thermal", "hardware thermal", "power brake"})


def canary_limit(profile: str, device: str) -> float:
    """Return the limit of a profile ("smoke", "quick", "paper") on a kind of device."""
    if profile == "paper":
        return PAPER_CANARY_LIMIT
    return GPU_CANARY_LIMIT if device.startswith("cuda") else CPU_CANARY_LIMIT


def canaries_of(measurement: Measurement) -> tuple[Canary, ...]:
    """List the canaries of a timed run, one for each device that it used; empty where none was read."""
    return () if measurement.canary is None else (measurement.canary, *measurement.other_canaries)


def readings_of(measurements: Iterable[Measurement]) -> tuple[CanaryReading, ...]:
    """List the canary readings of timed runs, before and after each, in their order."""
    canaries = (canary for measurement in measurements for canary in canaries_of(measurement))
    return tuple(reading for canary in canaries for reading in (canary.before, canary.after))


def readings_by_device(measurements: Iterable[Measurement]) -> tuple[tuple[CanaryReading, ...], ...]:
    """List the canary readings of timed runs by the index of the device: those of one machine are not equally fast."""
    rows = [canaries_of(measurement) for measurement in measurements]
    return tuple(
        tuple(reading for row in rows if len(row) > device for reading in (row[device].before, row[device].after))
        for device in range(max((len(row) for row in rows), default=0))
    )


def largest_move(measurement: Measurement, by_device: Sequence[Sequence[CanaryReading]]) -> float | None:
    """Return the largest move on any device around one run, each against its own readings; None without a canary."""
    pairs = zip(canaries_of(measurement), by_device, strict=False)
    return max((canary_move(canary, readings) for canary, readings in pairs), default=None)


def canary_move(canary: Canary, all_readings: Sequence[CanaryReading]) -> float:
    """Return the largest move of F or B around one run: before to after, and either against the run's own median."""
    moves = []
    for name in ("flops_per_s", "bytes_per_s"):
        before, after = getattr(canary.before, name), getattr(canary.after, name)
        centre = median(getattr(reading, name) for reading in all_readings)
        moves += [_move(before, after), _move(before, centre), _move(after, centre)]
    return max(moves)


def why_canary_invalid(
    measurements: Sequence[Measurement], earlier: Sequence[Measurement], limit: float | None
) -> str | None:
    """Say which run's canary moved by more than the limit; None when none did or no limit was declared."""
    by_device = readings_by_device((*earlier, *measurements))
    for measurement in measurements if limit is not None else ():
        move = largest_move(measurement, by_device)
        if move is not None and limit is not None and move > limit:
            return (
                f"the machine changed around run {measurement.position} of arm {measurement.arm!r}: the canary moved "
                f"by {move:.1%}, allowed are {limit:.0%}"
            )
    return None


def why_disturbed(telemetry: Telemetry) -> Bilingual | None:
    """Say what disturbed the machine during a run; None when nothing did, as far as it can be told."""
    if (telemetry.throttled_s or 0.0) > MAX_THROTTLED_SHARE * telemetry.duration_s:
        stopped = f"{telemetry.throttled_s:.3f} s", f"{telemetry.duration_s:.3f} s"
        return Bilingual(
            f"the CPU quota stopped the run for {stopped[0]} of {stopped[1]}",
            f"CPU 配额在 {stopped[1]} 中让运行停了 {stopped[0]}",
        )
    if (telemetry.other_busy_cores or 0.0) > MAX_OTHER_BUSY_CORES:
        busy = f"{telemetry.other_busy_cores:.2f}"
        return Bilingual(f"other processes kept {busy} cores busy", f"其他进程平均占用 {busy} 个核")
    for gpu in telemetry.gpus:
        if gpu.other_processes:
            count = gpu.other_processes
            return Bilingual(f"{count} other process(es) on GPU {gpu.index}", f"GPU {gpu.index} 上另有 {count} 个进程")
        for reason, seconds in (gpu.slowdown_s or {}).items():
            if reason in DISTURBING_SLOWDOWNS and seconds > MAX_SLOWDOWN_SHARE * telemetry.duration_s:
                return Bilingual(
                    f"GPU {gpu.index} was held down for {seconds:.3f} s ({reason})",
                    f"GPU {gpu.index} 被降频 {seconds:.3f} s（`{reason}`）",
                )
    return None


def why_telemetry_invalid(measurements: Sequence[Measurement]) -> str | None:
    """Say which run was disturbed; None when none was."""
    for measurement in measurements:
        reason = None if measurement.telemetry is None else why_disturbed(measurement.telemetry)
        if reason is not None:
            return f"run {measurement.position} of arm {measurement.arm!r}: {reason.en}"
    return None


def _move(one: float, other: float) -> float:
    return max(one, other) / min(one, other) - 1
