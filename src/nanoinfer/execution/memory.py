"""Where the bytes are: weights, activations, and how large the KV pool may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nanoinfer.config import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from nanoinfer.config import EngineConfig

# Without a GPU the pool shares the memory with everything else on the machine, and only what is touched is taken.
CPU_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """Bytes by purpose; a fact that was not measured is None.

    weights_bytes            unique parameter and buffer storages
    kv_pool_bytes            the whole KV pool, the block for padding included
    kv_block_bytes           one block, keys and values of all layers
    kv_used_peak_bytes       most blocks in use at the same time, in bytes
    activations_peak_bytes   taken for temporaries of the largest step, measured before the pool was made (CUDA only)
    cuda_graphs_bytes        what their capture took, the driver's share included; None where none were captured
    """

    weights_bytes: int
    kv_pool_bytes: int
    kv_block_bytes: int
    kv_used_peak_bytes: int
    activations_peak_bytes: int | None
    cuda_graphs_bytes: int | None


def unique_storage_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared storages counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def takes_what_is_left(config: EngineConfig) -> bool:
    """Whether no setting gives the KV pool's size: it takes what a device has left, and the rest must be foreseen."""
    return config.num_kv_blocks is None and config.kv_cache_bytes is None


def num_kv_blocks(config: EngineConfig, *, block_bytes: int, budget_bytes: int, required_tokens: int) -> int:
    """Decide how many blocks the KV pool has: an explicit number or size is honoured, otherwise the budget is spent.

    A pool that cannot hold `required_tokens`, one sequence, is a ConfigError.
    """
    if config.num_kv_blocks is not None:
        blocks = config.num_kv_blocks
    else:
        blocks = max(0, budget_bytes if config.kv_cache_bytes is None else config.kv_cache_bytes) // block_bytes
    needed = -(-required_tokens // config.block_size)
    if blocks < needed:
        raise ConfigError(
            f"the KV pool has room for {blocks} blocks of {config.block_size} tokens ({block_bytes} bytes each), but "
            f"one sequence of {required_tokens} tokens needs {needed}; lower max_model_len, or give the pool more "
            f"(num_kv_blocks, kv_cache_bytes, memory_fraction)"
        )
    return blocks


def cpu_budget_bytes() -> int:
    """Bytes that a KV pool may take of this machine's free memory."""
    return int(cpu_free_bytes() * CPU_MEMORY_SHARE)


def cpu_free_bytes() -> int:
    """Bytes of this machine's memory that are free, control groups respected."""
    group = _cgroup_free()
    return _meminfo_available() if group is None else min(_meminfo_available(), group)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate a KV pool; one that the memory cannot hold is a ConfigError.

    A CPU's memory is asked before, because its system gives more than it has and ends processes later.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    too_large = (
        f"the KV pool of {num_bytes:,} bytes does not fit into the free memory of {device}; lower num_kv_blocks, "
        "kv_cache_bytes or memory_fraction"
    )
    if device.type == "cpu" and num_bytes > cpu_free_bytes():
        raise ConfigError(too_large)
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(too_large) from error


def gpu_budget_bytes(device: torch.device, *, memory_fraction: float, reserved_bytes: int) -> int:
    """Bytes left for the KV pool when the engine takes `memory_fraction` of the device.

    What other processes and this one hold already is subtracted, and so is what else the engine will need:
    `reserved_bytes`, the measured peak of activations and the CUDA graphs.
    """
    free, total = torch.cuda.mem_get_info(device)
    cached_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    used = total - free - cached_by_torch
    return int(total * memory_fraction) - used - reserved_bytes


def _meminfo_available() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kibibytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kibibytes["MemAvailable"] * 1024


def _cgroup_free() -> int | None:
    """Bytes below the memory limit of the control group (version 2, then 1), its page cache not counted as used."""
    for folder, limit_name, usage_name in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, usage = Path(folder, limit_name), Path(folder, usage_name)
        if limit.is_file() and usage.is_file():
            text = limit.read_text(encoding="ascii").strip()
            used = int(usage.read_text(encoding="ascii")) - _inactive_file_bytes(Path(folder, "memory.stat"))
            return None if text == "max" else int(text) - used
    return None


def _inactive_file_bytes(statistics: Path) -> int:
    """Page cache that the kernel drops first when a control group needs memory."""
    for line in statistics.read_text(encoding="ascii").splitlines():
        name, value = line.split()
        if name == "inactive_file":
            return int(value)
    return 0
