"""Matrix products for batches of a few rows, in Triton, with the small operations around them.

One or two sequences decode in the time that their weights take to be read. A product is then no matter of tensor cores
but of keeping loads in flight, and each launch costs as much as a small matrix. So normalization, activation and the
residual addition happen inside the products, and every program asks for its weights before it waits for the kernel
before it (programmatic dependent launch): while one kernel computes, the next one's weights are already on their way.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import THREE_PROGRAMS, early_launch
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Weights of one program: enough of them in flight to fill the memory's pipe, few enough for registers.
TILE_BYTES = 40 * 2**10
SHORT_ROW = 2048  # up to here gated products keep three programs on a multiprocessor without spilling registers


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rms_norm(x) W^T + b for x (T, K), contiguous, of few rows; norm_weight (K,), W (N, K), b (N,) or None."""
    out = x.new_empty((x.shape[0], weight.shape[0]))
    _launch(x, weight, bias, out, norm_weight=norm_weight, eps=eps)
    return out


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return silu(gate) * up with (gate, up) = rms_norm(x) W^T + b.

    x (T, K), contiguous, of few rows; norm_weight (K,); W (2 N, K) and b (2 N,) or None, gate first. Returns (T, N).
    """
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    _launch(x, weight, bias, out, norm_weight=norm_weight, eps=eps, gated=True)
    return out


def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return residual + (x W^T + b) for x (T, K), contiguous, of few rows; W (N, K), b (N,) or None.

    residual (T, N) is left as it is; None adds nothing. The result is written to out (T, N) where that is given.
    """
    if out is None:
        out = x.new_empty((x.shape[0], weight.shape[0]))
    _launch(x, weight, bias, out, residual=residual)
    return out


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    gated: bool = False,
) -> None:
    (num_rows, num_inputs), num_outputs = x.shape, out.shape[1]
    steps = _Steps(norm_weight is not None, gated, bias is not None, residual is not None)
    tile, variant = _few_rows_variant(num_inputs, weight.itemsize, steps, x.device)
    norm_weight = out if norm_weight is None else norm_weight
    bias = out if bias is None else bias
    residual = out if residual is None else residual
    tensors = x, norm_weight, weight, bias, residual, out
    variant.launch((-(-num_outputs // tile), 1, 1), tensors, (eps, num_rows, num_outputs))


class _Steps(NamedTuple):
    """What is done around a product."""

    norm: bool
    gated: bool
    bias: bool
    add: bool


@cache
def _few_rows_variant(num_inputs: int, itemsize: int, steps: _Steps, device: torch.device) -> tuple[int, Variant]:
    """Return the outputs that a program makes, and the variant."""
    body, rest = body_and_rest(num_inputs)
    row_bytes = (body + rest) * itemsize * (2 if steps.gated else 1)
    tile = 1 << max(0, (TILE_BYTES // row_bytes).bit_length() - 1)
    return tile, Variant(
        _few_rows_kernel,
        NUM_INPUTS=num_inputs,
        BODY=body,
        REST=rest,
        TILE=tile,
        NORM=steps.norm,
        GATED=steps.gated,
        BIAS=steps.bias,
        ADD=steps.add,
        num_warps=4,
        maxnreg=THREE_PROGRAMS if steps.gated and num_inputs <= SHORT_ROW else None,
        **early_launch(device),
    )


def body_and_rest(num_inputs: int) -> tuple[int, int]:
    """Return the power of two that a row is padded to, and 0; or two of them, where over a quarter would be padding.

    2,560 inputs are 2,048 and 512, 3,072 are 4,096 and 0. The second one is padded.
    """
    whole = triton.next_power_of_2(num_inputs)
    if 4 * num_inputs >= 3 * whole:
        return whole, 0
    return whole // 2, triton.next_power_of_2(num_inputs - whole // 2)


# A row of inputs travels as its first BODY values and the REST behind them, because a tile's sides are powers of two.
# Where REST is 0, the first ones stand for the others and are not used.


@triton.jit
def _load_row(row, is_row, BODY: tl.constexpr, REST: tl.constexpr, NUM_INPUTS: tl.constexpr):
    """Load a row of inputs (NUM_INPUTS,): (BODY,) and (REST,)."""
    k = tl.arange(0, BODY)
    body = tl.load(row + k, mask=is_row & (k < NUM_INPUTS), other=0.0)
    rest = body
    if REST:
        behind = BODY + tl.arange(0, REST)
        rest = tl.load(row + behind, mask=is_row & (behind < NUM_INPUTS), other=0.0)
    return body, rest


@triton.jit
def _load_weights(weight, column, is_column, BODY: tl.constexpr, REST: tl.constexpr, NUM_INPUTS: tl.constexpr):
    """Load rows of weights (N, NUM_INPUTS): (TILE, BODY) and (TILE, REST)."""
    row = column.to(tl.int64)[:, None] * NUM_INPUTS
    k = tl.arange(0, BODY)[None, :]
    body = tl.load(weight + (row + k), mask=is_column[:, None] & (k < NUM_INPUTS), other=0.0)
    rest = body
    if REST:
        behind = BODY + tl.arange(0, REST)[None, :]
        rest = tl.load(weight + (row + behind), mask=is_column[:, None] & (behind < NUM_INPUTS), other=0.0)
    return body, rest


@triton.jit
def _normalize(body, rest, scale, rest_scale, eps, NUM_INPUTS: tl.constexpr, REST: tl.constexpr, dtype: tl.constexpr):
    """Normalize a row by its root mean square; rounds to dtype as a tensor would."""
    squares = tl.sum(body * body, 0)
    if REST:
        squares += tl.sum(rest * rest, 0)
    inverse = tl.rsqrt(squares / NUM_INPUTS + eps)
    body = (body * inverse * scale.to(tl.float32)).to(dtype).to(tl.float32)
    rest = (rest * inverse * rest_scale.to(tl.float32)).to(dtype).to(tl.float32)
    return body, rest


@triton.jit
def _product(
    tile, rest_tile, values, rest, bias, column, is_column, REST: tl.constexpr, BIAS: tl.constexpr, dtype: tl.constexpr
):
    """Multiply weights (TILE, K) with a row (K,) in float32; rounds to dtype as a matrix product would."""
    total = tl.sum(tile.to(tl.float32) * values[None, :], 1)
    if REST:
        total += tl.sum(rest_tile.to(tl.float32) * rest[None, :], 1)
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    return total.to(dtype).to(tl.float32)


# Batches differ in rows, layers in outputs: neither may ask for another compilation.
@triton.jit(do_not_specialize=["num_rows", "num_outputs"])
def _few_rows_kernel(
    x,
    norm_weight,
    weight,
    bias,
    residual,
    out,
    eps,
    num_rows,
    num_outputs,
    NUM_INPUTS: tl.constexpr,
    BODY: tl.constexpr,
    REST: tl.constexpr,
    TILE: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
):
    dtype: tl.constexpr = out.dtype.element_ty
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_column = column < num_outputs
    tile, rest_tile = _load_weights(weight, column, is_column, BODY, REST, NUM_INPUTS)
    if GATED:
        up = weight + num_outputs.to(tl.int64) * NUM_INPUTS
        up_tile, rest_up_tile = _load_weights(up, column, is_column, BODY, REST, NUM_INPUTS)
    if NORM:
        norm_scale, rest_norm_scale = _load_row(norm_weight, True, BODY, REST, NUM_INPUTS)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    # Asked for one row ahead: the weights are converted before the loop, and that may have to wait for them.
    coming, rest_coming = _load_row(x, True, BODY, REST, NUM_INPUTS)
    for row in range(num_rows):
        values, rest = coming.to(tl.float32), rest_coming.to(tl.float32)
        coming, rest_coming = _load_row(x + (row + 1) * NUM_INPUTS, row + 1 < num_rows, BODY, REST, NUM_INPUTS)
        if NORM:
            values, rest = _normalize(values, rest, norm_scale, rest_norm_scale, eps, NUM_INPUTS, REST, dtype)
        result = _product(tile, rest_tile, values, rest, bias, column, is_column, REST, BIAS, dtype)
        if GATED:
            up_bias = bias + num_outputs
            up_result = _product(up_tile, rest_up_tile, values, rest, up_bias, column, is_column, REST, BIAS, dtype)
            result = result / (1.0 + tl.exp(-result)) * up_result
        target = row * num_outputs + column
        if ADD:
            result += tl.load(residual + target, mask=is_column, other=0.0).to(tl.float32)
        tl.store(out + target, result.to(dtype), mask=is_column)
