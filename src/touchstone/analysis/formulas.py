"""The arithmetic of the metric dictionary: from the facts of one timed run to one value, or to why there is none.

The symbols are those of `touchstone.analysis.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from touchstone.analysis import prediction, samples
from touchstone.analysis.quantities import Measured, NotAvailable, Quantity, Unit
from touchstone.experiment import Bilingual
from touchstone.records import DeviceWork, EngineFacts, GraphCapture, MemoryParts, RequestTrace, Telemetry, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.analysis.prediction import Asked

MIN_SAMPLES_FOR_P99 = 100
MIN_S_FOR_ENERGY = 10
NS_PER_S = 1e9
NS_PER_MS = 1e6
BYTES_PER_GB = 1e9

Milliseconds: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Draw: TypeAlias = Callable[[Trace], Sequence[float] | samples.Nanoseconds | NotAvailable]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What one timed run left behind; `graphs` is what capturing them cost the arm's engine.

    `device_work` is of the one profiled run of the same arm in the same process, empty where none was made.
    """

    trace: Trace
    memory: MemoryParts | None = None
    engine: EngineFacts | None = None
    telemetry: Telemetry | None = None
    asked: Asked | None = None
    graphs: GraphCapture | None = None
    device_work: tuple[DeviceWork, ...] = ()


def sample_ms(draw: Draw, trace: Trace) -> Milliseconds | NotAvailable:
    """Draw the samples of one run in milliseconds, or say why there are none."""
    if (reason := samples.unfinished(trace)) is not None:
        return reason
    drawn = draw(trace)
    if isinstance(drawn, NotAvailable):
        return drawn
    if len(drawn) == 0:
        return NotAvailable(
            Bilingual(
                "every request returned a single token, so no gap exists", "每个请求只返回一个 token，没有间隔可测"
            )
        )
    return np.asarray(drawn, dtype=np.float64) / NS_PER_MS


PERCENTILES: Mapping[str, float] = MappingProxyType({"p50": 50.0, "p90": 90.0, "p99": 99.0})


def mean_of(draw: Draw, facts: RunFacts) -> Measured:
    """Mean over the samples of the run."""
    values = sample_ms(draw, facts.trace)
    if isinstance(values, NotAvailable):
        return values
    return Quantity(float(np.mean(values)), Unit.MILLISECONDS, len(values), {"N": len(values)})


def max_of(draw: Draw, facts: RunFacts) -> Measured:
    """Largest sample of the run."""
    values = sample_ms(draw, facts.trace)
    if isinstance(values, NotAvailable):
        return values
    return Quantity(float(values.max()), Unit.MILLISECONDS, len(values), {"N": len(values)})


def percentile_of(draw: Draw, percent: float, facts: RunFacts) -> Measured:
    """Percentile with linear interpolation; the 99th is withheld below 100 samples, where the maximum makes it."""
    values = sample_ms(draw, facts.trace)
    if isinstance(values, NotAvailable):
        return values
    if percent >= PERCENTILES["p99"] and len(values) < MIN_SAMPLES_FOR_P99:
        return NotAvailable(
            Bilingual(
                f"{len(values)} samples in a run; the 99th percentile needs at least {MIN_SAMPLES_FOR_P99}",
                f"每次运行只有 {len(values)} 个样本，p99 至少需要 {MIN_SAMPLES_FOR_P99} 个",
            )
        )
    value = float(np.percentile(values, percent, method="linear"))
    return Quantity(value, Unit.MILLISECONDS, len(values), {"N": len(values)})


# --- rates and times of the whole run -------------------------------------------------------------------------------


def token_rate(count: Callable[[RequestTrace], int | None], symbol: str, unit: Unit, facts: RunFacts) -> Measured:
    """Divide the tokens that `count` finds in the requests by the window T."""
    if (reason := samples.unfinished(facts.trace)) is not None:
        return reason
    counts = [count(request) for request in facts.trace.requests]
    known = [value for value in counts if value is not None]
    if len(known) < len(counts):
        return NO_CACHED_TOKENS
    seconds = samples.window_ns(facts.trace) / NS_PER_S
    return Quantity(sum(known) / seconds, unit, terms={symbol: sum(known), "T": seconds})


