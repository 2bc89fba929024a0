"""Compile every kernel that an engine will use, side by side, before the first of them is needed.

Triton compiles a kernel when it is first launched, for most of a second on one core. So each kernel is launched once,
on next to nothing, from a thread of its own: the compiler runs outside the interpreter's lock.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from nanoinfer.kernels.decode_attention import WHOLE, decode_attention, decode_tuning
from nanoinfer.kernels.decode_inputs import decode_inputs
from nanoinfer.kernels.few_rows import linear_add, norm_gated_linear, norm_linear
from nanoinfer.kernels.fused import add_rms_norm, rms_norm, silu_and_mul
from nanoinfer.kernels.linear import TUNINGS, early_linear, fits, gated_linear, linear_parts
from nanoinfer.kernels.prefill_attention import SHORT_QUERY, prefill_attention, prefill_tuning
from nanoinfer.kernels.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

EPS = 1e-6
LONG = 4096  # a prompt that fills its tiles, a batch that fills the device


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShapes:
    """What compiled kernels depend on: the layers of one rank, and how numbers and blocks are stored."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    qk_norm: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    dtype: torch.dtype
    block_size: int
    device: torch.device

    @property
    def qkv_width(self) -> int:
        """Outputs of the fused projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


@contextmanager
def compiling(shapes: KernelShapes) -> Iterator[None]:
    """Compile while the body runs; at its end all kernels are there, and the first error of one of them is raised."""
    calls = _calls(shapes)
    with ThreadPoolExecutor(len(calls), thread_name_prefix="compile") as threads:
        launched = [threads.submit(_launch, shapes.device, call) for call in calls]
        yield
        for future in launched:
            future.result()


def _launch(device: torch.device, call: Callable[[], object]) -> None:
    with torch.cuda.device(device):  # every thread has a current device of its own
        call()


def _calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    """One launch for each variant of a kernel, on one token of zeros."""
    zeros = partial(torch.zeros, dtype=shapes.dtype, device=shapes.device)
    width, inner, heads = shapes.hidden_size, shapes.intermediate_size, shapes.num_heads * shapes.head_dim
    x, norm = zeros(1, width), zeros(width)
    projection = zeros(shapes.qkv_width, width)
    gate_up, down, output = zeros(2 * inner, width), zeros(width, inner), zeros(width, heads)
    qkv_bias, gate_up_bias = _bias(projection, shapes.qkv_bias), _bias(gate_up, shapes.mlp_bias)
    narrow = ((output, _bias(output, shapes.output_bias)), (down, _bias(down, shapes.mlp_bias)))
    return [
        partial(rms_norm, x, norm, EPS),
        partial(add_rms_norm, x, zeros(1, width), norm, EPS),
        partial(silu_and_mul, zeros(1, 2 * inner)),
        partial(norm_linear, x, norm, EPS, projection, qkv_bias),
        partial(norm_gated_linear, x, norm, EPS, gate_up, gate_up_bias),
        *(partial(linear_add, weight[:1], weight, bias, zeros(1, width)) for weight, bias in narrow),
        *(partial(_linear_add_norm, weight[:1], weight, bias, norm) for weight, bias in narrow if fits(weight)),
        *(partial(gated_linear, x, gate_up, gate_up_bias) for _ in range(fits(gate_up))),
        *(
            partial(early_linear, x, projection, qkv_bias, tuning)
            for tuning in (TUNINGS.values() if fits(projection) else ())
        ),
        *_attention_calls(shapes),
        *_step_calls(shapes),
    ]


def _linear_add_norm(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor) -> None:
    add_rms_norm(linear_parts(x, weight, bias), weight.new_zeros(1, len(weight)), norm, EPS)


def _bias(weight: Tensor, wanted: bool) -> Tensor | None:
    return weight.new_zeros(len(weight)) if wanted else None


def _attention_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    float_zeros = partial(torch.zeros, dtype=shapes.dtype, device=shapes.device)
    int_zeros = partial(torch.zeros, device=shapes.device)
    blocks = float_zeros(2, 1, shapes.block_size, shapes.num_kv_heads, shapes.head_dim)
    norm = float_zeros(shapes.head_dim) if shapes.qk_norm else None
    first = (
        float_zeros(1, shapes.qkv_width),
        norm,
        norm,
        EPS,
        int_zeros(1, shapes.head_dim, dtype=torch.float32),
        int_zeros(1, dtype=torch.int64),
        blocks[0],
        blocks[1],
        int_zeros(1, dtype=torch.int64),
        int_zeros((1, 1), dtype=torch.int32),
    )
    out = float_zeros(1, shapes.num_heads, shapes.head_dim)
    one = torch.ones(1, dtype=torch.int32, device=shapes.device)
    starts = torch.arange(2, dtype=torch.int32, device=shapes.device)
    group = shapes.num_heads // shapes.num_kv_heads
    tunings = {prefill_tuning(shapes.dtype, group, longest): longest for longest in (1, SHORT_QUERY, LONG)}
    return [
        *(
            partial(
                decode_attention,
                *first,
                one,
                1.0,
                out,
                cuts=cuts,
                tuning=decode_tuning(shapes.dtype, rows, whole=whole),
            )
            for cuts, whole, rows in ((WHOLE, True, LONG), (None, False, 1), (None, False, LONG))
        ),
        *(partial(prefill_attention, *first, starts, one, longest, 1.0, out) for longest in tunings.values()),
    ]


def _step_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    device = shapes.device
    integers = torch.zeros((3, 1), dtype=torch.int64, device=device)
    one = integers[0]
    table = torch.zeros((2, 1), dtype=torch.int32, device=device)
    temperatures = torch.zeros(2, dtype=torch.float32, device=device)
    logits = torch.zeros((1, shapes.vocab_size), dtype=shapes.dtype, device=device)
    return [
        # Steps that restrict the choice sample from float32, whatever the model's type.
        *(partial(sample, logits.to(dtype), temperatures[:1], one, one) for dtype in {shapes.dtype, torch.float32}),
        partial(decode_inputs, integers, table, integers[:2, 0], temperatures, integers[:2, 0], shapes.block_size),
    ]
