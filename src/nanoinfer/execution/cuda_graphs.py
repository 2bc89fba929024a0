"""Decode steps as CUDA graphs: captured once for a spread of padded batch sizes, then replayed with new inputs.

A graph reads its inputs from fixed places. There are two of each, taken in turns, so that the rows of step n + 1 travel
to the device, and the ids of step n - 1 from it, while step n computes; graphs then follow each other without a gap.
Which turn it is, the device counts for itself.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Work = Callable[[], None]

TURNS = 2


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the capture cost: seconds, and device memory in bytes, the driver's own included."""

    num_graphs: int
    capture_s: float
    capture_bytes: int


def padded_batch_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Sizes to capture, ascending: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, of 32 beyond, and the largest.

    A padded row costs next to nothing (its context is empty), so steps may grow with the size; but matrix products
    take their rows in tiles of 8 or more.
    """
    spread = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return (*(size for size in spread if size < max_num_seqs), max_num_seqs)


@dataclass(frozen=True, slots=True)
class Download:
    """Ids on their way to the host; `arrived` is None where they are there already."""

    token_ids: Tensor
    arrived: torch.cuda.Event | None


class Device(Protocol):
    """What graphs need of a device, so that the bookkeeping around them can be tested without one."""

    def record(self, work: Work) -> Work:
        """Do a piece of work once and return what repeats it."""

    def upload(self, staged: Tensor, target: Tensor, turn: int) -> None:
        """Copy from the host, once what used this turn last is done with it; the next replay waits for the copy."""

    def download(self, source: Tensor, turn: int) -> Download:
        """Copy to the host what the replay just launched leaves behind."""


class DecodeGraphs:
    """A decode step, recorded at several batch sizes.

    `step` maps rows (4, B) int64 on the device, as `decode_rows` lays them out, to sampled ids (B,) int64. `padding` is
    a column of such rows that touches nothing of any request.
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], sizes: tuple[int, ...], padding: Tensor, device: Device
    ) -> None:
        self.sizes = sizes
        self._device = device
        self._turn = 0  # of the next replay; the device's own count is in `_device_turn`
        self._device_turn = torch.zeros(1, dtype=torch.int64, device=padding.device)
        self._rows = {size: padding[:, None].expand(TURNS, -1, size).contiguous() for size in sizes}
        self._sampled = {size: torch.zeros(TURNS, size, dtype=torch.int64, device=padding.device) for size in sizes}
        # The largest first: the smaller ones then find room in the memory that it left in the shared pool.
        self._replays = {size: device.record(self._work(step, size)) for size in reversed(sizes)}
        self._device_turn.zero_()

    def size_for(self, num_rows: int) -> int | None:
        """Return the smallest captured size that holds so many rows; None when none does."""
        index = bisect_left(self.sizes, num_rows)
        return self.sizes[index] if index < len(self.sizes) else None

    def replay(self, staged: Tensor, num_rows: int) -> Download:
        """Run a captured size on staged rows (4, size) and send the ids of the first `num_rows` to the host."""
        size, turn = staged.shape[1], self._turn
        self._turn = (turn + 1) % TURNS
        self._device.upload(staged, self._rows[size][turn], turn)
        self._replays[size]()
        return self._device.download(self._sampled[size][turn, :num_rows], turn)

    def _work(self, step: Callable[[Tensor], Tensor], size: int) -> Work:
        rows, sampled, turn = self._rows[size], self._sampled[size], self._device_turn

        def work() -> None:
            ids = step(rows.index_select(0, turn)[0])
            sampled.index_copy_(0, turn, ids[None])
            turn.add_(1).remainder_(TURNS)

        return work


class CudaDevice:
    """Captures into graphs that share one memory pool, because only one of them runs at a time; copies beside them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._capturing, self._uploads, self._downloads = (_stream(device) for _ in range(3))
        self._replayed: dict[int, torch.cuda.Event] = {}
        self._downloaded: dict[int, torch.cuda.Event] = {}

    def record(self, work: Work) -> Work:
        """Run work once, so that everything it needs is compiled and loaded, then capture it."""
        self._capturing.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._capturing):
            work()
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            # Not the context manager `torch.cuda.graph`: that empties the allocator's cache before each capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def upload(self, staged: Tensor, target: Tensor, turn: int) -> None:
        """Copy beside the computation."""
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            if turn in self._replayed:
                self._uploads.wait_event(self._replayed[turn])
                compute.wait_event(self._downloaded[turn])
            target.copy_(staged, non_blocking=True)
        compute.wait_stream(self._uploads)

    def download(self, source: Tensor, turn: int) -> Download:
        """Copy beside the computation that follows."""
        self._replayed[turn] = torch.cuda.current_stream(self._device).record_event()
        token_ids = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        with torch.cuda.stream(self._downloads):
            self._downloads.wait_event(self._replayed[turn])
            token_ids.copy_(source, non_blocking=True)
            self._downloaded[turn] = self._downloads.record_event()
        return Download(token_ids, self._downloaded[turn])


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def capture_decode_graphs(
    step: Callable[[Tensor], Tensor], sizes: tuple[int, ...], padding: Tensor
) -> tuple[DecodeGraphs, GraphFacts]:
    """Capture every size on the padding's device, and say what that cost."""
    device = padding.device
    torch.cuda.synchronize(device)
    begin_s, free_before = perf_counter(), torch.cuda.mem_get_info(device)[0]
    graphs = DecodeGraphs(step, sizes, padding, CudaDevice(device))
    torch.cuda.synchronize(device)
    taken = free_before - torch.cuda.mem_get_info(device)[0]
    return graphs, GraphFacts(len(sizes), perf_counter() - begin_s, taken)
