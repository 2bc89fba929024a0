"""Compile every kernel that an engine will use, side by side, before the first of them is needed.

Triton compiles a kernel when it is first launched, far longer than a step takes. So each kernel is launched once,
on next to nothing, from one of several threads: most of the compiler runs outside the interpreter's lock.

What it does inside is what all wait for where cores abound. So the slowest kernels come first,
and few are compiled at a time: else all would take turns with the lock, and the slowest would end by themselves.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from triton.runtime import cache as triton_cache
from triton.runtime import driver

from nanoinfer.kernels.decode_attention import WHOLE, decode_attention, decode_tuning
from nanoinfer.kernels.decode_inputs import decode_inputs
from nanoinfer.kernels.few_rows import linear_add, norm_gated_linear, norm_linear
from nanoinfer.kernels.fused import add_rms_norm, rms_norm, silu_and_mul
from nanoinfer.kernels.linear import TUNINGS, early_linear, fits, gated_linear, linear_parts
from nanoinfer.kernels.prefill_attention import SHORT_QUERY, prefill_attention, prefill_tuning
from nanoinfer.kernels.sampling import sample
from nanoinfer.kernels.store_kv import norm_rotary_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

NUM_THREADS = 9  # as many as there are slow kernels: those of attention and sampling
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


@cache
def compiler_ready() -> tuple[Future[Any], ...]:
    """Begin, once a process, what Triton does before it compiles anything; whoever compiles waits for the end.

    It builds its own extension, where its cache has none, and digests its libraries for the keys of
    its cache. Every thread that found these undone would do them for itself. Errors are left to who compiles and meets
    them again.
    """
    threads = ThreadPoolExecutor(2, thread_name_prefix="compile")
    ready = threads.submit(_build_extension), threads.submit(_digest_libraries)
    threads.shutdown(wait=False)
    return ready


def _build_extension() -> object:
    return driver.active


def _digest_libraries() -> object:
    return triton_cache.triton_key()


@contextmanager
def compiling(shapes: KernelShapes) -> Iterator[None]:
    """Compile while the body runs; at its end all kernels are there, and the first error of one of them is raised."""
    ready = compiler_ready()
    store, prompts, others = _store_call(shapes), _prompt_calls(shapes), _other_calls(shapes)
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="compile") as threads:
        stored = threads.submit(_launch, shapes.device, ready, store)
        launched = [
            stored,
            # Attention of prompts launches that kernel too: three threads would compile it.
            *(threads.submit(_launch, shapes.device, (stored,), call) for call in prompts),
            *(threads.submit(_launch, shapes.device, ready, call) for call in others),
        ]
        yield
        for future in launched:
            future.result()


def _launch(device: torch.device, ready: Iterable[Future[Any]], call: Callable[[], object]) -> None:
    wait(ready)
    with torch.cuda.device(device):  # every thread has a current device of its own
        call()


# Each call launches one variant of a kernel on one token of zeros.


def _other_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    """Return all calls but those for prompts; the slowest to compile come first."""
    return [*_decode_calls(shapes), *_step_calls(shapes), *_layer_calls(shapes)]


def _layer_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    zeros = partial(torch.zeros, dtype=shapes.dtype, device=shapes.device)
    width, inner, heads = shapes.hidden_size, shapes.intermediate_size, shapes.num_heads * shapes.head_dim
    x, norm = zeros(1, width), zeros(width)
    projection = zeros(shapes.qkv_width, width)
    gate_up, down, output = zeros(2 * inner, width), zeros(width, inner), zeros(width, heads)
    qkv_bias, gate_up_bias = _bias(projection, shapes.qkv_bias), _bias(gate_up, shapes.mlp_bias)
    narrow = ((output, _bias(output, shapes.output_bias)), (down, _bias(down, shapes.mlp_bias)))
    return [
        partial(norm_linear, x, norm, EPS, projection, qkv_bias),
        partial(rms_norm, x, norm, EPS),
        *(partial(_linear_add_norm, weight[:1], weight, bias, norm) for weight, bias in narrow if fits(weight)),
        *(
            partial(early_linear, x, projection, qkv_bias, tuning)
            for tuning in (TUNINGS.values() if fits(projection) else ())
        ),
        *(partial(gated_linear, x, gate_up, gate_up_bias) for _ in range(fits(gate_up))),
        partial(norm_gated_linear, x, norm, EPS, gate_up, gate_up_bias),
        *(partial(linear_add, weight[:1], weight, bias, zeros(1, width)) for weight, bias in narrow),
        partial(silu_and_mul, zeros(1, 2 * inner)),
        partial(add_rms_norm, x, zeros(1, width), norm, EPS),
    ]


def _linear_add_norm(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor) -> None:
    add_rms_norm(linear_parts(x, weight, bias), weight.new_zeros(1, len(weight)), norm, EPS)


def _bias(weight: Tensor, wanted: bool) -> Tensor | None:
    return weight.new_zeros(len(weight)) if wanted else None


def _attention_inputs(
    shapes: KernelShapes,
) -> tuple[Tensor, Tensor | None, Tensor | None, float, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what both kinds of attention take first, from the fused projection to the block table."""
    float_zeros = partial(torch.zeros, dtype=shapes.dtype, device=shapes.device)
    int_zeros = partial(torch.zeros, device=shapes.device)
    blocks = float_zeros(2, 1, shapes.block_size, shapes.num_kv_heads, shapes.head_dim)
    norm = float_zeros(shapes.head_dim) if shapes.qk_norm else None
    return (
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


def _store_call(shapes: KernelShapes) -> Callable[[], object]:
    inputs = _attention_inputs(shapes)
    return partial(norm_rotary_store, inputs[0], *inputs[2:9])


def _prompt_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    first = _attention_inputs(shapes)
    out = first[0].new_zeros(1, shapes.num_heads, shapes.head_dim)
    one = torch.ones(1, dtype=torch.int32, device=shapes.device)
    starts = torch.arange(2, dtype=torch.int32, device=shapes.device)
    group = shapes.num_heads // shapes.num_kv_heads
    tunings = {prefill_tuning(shapes.dtype, group, longest): longest for longest in (LONG, SHORT_QUERY, 1)}
    return [partial(prefill_attention, *first, starts, one, longest, 1.0, out) for longest in tunings.values()]


def _decode_calls(shapes: KernelShapes) -> list[Callable[[], object]]:
    first = _attention_inputs(shapes)
    out = first[0].new_zeros(1, shapes.num_heads, shapes.head_dim)
    one = torch.ones(1, dtype=torch.int32, device=shapes.device)
    return [
        partial(
            decode_attention, *first, one, 1.0, out, cuts=cuts, tuning=decode_tuning(shapes.dtype, rows, whole=whole)
        )
        for cuts, whole, rows in ((None, False, 1), (WHOLE, True, LONG), (None, False, LONG))
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
