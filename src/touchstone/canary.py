"""A fixed matrix product, a fixed copy and a smallest operation: this machine's own peaks, right beside a timed run.

The same work every time, so that a reading that moves says that the machine changed and not the engine. The readings
also are the F and B of the roofline (Williams, Waterman, Patterson 2009), so that no vendor's figure is quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from touchstone.clock import rest, timed_region
from touchstone.records import CanaryReading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class CanarySize:
    """How large the work is: the product of two (n, n) matrices, and a copy of so many bytes."""

    matrix: int
    copied_bytes: int
    repetitions: int
    warm_ups: int
    rest_s: float = 0.0
    most_again: int = 0


# CPU: each part far shorter than a scheduler's time slice, and repeated, so that some repetition falls between the
# slices of a neighbour. The copy stays in the last-level cache, since a small model's weights do too, and a B
# below the true one would make the roofline's floor too high to be a floor.
# GPU: large enough to fill the device and far beyond its cache. A GPU at full load is held down by its power limit, and
# right after it F reads lower than after a rest. So each reading rests first, copies before it multiplies, and takes
# few warm-ups.
# A GPU under its power limit also dips for less than a second, by more than the paper's limit and with no neighbour
# there. So a reading that lies `DIP` below the best of its process is taken again, after a longer rest each time, and
# the fastest counts; how often is recorded with it. A neighbour that stays is still there three rests later.
# The fastest of the repetitions is taken: whatever disturbs makes work slower and never faster.
CPU_SIZE = CanarySize(matrix=256, copied_bytes=4 << 20, repetitions=20, warm_ups=2)
GPU_SIZE = CanarySize(matrix=8192, copied_bytes=1 << 30, repetitions=10, warm_ups=3, rest_s=0.3, most_again=3)
DIP = 0.02
SMALLEST_OPERATIONS = 100


class MachineCanaries:
    """A canary on each of several devices, which rest together and are read one after the other."""

    def __init__(self, devices: Sequence[str], dtype: str, size: CanarySize | None = None) -> None:
        self._canaries = [MachineCanary(device, dtype, size) for device in devices]

    def read(self, count: int) -> tuple[CanaryReading, ...]:
        """Read the first `count` devices, in their order."""
        first, *others = self._canaries[:count]
        return (first.read(), *(canary.measure() for canary in others))


class MachineCanary:
    """The work and its buffers, which are made once: made later, they would look like the engine's memory."""

    def __init__(self, device: str, dtype: str, size: CanarySize | None = None) -> None:
        self._device = device
        self._size = size or (GPU_SIZE if device.startswith("cuda") else CPU_SIZE)
        shape = (self._size.matrix, self._size.matrix)
        # Random numbers, because a device that multiplies ones draws less power and clocks higher; from a generator of
        # its own, because the engine's must not be advanced.
        numbers = torch.Generator(device).manual_seed(0)
        self._left, self._right = (
            torch.randn(shape, generator=numbers, dtype=getattr(torch, dtype), device=device) for _ in range(2)
        )
        self._product = torch.empty_like(self._left)
        self._source = torch.ones(self._size.copied_bytes, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self._one = torch.zeros(1, device=device)
        self._best: CanaryReading | None = None

    @torch.inference_mode()
    def read(self) -> CanaryReading:
        """Let the device rest, do the work and say how fast it went: rates from each part's fastest repetition."""
        rest(self._size.rest_s)
        return self.measure()

    @torch.inference_mode()
    def measure(self) -> CanaryReading:
        """Do the work at once, for a caller that has let the device rest; again after a rest where it dipped."""
        reading = self._measure_once()
        for count in range(1, self._size.most_again + 1):
            if not self._has_dipped(reading):
                break
            rest(self._size.rest_s * count)
            reading = _fastest_of(reading, self._measure_once(), read_again=count)
        self._best = reading if self._best is None else _fastest_of(self._best, reading, read_again=0)
        return reading

    def _has_dipped(self, reading: CanaryReading) -> bool:
        best = self._best
        if best is None:
            return False
        return reading.flops_per_s < (1 - DIP) * best.flops_per_s or reading.bytes_per_s < (1 - DIP) * best.bytes_per_s

    def _measure_once(self) -> CanaryReading:
        copy_ns = self._fastest(self._copy)
        product_ns = self._fastest(self._multiply)
        start_ns = self._fastest(self._start_operations)
        return CanaryReading(
            flops_per_s=2 * self._size.matrix**3 / product_ns * NS_PER_S,
            bytes_per_s=2 * self._size.copied_bytes / copy_ns * NS_PER_S,
            operation_s=start_ns / SMALLEST_OPERATIONS / NS_PER_S,
        )

    def _fastest(self, work: Callable[[], int]) -> int:
        for _ in range(self._size.warm_ups):
            work()
        return min(work() for _ in range(self._size.repetitions))

    def _multiply(self) -> int:
        with timed_region(self._device) as region:
            torch.mm(self._left, self._right, out=self._product)
        return region.duration_ns

    def _copy(self) -> int:
        with timed_region(self._device) as region:
            self._target.copy_(self._source)
        return region.duration_ns

    def _start_operations(self) -> int:
        with timed_region(self._device) as region:
            for _ in range(SMALLEST_OPERATIONS):
                self._one.add_(1)
        return region.duration_ns


def _fastest_of(one: CanaryReading, other: CanaryReading, *, read_again: int) -> CanaryReading:
    """Take the better of each part."""
    return CanaryReading(
        flops_per_s=max(one.flops_per_s, other.flops_per_s),
        bytes_per_s=max(one.bytes_per_s, other.bytes_per_s),
        operation_s=min(one.operation_s, other.operation_s),
        read_again=read_again,
    )