def uncached_and_output(request: RequestTrace) -> int | None:
    """Prompt tokens that had to be computed plus output tokens; None where cached ones are not reported."""
    cached = request.cached_tokens
    return None if cached is None else request.prompt_tokens - cached + len(request.emissions)


def step_rate(kind: str, facts: RunFacts) -> Measured:
    """Tokens of the pure steps of one kind over their attributed time."""
    steps = samples.steps_of_kind(facts.trace, kind)
    if isinstance(steps, NotAvailable):
        return steps
    prefill = kind == "prefill"
    tokens = sum(timed.step.prefill_tokens if prefill else timed.step.decode_tokens for timed in steps)
    seconds = samples.elapsed_ns(facts.trace, steps) / NS_PER_S
    if seconds == 0:
        return NotAvailable(Bilingual(f"the {kind} steps took no measurable time", "这些步的耗时低于时钟分辨率"))
    unit = Unit.PREFILL_TOKENS_PER_S if prefill else Unit.DECODE_TOKENS_PER_S
    return Quantity(
        tokens / seconds, unit, terms={r"\sum p_j" if prefill else r"\sum d_j": tokens, r"\sum t_j": seconds}
    )


def total_time(facts: RunFacts) -> Measured:
    """Window from the first arrival to the last token."""
    if (reason := samples.unfinished(facts.trace)) is not None:
        return reason
    last = max(samples.last_token_ns(facts.trace, request) for request in facts.trace.requests) / NS_PER_S
    first = min(request.arrival_ns for request in facts.trace.requests) / NS_PER_S
    return Quantity(
        samples.window_ns(facts.trace) / NS_PER_S, Unit.SECONDS, terms={r"\max e_i": last, r"\min a_i": first}
    )


def mean_concurrency(facts: RunFacts) -> Measured:
    """Mean number of requests in flight by Little's law."""
    if (reason := samples.unfinished(facts.trace)) is not None:
        return reason
    seconds = samples.window_ns(facts.trace) / NS_PER_S
    in_flight = sum(samples.total_latency(facts.trace)) / NS_PER_S
    return Quantity(in_flight / seconds, Unit.REQUESTS, terms={r"\sum (e_i - a_i)": in_flight, "T": seconds})


def energy_per_output_token(facts: RunFacts) -> Measured:
    """Energy of all GPUs by the driver's counter over the output tokens; only over a window of 10 s and more.

    The counter is renewed some ten times a second, so a shorter window would err by more than 1 %.
    """
    energies = [gpu.energy_j for gpu in facts.telemetry.gpus] if facts.telemetry is not None else []
    known = [energy for energy in energies if energy is not None]
    if facts.telemetry is None or not known or len(known) < len(energies):
        return NotAvailable(Bilingual("no GPU with an energy counter was watched", "没有带能耗计数器的 GPU 可供监测"))
    seconds = facts.telemetry.duration_s
    if seconds < MIN_S_FOR_ENERGY:
        return NotAvailable(
            Bilingual(
                f"a run of {seconds:.1f} s; the energy counter needs at least {MIN_S_FOR_ENERGY} s",
                f"运行时长 {seconds:.1f} s，能耗计数器至少需要 {MIN_S_FOR_ENERGY} s",
            )
        )
    tokens = sum(len(request.emissions) for request in facts.trace.requests)
    if tokens == 0:
        return samples.NO_REQUESTS
    return Quantity(sum(known) / tokens, Unit.ENERGY_A_TOKEN, terms={"E": sum(known), r"\sum n_i": tokens})


# --- steps ----------------------------------------------------------------------------------------------------------


def mixed_tokens_per_step(facts: RunFacts) -> Measured:
    """Mean tokens of a mixed step, prefill and decode together."""
    steps = samples.steps_of_kind(facts.trace, "mixed")
    if isinstance(steps, NotAvailable):
        return steps
    tokens = sum(timed.step.prefill_tokens + timed.step.decode_tokens for timed in steps)
    terms = {r"\sum (p_j + d_j)": tokens, "N": len(steps)}
    return Quantity(tokens / len(steps), Unit.TOKENS_PER_STEP, len(steps), terms)


