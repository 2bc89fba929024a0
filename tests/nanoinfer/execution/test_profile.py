"""Kernel times become spans, busy time and communication."""

import torch

from nanoinfer.execution.profile import Profiler, _profile


def test_overlapping_kernels_are_busy_once_and_sums_between_devices_are_communication():
    spans = [
        (10.0, 14.0, "gemm"),
        (12.0, 13.0, "ncclDevKernel_AllReduce_Sum_bf16"),
        (13.0, 16.0, "_push_kernel"),
        (20.0, 21.0, "gemm"),
        (20.5, 23.0, "void one_shot_all_reduce_kernel<bf16, 16, 4>"),
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
