"""Which devices an engine runs on, and in which type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanoinfer.config import ConfigError

if TYPE_CHECKING:
    from nanoinfer.execution.memory import MemoryFacts


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device of an engine: where the bytes of the engine are, and how many the device has in use for everyone.

    bytes_in_use  the driver's count, contexts and other processes included; None on a CPU
    bytes_before  the same before the model was there: contexts, and what the ranks add their parts up in; None where
                  the engine has no process of its own on the device, and on a CPU
    """

    device: str
    facts: MemoryFacts
    bytes_in_use: int | None
    bytes_before: int | None = None


def resolve_device(name: str | None) -> torch.device:
    """Return the device asked for, by default CUDA where there is one; a device that is not there is a ConfigError."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; use 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device {name!r} is not supported; use 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def consecutive_devices(name: str | None, count: int) -> list[torch.device]:
    """Return `count` devices from the one asked for on; too few are a ConfigError. CPUs are all the same one."""
    first = resolve_device(name)
    if first.type == "cpu":
        return [first] * count
    there = torch.cuda.device_count() - first.index
    if count > there:
        raise ConfigError(
            f"tensor_parallel_size x data_parallel_size is {count}, but torch sees {there} CUDA devices from {first} "
            f"on; use at most {there}, or start at another device"
        )
    return [torch.device("cuda", first.index + offset) for offset in range(count)]


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; by default float16 on a GPU and float32 on a CPU."""
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def bytes_before_model(device: torch.device) -> int | None:
    """Return the driver's count once this process has its context there and the libraries that every model needs."""
    if device.type == "cuda":
        square = torch.zeros(16, 16, device=device)
        square @ square
    return device_bytes_in_use(device)


def device_bytes_in_use(device: torch.device) -> int | None:
    """Return the driver's count of bytes in use on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free
