"""One trace as arrays, and every metric from them: array arithmetic, where the results loop over records."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from touchstone.verify.prefix import most_tokens, predicted_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json: TypeAlias = "dict[str, Any]"
Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

MIN_FOR_P99 = 100
MIN_S_FOR_ENERGY = 10
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Value:
    """One metric of one run, the number of samples behind it, and the numbers in its formula by their symbol."""

    value: float
    size: int | None
    terms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Steps:
    """The engine's steps in the order of their beginnings; times in ns. `own` is the time that no earlier step has."""

    kind: np.ndarray[Any, np.dtype[np.str_]]
    prefill: Integers
    decode: Integers
    host: Integers | None
    replicas: int
    own: Integers
    device: Integers | None
    graph: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a prefix cache of this arm was up to: the requests' law, and what its engine says of its blocks."""

    workload: Json
    seed: int
    cache: bool
    size: int | None
    vocabulary: int | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One timed run: a row a request, times in ns since the trace began. None where the engine does not tell."""

    arrival: Integers
    scheduled: Integers | None
    first: Integers
    last: Integers
    gaps: Integers
    prompt: Integers
    cached: Integers | None
    output: Integers
    preemptions: Integers | None
    steps: Steps | None
    peak_concurrency: int | None
    blocks_used: int | None
    memory: Json | None
    telemetry: Json | None
    pool_blocks: int | None
    outputs: tuple[str, ...]
    asked: Integers
    graphs: Json | None = None
    sharing: Sharing | None = None
    device_work: list[Json] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every request has a token, without which no time of the whole run exists."""
        return len(self.output) > 0 and bool((self.output > 0).all())

    @property
    def window_ns(self) -> int:
        """First arrival to last token."""
        return int(self.last.max() - self.arrival.min())


def observe(trace: Json, run: Json, engine: Json | None, planned: Json | None = None) -> Observation:
    """Arrange a trace, and what its ledger entry says of memory and telemetry, as arrays.

    `planned` is the test in the plan, which says what the run was asked for.
    """
    memory = run.get("memory")
    requests = trace["requests"]
    output = _column([len(request["emissions"]) for request in requests])
    moments = _column(trace["emission_times_ns"])
    tokens = moments[np.concatenate([_column([]), *(request["emissions"] for request in requests)]).astype(np.int64)]
    ends = np.cumsum(output)
    begins = ends - output
    has = output > 0
    inner = np.ones(max(len(tokens) - 1, 0), dtype=bool)
    inner[ends[has][:-1] - 1] = False  # the step from one request's last token to the next one's first is no gap
    return Observation(
        arrival=_column([request["arrival_ns"] for request in requests]),
        scheduled=_told(requests, "scheduled_ns"),
        first=tokens[begins[has]],
        last=tokens[ends[has] - 1],
        gaps=np.diff(tokens)[inner],
        prompt=_column([request["prompt_tokens"] for request in requests]),
        cached=_told(requests, "cached_tokens"),
        output=output,
        preemptions=_told(requests, "preemptions"),
        steps=None if trace["steps"] is None else _steps(trace["steps"]),
        peak_concurrency=trace["peak_concurrency"],
        blocks_used=trace["peak_kv_blocks_used"],
        memory=memory,
        telemetry=run.get("telemetry"),
        pool_blocks=_pool_blocks(memory, engine),
        outputs=tuple(request["output_sha256"] for request in requests),
        asked=_column([request["requested_tokens"] for request in requests]),
        graphs=run.get("graphs"),
        sharing=None if planned is None else _sharing(run, engine, planned),
    )


