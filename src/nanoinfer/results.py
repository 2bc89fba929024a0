"""What engines and their front door tell each other, as integers.

On the way in requests; on the way back tokens and their times, requests that have ended, facts of steps.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.request import FinishReason, Request, RequestFacts, RequestOutput, SamplingParams, StepFacts
from nanoinfer.scheduling.plan import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from nanoinfer.execution.channel import Message

_PHASES = tuple(phase.value for phase in Phase)
_UNKNOWN = -1  # an integer that is None
_REQUEST_FIELDS = 4


def pack_requests(requests: Sequence[Request], clock_offset_ns: int) -> tuple[dict[str, Any], Tensor]:
    """Lay requests out for an engine whose clock is so much ahead: settings, each once, then four integers a request.

    Their prompts follow end to end.
    """
    numbers: dict[SamplingParams, int] = {}
    rows = [
        (
            request.request_id,
            request.arrival_ns + clock_offset_ns,
            request.num_prompt_tokens,
            numbers.setdefault(request.sampling, len(numbers)),
        )
        for request in requests
    ]
    facts = {"num_requests": len(rows), "samplings": [asdict(sampling) for sampling in numbers]}
    return facts, end_to_end([*rows, *(request.token_ids for request in requests)])


def unpack_requests(message: Message) -> list[Request]:
    """Read back what `pack_requests` has laid out."""
    samplings = [
        SamplingParams(**facts | {"stop_token_ids": tuple(facts["stop_token_ids"])})
        for facts in message.facts["samplings"]
    ]
    num_rows = _REQUEST_FIELDS * message.facts["num_requests"]
    rows, token_ids = message.integers[:num_rows].view(-1, _REQUEST_FIELDS), message.integers[num_rows:].tolist()
    requests, begin = [], 0
    for number, arrival_ns, num_tokens, sampling in rows.tolist():
        prompt = token_ids[begin : begin + num_tokens]
        requests.append(Request(number, prompt, num_tokens, samplings[sampling], arrival_ns))
        begin += num_tokens
    return requests


@dataclass(slots=True)
class Partial:
    """What the front door has of a request so far; times are readings of its own clock."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)

    def output(self, facts: Mapping[str, Any], clock_offset_ns: int) -> RequestOutput:
        """Freeze the request as its engine ended it."""
        request, scheduled_ns = self.request, facts["scheduled_ns"]
        return RequestOutput(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.token_ids),
            token_ids=tuple(self.token_ids),
            text=None,
            finish_reason=FinishReason(facts["finish_reason"]),
            facts=RequestFacts(
                arrival_ns=request.arrival_ns,
                scheduled_ns=None if scheduled_ns is None else scheduled_ns - clock_offset_ns,
                token_times_ns=tuple(self.times_ns),
                num_prompt_tokens=request.num_prompt_tokens,
                num_cached_tokens=facts["num_cached_tokens"],
                num_preemptions=facts["num_preemptions"],
            ),
        )


def pack_ends(requests: Sequence[Request], num_sent: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
    """Lay requests out that have ended: facts one by one, and end to end the tokens that were not sent before."""
    facts = {
        "requests": [
            {
                "request_id": request.request_id,
                "num_tokens": request.num_output_tokens - sent,
                "finish_reason": (request.finish_reason or FinishReason.CANCELLED).value,
                "scheduled_ns": request.scheduled_ns,
                "num_cached_tokens": request.num_cached_tokens,
                "num_preemptions": request.num_preemptions,
            }
            for request, sent in zip(requests, num_sent, strict=True)
        ]
    }
    pairs = list(zip(requests, num_sent, strict=True))
    tokens = [request.token_ids[request.num_prompt_tokens + sent :] for request, sent in pairs]
    return facts, end_to_end([*tokens, *(request.token_times_ns[sent:] for request, sent in pairs)])


def end_to_end(rows: Iterable[Sequence[int]]) -> Tensor:
    """Lay rows of integers out one after the other."""
    joined = bytearray().join(array("q", row) for row in rows)  # in half the time of one array from all integers
    return torch.frombuffer(joined, dtype=torch.int64) if joined else torch.empty(0, dtype=torch.int64)


def take_in_tokens(message: Message, partials: Mapping[int, Partial], clock_offset_ns: int) -> None:
    """Append a message's tokens to their requests; `clock_offset_ns` is what the engine's clock is ahead of ours."""
    listed = message.facts["requests"]
    bounds = [0, *accumulate(facts["num_tokens"] for facts in listed)]
    tokens = message.integers[: bounds[-1]].tolist()
    times = (message.integers[bounds[-1] :] - clock_offset_ns).tolist()
    for facts, (begin, end) in zip(listed, pairwise(bounds), strict=True):
        partial = partials[facts["request_id"]]
        partial.token_ids += tokens[begin:end]
        partial.times_ns += times[begin:end]


STEP_FIELDS = 9


def step_integers(step: StepFacts) -> list[int]:
    """Lay the facts of a step out as STEP_FIELDS integers."""
    return [
        _PHASES.index(step.phase),
        step.num_prefill_tokens,
        step.num_decode_tokens,
        step.num_requests,
        step.begin_ns,
        step.launched_ns,
        step.end_ns,
        _UNKNOWN if step.device_ns is None else step.device_ns,
        int(step.graph),
    ]


def step_facts(row: Sequence[int], rank: int, clock_offset_ns: int) -> StepFacts:
    """Read the facts of a step of engine `rank` back, its times as readings of this process's clock."""
    phase, num_prefill, num_decode, num_requests, begin_ns, launched_ns, end_ns, device_ns, graph = row
    return StepFacts(
        phase=_PHASES[phase],
        num_prefill_tokens=num_prefill,
        num_decode_tokens=num_decode,
        num_requests=num_requests,
        begin_ns=begin_ns - clock_offset_ns,
        launched_ns=launched_ns - clock_offset_ns,
        end_ns=end_ns - clock_offset_ns,
        device_ns=None if device_ns == _UNKNOWN else device_ns,
        graph=bool(graph),
        rank=rank,
    )
