"""Programmatic dependent launch: a kernel may begin before the one before it has ended.

A kernel that is launched early asks first for what no other kernel writes (weights, keys of earlier steps), then waits
(`gdc_wait`) for the end of the kernel before it; only after that may it read or write what others touch. Every program
waits, so that whoever follows can rely on everything before. `gdc_launch_dependents` lets the next kernel begin in
turn.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Mapping

HOPPER = (9, 0)  # the first architecture that has it
THREE_PROGRAMS = 168  # registers of a thread with which a multiprocessor runs three programs of 128 threads, not two
LINE_BYTES = tl.constexpr(128)  # of a cache line


@cache
def early_launch(device: torch.device) -> Mapping[str, Any]:
    """Return the launch options of a kernel with a parameter EARLY."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER:
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Count the device's multiprocessors; 1 stands for a CPU, where the interpreter runs one program at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def prefetch(pointers):
    """Bring the cache lines of pointers to the L2 and do not wait for them; where EARLY is set, and only there."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
