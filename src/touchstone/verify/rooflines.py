"""The physical floor under a number, worked out again: whole-run sums over arrays, where the results walk the steps.

Bytes: the weights of every step, those of the head where tokens are decoded, and each cached key and value once a token
that attends to it. Operations: two for each weight and token, and four for each query head, its size, layer and pair of
a query and a key. Seconds: what the largest of both takes, step by step and all together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from touchstone.verify import arithmetic as own
from touchstone.verify.comparing import RELATIVE, differences
from touchstone.verify.digits import numbers, share

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from touchstone.verify.custody import Evidence
    from touchstone.verify.gathered import TestEvidence, TimedRun
    from touchstone.verify.observed import Floats, Observation

Json: TypeAlias = "dict[str, Any]"

LEAST_SHARE = 0.1
LAUNCHES_A_LAYER = {True: 12, False: 140}  # on a GPU, on a processor
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SHAPE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
# metric -> the kind of its steps (None is the whole run), and whether its bound is its largest value
BOUNDED: dict[str, tuple[str | None, bool]] = {
    "prefill_throughput": ("prefill", True),
    "decode_throughput": ("decode", True),
    "decode_step_time": ("decode", False),
    **dict.fromkeys(("e2e_throughput", "output_throughput", "e2e_throughput_uncached"), (None, True)),
    "total_time": (None, False),
}
# Latencies hold waiting for others unless requests run one after the other.
BOUNDED_ALONE: dict[str, tuple[str | None, bool]] = {
    f"{sample}_{statistic}": (kind, False)
    for sample, kind in (("tpot", "decode"), ("ttft", "prefill"), ("total_latency", None))
    for statistic in ("mean", "p50")
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Fastest operations and bytes a second of all canary readings, the median start of an operation, the device."""

    flops_per_s: float
    bytes_per_s: float
    operation_s: float
    on_gpu: bool


def machine_of(evidence: Evidence) -> Machine | None:
    """Sum up all canary readings of a run, those around invalid attempts included; None without any."""
    told = [reading for attempt in evidence.attempts() for run in attempt["measurements"] for reading in readings(run)]
    if not told:
        return None
    return Machine(
        flops_per_s=max(reading["flops_per_s"] for reading in told),
        bytes_per_s=max(reading["bytes_per_s"] for reading in told),
        operation_s=own.median([reading["operation_s"] for reading in told]),
        on_gpu=str(evidence.plan["device"]).startswith("cuda"),
    )


def canaries(run: Json) -> list[Json]:
    """List the canaries of a timed run, one a device; none where none was read."""
    return [] if run.get("canary") is None else [run["canary"], *run.get("other_canaries", [])]


def readings(run: Json) -> list[Json]:
    """List the canary readings of a timed run."""
    return [canary[moment] for canary in canaries(run) for moment in ("before", "after")]


def roofline_faults(evidence: Evidence, test: TestEvidence, mine: Json, told: Json) -> Iterator[str]:
    """Hold the roofline of one metric of one arm against its run's; `mine` is the metric as worked out again."""
    where, found = f"{told['metric']} ({told['arm']}), roofline", told["roofline"]
    expected = [_roofline(evidence, test, told["metric"], run) for run in _shown_runs(test, mine, told)]
    if not any(expected):
        if found is not None:
            yield f"{where}: nothing in the ledger gives one"
        return
    if found is None:
        yield f"{where}: missing"
        return
    fitting = (one for one in expected if one is not None and not list(_faults(one, found, where)))
    if next(fitting, None) is None:
        yield from _faults(next(one for one in expected if one is not None), found, where)


def _shown_runs(test: TestEvidence, mine: Json, told: Json) -> list[TimedRun]:
    """Find the run of the worked example; where the number was taken back, those nearest to its median."""
    if mine["median"] is None:
        return []
    runs = [run for row in test.of_arm(told["arm"]) for run in row]
    example = told["example"]
    if example is not None:
        return [run for run in runs if (run.unit_id, run.position) == (example["unit_id"], example["position"])]
    values = [run.value(told["metric"]) for run in runs]
    known = [(abs(value.value - mine["median"]), run) for value, run in zip(values, runs, strict=True) if value]
    nearest = min((distance for distance, _ in known), default=0.0) + RELATIVE * abs(mine["median"])
    return [run for distance, run in known if distance <= nearest]


def _faults(mine: Json, told: Json, where: str) -> Iterator[str]:
    explained = mine["explained_by"]
    yield from differences({name: value for name, value in mine.items() if name != "explained_by"}, told, where)
    for name in ("explanation", "explanation_zh"):
        text = told[name]
        if (text is None) != (explained is None):
            yield f"{where}: {name} is {'missing' if text is None else 'given'}, and starting operations " + (
                "does not explain the share" if explained is None else "explains it"
            )
        elif text is not None and explained is not None and numbers(text) != explained:
            yield f"{where}: {name} says {', '.join(numbers(text))}, worked out again it is {', '.join(explained)}"


# --- the floor of one run -------------------------------------------------------------------------------------------


