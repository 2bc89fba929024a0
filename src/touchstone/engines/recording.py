"""From what an adapter sees of its engine, token by token, to a Trace; and the loop that lets requests arrive."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from touchstone.canonical import sha256_hex
from touchstone.clock import now_ns, rest
from touchstone.records import RequestTrace, Trace
from touchstone.trace import outputs_sha256, tokens_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.clock import Region
    from touchstone.engines.base import GenerationRequest
    from touchstone.records import StepTrace

_NS_PER_S = 1e9


@dataclass(slots=True)
class Progress:
    """What is known of one request so far; times are readings of `touchstone.clock.now_ns`.

    `emissions` holds an index into the recording's times for each output token. What an engine does not tell is None;
    one that tells no ids leaves `texts`, one piece of text for each token or group of tokens.
    """

    request: GenerationRequest
    arrival_ns: int
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    emissions: list[int] = field(default_factory=list)
    scheduled_ns: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    prompt_tokens: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all tokens that were asked for have come."""
        return len(self.emissions) >= self.request.num_output_tokens


class Recording:
    """Collects the requests of one timed region, whose beginning is `begin_ns`."""

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self._times: list[int] = []
        self._of: dict[int, Progress] = {}

    def arrive(self, request: GenerationRequest, at_ns: int) -> Progress:
        """Begin to follow a request."""
        progress = Progress(request, at_ns)
        self._of[request.request_id] = progress
        return progress

    def moment(self, at_ns: int) -> int:
        """Note a moment at which tokens were on the host, and return its index for `emit`."""
        self._times.append(at_ns)
        return len(self._times) - 1

    @staticmethod
    def emit(progress: Progress, token_ids: Sequence[int], moment: int) -> None:
        """Give a request the tokens that were on the host at a moment."""
        progress.token_ids.extend(token_ids)
        progress.emissions.extend([moment] * len(token_ids))

    def trace(
        self,
        requests: Sequence[GenerationRequest],
        region: Region,
        *,
        steps: Sequence[StepTrace] | None = None,
        peak_concurrency: int | None = None,
        peak_kv_blocks_used: int | None = None,
    ) -> Trace:
        """Tell what happened to the requests, in their order; the region has ended."""
        told = tuple(self._told(self._of[request.request_id]) for request in requests)
        return Trace(
            duration_ns=region.duration_ns,
            emission_times_ns=tuple(time - self.begin_ns for time in self._times),
            requests=told,
            steps=None if steps is None else tuple(steps),
            peak_concurrency=peak_concurrency,
            peak_kv_blocks_used=peak_kv_blocks_used,
            output_sha256=outputs_sha256(request.output_sha256 for request in told),
        )

    def _told(self, progress: Progress) -> RequestTrace:
        request, begin = progress.request, self.begin_ns
        prompt_tokens = progress.prompt_tokens
        return RequestTrace(
            request_id=request.request_id,
            arrival_ns=progress.arrival_ns - begin,
            scheduled_ns=None if progress.scheduled_ns is None else progress.scheduled_ns - begin,
            prompt_tokens=len(request.prompt_token_ids) if prompt_tokens is None else prompt_tokens,
            cached_tokens=progress.cached_tokens,
            requested_tokens=request.num_output_tokens,
            emissions=tuple(progress.emissions),
            finish_reason="length",
            output_sha256=_output_sha256(progress),
            distinct_tokens=len(set(progress.token_ids or progress.texts)),
            preemptions=progress.preemptions,
        )


def _output_sha256(progress: Progress) -> str:
    """Hash the ids, or the text in UTF-8 where an engine tells no ids."""
    if progress.token_ids or not progress.texts:
        return tokens_sha256(progress.token_ids)
    return sha256_hex("".join(progress.texts).encode())


class Stepper(Protocol):
    """An engine that the adapter drives step by step."""

    def submit(self, progress: Progress) -> None:
        """Hand a request over."""
        ...

    def step(self) -> int:
        """Do a step, record its tokens, and return how many requests ended in it."""
        ...


def drive(
    requests: Sequence[GenerationRequest], concurrency: int | None, recording: Recording, stepper: Stepper
) -> None:
    """Let the requests arrive and step until all have ended.

    Without a bound each arrives at its own time, looked at between two steps; with one, a request arrives whenever
    fewer than `concurrency` are in flight.
    """
    waiting = deque(requests if concurrency is not None else sorted(requests, key=lambda request: request.arrival_ns))
    in_flight = 0
    while waiting or in_flight:
        while waiting and _is_due(waiting[0], in_flight, concurrency, recording.begin_ns):
            request = waiting.popleft()
            at_ns = recording.begin_ns + request.arrival_ns if concurrency is None else now_ns()
            stepper.submit(recording.arrive(request, at_ns))
            in_flight += 1
        if in_flight:
            in_flight -= stepper.step()
        else:
            rest(max(0, recording.begin_ns + waiting[0].arrival_ns - now_ns()) / _NS_PER_S)


def _is_due(request: GenerationRequest, in_flight: int, concurrency: int | None, begin_ns: int) -> bool:
    if concurrency is not None:
        return in_flight < concurrency
    return now_ns() - begin_ns >= request.arrival_ns
