"""Linear, Embedding, RMSNorm, the rotary table and the gated MLP, each as one rank holds it.

Parameters are created empty on the current default device and dtype; `weights` fills them. Linear layers that read the
same input are one fused matrix: the rows of its parts lie one after the other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from nanoinfer.model.config import Llama3Scaling, ModelConfig
    from nanoinfer.model.ops import Ops
    from nanoinfer.model.parallel import TensorParallel


MANY_ROWS = 1024  # with fewer, a product that adds takes as much longer as the normalization takes less


def empty_parameter(*shape: int) -> nn.Parameter:
    """Make an uninitialized parameter for inference."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Layer(nn.Module):
    """A module that costs a step little: what nn.Module does at each use of a part or a call is left out.

    Parameters and parts are found like any attribute, so a model stays on the device that it was built on; a call has
    no hooks.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; parameters and parts are registered too."""
        self.__dict__.pop(name, None)
        super().__setattr__(name, value)  # type: ignore[arg-type]
        if isinstance(value, nn.Parameter | nn.Module):
            self.__dict__[name] = value

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401  as nn.Module has it
        """Return what `forward` does."""
        return self.forward(*args)


class Linear(Layer):
    """y = x W^T + b with W (out_features, in_features); the bias is None where there is none."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = empty_parameter(out_features, in_features)
        self.bias = empty_parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (T, in_features) to (T, out_features)."""
        return functional.linear(x, self.weight, self.bias)


class RowParallelLinear(Linear):
    """y = x W^T + b where x (T, in_features) and W are this rank's part of the inputs: the ranks' products are summed.

    The first rank alone holds the bias.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, parallel: TensorParallel, ops: Ops) -> None:
        super().__init__(in_features, out_features, bias=bias and parallel.rank == 0)
        self.parallel = parallel
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Map this rank's x (T, in_features) to the whole (T, out_features)."""
        out = self._workspace(x)
        if out is None:
            return self.parallel.collectives.all_reduce(functional.linear(x, self.weight, self.bias))
        if self.bias is None:
            torch.mm(x, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=out)
        return self.parallel.collectives.all_reduce(out)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return (y, residual) for the normalization that follows to add, or (None, their sum) where that is cheaper.

        y may be in parts (P, T, out_features) that are still to be added up.
        Many rows are added within the product, over `residual`: they need not travel through memory once more.
        """
        if self.parallel.size > 1:
            return self(x), residual
        if x.shape[0] < MANY_ROWS:
            return self.ops.linear_parts(x, self.weight, self.bias), residual
        residual.addmm_(x, self.weight.t())
        return None, residual if self.bias is None else residual.add_(self.bias)

    def add_few_rows(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + y for x of few rows; the first rank brings the residual into the sum."""
        if self.parallel.size == 1:
            return self.ops.linear_add(x, self.weight, self.bias, residual)
        own = residual if self.parallel.rank == 0 else None
        part = self.ops.linear_add(x, self.weight, self.bias, own, self._workspace(x))
        return self.parallel.collectives.all_reduce(part, keep=True)

    def _workspace(self, x: Tensor) -> Tensor | None:
        return self.parallel.collectives.workspace(x.shape[0], self.weight.shape[0], x.dtype)


class Embedding(Layer):
    """Token ids (T,) to rows of W, of which this rank holds its part of the vocabulary.

    With several ranks a row of zeros follows the part: ids of other parts are looked up there, and the sum over the
    ranks is the row of the rank that has it.
    """

    local_rows: Tensor

    def __init__(self, vocab_size: int, hidden_size: int, parallel: TensorParallel) -> None:
        super().__init__()
        own = parallel.part(vocab_size)
        self.parallel = parallel
        if parallel.size == 1:
            self.weight = empty_parameter(vocab_size, hidden_size)
            return
        self.rows = empty_parameter(len(own) + 1, hidden_size)
        self.rows[-1] = 0
        self.weight = nn.Parameter(self.rows[:-1].detach(), requires_grad=False)
        local_rows = torch.full((vocab_size,), len(own))
        local_rows[own.start : own.stop] = torch.arange(len(own))
        self.register_buffer("local_rows", local_rows, persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up (T,) integer ids; returns (T, hidden_size)."""
        if self.parallel.size == 1:
            return functional.embedding(token_ids, self.weight)
        part = functional.embedding(self.local_rows[token_ids], self.rows)
        return self.parallel.collectives.all_reduce(part, keep=True)


class RMSNorm(Layer):
    """Root mean square normalization, alone or fused with the residual addition before it."""

    def __init__(self, size: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.weight = empty_parameter(size)
        self.eps = eps
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (T, size)."""
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, branch: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return (normalized sum, sum) of a branch and the residual stream, both (T, size); None is in it already."""
        if branch is None:
            return self(residual), residual
        return self.ops.add_rms_norm(branch, residual, self.weight, self.eps)


class GatedMLP(Layer):
    """down(silu(gate(x)) * up(x)) with gate and up in one matrix; `config` is the rank's own."""

    def __init__(self, config: ModelConfig, ops: Ops, parallel: TensorParallel) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias, parallel=parallel, ops=ops
        )
        self.ops = ops

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor | None, Tensor]:
        """Map x (T, hidden_size) to (T, hidden_size), which is returned or added as RowParallelLinear.add does."""
        hidden = self.ops.gated_linear(x, self.gate_up_proj.weight, self.gate_up_proj.bias)
        return self.down_proj.add(hidden, residual)


def rotary_table(config: ModelConfig, num_positions: int) -> Tensor:
    """Cosines and sines (num_positions, head_dim) float32, as `kernels.reference.rotary` reads them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = scale_llama3(frequencies, config.rope_scaling)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def scale_llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide low frequencies by `factor`, keep high ones, blend between (Llama 3.1's published rule).

    A frequency is low where its wavelength exceeds the original context / low_freq_factor, high where it is below the
    original context / high_freq_factor.
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
