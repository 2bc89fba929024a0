"""What an engine of several devices tells of them, put together: memory, and how many requests ran at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from touchstone.records import DeviceMemory, MemoryParts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoinfer import StepFacts
    from nanoinfer.execution.devices import DeviceMemory as ToldMemory

_GPU_METHOD = (
    "sums over the devices, each with a process of its own. Weights: unique storages; activations: the allocator's "
    "peak in the largest step; KV: the pool and the most blocks in use; context: device memory in use before the "
    "model was there, with the contexts of the devices' processes and the buffers of their collectives; instrument: "
    "what the allocator of the measuring process held before the engine existed, a part of the context; total: device "
    "memory in use after the runs; residual: total less the parts"
)
_CPU_METHOD = (
    "sums over the ranks, each a process of its own. Weights: unique storages; KV: pools and the most blocks in use; "
    "activations: not counted in other processes; context: resident memory of this process before the engine existed; "
    "total: resident memory of all processes after the runs; residual: total less the parts"
)


def parts_of_devices(
    told: Sequence[ToldMemory],
    *,
    device: str,
    ranks_an_engine: int,
    before_bytes: int,
    host_bytes: int | None,
    instrument_bytes: Sequence[int | None],
) -> MemoryParts:
    """Add up what each device tells. `host_bytes` is the total where devices have none of their own: on CPUs.

    `before_bytes` were in use on all of them together before the engine existed; a device that tells what was in use
    before the model, in its own process, knows better. A block of the cache lies in parts on
    the `ranks_an_engine` devices of an engine, so that used bytes over bytes of a block are blocks again.
    `instrument_bytes` is what the instrument itself holds on each device.
    """
    facts = [one.facts for one in told]
    weights, pool = sum(one.weights_bytes for one in facts), sum(one.kv_pool_bytes for one in facts)
    activations = _sum_or_none([one.activations_peak_bytes for one in facts])
    graphs = _sum_or_none([one.cuda_graphs_bytes for one in facts])
    totals = [one.bytes_in_use for one in told]
    total = sum(size or 0 for size in totals) if host_bytes is None else host_bytes
    before = _sum_or_none([one.bytes_before for one in told])
    context = before_bytes if before is None else before
    known = weights + pool + context + (activations or 0) + (graphs or 0)
    return MemoryParts(
        device=device,
        weights_bytes=weights,
        kv_pool_bytes=pool,
        kv_block_bytes=sum(one.kv_block_bytes for one in facts[:ranks_an_engine]),
        kv_used_peak_bytes=sum(one.kv_used_peak_bytes for one in facts),
        activations_peak_bytes=activations,
        cuda_graphs_bytes=graphs,
        context_and_other_bytes=context,
        instrument_bytes=_sum_or_none(instrument_bytes),
        device_total_peak_bytes=total,
        residual_bytes=total - known,
        method=_CPU_METHOD if host_bytes is not None else _GPU_METHOD,
        devices=tuple(
            DeviceMemory(
                device=one.device,
                kv_pool_bytes=one.facts.kv_pool_bytes,
                total_peak_bytes=size,
                instrument_bytes=instrument,
            )
            for one, size, instrument in zip(told, totals, instrument_bytes, strict=True)
        ),
    )


def _sum_or_none(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def resident_bytes_of_all() -> int:
    """Resident memory of this process and of all that it started."""
    own = psutil.Process()
    return int(sum(process.memory_info().rss for process in (own, *own.children(recursive=True))))


def peak_concurrency(steps: Sequence[StepFacts]) -> int:
    """Count the most requests that ran at one moment: those of one step, and of the other replicas' steps beside it."""
    last_end_ns: dict[int, int] = {}
    for step in steps:
        last_end_ns[step.rank] = max(step.end_ns, last_end_ns.get(step.rank, step.end_ns))
    running: dict[int, int] = {}
    peak = 0
    for step in sorted(steps, key=lambda step: step.begin_ns):
        running[step.rank] = step.num_requests
        peak = max(peak, sum(count for rank, count in running.items() if last_end_ns[rank] > step.begin_ns))
    return peak
