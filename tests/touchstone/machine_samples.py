"""Canary readings, telemetry, measurements and model facts of a made-up machine, for tests that judge them."""

from __future__ import annotations

from touchstone.records import Canary, CanaryReading, EngineFacts, GpuTelemetry, Measurement, Telemetry

# Qwen3-0.6B: 28 layers of hidden size 1024, 440 million parameters outside the embeddings.
QWEN3_0_6B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_layers": 28,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "dtype": "float16",
}


def reading(flops_per_s=1e12, bytes_per_s=1e11, operation_s=5e-6):
    return CanaryReading(flops_per_s=flops_per_s, bytes_per_s=bytes_per_s, operation_s=operation_s)


# The dense FP16 peaks of an RTX 3090 with FP16 accumulation, as the plan review takes them, and its memory bandwidth.
RTX_3090 = reading(flops_per_s=142e12, bytes_per_s=936e9)


def engine(model=None, **settings):
    return EngineFacts(name="fake", version="1", settings=settings, model=QWEN3_0_6B if model is None else model)


def telemetry(duration_s=1.0, **changes):
    facts = {
        "duration_s": duration_s,
        "interval_s": 0.2,
        "num_samples": 5,
        "load_average": 0.5,
        "throttled_s": None,
        "voluntary_switches": 3,
        "involuntary_switches": 1,
        "other_busy_cores": None,
        "gpus": (),
    }
    return Telemetry.model_validate(facts | changes)


def gpu(**changes):
    facts = {
        "index": 0,
        "sm_clock_min_mhz": 1700.0,
        "sm_clock_median_mhz": 1750.0,
        "memory_clock_median_mhz": 2600.0,
        "power_mean_w": 400.0,
        "energy_j": 4000.0,
        "temperature_max_c": 60.0,
        "slowdown_s": {},
        "other_processes": 0,
    }
    return GpuTelemetry.model_validate(facts | changes)


def measurement(before=None, after=None, watched=None, *, position=0, arm="default"):
    canary = None if before is None else Canary(before=before, after=after or before)
    return Measurement(
        unit_id="1.1-p0",
        test_id="1.1",
        arm=arm,
        position=position,
        repetition=position,
        seed=position,
        started_at="2026-03-04T05:06:07.000+00:00",
        trace_sha256="0" * 64,
        memory=None,
        canary=canary,
        telemetry=watched,
    )
