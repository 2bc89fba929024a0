"""Whether two runs were made on the same hardware, and by which facts of their environments this is decided."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.records import Environment, RunPlan

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# Facts that must be equal for speeds to be comparable: they say what computes and how much of it may be used.
PROCESSOR_KEYS = ("cpu_model", "cpu_usable_cores", "cgroup_cpu_cores")
GPU_KEYS = ("name", "memory_bytes", "compute_capability", "power_limit_w")
# Facts that must be equal for two runs to count as runs of one machine in one state.
MACHINE_PREFIXES = ("hardware.", "software.driver")


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact in which two environments differ."""

    key: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.first)} / {shown(self.second)}"


def shown(value: object) -> str:
    """Write a value of an environment or a plan; of a hash the first digits tell it apart."""
    text = str(value)
    return text[:12] if _HASH.fullmatch(text) else text


def environment_differences(first: Environment, second: Environment) -> tuple[Difference, ...]:
    """List every fact in which two environments differ, by its dotted name."""
    one, other = (dict(_leaves(side.model_dump(mode="json", exclude={"fingerprint"}))) for side in (first, second))
    names = sorted(one.keys() | other.keys())
    return tuple(Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name))


def hardware_differences(
    first: Environment, second: Environment, first_plan: RunPlan, second_plan: RunPlan
) -> tuple[Difference, ...]:
    """List what makes the hardware another one; empty for the same hardware.

    The kind of device and the processor must be equal. On a GPU those devices must be alike that both machines have,
    by number: more of the same GPU is no other hardware for the tests that both can run.
    """
    return (*_device(first_plan, second_plan), *_processor(first, second), *_gpus(first, second, first_plan))


def other_machine(first: Environment, second: Environment) -> tuple[Difference, ...]:
    """List what makes the machine another one: any fact of the hardware, the host, or the driver."""
    found = environment_differences(first, second)
    return tuple(difference for difference in found if difference.key.startswith(MACHINE_PREFIXES))


def _device(first: RunPlan, second: RunPlan) -> Iterator[Difference]:
    one, other = (plan.device.partition(":")[0] for plan in (first, second))
    if one != other:
        yield Difference("plan.device", one, other)


def _processor(first: Environment, second: Environment) -> Iterator[Difference]:
    for key in PROCESSOR_KEYS:
        one, other = getattr(first.hardware, key), getattr(second.hardware, key)
        if one != other:
            yield Difference(f"hardware.{key}", one, other)


def _gpus(first: Environment, second: Environment, plan: RunPlan) -> Iterator[Difference]:
    if not plan.device.startswith("cuda"):
        return
    for one, other in zip(first.hardware.gpus, second.hardware.gpus, strict=False):
        for key in GPU_KEYS:
            values = getattr(one, key), getattr(other, key)
            if values[0] != values[1]:
                yield Difference(f"hardware.gpus.{one.index}.{key}", *values)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, object]]:  # noqa: ANN401  any part of a JSON document
    """Walk nested dictionaries and lists to their values, with dotted names."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
