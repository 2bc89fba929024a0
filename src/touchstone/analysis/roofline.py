"""The physical floor under every speed: bytes that must be read, operations that must be done, this machine's B and F.

For a step j with p prefill and d decode tokens of a dense decoder with P layer weights, a head of V x H weights and
K layers of Hq query heads of size D:

    bytes_j = weights of the layers, and of the head where tokens are decoded
    FLOPs_j = 2 P (p + d) + 2 V H d
    floor   = max(sum_j max(bytes_j / B, FLOPs_j / F), (sum bytes + KV) / B, (sum FLOPs + attention) / F) / ranks

KV is what attention must read, L + k tokens for the k-th token after the first of a request with L prompt tokens, and
its operations are 4 Hq D K for each pair of a query and a key. Every term is a lower bound: what is computed again,
padded, or kept for longer comes on top (Williams, Waterman, Patterson 2009; Pope et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from touchstone.analysis import samples
from touchstone.analysis.formulas import NS_PER_S
from touchstone.analysis.quantities import NotAvailable
from touchstone.experiment import Bilingual
from touchstone.records import Roofline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from touchstone.analysis.formulas import RunFacts
    from touchstone.records import CanaryReading, EngineFacts, RequestTrace, StepTrace, Trace

# A number may pass the bound by what the canary errs, and by how much faster than a copy, which turns the bus round, a
# kernel is that only reads. Neither is measured; a tenth is allowed for both.
MAX_SHARE = 1.10
MIN_SHARE = 0.10  # slower than ten times the bound is another code path than the one that is thought to be measured

# Operations that a host must start for one decoder layer of an eager step. GPU: two norms, three projections into one,
# head norms with rotation, writing and reading the cache, output, residual, gate and up, activation, down, residual.
# CPU: counted in the reference path, which does in plain operations what fused kernels do on a GPU: 280 dispatched
# operations a decode step of two layers, head and sampling included.
OPERATIONS_PER_LAYER = {"cuda": 12, "cpu": 140}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DECODE, _PREFILL = "decode", "prefill"


@dataclass(frozen=True, slots=True)
class Peaks:
    """F, B and the seconds to start one operation."""

    flops_per_s: float
    bytes_per_s: float
    operation_s: float


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What the shape of a dense decoder makes necessary; `ranks` share it."""

    num_layers: int
    layer_parameters: int
    head_parameters: int
    element_bytes: int
    kv_bytes_per_token: int
    flops_per_pair: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes and operations of some steps, and the seconds that they take at least on all `ranks` together."""

    num_bytes: float
    num_flops: float
    floor_s: float
    launch_s: float | None
    ranks: int = 1


def fastest(readings: Sequence[CanaryReading]) -> Peaks | None:
    """Take the fastest F and B of all readings, so that no floor is too high; None without readings."""
    if not readings:
        return None
    return Peaks(
        max(reading.flops_per_s for reading in readings),
        max(reading.bytes_per_s for reading in readings),
        median(reading.operation_s for reading in readings),
    )


def model_work(engine: EngineFacts | None) -> ModelWork | None:
    """Read the shape from what the engine says of its model; None where it does not say enough."""
    told = engine.model if engine is not None else {}
    names = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    numbers = {name: value for name in names if isinstance(value := told.get(name), int)}
    element = ELEMENT_BYTES.get(str(told.get("dtype")))
    if engine is None or len(numbers) < len(names) or element is None:
        return None
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary = numbers.values()
    layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    return ModelWork(
        num_layers=layers,
        layer_parameters=layers * layer,
        head_parameters=vocabulary * hidden,
        element_bytes=element,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * element,
        flops_per_pair=4 * heads * head_dim * layers,
        ranks=_ranks(engine.settings),
    )


def _ranks(settings: Mapping[str, object]) -> int:
    sizes = (settings.get(name, 1) for name in ("tensor_parallel_size", "data_parallel_size"))
    ranks = 1
    for size in sizes:
        ranks *= size if isinstance(size, int) and size > 0 else 1
    return ranks


# --- the work of steps ----------------------------------------------------------------------------------------------


def work_of(trace: Trace, kind: str | None, model: ModelWork, peaks: Peaks, device: str) -> Work | None:
    """Bound the steps of one kind, or of the whole run for None; None where the run has no such step."""
    steps = [step for step in trace.steps or () if kind in (None, step.kind)]
    if not steps:
        return None
    pairs, kv_tokens = _attention(trace, kind)
    weights = [_weight_bytes(step, model) for step in steps]
    flops = [_linear_flops(step, model) for step in steps]
    num_bytes = sum(weights) + kv_tokens * model.kv_bytes_per_token
    num_flops = sum(flops) + pairs * model.flops_per_pair
    stepwise = sum(
        max(read / peaks.bytes_per_s, done / peaks.flops_per_s) for read, done in zip(weights, flops, strict=True)
    )
    floor_s = max(stepwise, num_bytes / peaks.bytes_per_s, num_flops / peaks.flops_per_s) / model.ranks
    return Work(num_bytes, num_flops, floor_s, _launch_s(steps, model, peaks, device), model.ranks)


def _weight_bytes(step: StepTrace, model: ModelWork) -> int:
    head = model.head_parameters if step.decode_tokens else 0
    return (model.layer_parameters + head) * model.element_bytes


def _linear_flops(step: StepTrace, model: ModelWork) -> int:
    tokens = step.prefill_tokens + step.decode_tokens
    return 2 * (model.layer_parameters * tokens + model.head_parameters * step.decode_tokens)


def _attention(trace: Trace, kind: str | None) -> tuple[int, int]:
    """Pairs of query and key, and cached tokens to read; (0, 0) where mixed steps hide which kind did what."""
    if kind is not None and any(step.kind == "mixed" for step in trace.steps or ()):
        return 0, 0
    prefill = sum(_triangle(request.prompt_tokens) - _triangle(_cached(request)) for request in trace.requests)
    decode = sum(_decode_contexts(request) for request in trace.requests)
    cached = sum(_cached(request) for request in trace.requests)
    if kind == _PREFILL:
        return prefill, cached
    return (decode, decode) if kind == _DECODE else (prefill + decode, cached + decode)


def _decode_contexts(request: RequestTrace) -> int:
    """Sum L + k over the tokens k = 1 .. n - 1 that decode steps compute."""
    later = max(0, len(request.emissions) - 1)
    return later * request.prompt_tokens + _triangle(later)


def _cached(request: RequestTrace) -> int:
    return request.cached_tokens or 0


def _triangle(number: int) -> int:
    return number * (number + 1) // 2


def _launch_s(steps: Sequence[StepTrace], model: ModelWork, peaks: Peaks, device: str) -> float | None:
    """Host time that starting the operations takes at least; None where a graph starts them all at once."""
    if any(step.graph for step in steps):
        return None
    per_layer = OPERATIONS_PER_LAYER["cuda" if device.startswith("cuda") else "cpu"]
    return len(steps) * model.num_layers * per_layer * peaks.operation_s


# --- metrics --------------------------------------------------------------------------------------------------------

Select = tuple["str | None", "Callable[[Trace], float | None]", "Literal['rate', 'time']"]


def _whole(trace: Trace) -> float | None:
    return None if samples.unfinished(trace) is not None else samples.window_ns(trace) / NS_PER_S


def _of_kind(kind: str) -> Callable[[Trace], float | None]:
    def seconds(trace: Trace) -> float | None:
        steps = samples.steps_of_kind(trace, kind)
        return None if isinstance(steps, NotAvailable) else samples.elapsed_ns(trace, steps) / NS_PER_S

    return seconds


# Which steps a metric is about, how long they took, and whether the bound is its largest or its smallest value.
ROOFED: dict[str, Select] = {
    "prefill_throughput": (_PREFILL, _of_kind(_PREFILL), "rate"),
    "decode_throughput": (_DECODE, _of_kind(_DECODE), "rate"),
    "decode_step_time": (_DECODE, _of_kind(_DECODE), "time"),
    "e2e_throughput": (None, _whole, "rate"),
    "output_throughput": (None, _whole, "rate"),
    "e2e_throughput_uncached": (None, _whole, "rate"),
    "total_time": (None, _whole, "time"),
}
# A latency is held against the run's steps only where requests run one after the other: otherwise it holds waiting.
ROOFED_ALONE: dict[str, Select] = {
    "tpot_mean": (_DECODE, _of_kind(_DECODE), "time"),
    "tpot_p50": (_DECODE, _of_kind(_DECODE), "time"),
    "ttft_mean": (_PREFILL, _of_kind(_PREFILL), "time"),
    "ttft_p50": (_PREFILL, _of_kind(_PREFILL), "time"),
    "total_latency_mean": (None, _whole, "time"),
    "total_latency_p50": (None, _whole, "time"),
}


def roofline_of(
    metric: str, facts: RunFacts, value: float, peaks: Peaks, device: str, *, alone: bool
) -> Roofline | None:
    """Hold one run's metric against its floor; None for a metric without one, or without steps or model facts."""
    select = ROOFED.get(metric) or (ROOFED_ALONE.get(metric) if alone else None)
    model = model_work(facts.engine)
    if select is None or model is None:
        return None
    kind, measured, sense = select
    work, measured_s = work_of(facts.trace, kind, model, peaks, device), measured(facts.trace)
    if work is None or not measured_s:
        return None
    share = work.floor_s / measured_s
    explanation = explain(work, measured_s)
    by_bytes = work.num_bytes / peaks.bytes_per_s >= work.num_flops / peaks.flops_per_s
    return Roofline(
        floor_s=work.floor_s,
        measured_s=measured_s,
        share=share,
        bound=value / share if sense == "rate" else value * share,
        limited_by="bytes" if by_bytes else "FLOPs",
        num_bytes=work.num_bytes,
        num_flops=work.num_flops,
        bytes_per_s=peaks.bytes_per_s,
        flops_per_s=peaks.flops_per_s,
        launch_s=work.launch_s,
        explanation=None if explanation is None else explanation.en,
        explanation_zh=None if explanation is None else explanation.zh,
    )


