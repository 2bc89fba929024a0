"""Seeded synthetic requests. The laws below are exact: whoever knows spec, vocabulary size and seed has the requests.

All randomness comes from `random.Random(seed).random()`, the one stream that Python promises to keep across versions;
integers are made from it by `floor(low + u * (high - low + 1))`. The draws are made in the order of this text.

1. For request 0, 1, ...: the input length, then the output length, each uniform over low..high inclusive.
2. If requests share a prefix: a Fisher-Yates shuffle of the request ids; the first `num_sharing(spec)` of them share.
   Then the common prefix, `prefix_length(spec, high)` ids long, uniform over the vocabulary.
3. For request 0, 1, ...: its own ids, uniform over the vocabulary. A sharing request of L ids begins with the first
   `prefix_length(spec, L)` ids of the common prefix; the other ids are its own.
4. With a request rate: request 0 arrives at 0, each later one an exponential gap after the one before (Poisson).
   A load is such a rate, known once the process has measured what it is a share of (`at_rate`).
"""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING, TypeVar

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.base import GenerationRequest
from touchstone.records import Lengths, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.records import ArmSpec

Item = TypeVar("Item")

_MIN_VOCABULARY = 2
_NS_PER_S = 1_000_000_000


class WorkloadError(ValueError):
    """A workload that cannot be built; the message names the value and the remedy."""


def derive_seed(*parts: str | int) -> int:
    """Make an independent 63-bit seed from a seed and the names of what it is for."""
    return int(sha256_hex(canonical_json(list(parts)))[:16], 16) >> 1


def fixed(
    num_requests: int,
    input_tokens: int,
    output_tokens: int,
    *,
    concurrency: int | None = None,
    shared_fraction: float = 0.0,
    prefix_fraction: float = 0.0,
) -> WorkloadSpec:
    """Describe greedy requests that are all of one length."""
    return WorkloadSpec(
        num_requests=num_requests,
        input_tokens=Lengths(low=input_tokens, high=input_tokens),
        output_tokens=Lengths(low=output_tokens, high=output_tokens),
        concurrency=concurrency,
        shared_fraction=shared_fraction,
        prefix_fraction=prefix_fraction,
    )


def ranged(
    num_requests: int, input_tokens: tuple[int, int], output_tokens: tuple[int, int], *, load: float | None = None
) -> WorkloadSpec:
    """Describe greedy requests of lengths between low and high; a load lets them arrive over time."""
    return WorkloadSpec(
        num_requests=num_requests,
        input_tokens=Lengths(low=input_tokens[0], high=input_tokens[1]),
        output_tokens=Lengths(low=output_tokens[0], high=output_tokens[1]),
        load=load,
    )


def with_extra_output(spec: WorkloadSpec, share: float) -> WorkloadSpec:
    """Ask for so many more output tokens, rounded to whole ones; the prompts that are drawn stay the same."""
    lengths = spec.output_tokens
    longer = Lengths(low=round(lengths.low * (1 + share)), high=round(lengths.high * (1 + share)))
    return spec.model_copy(update={"output_tokens": longer})


def of_arm(spec: WorkloadSpec, arm: ArmSpec) -> WorkloadSpec:
    """Say what one arm of a test is asked for: its own number of requests where it has one, and its extra output."""
    num_requests = spec.num_requests if arm.num_requests is None else arm.num_requests
    return with_extra_output(spec.model_copy(update={"num_requests": num_requests}), arm.extra_output)


def with_short_output(spec: WorkloadSpec, most: int | None) -> WorkloadSpec:
    """Ask for no more than so many output tokens; None leaves the workload as it is."""
    if most is None:
        return spec
    lengths = spec.output_tokens
    shorter = Lengths(low=min(lengths.low, most), high=min(lengths.high, most))
    return spec.model_copy(update={"output_tokens": shorter})


def all_at_once(spec: WorkloadSpec) -> WorkloadSpec:
    """Let the requests of a load arrive together: what its rate is a share of."""
    return spec.model_copy(update={"load": None})


def at_rate(spec: WorkloadSpec, request_rate_per_s: float | None) -> WorkloadSpec:
    """Turn a load into the rate that it came to; without a rate the workload stays as it is."""
    if request_rate_per_s is None:
        return spec
    return spec.model_copy(update={"load": None, "request_rate_per_s": request_rate_per_s})


def num_sharing(spec: WorkloadSpec) -> int:
    """Count the requests that begin with the common prefix: floor(shared_fraction x requests), in exact decimals."""
    return math.floor(_decimal(spec.shared_fraction) * spec.num_requests)


