"""Decode steps as CUDA graphs: captured once for a spread of padded batch sizes, then replayed with new inputs."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Work = Callable[[], None]
    Recorder = Callable[[Work], Work]


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


def graph_size(sizes: tuple[int, ...], num_rows: int) -> int | None:
    """Return the smallest of the captured sizes, ascending, that holds so many rows; None when none does."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if index < len(sizes) else None


class DecodeGraphs:
    """A decode step, recorded at several batch sizes.

    `step` maps rows (4, B) int64 on the device, as `decode_rows` lays them out, to sampled ids (B,) int64. `padding` is
    a column of such rows that touches nothing of any request. `record` does a piece of work once and returns what
    repeats it.
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], sizes: tuple[int, ...], padding: Tensor, record: Recorder
    ) -> None:
        self.sizes = sizes
        self._rows = torch.empty(len(padding) * sizes[-1], dtype=torch.int64, device=padding.device)
        self._sampled = torch.zeros(sizes[-1], dtype=torch.int64, device=padding.device)
        self._replays: dict[int, Work] = {}
        # The largest first: the smaller ones then find room in the memory that it left in the shared pool.
        for size in reversed(sizes):
            self._inputs(size).copy_(padding[:, None])
            self._replays[size] = record(self._work(step, size))

    def replay(self, staged: Tensor, num_rows: int) -> Tensor:
        """Run a captured size on staged rows (4, size); returns ids (num_rows,), valid until the next replay."""
        size = staged.shape[1]
        self._inputs(size).copy_(staged, non_blocking=True)
        self._replays[size]()
        return self._sampled[:num_rows]

    def _inputs(self, size: int) -> Tensor:
        """Return the place from which the graph of a size reads its rows (4, size)."""
        fields = len(self._rows) // self.sizes[-1]
        return self._rows[: fields * size].view(fields, size)

    def _work(self, step: Callable[[Tensor], Tensor], size: int) -> Work:
        inputs = self._inputs(size)

        def work() -> None:
            self._sampled[:size] = step(inputs)

        return work


class CudaRecorder:
    """Captures work into CUDA graphs that share one memory pool, because only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """Run work once, so that everything it needs is compiled and loaded, then capture it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
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


def capture_decode_graphs(
    step: Callable[[Tensor], Tensor], sizes: tuple[int, ...], padding: Tensor
) -> tuple[DecodeGraphs, GraphFacts]:
    """Capture every size on the padding's device, and say what that cost."""
    device = padding.device
    torch.cuda.synchronize(device)
    begin_s, free_before = perf_counter(), torch.cuda.mem_get_info(device)[0]
    graphs = DecodeGraphs(step, sizes, padding, CudaRecorder(device))
    torch.cuda.synchronize(device)
    taken = free_before - torch.cuda.mem_get_info(device)[0]
    return graphs, GraphFacts(len(sizes), perf_counter() - begin_s, taken)
