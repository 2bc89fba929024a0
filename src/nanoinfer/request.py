"""What a user asks for, what the engine knows while working on it, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from nanoinfer.fields import wrong_type

if TYPE_CHECKING:
    from collections.abc import MutableSequence, Sequence


# Outside of these, logits divided by the temperature are no longer numbers of float32.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-6, 1e6


class RequestError(ValueError):
    """A request that can never run; the message names the value and the remedy."""


class Status(Enum):
    """Where a request stands in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended."""

    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the output tokens of one request are chosen.

    `temperature` 0 is greedy. `top_k` and `top_p` restrict the choice to the most likely tokens; None means no
    restriction. A `seed` makes the tokens a function of the request alone, whatever else is in the batch. Stop tokens
    are the model's end-of-sequence ids (unless `ignore_eos`) and `stop_token_ids`; a stop token is part of the output.
    """

    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int = 16
    ignore_eos: bool = False
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if (fault := wrong_type(self)) is not None:
            raise RequestError(fault)
        if not (self.is_greedy or _LOWEST_TEMPERATURE <= self.temperature <= _HIGHEST_TEMPERATURE):
            raise RequestError(
                f"temperature is {self.temperature}; use 0 for greedy or a number from {_LOWEST_TEMPERATURE:g} to "
                f"{_HIGHEST_TEMPERATURE:g}"
            )
        if self.top_p is not None and not (0.0 < self.top_p <= 1.0):
            raise RequestError(f"top_p is {self.top_p}; use a number above 0 and at most 1, or None for no limit")
        if self.top_k is not None and self.top_k < 1:
            raise RequestError(f"top_k is {self.top_k}; use at least 1, or None for no limit")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; ask for at least 1 token")
        if self.seed is not None and self.seed < 0:
            raise RequestError(f"seed is {self.seed}; use an integer from 0 to 2**63 - 1, or None")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@dataclass(slots=True, eq=False)
class Request:
    """The only mutable state of one request; written by the scheduler alone.

    `token_ids` are the prompt and then every output token that the host has seen. `num_scheduled_tokens` counts the
    positions whose keys and values are computed or on their way in a launched step; `num_pending_outputs` counts
    sampled tokens that exist on the device only, because their step is not committed yet. So while nothing is in
    flight, a decoding request has `num_scheduled_tokens == len(token_ids) - 1`. `block_digests` are the chained content
    hashes of the full blocks of `token_ids`, as far as they were needed; they outlive a preemption.
    """

    request_id: int
    token_ids: MutableSequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    arrival_ns: int
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    slot: int | None = None
    block_table: list[int] = field(default_factory=list)
    block_digests: list[bytes] = field(default_factory=list)
    num_scheduled_tokens: int = 0
    num_pending_outputs: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ns: int | None = None
    token_times_ns: list[int] = field(default_factory=list)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens that the host has seen."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> Sequence[int]:
        """The output tokens so far."""
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """When things happened to one request; host `perf_counter_ns` readings.

    `scheduled_ns` is when the request was first put into a step, `token_times_ns[i]` when output token i was known on
    the host. `num_cached_tokens` are the prompt tokens found in the prefix cache at first admission.
    """

    arrival_ns: int
    scheduled_ns: int | None
    token_times_ns: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One finished request, in the order in which the prompts were given."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    facts: RequestFacts


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What one engine step did and when.

    `num_prefill_tokens` counts prompt (or recomputed) positions computed, `num_decode_tokens` one for each request
    that fed back a sampled token. `begin_ns`, `launched_ns` and `end_ns` are host readings: scheduling begins; the
    launch has returned; the sampled tokens are on the host. `device_ns` is the device's own time for the step, None
    where it was not recorded. `graph` says whether a CUDA graph was replayed. Where steps overlap, a step begins before
    the one before it has ended: the time that it adds is `end_ns - max(begin_ns, end_ns of the step before)`.
    """

    phase: str
    num_prefill_tokens: int
    num_decode_tokens: int
    num_requests: int
    begin_ns: int
    launched_ns: int
    end_ns: int
    device_ns: int | None
    graph: bool
    rank: int = 0
