"""Per-request and per-step samples of one trace: the raw material of every metric, in host nanoseconds."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from touchstone.analysis.quantities import NotAvailable
from touchstone.experiment import Bilingual

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.records import RequestTrace, StepTrace, Trace

Nanoseconds: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

NO_STEPS = NotAvailable(Bilingual("the engine does not report its steps", "该引擎不报告每一步的信息"))
NO_SCHEDULED = NotAvailable(
    Bilingual("the engine does not report when a request was first scheduled", "该引擎不报告请求首次进入调度的时间")
)
NO_REQUESTS = NotAvailable(Bilingual("the trace holds no request", "记录中没有请求"))


class TimedStep(NamedTuple):
    """A step and the time attributed to it alone; a tuple, because a run has thousands and every metric makes them."""

    step: StepTrace
    attributed_ns: int


def first_token_ns(trace: Trace, request: RequestTrace) -> int:
    """When the request's first output token was on the host."""
    return trace.emission_times_ns[request.emissions[0]]


def last_token_ns(trace: Trace, request: RequestTrace) -> int:
    """When the request's last output token was on the host."""
    return trace.emission_times_ns[request.emissions[-1]]


def unfinished(trace: Trace) -> NotAvailable | None:
    """Why no time of the whole run can be had: it is empty, or a request returned no token. None when it can."""
    if not trace.requests:
        return NO_REQUESTS
    for request in trace.requests:
        if not request.emissions:
            name = request.request_id
            return NotAvailable(Bilingual(f"request {name} returned no token", f"请求 {name} 没有返回任何 token"))
    return None


def ttft(trace: Trace) -> tuple[int, ...]:
    """Arrival to first token on the host, f - a, one value a request."""
    return tuple(first_token_ns(trace, request) - request.arrival_ns for request in trace.requests)


def total_latency(trace: Trace) -> tuple[int, ...]:
    """Arrival to last token on the host, e - a, one value a request."""
    return tuple(last_token_ns(trace, request) - request.arrival_ns for request in trace.requests)


def queue_time(trace: Trace) -> tuple[int, ...] | NotAvailable:
    """Arrival to the first step that holds the request, s - a."""
    scheduled = _scheduled(trace)
    if isinstance(scheduled, NotAvailable):
        return scheduled
    return tuple(begin - request.arrival_ns for begin, request in zip(scheduled, trace.requests, strict=True))


def prefill_time(trace: Trace) -> tuple[int, ...] | NotAvailable:
    """First step that holds the request to its first token on the host, f - s."""
    scheduled = _scheduled(trace)
    if isinstance(scheduled, NotAvailable):
        return scheduled
    pairs = zip(scheduled, trace.requests, strict=True)
    return tuple(first_token_ns(trace, request) - begin for begin, request in pairs)


def tpot(trace: Trace) -> tuple[float, ...]:
    """Mean time of the tokens after the first, (e - f) / (n - 1), one value for each request with n >= 2."""
    several = (request for request in trace.requests if len(request.emissions) > 1)
    return tuple(
        (last_token_ns(trace, request) - first_token_ns(trace, request)) / (len(request.emissions) - 1)
        for request in several
    )


def itl(trace: Trace) -> Nanoseconds:
    """Gaps between consecutive tokens of a request on the host, unsmoothed, pooled over the requests in their order."""
    places = chain.from_iterable(request.emissions for request in trace.requests)
    counts = [len(request.emissions) for request in trace.requests]
    moments = np.array(trace.emission_times_ns, dtype=np.int64)
    gaps = np.diff(moments[np.fromiter(places, dtype=np.int64, count=sum(counts))])
    ends = np.cumsum(counts)
    first_of_next = ends[(ends > 0) & (ends < sum(counts))] - 1  # from one request's last token to another's first
    return np.delete(gaps, first_of_next)


def window_ns(trace: Trace) -> int:
    """First arrival to last token on the host, T = max e - min a. Every request must have a token."""
    last = max(last_token_ns(trace, request) for request in trace.requests)
    return last - min(request.arrival_ns for request in trace.requests)


def attribute_time(steps: Sequence[StepTrace]) -> tuple[TimedStep, ...]:
    """Give every instant to at most one step.

    An engine that overlaps host and device begins step j + 1 before step j has ended, so the intervals [begin, end]
    overlap and their lengths count time twice. Attributed to step j, in the order of the beginnings, is

        t_j = max(0, end_j - max(begin_j, latest end before))

         begin_1        end_1       end_2
            |--- step 1 ---|           |
                   |------ step 2 -----|
            |<--- t_1 --->|<-- t_2 --->|

    so that the sum is the length of the union of the intervals: never more than the window, and without idle gaps.
    The steps of each data-parallel replica are attributed by themselves, since replicas do work at the same time.
    """
    latest: dict[int, int] = {}
    timed = []
    for step in sorted(steps, key=lambda step: (step.begin_ns, step.end_ns)):
        start = max(step.begin_ns, latest.get(step.rank, step.begin_ns))
        timed.append(TimedStep(step, max(0, step.end_ns - start)))
        latest[step.rank] = max(step.end_ns, latest.get(step.rank, step.end_ns))
    return tuple(timed)


def num_replicas(trace: Trace) -> int:
    """Count the data-parallel replicas whose steps the trace holds, at least 1."""
    return max(1, len({step.rank for step in trace.steps or ()}))


def steps_of_kind(trace: Trace, kind: str) -> tuple[TimedStep, ...] | NotAvailable:
    """Select the steps of one kind ("prefill", "decode", "mixed"), with their attributed times."""
    if trace.steps is None:
        return NO_STEPS
    chosen = tuple(timed for timed in attribute_time(trace.steps) if timed.step.kind == kind)
    if not chosen:
        texts = {"prefill": "纯预填充", "decode": "纯解码", "mixed": "混合"}
        english = kind if kind == "mixed" else f"pure {kind}"
        return NotAvailable(Bilingual(f"the run had no {english} step", f"本次运行没有{texts[kind]}步"))
    return chosen


def total_attributed_ns(steps: Iterable[TimedStep]) -> int:
    """Sum of the times that belong to these steps alone."""
    return sum(timed.attributed_ns for timed in steps)


def elapsed_ns(trace: Trace, steps: Iterable[TimedStep]) -> float:
    """Time that these steps of a trace took on the clock: replicas that work at the same time share it."""
    return total_attributed_ns(steps) / num_replicas(trace)


def _scheduled(trace: Trace) -> tuple[int, ...] | NotAvailable:
    found = tuple(request.scheduled_ns for request in trace.requests if request.scheduled_ns is not None)
    if len(found) < len(trace.requests):
        return NotAvailable(
            Bilingual(
                "the engine does not report when a request was first scheduled", "该引擎不报告请求首次被调度的时间"
            )
        )
    return found