def _sharing(run: Json, engine: Json | None, planned: Json) -> Sharing | None:
    arm = next((arm for arm in planned["arms"] if arm["name"] == run["arm"]), None)
    if arm is None or planned["workload"] is None or engine is None:
        return None
    outputs, extra = planned["workload"]["output_tokens"], 1 + arm["extra_output"]
    own = {
        "num_requests": arm.get("num_requests") or planned["workload"]["num_requests"],
        "output_tokens": {end: round(length * extra) for end, length in outputs.items()},
    }
    if run.get("request_rate_per_s") is not None:
        own |= {"load": None, "request_rate_per_s": run["request_rate_per_s"]}
    told = engine.get("shares_at_admission") is True
    return Sharing(
        workload=planned["workload"] | own,
        seed=run["seed"],
        cache=(planned.get("engine_options", {}) | arm["options"]).get("prefix_cache") is not False,
        size=engine["settings"].get("block_size"),
        vocabulary=engine["model"].get("vocab_size") if told else None,
    )


def _column(values: list[int]) -> Integers:
    return np.array(values, dtype=np.int64)


def _told(rows: list[Json], name: str) -> Integers | None:
    values = [row[name] for row in rows]
    return None if any(value is None for value in values) else _column(values)


def _steps(steps: list[Json]) -> Steps:
    begin, end = (_column([step[name] for step in steps]) for name in ("begin_ns", "end_ns"))
    order = np.lexsort((end, begin))
    begin, end = begin[order], end[order]
    rank = _column([step.get("rank", 0) for step in steps])[order]
    busy_until = begin.copy()
    for own in (np.flatnonzero(rank == one) for one in np.unique(rank)):
        busy_until[own[1:]] = np.maximum.accumulate(end[own])[:-1]
    launched = _told(steps, "launched_ns")
    device = _told(steps, "device_ns")
    return Steps(
        kind=np.array([step["kind"] for step in steps], dtype=np.str_)[order],
        prefill=_column([step["prefill_tokens"] for step in steps])[order],
        decode=_column([step["decode_tokens"] for step in steps])[order],
        host=None if launched is None else launched[order] - begin,
        replicas=max(1, len(np.unique(rank))),
        own=np.maximum(0, end - np.maximum(begin, busy_until)),
        device=None if device is None else device[order],
        graph=np.array([step["graph"] for step in steps], dtype=bool)[order],
    )


def _pool_blocks(memory: Json | None, engine: Json | None) -> int | None:
    setting = (engine or {}).get("settings", {}).get("num_kv_blocks")
    if type(setting) is int and setting > 0:
        return setting
    if memory is not None and memory["kv_block_bytes"] > 0:
        return memory["kv_pool_bytes"] // memory["kv_block_bytes"] or None
    return None


# --- distributions --------------------------------------------------------------------------------------------------


def _waiting(run: Observation) -> Integers | None:
    return None if run.scheduled is None else run.scheduled - run.arrival


def _prefilling(run: Observation) -> Integers | None:
    return None if run.scheduled is None else run.first - run.scheduled


def _per_output_token(run: Observation) -> Floats:
    several = run.output > 1
    return (run.last - run.first)[several] / (run.output[several] - 1)


DISTRIBUTIONS: Mapping[str, Callable[[Observation], Integers | Floats | None]] = {
    "ttft": lambda run: run.first - run.arrival,
    "queue_time": _waiting,
    "prefill_time": _prefilling,
    "tpot": _per_output_token,
    "itl": lambda run: run.gaps,
    "total_latency": lambda run: run.last - run.arrival,
}


def _of_distribution(run: Observation, sample: str, statistic: str) -> Value | None:
    if not run.complete:
        return None
    drawn = DISTRIBUTIONS[sample](run)
    if drawn is None or len(drawn) == 0 or (statistic == "p99" and len(drawn) < MIN_FOR_P99):
        return None
    values = np.sort(drawn.astype(np.float64) / 1e6)
    size = len(values)
    if statistic in _QUANTILES:
        value = _quantile(values, _QUANTILES[statistic])
    else:
        value = float(values[-1]) if statistic == "max" else float(values.sum()) / size
    return Value(value, size, {"N": size})


def _quantile(ordered: Floats, share: float) -> float:
    """Interpolate between the two samples around position (n - 1) x share."""
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


# --- rates, times and counts ----------------------------------------------------------------------------------------


def _rate(run: Observation, tokens: Integers | None, symbol: str) -> Value | None:
    if not run.complete or tokens is None:
        return None
    seconds = run.window_ns / 1e9
    return Value(int(tokens.sum()) / seconds, None, {symbol: int(tokens.sum()), "T": seconds})