def _roofline(evidence: Evidence, test: TestEvidence, metric: str, run: TimedRun) -> Json | None:
    machine, workload = machine_of(evidence), test.planned["workload"]
    alone = workload is not None and workload["concurrency"] == 1
    bounded = BOUNDED.get(metric) or (BOUNDED_ALONE.get(metric) if alone else None)
    waits = workload is not None and workload["load"] is not None  # for arrivals, and is not slow by that
    value = run.value(metric)
    if machine is None or bounded is None or value is None or waits:
        return None
    kind, is_rate = bounded
    floor = floor_of(run.facts, run.engine, machine, kind)
    seconds = _seconds(run.facts, kind)
    if floor is None or not seconds:
        return None
    reached = floor["floor_s"] / seconds
    launch = floor["launch_s"]
    by_bytes = floor["num_bytes"] / machine.bytes_per_s >= floor["num_flops"] / machine.flops_per_s
    return floor | {
        "measured_s": seconds,
        "share": reached,
        "bound": value.value / reached if is_rate else value.value * reached,
        "limited_by": "bytes" if by_bytes else "FLOPs",
        "bytes_per_s": machine.bytes_per_s,
        "flops_per_s": machine.flops_per_s,
        "explained_by": _explained_by(reached, launch, seconds, ranks_of(run.engine["settings"] if run.engine else {})),
    }


def _explained_by(reached: float, launch: float | None, seconds: float, ranks: int) -> list[str] | None:
    """Numbers of the explanation of a share below a tenth: starting operations, or what several devices exchange."""
    if reached >= LEAST_SHARE:
        return None
    if launch is not None and launch / seconds >= LEAST_SHARE:
        return [*numbers(f"{launch:.3g}"), *share(launch / seconds, 0)]
    return [str(ranks), *share(ranks * reached, 0)] if ranks > 1 and ranks * reached >= LEAST_SHARE else None


def _seconds(run: Observation, kind: str | None) -> float | None:
    if kind is None:
        return run.window_ns / 1e9 if run.complete else None
    return None if run.steps is None else int(run.steps.own[run.steps.kind == kind].sum()) / run.steps.replicas / 1e9


def floor_of(run: Observation, engine: Json | None, machine: Machine, kind: str | None) -> Json | None:
    """Bytes, operations and least seconds of the steps of one kind, or of all; None without steps or model facts."""
    shape = shape_of(engine)
    if shape is None or engine is None or run.steps is None:
        return None
    chosen = np.ones(len(run.steps.kind), dtype=bool) if kind is None else run.steps.kind == kind
    if not chosen.any():
        return None
    layers, head = shape["layers"], shape["head"]
    prefill, decode = (column[chosen].astype(np.float64) for column in (run.steps.prefill, run.steps.decode))
    weights: Floats = (layers + head * (decode > 0)) * shape["element"]
    linear: Floats = 2 * (layers * (prefill + decode) + head * decode)
    pairs, cached = _attention(run, kind)
    num_bytes, num_flops = weights.sum() + cached * shape["kv"], linear.sum() + pairs * shape["pair"]
    stepwise = np.maximum(weights / machine.bytes_per_s, linear / machine.flops_per_s).sum()
    least = max(stepwise, num_bytes / machine.bytes_per_s, num_flops / machine.flops_per_s)
    launches = int(chosen.sum()) * shape["depth"] * LAUNCHES_A_LAYER[machine.on_gpu]
    replayed = bool(run.steps.graph[chosen].any())
    return {
        "floor_s": float(least) / ranks_of(engine["settings"]),
        "num_bytes": float(num_bytes),
        "num_flops": float(num_flops),
        "launch_s": None if replayed else launches * machine.operation_s,
    }


def shape_of(engine: Json | None) -> dict[str, int] | None:
    """Count the weights of a dense decoder's layers and head, and what a token and a pair cost in attention."""
    told = {} if engine is None else engine["model"]
    element = _BYTES.get(str(told.get("dtype")))
    if element is None or not all(isinstance(told.get(name), int) for name in _SHAPE):
        return None
    hidden, inner, depth, heads, kv_heads, size, vocabulary = (int(told[name]) for name in _SHAPE)
    projections = hidden * size * (heads + kv_heads) * 2
    return {
        "depth": depth,
        "layers": depth * (projections + 3 * hidden * inner),
        "head": hidden * vocabulary,
        "element": element,
        "kv": 2 * depth * kv_heads * size * element,
        "pair": 4 * depth * heads * size,
    }


def ranks_of(settings: Json) -> int:
    """Count the devices that share the work: tensor times data parallel."""
    sizes = [settings.get(name) for name in ("tensor_parallel_size", "data_parallel_size")]
    return int(np.prod([size for size in sizes if isinstance(size, int) and size > 0], initial=1))


def _attention(run: Observation, kind: str | None) -> tuple[int, int]:
    """Pairs of query and key, and cached tokens read; none where mixed steps hide which kind did what."""
    if kind is not None and run.steps is not None and (run.steps.kind == "mixed").any():
        return 0, 0
    cached = np.zeros_like(run.prompt) if run.cached is None else run.cached
    later = np.maximum(run.output - 1, 0)
    prefill = int((run.prompt * (run.prompt + 1) - cached * (cached + 1)).sum()) // 2
    decode = int((later * run.prompt).sum()) + int((later * (later + 1)).sum()) // 2
    by_kind = {"prefill": (prefill, int(cached.sum())), "decode": (decode, decode)}
    return by_kind.get(kind or "", (prefill + decode, int(cached.sum()) + decode))


def far_below(told: Sequence[Json]) -> bool | None:
    """Whether a number lies below a tenth of its bound without explanation; None where none has a roofline."""
    roofs = [item["roofline"] for item in told if item["roofline"] is not None]
    if not roofs:
        return None
    return any(roof["share"] < LEAST_SHARE and roof["explanation"] is None for roof in roofs)
