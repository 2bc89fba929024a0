"""Ops: the kernels that a model runs on, chosen once for its device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from nanoinfer.config import ConfigError
from nanoinfer.kernels import reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from nanoinfer.kernels.reference import DecodeRows
    from nanoinfer.model.config import ModelConfig

FEW_ROWS = 2  # up to here a product's time is that of reading its weights, and launches are what is left to save
MIN_TRITON_HEAD_DIM = 16  # the shortest inner dimension of tl.dot


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """One implementation of each kernel. Signatures and shapes are those of `nanoinfer.kernels.reference`.

    Callers pass tensors by position and use only what is returned, or the `out` that they gave: a kernel may overwrite
    inputs where the reference says so. Steps that decode at most `few_rows` sequences use products with the small
    operations fused into them.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    linear_parts: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    gated_linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    decode_attention: Callable[..., None]
    prefill_attention: Callable[..., None]
    sample: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    sample_shard: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    decode_inputs: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], DecodeRows]
    norm_linear: Callable[[Tensor, Tensor, float, Tensor, Tensor | None], Tensor]
    norm_gated_linear: Callable[[Tensor, Tensor, float, Tensor, Tensor | None], Tensor]
    linear_add: Callable[..., Tensor]
    few_rows: int


REFERENCE = Ops(
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    linear=functional.linear,
    linear_parts=functional.linear,
    gated_linear=reference.gated_linear,
    decode_attention=reference.decode_attention,
    prefill_attention=reference.prefill_attention,
    sample=reference.sample,
    sample_shard=reference.sample_shard,
    decode_inputs=reference.decode_inputs,
    norm_linear=reference.norm_linear,
    norm_gated_linear=reference.norm_gated_linear,
    linear_add=reference.linear_add,
    few_rows=0,
)


def select_ops(device: torch.device, head_dim: int) -> Ops:
    """Return the kernels for a device: Triton on CUDA, PyTorch otherwise; ConfigError when no kernel fits."""
    if device.type != "cuda":
        return REFERENCE
    if head_dim < MIN_TRITON_HEAD_DIM or head_dim & (head_dim - 1):
        raise ConfigError(
            f"head_dim is {head_dim}; the GPU kernels need a power of two, at least {MIN_TRITON_HEAD_DIM}; use 'cpu'"
        )
    return _triton_ops()


def begin_compiling(device: torch.device) -> None:
    """Begin what compiling any kernel begins with and needs no device for; on a CPU there is nothing to compile."""
    if device.type == "cuda":
        from nanoinfer.kernels.ahead import compiler_ready  # noqa: PLC0415  Triton is there with CUDA only
        from nanoinfer.model import kernel_cache  # noqa: PLC0415  likewise

        kernel_cache.install()
        compiler_ready()


def compiling_kernels(
    device: torch.device, dtype: torch.dtype, config: ModelConfig, block_size: int
) -> AbstractContextManager[None]:
    """Compile the kernels of a rank's layers while the body runs; on a CPU there are none."""
    if device.type != "cuda":
        return nullcontext()
    from nanoinfer.kernels.ahead import KernelShapes, compiling  # noqa: PLC0415  Triton is there with CUDA only

    shapes = KernelShapes(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        qk_norm=config.qk_norm,
        qkv_bias=config.qkv_bias,
        output_bias=config.output_bias,
        mlp_bias=config.mlp_bias,
        dtype=dtype,
        block_size=block_size,
        device=device,
    )
    return compiling(shapes)


def _triton_ops() -> Ops:
    from nanoinfer.kernels import decode_attention, decode_inputs, few_rows, fused, linear, prefill_attention, sampling  # noqa: PLC0415  Triton is there with CUDA only

    return Ops(
        rms_norm=fused.rms_norm,
        add_rms_norm=fused.add_rms_norm,
        linear=linear.linear,
        linear_parts=linear.linear_parts,
        gated_linear=linear.gated_linear,
        decode_attention=decode_attention.decode_attention,
        prefill_attention=prefill_attention.prefill_attention,
        sample=sampling.sample,
        sample_shard=sampling.sample_shard,
        decode_inputs=decode_inputs.decode_inputs,
        norm_linear=few_rows.norm_linear,
        norm_gated_linear=few_rows.norm_gated_linear,
        linear_add=few_rows.linear_add,
        few_rows=FEW_ROWS,
    )