def _uncached(run: Observation) -> Value | None:
    tokens = None if run.cached is None else run.prompt - run.cached + run.output
    return _rate(run, tokens, r"\sum (L_i - c_i + n_i)")


def _total_time(run: Observation) -> Value | None:
    if not run.complete:
        return None
    ends = {r"\max e_i": int(run.last.max()) / 1e9, r"\min a_i": int(run.arrival.min()) / 1e9}
    return Value(run.window_ns / 1e9, None, ends)


def _energy(run: Observation) -> Value | None:
    """Joules of all GPUs per output token; the driver's counter is too coarse for less than ten seconds."""
    if run.telemetry is None or run.telemetry["duration_s"] < MIN_S_FOR_ENERGY or not run.output.sum():
        return None
    counters = [gpu["energy_j"] for gpu in run.telemetry["gpus"]]
    if not counters or None in counters:
        return None
    tokens = int(run.output.sum())
    return Value(sum(counters) / tokens, None, {"E": sum(counters), r"\sum n_i": tokens})


def _in_flight(run: Observation) -> Value | None:
    if not run.complete:
        return None
    seconds, together = run.window_ns / 1e9, int((run.last - run.arrival).sum()) / 1e9
    return Value(together / seconds, None, {r"\sum (e_i - a_i)": together, "T": seconds})


def _kind(run: Observation, kind: str) -> tuple[Steps, np.ndarray[Any, np.dtype[np.bool_]]] | None:
    if run.steps is None or not (run.steps.kind == kind).any():
        return None
    return run.steps, run.steps.kind == kind


def _step_rate(run: Observation, kind: str) -> Value | None:
    if (found := _kind(run, kind)) is None:
        return None
    steps, chosen = found
    counted, symbol = (steps.prefill, r"\sum p_j") if kind == "prefill" else (steps.decode, r"\sum d_j")
    tokens, seconds = int(counted[chosen].sum()), int(steps.own[chosen].sum()) / steps.replicas / 1e9
    return None if seconds == 0 else Value(tokens / seconds, None, {symbol: tokens, r"\sum t_j": seconds})


def _per_step(
    run: Observation, kind: str, symbol: str, amount: Callable[[Steps], Integers | None], unit: float
) -> Value | None:
    if (found := _kind(run, kind)) is None:
        return None
    steps, chosen = found
    if (amounts := amount(steps)) is None:
        return None
    whole = int(amounts[chosen].sum())
    total, count = (whole / unit if unit != 1 else whole), int(chosen.sum())
    return Value(total / count, count, {symbol: total, "N": count})


def _idle_between_steps(run: Observation) -> Value | None:
    found = _kind(run, "decode")
    if found is None or run.steps is None:
        return None
    steps, chosen = found
    total = int(steps.own[chosen].sum())
    if steps.device is None or total == 0:
        return None
    busy = int(steps.device[chosen].sum())
    terms = {r"\sum g_j": busy / 1e6, r"\sum t_j": total / 1e6}
    return Value(100 - 100 * busy / total, int(chosen.sum()), terms)


def _profiled_share(run: Observation, part: str, symbol: str) -> Value | None:
    """One part of what the devices did in the arm's profiled run, over the time that they worked."""
    columns = np.array([(device[part], device["span_ns"]) for device in run.device_work], dtype=np.int64)
    spent, whole = (int(total) for total in columns.reshape(-1, 2).sum(axis=0))
    if whole == 0:
        return None
    return Value(spent / whole * 100, len(columns), {symbol: spent / 1e6, r"\sum w_i": whole / 1e6})


def _pool_per_device(run: Observation) -> Value | None:
    if run.memory is None:
        return None
    size = min(device["kv_pool_bytes"] for device in run.memory.get("devices") or [run.memory])
    return Value(size / 1e9, None, {"M": size})