def prefix_length(spec: WorkloadSpec, input_tokens: int) -> int:
    """Count the ids that a sharing request of this length has in common: floor(prefix_fraction x length), exact."""
    return math.floor(_decimal(spec.prefix_fraction) * input_tokens)


def build(spec: WorkloadSpec, vocabulary_size: int, seed: int) -> list[GenerationRequest]:
    """Draw the requests of a workload, in the order of their ids, by the laws at the head of this module."""
    _check(spec, vocabulary_size)
    random = Random(seed)
    lengths = [(_draw_length(random, spec.input_tokens), _draw_length(random, spec.output_tokens)) for _ in _ids(spec)]
    sharing = _draw_sharing(random, spec)
    prefix = _draw_tokens(random, prefix_length(spec, spec.input_tokens.high) if sharing else 0, vocabulary_size)
    prompts: list[tuple[int, ...]] = []
    for request_id, (num_input, _) in enumerate(lengths):
        shared = prefix[: prefix_length(spec, num_input)] if request_id in sharing else ()
        prompts.append(shared + _draw_tokens(random, num_input - len(shared), vocabulary_size))
    arrivals = _draw_arrivals(random, spec)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt_token_ids=prompts[request_id],
            num_output_tokens=lengths[request_id][1],
            arrival_ns=arrivals[request_id],
            temperature=spec.temperature,
        )
        for request_id in _ids(spec)
    ]


def _check(spec: WorkloadSpec, vocabulary_size: int) -> None:
    if vocabulary_size < _MIN_VOCABULARY:
        raise WorkloadError(f"the vocabulary has {vocabulary_size} ids; prompts need at least {_MIN_VOCABULARY}")
    for name, lengths in (("input_tokens", spec.input_tokens), ("output_tokens", spec.output_tokens)):
        if lengths.high < lengths.low:
            raise WorkloadError(f"{name} is {lengths.low}..{lengths.high}; the low end must not exceed the high end")
    if spec.request_rate_per_s is not None and spec.request_rate_per_s <= 0:
        raise WorkloadError(
            f"request_rate_per_s is {spec.request_rate_per_s}; use a positive rate, or None for at once"
        )
    if spec.load is not None:
        raise WorkloadError(f"load is {spec.load}, a share of a rate that is yet to be measured; give the rate")
    if spec.concurrency is not None and spec.concurrency < 1:
        raise WorkloadError(f"concurrency is {spec.concurrency}; use at least 1, or None for no bound")
    if spec.concurrency is not None and spec.request_rate_per_s is not None:
        raise WorkloadError("concurrency and request_rate_per_s are both set; a request arrives by one of the two laws")
    if (spec.shared_fraction > 0) != (spec.prefix_fraction > 0):
        raise WorkloadError(
            f"shared_fraction is {spec.shared_fraction} and prefix_fraction {spec.prefix_fraction}; "
            "set both above 0 for a shared prefix, or leave both at 0"
        )


def _ids(spec: WorkloadSpec) -> range:
    return range(spec.num_requests)


def _decimal(value: float) -> Fraction:
    """Read a fraction as it is written: 0.29 is 29/100, not the binary number below it."""
    return Fraction(str(value))


def _draw_integer(random: Random, low: int, high: int) -> int:
    return low + math.floor(random.random() * (high - low + 1))


def _draw_length(random: Random, lengths: Lengths) -> int:
    return _draw_integer(random, lengths.low, lengths.high)


def _draw_tokens(random: Random, count: int, vocabulary_size: int) -> tuple[int, ...]:
    return tuple(_draw_integer(random, 0, vocabulary_size - 1) for _ in range(count))


def _draw_sharing(random: Random, spec: WorkloadSpec) -> frozenset[int]:
    if not spec.shared_fraction:
        return frozenset()
    return frozenset(shuffled(random, _ids(spec))[: num_sharing(spec)])


def shuffled(random: Random, items: Sequence[Item]) -> list[Item]:
    """Return the items in an order drawn by Fisher and Yates, from the stable stream only."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = _draw_integer(random, 0, last)
        result[last], result[other] = result[other], result[last]
    return result


def _draw_arrivals(random: Random, spec: WorkloadSpec) -> list[int]:
    if spec.request_rate_per_s is None:
        return [0] * spec.num_requests
    arrivals_s = [0.0]
    for _ in range(spec.num_requests - 1):
        arrivals_s.append(arrivals_s[-1] - math.log1p(-random.random()) / spec.request_rate_per_s)
    return [round(arrival * _NS_PER_S) for arrival in arrivals_s]
