"""Steps as CUDA graphs: captured once for a spread of sizes, then replayed with new inputs.

A step's inputs are a few integers; where they are padded to a size for which there is a graph, one copy and one launch
do the step. There are two kinds. A step that only decodes has so many rows; a step with prompt tokens has so many
tokens, whatever they are made up of: decode rows first, then prompts, chunks or what a prefix hit left to compute, then
padding. What the kernels read of such a step (how many rows decode, where a prompt begins, how long its context is)
lies on the device, their grids have room for the most there can be, and programs without work end at once.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch

from nanoinfer.execution.batch import BatchShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from nanoinfer.config import EngineConfig

    Work = Callable[[], None]
    Recorder = Callable[[Work], Work]

Size = TypeVar("Size", int, BatchShape)

# Beyond, a step with prompt tokens takes a device longer than launching its kernels takes the host.
MOST_TOKENS = 4096
TOKENS_A_PREFILL = 16  # a graph of so many tokens has room for one prefill row ...
FEW_PREFILLS = 8  # ... or for so many
MOST_TABLE_UPDATES = 4096  # blocks that the prompts of a step bring along


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the capture cost: seconds, and device memory in bytes, the driver's own included."""

    num_graphs: int
    capture_s: float
    capture_bytes: int


class GraphSizes(NamedTuple):
    """Sizes of steps for which there are graphs, ascending: rows that decode, shapes of batches with prompt tokens."""

    decodes: tuple[int, ...] = ()
    prefills: tuple[BatchShape, ...] = ()


def graph_sizes(config: EngineConfig, max_model_len: int) -> GraphSizes:
    """Return the sizes that an engine captures; all its ranks, and whoever stages their steps, find the same."""
    num_slots = config.max_num_seqs
    max_blocks = -(-max_model_len // config.block_size)
    shapes = []
    most_tokens = MOST_TOKENS * config.tensor_parallel_size  # which take each of the devices as long
    for tokens in _padded_tokens(min(most_tokens, config.max_num_batched_tokens)):
        decodes = min(num_slots, tokens) if config.scheduling == "mixed" else 0
        prefills = min(num_slots, tokens, max(FEW_PREFILLS, tokens // TOKENS_A_PREFILL))
        updates = decodes + min(prefills * max_blocks, MOST_TABLE_UPDATES)
        shapes.append(BatchShape(tokens, decodes, prefills, min(num_slots, decodes + prefills), updates, prefills))
    return GraphSizes(padded_batch_sizes(num_slots), tuple(shapes))


def padded_batch_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Sizes to capture, ascending: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, of 32 beyond, and the largest.

    A padded row costs next to nothing (its context is empty), so steps may grow with the size; but matrix products
    take their rows in tiles of 8 or more.
    """
    spread = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return (*(size for size in spread if size < max_num_seqs), max_num_seqs)


def _padded_tokens(most: int) -> tuple[int, ...]:
    """Numbers of tokens to capture, ascending, and the largest.

    The more a step has, the more it costs to compute padding: sizes double up to 256, then there are two to a doubling,
    and four from 1,024 on.
    """
    spread, power = [16, 32, 64, 128, 256, 384, 512, 768], 1024
    while power < most:
        spread += range(power, 2 * power, power // 4)
        power *= 2
    return (*(tokens for tokens in spread if tokens < most), most)


def graph_size(sizes: tuple[int, ...], num_rows: int) -> int | None:
    """Return the smallest of the captured sizes, ascending, that holds so many rows; None when none does."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if index < len(sizes) else None


class Graphs(Generic[Size]):
    """A step, recorded at several sizes.

    `padding` holds, for each size, the integers on the host of a step that touches nothing of any request. `step` maps
    a size and such integers on the device to sampled ids, at most `most_sampled`. `record` does a piece of work once
    and returns what repeats it.
    """

    def __init__(
        self,
        step: Callable[[Size, Tensor], Tensor],
        padding: Mapping[Size, Tensor],
        record: Recorder,
        *,
        most_sampled: int,
        device: torch.device,
    ) -> None:
        self._integers = torch.empty(max(map(len, padding.values()), default=0), dtype=torch.int64, device=device)
        self._sampled = torch.zeros(most_sampled, dtype=torch.int64, device=device)
        self._replays: dict[Size, Work] = {}
        # The largest first: the smaller ones then find room in the memory that it left in the shared pool.
        for size in sorted(padding, reverse=True):
            integers = padding[size]
            self._integers[: len(integers)].copy_(integers)
            # Nothing but the work refers to the step: who owns it may own these graphs, and they end together.
            self._replays[size] = record(self._work(partial(step, size), len(integers)))

    def replay(self, size: Size, integers: Tensor, num_sampled: int) -> Tensor:
        """Run a captured size on staged integers; returns ids (num_sampled,), valid until the next replay."""
        self._integers[: len(integers)].copy_(integers, non_blocking=True)
        self._replays[size]()
        return self._sampled[:num_sampled]

    def _work(self, step: Callable[[Tensor], Tensor], num_integers: int) -> Work:
        inputs, outputs = self._integers[:num_integers], self._sampled

        def work() -> None:
            sampled = step(inputs)
            outputs[: len(sampled)] = sampled

        return work


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Keep the garbage collector away, from a capture above all: to destroy an ended engine's graph would break it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class CudaRecorder:
    """Captures work into CUDA graphs that share one memory pool, because only one of them runs at a time.

    `taken_bytes` are the bytes of device memory that each capture took, the driver's own included.
    """

    def __init__(self, device: torch.device) -> None:
        self.taken_bytes: list[int] = []
        self._device = device
        self._begin_s = perf_counter()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """Run work once, so that everything it needs is compiled and loaded, then capture it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
            torch.cuda.synchronize(self._device)
            free_before = torch.cuda.mem_get_info(self._device)[0]
            graph = torch.cuda.CUDAGraph()
            with nothing_collected():
                # Not the context manager `torch.cuda.graph`: that empties the allocator's cache before each capture.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
            self.taken_bytes.append(free_before - torch.cuda.mem_get_info(self._device)[0])
        return graph.replay

    def facts(self) -> GraphFacts:
        """Say what the captures cost so far."""
        torch.cuda.synchronize(self._device)
        return GraphFacts(len(self.taken_bytes), perf_counter() - self._begin_s, sum(self.taken_bytes))
