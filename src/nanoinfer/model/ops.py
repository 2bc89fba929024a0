"""Ops: the kernels that a model runs on, chosen once for its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoinfer.config import ConfigError
from nanoinfer.kernels import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from nanoinfer.kernels.reference import DecodeRows

MIN_TRITON_HEAD_DIM = 16  # the shortest inner dimension of tl.dot


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """One implementation of each kernel. Signatures and shapes are those of `nanoinfer.kernels.reference`.

    Callers pass tensors by position and use only what is returned: a kernel may overwrite inputs where the reference
    says so.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    silu_and_mul: Callable[[Tensor], Tensor]
    qk_norm_rotary_store: Callable[..., Tensor]
    paged_decode: Callable[..., Tensor]
    paged_prefill: Callable[..., Tensor]
    sample: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    decode_inputs: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], DecodeRows]


REFERENCE = Ops(
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    silu_and_mul=reference.silu_and_mul,
    qk_norm_rotary_store=reference.qk_norm_rotary_store,
    paged_decode=reference.paged_decode,
    paged_prefill=reference.paged_prefill,
    sample=reference.sample,
    decode_inputs=reference.decode_inputs,
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


def _triton_ops() -> Ops:
    from nanoinfer.kernels import decode_inputs, fused, paged_decode, paged_prefill, sampling  # noqa: PLC0415  Triton is there with CUDA only

    return Ops(
        rms_norm=fused.rms_norm,
        add_rms_norm=fused.add_rms_norm,
        silu_and_mul=fused.silu_and_mul,
        qk_norm_rotary_store=fused.qk_norm_rotary_store,
        paged_decode=paged_decode.paged_decode,
        paged_prefill=paged_prefill.paged_prefill,
        sample=sampling.sample,
        decode_inputs=decode_inputs.decode_inputs,
    )