def step_time(kind: str, facts: RunFacts) -> Measured:
    """Mean attributed time of the pure steps of one kind."""
    steps = samples.steps_of_kind(facts.trace, kind)
    if isinstance(steps, NotAvailable):
        return steps
    milliseconds = samples.total_attributed_ns(steps) / NS_PER_MS
    terms = {r"\sum t_j": milliseconds, "N": len(steps)}
    return Quantity(milliseconds / len(steps), Unit.MILLISECONDS, len(steps), terms)


def cpu_overhead(facts: RunFacts) -> Measured:
    """Mean host time of a pure decode step until its launch has returned."""
    steps = samples.steps_of_kind(facts.trace, "decode")
    if isinstance(steps, NotAvailable):
        return steps
    launched = [timed.step.launched_ns - timed.step.begin_ns for timed in steps if timed.step.launched_ns is not None]
    if len(launched) < len(steps):
        return NO_LAUNCH
    milliseconds = sum(launched) / NS_PER_MS
    terms = {r"\sum (l_j - b_j)": milliseconds, "N": len(steps)}
    return Quantity(milliseconds / len(steps), Unit.MILLISECONDS, len(steps), terms)


def device_idle_between_steps(facts: RunFacts) -> Measured:
    """Share of the pure decode steps' attributed time outside the device events at their ends, in per cent.

    Gaps between the kernels of a step lie between its events: how long no kernel runs only a profiler tells.
    """
    steps = samples.steps_of_kind(facts.trace, "decode")
    if isinstance(steps, NotAvailable):
        return steps
    device = [timed.step.device_ns for timed in steps if timed.step.device_ns is not None]
    total = samples.total_attributed_ns(steps)
    if len(device) < len(steps) or total == 0:
        return NotAvailable(Bilingual("the device's own time of a step was not recorded", "没有记录设备自身的每步耗时"))
    terms = {r"\sum g_j": sum(device) / NS_PER_MS, r"\sum t_j": total / NS_PER_MS}
    return Quantity(100 * (1 - sum(device) / total), Unit.PERCENT, len(steps), terms)


def communication_share(facts: RunFacts) -> Measured:
    """Share of the devices' time that their collectives take, in per cent, from the profiled run."""
    spent = sum(device.communication_ns for device in facts.device_work)
    return _share_of_profile(facts, r"\sum k_i", spent, NO_COMMUNICATION)


def device_busy_share(facts: RunFacts) -> Measured:
    """Share of the devices' time in which a kernel or a copy runs, in per cent, from the profiled run."""
    return _share_of_profile(facts, r"\sum v_i", sum(device.busy_ns for device in facts.device_work), NO_PROFILE)


def _share_of_profile(facts: RunFacts, symbol: str, part_ns: int, missing: NotAvailable) -> Measured:
    """Divide a part of what the devices did by the time from the first kernel of each to its last."""
    spans = sum(device.span_ns for device in facts.device_work)
    if spans == 0:
        return missing
    terms = {symbol: part_ns / NS_PER_MS, r"\sum w_i": spans / NS_PER_MS}
    return Quantity(100 * part_ns / spans, Unit.PERCENT, len(facts.device_work), terms)


NO_LAUNCH = NotAvailable(
    Bilingual("the engine does not report when a step had been launched", "该引擎不报告每一步启动完成的时间")
)
NO_COMMUNICATION = NotAvailable(
    Bilingual("the engine does not report the time of its collectives", "该引擎不报告集合通信的耗时")
)
NO_PROFILE = NotAvailable(Bilingual("no run of this arm was profiled", "该组没有剖析运行"))

# --- cache and scheduling -------------------------------------------------------------------------------------------

NO_CACHED_TOKENS = NotAvailable(
    Bilingual("the engine does not report cached prompt tokens", "该引擎不报告命中缓存的提示 token 数")
)


