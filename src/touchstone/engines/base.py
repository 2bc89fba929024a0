"""What an engine must offer to lie under the instrument.

Adapters live beside this file, one an engine; they are the only modules that import one, and only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from touchstone.records import DeviceWork, EngineFacts, MemoryParts, Scalar, Trace


class EngineError(RuntimeError):
    """An engine cannot be built or cannot do what was asked; the message names the value and the remedy."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request: ids in, exactly `num_output_tokens` ids out (stop tokens are ignored).

    `arrival_ns` counts from the start of the timed region; 0 means at once.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int
    arrival_ns: int = 0
    temperature: float = 0.0


def nothing_known(_options: Mapping[str, Scalar]) -> None:
    """Know nothing against any value of an option before the engine is built."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can switch and what it reports.

    `options` names the engine options that an arm may set, in the words of docs/engines.md. Those in `fixed` exist in
    one position only: a test may ask for that position and for no other. A metric whose facts an engine does not report
    is "not available", with the text in `unreported` as the reason. `alone` says that a process can hold one such
    engine only, so that tests which alternate between two in one process are not measured. `needs_checkpoint` says that
    the engine loads weights from a folder and cannot draw them itself; `needs_gpu` that it does not run without one;
    `profiles_devices` that it is a `ProfilingEngine`, `forgets_prompts` that it is a `ForgettingEngine`.
    `what_is_wrong` says, before anything is built, why options that the engine has cannot have these values, None where
    nothing is known to be wrong.
    """

    options: frozenset[str]
    reports_steps: bool
    reports_cached_tokens: bool
    reports_memory_parts: bool
    unreported: str | None = None
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    alone: bool = False
    needs_checkpoint: bool = False
    needs_gpu: bool = False
    profiles_devices: bool = False
    forgets_prompts: bool = False
    what_is_wrong: Callable[[Mapping[str, Scalar]], str | None] = nothing_known

    def refuses(self, options: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return the options that stand in a position which the engine does not have, with that position."""
        return {name: value for name, value in options.items() if name in self.fixed and value != self.fixed[name]}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How to build an engine: its name, the model (folder, hub id), and its options.

    `synthetic_seed` asks for seeded random weights of the model's shape; None loads the real ones.
    """

    engine: str
    model: str
    device: str
    dtype: str
    synthetic_seed: int | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)


class Engine(Protocol):
    """An inference engine under test. Built by its adapter's `build(spec)`; lives in one process."""

    capabilities: Capabilities

    def facts(self) -> EngineFacts:
        """Name, version, settings in force and model facts."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1`."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end and tell what happened.

        `concurrency` bounds how many are in flight: 1 is one after the other, a request arriving when the one before
        has ended; None submits each at its arrival time, which the trace repeats: what an engine does before it takes
        a request is time that its user waits. Timing follows `touchstone.clock.timed_region`.
        """
        ...

    def memory(self) -> MemoryParts | None:
        """Where the bytes are after the runs so far; None where the engine cannot tell."""
        ...

    def close(self) -> None:
        """Release the device and all helpers."""
        ...


class ProfilingEngine(Engine, Protocol):
    """An engine that can tell what its devices do, kernel by kernel."""

    def profile(
        self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None
    ) -> tuple[DeviceWork, ...] | None:
        """Run requests under a profiler, which slows them, and tell what each device did; None without a GPU."""
        ...


class ForgettingEngine(Engine, Protocol):
    """An engine whose prefix cache can be emptied, so that prompts which it has answered before are new to it again."""

    def forget_prompts(self) -> bool:
        """Forget what all requests so far have left in the prefix cache; False when the engine refuses now."""
        ...
