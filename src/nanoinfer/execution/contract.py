"""What a loop needs of whatever computes its steps, in this process or in others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from nanoinfer.execution.cuda_graphs import GraphFacts
    from nanoinfer.execution.devices import DeviceMemory
    from nanoinfer.execution.profile import DeviceProfile
    from nanoinfer.scheduling.plan import StepPlan


class Handle(Protocol):
    """A launched step. Steps are waited for in the order of their launches."""

    @property
    def graph(self) -> bool:
        """Whether a CUDA graph is replayed."""
        ...

    def tokens(self) -> list[int]:
        """Wait for the ids, one for each sampled row in the plan's order."""
        ...

    def device_ns(self) -> int | None:
        """Time the step took on the (first) device, None where that was not recorded; call it after `tokens`."""
        ...


class StepRunner(Protocol):
    """Computes plans in their order."""

    def launch(self, plan: StepPlan) -> Handle:
        """Queue one step and return without waiting for it (on a CPU of this process: when it is done)."""
        ...


class Ranks(Protocol):
    """The processes of a tensor-parallel engine."""

    def memory(self, num_used_blocks: int) -> list[DeviceMemory]:
        """Where the bytes are on every rank's device, with so many blocks in use at the peak."""
        ...

    def start_profile(self) -> None:
        """Let every rank record what its device does; returns when all do."""
        ...

    def stop_profile(self) -> list[DeviceProfile | None]:
        """Return what each rank's device did since; None for a device that records nothing."""
        ...

    def close(self) -> None:
        """End the processes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A runner and what was decided while it was built; with several ranks bytes are those of the first one.

    num_blocks     blocks that the KV cache may hand out; the pool has one more, for padding
    max_model_len  longest prompt plus output that works: the setting, or the model's limit as far as the pool reaches
    graphs         what the capture of CUDA graphs cost, None where there are none
    ranks          the processes that compute, None where this one does
    """

    runner: StepRunner
    device: torch.device
    dtype: torch.dtype
    num_blocks: int
    max_model_len: int
    block_bytes: int
    pool_bytes: int
    weights_bytes: int
    activations_peak_bytes: int | None
    graphs: GraphFacts | None
    ranks: Ranks | None = None