def cache_hit_rate(facts: RunFacts) -> Measured:
    """Divide cached by all prompt tokens, in per cent."""
    cached = [request.cached_tokens for request in facts.trace.requests if request.cached_tokens is not None]
    prompt = sum(request.prompt_tokens for request in facts.trace.requests)
    if len(cached) < len(facts.trace.requests):
        return NO_CACHED_TOKENS
    if prompt == 0:
        return samples.NO_REQUESTS
    return Quantity(100 * sum(cached) / prompt, Unit.PERCENT, terms={r"\sum c_i": sum(cached), r"\sum L_i": prompt})


def prompt_tokens_computed(facts: RunFacts) -> Measured:
    """Prompt positions computed in all steps, those computed again included."""
    if facts.trace.steps is None:
        return samples.NO_STEPS
    return Quantity(sum(step.prefill_tokens for step in facts.trace.steps), Unit.TOKENS)


def peak_concurrency(facts: RunFacts) -> Measured:
    """Most requests running at once."""
    if facts.trace.peak_concurrency is None:
        return NotAvailable(
            Bilingual("the engine does not report how many requests ran at once", "该引擎不报告同时运行的请求数")
        )
    return Quantity(facts.trace.peak_concurrency, Unit.REQUESTS)


def preemptions(facts: RunFacts) -> Measured:
    """Preemptions over all requests."""
    known = [request.preemptions for request in facts.trace.requests if request.preemptions is not None]
    if len(known) < len(facts.trace.requests):
        return NotAvailable(Bilingual("the engine does not report preemptions", "该引擎不报告抢占次数"))
    return Quantity(sum(known), Unit.PREEMPTIONS)


def kv_occupancy(facts: RunFacts) -> Measured:
    """Blocks in use at the peak over all blocks; the pool's size from the engine's settings or its memory parts."""
    used, pool = facts.trace.peak_kv_blocks_used, pool_blocks(facts)
    if used is None or pool is None:
        return NotAvailable(
            Bilingual("the engine does not report how full its KV cache was", "该引擎不报告 KV 缓存的占用情况")
        )
    return Quantity(100 * used / pool, Unit.PERCENT, terms={"B_{used}": used, "B_{pool}": pool})


def pool_blocks(facts: RunFacts) -> int | None:
    """Size of the KV pool in blocks, None where nothing tells it."""
    setting = facts.engine.settings.get("num_kv_blocks") if facts.engine is not None else None
    if isinstance(setting, int) and not isinstance(setting, bool) and setting > 0:
        return setting
    if facts.memory is not None and facts.memory.kv_block_bytes > 0:
        return facts.memory.kv_pool_bytes // facts.memory.kv_block_bytes or None
    return None


# --- the prefix cache against its prediction ------------------------------------------------------------------------

NO_PREDICTION = NotAvailable(
    Bilingual(
        "the engine does not say when cached blocks can be found, or its block size, vocabulary or admissions",
        "该引擎没有说明缓存块何时可被命中，或未给出块大小、词表大小、进入调度的时间",
    )
)


def cached_tokens(facts: RunFacts) -> Measured:
    """Prompt tokens found in the cache at admission."""
    cached = [request.cached_tokens for request in facts.trace.requests]
    known = [value for value in cached if value is not None]
    return Quantity(sum(known), Unit.TOKENS) if len(known) == len(cached) else NO_CACHED_TOKENS


def predicted_cached_tokens(facts: RunFacts) -> Measured:
    """Prompt tokens that a cache must find by `touchstone.analysis.prediction`; none with the cache off."""
    size, asked = _fact(facts, "block_size"), facts.asked
    vocabulary = facts.engine.model.get("vocab_size") if facts.engine is not None else None
    order = prediction.admission_order(facts.trace.requests)
    if asked is None or size is None or order is None or not isinstance(vocabulary, int):
        return NO_PREDICTION
    if facts.engine is None or not facts.engine.shares_at_admission:
        return NO_PREDICTION
    if _may_evict(facts, size):
        return EVICTING
    blocks = 0
    if asked.options.get("prefix_cache") is not False:
        prompts = prediction.prompts_of(asked.workload, vocabulary, asked.seed)
        blocks = sum(prediction.hit_blocks(prompts, order, size))
    return Quantity(blocks * size, Unit.TOKENS, terms={"b": size, r"\sum h_i": blocks})


