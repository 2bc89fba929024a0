"""Kernels are chosen by the device, and a shape without a kernel is refused."""

import pytest
import torch

from nanoinfer.config import ConfigError
from nanoinfer.model.ops import REFERENCE, select_ops


def test_a_cpu_runs_the_reference_kernels():
    assert select_ops(torch.device("cpu"), 24) is REFERENCE


@pytest.mark.parametrize("head_dim", [8, 24, 96])
def test_a_head_size_without_gpu_kernels_is_refused_by_name(head_dim):
    with pytest.raises(ConfigError, match=f"head_dim is {head_dim}"):
        select_ops(torch.device("cuda"), head_dim)