def explain(work: Work, measured_s: float) -> Bilingual | None:
    """Explain a share below a tenth by one of two rules, both bounds themselves: beyond ten times it stays unexplained.

    Starting the operations takes the host that long. Or several devices exchange results, which the floor leaves out:
    as slow as one device may be, they may be too.
    """
    if work.floor_s / measured_s >= MIN_SHARE:
        return None
    if work.launch_s is None or work.launch_s / measured_s < MIN_SHARE:
        return _explain_by_exchange(work, measured_s)
    share = work.launch_s / measured_s
    return Bilingual(
        f"bound by starting operations: that alone takes the host {work.launch_s:.3g} s, {share:.0%} of the time",
        f"受限于启动操作：仅此一项主机就需 {work.launch_s:.3g} s，占用时的 {share:.0%}",
    )


def _explain_by_exchange(work: Work, measured_s: float) -> Bilingual | None:
    of_one = work.ranks * work.floor_s / measured_s
    if work.ranks == 1 or of_one < MIN_SHARE:
        return None
    return Bilingual(
        f"bound by what {work.ranks} devices exchange: of one device's bound it reaches {of_one:.0%}",
        f"受限于 {work.ranks} 个设备之间的通信：达到单设备上限的 {of_one:.0%}",
    )


def too_fast(roofline: Roofline) -> Bilingual | None:
    """Refuse what is faster than the machine can be."""
    if roofline.share <= MAX_SHARE:
        return None
    return Bilingual(
        f"{roofline.measured_s:.4g} s for work that takes at least {roofline.floor_s:.4g} s: {inputs(roofline).en}",
        f"耗时 {roofline.measured_s:.4g} s，而这些工作至少需要 {roofline.floor_s:.4g} s：{inputs(roofline).zh}",
    )


def too_slow(roofline: Roofline) -> Bilingual | None:
    """Refuse what is slower than a tenth of the bound without the explanation that there is."""
    if roofline.share >= MIN_SHARE or roofline.explanation is not None:
        return None
    return Bilingual(
        f"{roofline.measured_s:.4g} s, more than ten times the floor of {roofline.floor_s:.4g} s: "
        f"{inputs(roofline).en}, and starting the operations does not explain it",
        f"耗时 {roofline.measured_s:.4g} s，超过下限 {roofline.floor_s:.4g} s 的十倍：{inputs(roofline).zh}，"
        "且启动操作的开销不足以解释",
    )


def inputs(roofline: Roofline) -> Bilingual:
    """Name both inputs of a floor."""
    text = (
        f"{roofline.num_flops:.4g} FLOPs at F = {roofline.flops_per_s:.4g} FLOP/s, "
        f"{roofline.num_bytes:.4g} bytes at B = {roofline.bytes_per_s:.4g} B/s"
    )
    return Bilingual(text, text.replace(", ", "，").replace(" at ", "，"))