EVICTING = NotAvailable(
    Bilingual(
        "the KV pool does not hold all requests at once, so that what is found depends on what was evicted",
        "KV 缓存池放不下全部请求，命中情况取决于淘汰次序",
    )
)


def _may_evict(facts: RunFacts, size: int) -> bool:
    """Whether a block of this run could be lost before another request of it looks for it."""
    pool = pool_blocks(facts)
    wanted = sum(-(-(request.prompt_tokens + len(request.emissions)) // size) for request in facts.trace.requests)
    return any(request.preemptions for request in facts.trace.requests) or (pool is not None and wanted > pool)


def cached_tokens_bound(facts: RunFacts) -> Measured:
    """Prompt tokens that a cold cache can find at most, in whatever order the requests are admitted."""
    size, asked = _fact(facts, "block_size"), facts.asked
    if asked is None or size is None:
        return NO_PREDICTION
    off = asked.options.get("prefix_cache") is False
    lengths = [request.prompt_tokens for request in facts.trace.requests]
    reusable = [] if off else prediction.reusable_tokens(asked.workload, lengths, size)
    terms = {r"\sum u_i": sum(reusable), r"\max u_i": max(reusable, default=0)}
    return Quantity(terms[r"\sum u_i"] - terms[r"\max u_i"], Unit.TOKENS, terms=terms)


def _fact(facts: RunFacts, name: str) -> int | None:
    """Read a size from the engine's settings, None where it does not tell."""
    value = facts.engine.settings.get(name) if facts.engine is not None else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


# --- CUDA graphs ----------------------------------------------------------------------------------------------------

NO_GRAPHS = NotAvailable(Bilingual("the engine of this arm captured no CUDA graphs", "该组的引擎没有捕获 CUDA 图"))


def num_cuda_graphs(facts: RunFacts) -> Measured:
    """Graphs captured before the first request."""
    return NO_GRAPHS if facts.graphs is None else Quantity(facts.graphs.num_graphs, Unit.GRAPHS)


def graph_capture_time(facts: RunFacts) -> Measured:
    """Seconds that capturing them took."""
    return NO_GRAPHS if facts.graphs is None else Quantity(facts.graphs.capture_s, Unit.SECONDS)


def graph_capture_memory(facts: RunFacts) -> Measured:
    """Device memory that they keep."""
    if facts.graphs is None:
        return NO_GRAPHS
    size = facts.graphs.capture_bytes
    return Quantity(size / BYTES_PER_GB, Unit.GIGABYTES, terms={"M": size})


# --- memory ---------------------------------------------------------------------------------------------------------

NO_MEMORY = NotAvailable(Bilingual("memory parts were not measured in this run", "本次运行没有测量各部分内存"))


def kv_pool_per_device(parts: MemoryParts) -> int:
    """Bytes of KV pool that every device has, the least of them where they differ."""
    return min((device.kv_pool_bytes for device in parts.devices), default=parts.kv_pool_bytes)


def peak_per_device(parts: MemoryParts) -> int | None:
    """Bytes at the peak of the fullest device, without the instrument's own; None where one does not tell."""
    if not parts.devices:
        return engine_peak(parts)
    known = [
        device.total_peak_bytes - (device.instrument_bytes or 0)
        for device in parts.devices
        if device.total_peak_bytes is not None
    ]
    return max(known) if len(known) == len(parts.devices) else None


def engine_peak(parts: MemoryParts) -> int:
    """Bytes at the peak without what the instrument itself holds, where that is known."""
    return parts.device_total_peak_bytes - (parts.instrument_bytes or 0)


def memory_part(part: Callable[[MemoryParts], int | None], facts: RunFacts) -> Measured:
    """One part of the memory in GB."""
    if facts.memory is None:
        return NO_MEMORY
    size = part(facts.memory)
    if size is None:
        return NotAvailable(Bilingual("this part of the memory was not told", "未给出这一部分内存的大小"))
    return Quantity(size / BYTES_PER_GB, Unit.GIGABYTES, terms={"M": size})
