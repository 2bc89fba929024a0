"""Kernel times become spans, busy time and communication."""

import torch

from nanoinfer.execution.profile import Profiler, _profile, _spans_ns


def test_overlapping_kernels_are_busy_once_and_sums_between_devices_are_communication():
    spans = [
        (10_000, 14_000, "gemm"),
        (12_000, 13_000, "ncclDevKernel_AllReduce_Sum_bf16"),
        (13_000, 16_000, "_push_kernel"),
        (20_000, 21_000, "gemm"),
        (20_500, 23_000, "_share_kernel"),
    ]
    profile = _profile("cuda:1", spans)
    assert profile.device == "cuda:1"
    assert profile.span_ns == 13_000
    assert profile.busy_ns == 9_000
    assert profile.communication_ns == 6_500
    assert profile.kernels_ns["gemm"] == 5_000


def test_nothing_recorded_is_none():
    assert _profile("cuda:0", []) is None
    profiler = Profiler(torch.device("cpu"))
    assert profiler.stop() is None
    profiler.start()
    assert profiler.stop() is None


def test_what_torch_recorded_is_read_in_order():
    """On a processor here, whose operations are recorded by the same means."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        torch.ones(64, 64) @ torch.ones(64, 64)
    spans = _spans_ns(trace, "CPU")
    assert "aten::mm" in {name for _, _, name in spans}
    assert all(begin < end for begin, end, _ in spans)
    assert spans == sorted(spans)
    assert _spans_ns(trace, "CUDA") == []