def _peak_per_device(run: Observation) -> Value | None:
    """Take the fullest device without the instrument's own bytes; an engine of one device tells its total alone."""
    if run.memory is None or not (devices := run.memory.get("devices")):
        return _engine_peak(run)
    if any(device["total_peak_bytes"] is None for device in devices):
        return None
    size = max(device["total_peak_bytes"] - (device.get("instrument_bytes") or 0) for device in devices)
    return Value(size / 1e9, None, {"M": size})


def _engine_peak(run: Observation) -> Value | None:
    if run.memory is None:
        return None
    size = run.memory["device_total_peak_bytes"] - (run.memory.get("instrument_bytes") or 0)
    return Value(size / 1e9, None, {"M": size})


def _hit_rate(run: Observation) -> Value | None:
    prompt = int(run.prompt.sum())
    if run.cached is None or prompt == 0:
        return None
    hit = int(run.cached.sum())
    return Value(hit / prompt * 100, None, {r"\sum c_i": hit, r"\sum L_i": prompt})


def _cached(run: Observation) -> Value | None:
    return None if run.cached is None else Value(int(run.cached.sum()), None, {})


def _predicted(run: Observation) -> Value | None:
    told = run.sharing
    if told is None or told.size is None or told.vocabulary is None or run.scheduled is None:
        return None
    blocks = int((-(-(run.prompt + run.output) // told.size)).sum())
    again = run.preemptions is not None and bool(run.preemptions.any())
    if again or (run.pool_blocks is not None and blocks > run.pool_blocks):
        return None  # what is found depends on what was evicted
    tokens = 0
    if told.cache:
        tokens = predicted_tokens(
            json.dumps(told.workload, sort_keys=True),
            told.vocabulary,
            told.seed,
            begins=run.scheduled,
            arrivals=run.arrival,
            lengths=run.prompt,
            size=told.size,
        )
    return Value(tokens, None, {"b": told.size, r"\sum h_i": tokens // told.size})


def _bound(run: Observation) -> Value | None:
    told = run.sharing
    if told is None or told.size is None:
        return None
    total, largest = most_tokens(told.workload, run.prompt, told.size) if told.cache else (0, 0)
    return Value(total - largest, None, {r"\sum u_i": total, r"\max u_i": largest})


def _captured(run: Observation, name: str, unit: float, symbol: str | None = None) -> Value | None:
    if run.graphs is None:
        return None
    value = run.graphs[name]
    return Value(value / unit if unit != 1 else value, None, {} if symbol is None else {symbol: value})


def _count(number: int | None) -> Value | None:
    return None if number is None else Value(number, None, {})


def _occupancy(run: Observation) -> Value | None:
    used, pool = run.blocks_used, run.pool_blocks
    if used is None or pool is None:
        return None
    return Value(used / pool * 100, None, {"B_{used}": used, "B_{pool}": pool})


def _bytes(run: Observation, part: str) -> Value | None:
    size = None if run.memory is None else run.memory.get(part)
    return None if size is None else Value(size / 1e9, None, {"M": size})


@dataclass(frozen=True, slots=True)
class Metric:
    """How to work a metric out, in which unit, and whether it counts things, so that equal work repeats it exactly."""

    unit: str
    compute: Callable[[Observation], Value | None]
    counted: bool = False


def _distribution_metric(sample: str, statistic: str) -> Metric:
    return Metric("ms", lambda run: _of_distribution(run, sample, statistic))


def _memory_metric(part: str) -> Metric:
    return Metric("GB", lambda run: _bytes(run, part))


METRICS: Mapping[str, Metric] = {
    **{
        f"{sample}_{statistic}": _distribution_metric(sample, statistic)
        for sample in DISTRIBUTIONS
        for statistic in ("mean", *_QUANTILES, "max")
    },
    "output_throughput": Metric("output tokens/s", lambda run: _rate(run, run.output, r"\sum n_i")),
    "e2e_throughput": Metric(
        "prompt + output tokens/s", lambda run: _rate(run, run.prompt + run.output, r"\sum (L_i + n_i)")
    ),
    "e2e_throughput_uncached": Metric("uncached prompt + output tokens/s", _uncached),
    "prefill_throughput": Metric("prefill tokens/s", lambda run: _step_rate(run, "prefill")),
    "decode_throughput": Metric("decode tokens/s", lambda run: _step_rate(run, "decode")),
    "energy_per_output_token": Metric("J/token", _energy),
    "total_time": Metric("s", _total_time),
    "prefill_step_time": Metric("ms", lambda run: _per_step(run, "prefill", r"\sum t_j", lambda s: s.own, 1e6)),
    "decode_step_time": Metric("ms", lambda run: _per_step(run, "decode", r"\sum t_j", lambda s: s.own, 1e6)),
    "mixed_step_time": Metric("ms", lambda run: _per_step(run, "mixed", r"\sum t_j", lambda s: s.own, 1e6)),
    "mixed_tokens_per_step": Metric(
        "tokens/step", lambda run: _per_step(run, "mixed", r"\sum (p_j + d_j)", lambda s: s.prefill + s.decode, 1)
    ),
    "cpu_overhead": Metric("ms", lambda run: _per_step(run, "decode", r"\sum (l_j - b_j)", lambda s: s.host, 1e6)),
    "device_idle_between_steps": Metric("%", _idle_between_steps),
    "device_busy_share": Metric("%", lambda run: _profiled_share(run, "busy_ns", r"\sum v_i")),
    "communication_share": Metric("%", lambda run: _profiled_share(run, "communication_ns", r"\sum k_i")),
    "cache_hit_rate": Metric("%", _hit_rate, counted=True),
    "cached_tokens": Metric("tokens", _cached, counted=True),
    "predicted_cached_tokens": Metric("tokens", _predicted, counted=True),
    "cached_tokens_bound": Metric("tokens", _bound, counted=True),
    "num_cuda_graphs": Metric("graphs", lambda run: _captured(run, "num_graphs", 1), counted=True),
    "graph_capture_time": Metric("s", lambda run: _captured(run, "capture_s", 1)),
    "graph_capture_memory": Metric("GB", lambda run: _captured(run, "capture_bytes", 1e9, "M")),
    "prompt_tokens_computed": Metric(
        "tokens", lambda run: _count(None if run.steps is None else int(run.steps.prefill.sum())), counted=True
    ),
    "peak_concurrency": Metric("requests", lambda run: _count(run.peak_concurrency), counted=True),
    "mean_concurrency": Metric("requests", _in_flight),
    "preemptions": Metric(
        "preemptions", lambda run: _count(None if run.preemptions is None else int(run.preemptions.sum())), counted=True
    ),
    "kv_occupancy": Metric("%", _occupancy, counted=True),
    "model_weight_memory": _memory_metric("weights_bytes"),
    "kv_cache_memory": _memory_metric("kv_pool_bytes"),
    "kv_used_memory": _memory_metric("kv_used_peak_bytes"),
    "activation_memory": _memory_metric("activations_peak_bytes"),
    "cuda_graph_memory": _memory_metric("cuda_graphs_bytes"),
    "context_memory": _memory_metric("context_and_other_bytes"),
    "residual_memory": _memory_metric("residual_bytes"),
    "instrument_memory": _memory_metric("instrument_bytes"),
    "total_peak_memory": Metric("GB", _engine_peak),
    "kv_cache_per_device": Metric("GB", _pool_per_device),
    "peak_memory_per_device": Metric("GB", _peak_per_device),
}

# Number made from a ratio r of treatment to baseline: the metric compared, the unit, and how.
COMPARISONS: Mapping[str, tuple[str, str, Callable[[float], float]]] = {
    "compute_saved": ("prompt_tokens_computed", "%", lambda r: 100 - 100 * r),
    "speedup": ("total_time", "×", lambda r: 1 / r),
    "total_time_saved": ("total_time", "%", lambda r: 100 - 100 * r),
    "cpu_overhead_reduction": ("cpu_overhead", "%", lambda r: 100 - 100 * r),
    "throughput_improvement": ("e2e_throughput", "%", lambda r: 100 * r - 100),
    "decode_throughput_improvement": ("decode_throughput", "%", lambda r: 100 * r - 100),
}
