"""Logits to token ids, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.model.ops import Ops
    from nanoinfer.model.parallel import TensorParallel


@dataclass(frozen=True, slots=True)
class Limits:
    """To which tokens the choice of S rows is restricted.

    top_ps  (S,) float32, 1 where there is no limit
    top_ks  (S,) int64, the vocabulary's size where there is no limit
    """

    top_ps: Tensor
    top_ks: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """The settings of S sampled rows.

    temperatures   (S,) float32, 0 is greedy
    seeds          (S,) int64
    token_indices  (S,) int64, index of the sampled token among its request's outputs
    limits         None where no row has one (a host fact), so that nothing is sorted
    """

    temperatures: Tensor
    seeds: Tensor
    token_indices: Tensor
    limits: Limits | None = None


def choose_tokens(
    logits: Tensor, inputs: SamplingInputs, ops: Ops, parallel: TensorParallel, vocab_size: int
) -> Tensor:
    """Choose one token a row of this rank's logits (S, part of V); returns (S,) int64, the same on every rank.

    Ranks compare only the best of each part of the vocabulary, unless a choice is restricted: that needs all logits.
    """
    if inputs.limits is None:
        first = parallel.part(vocab_size).start
        best = ops.sample_shard(logits, inputs.temperatures, inputs.seeds, inputs.token_indices, first)
        return parallel.best_token(*best)
    logits = parallel.whole_logits(logits, vocab_size)
    logits = restrict(logits, inputs.temperatures, inputs.limits.top_ps, inputs.limits.top_ks)
    return ops.sample(logits, inputs.temperatures, inputs.seeds, inputs.token_indices)


def restrict(logits: Tensor, temperatures: Tensor, top_ps: Tensor, top_ks: Tensor) -> Tensor:
    """Exclude all but the `top_k` most likely tokens, then all but the fewest that together reach `top_p`.

    logits (S, V); the other arguments (S,). Probabilities are those after the temperature and, for top_p, among what
    top_k left. A token as likely as the last one kept is kept as well, and the most likely one always is. Returns
    logits in float32 with -inf where a token is excluded.
    """
    logits = logits.float()
    ordered = logits.sort(dim=-1, descending=True).values
    ranks = torch.arange(logits.shape[1], device=logits.device)
    kept_by_k = ranks < top_ks[:, None]
    heat = torch.where(temperatures == 0, 1.0, temperatures)[:, None]
    probabilities = torch.softmax((ordered / heat).masked_fill(~kept_by_k, float("-inf")), dim=-1)
    more_likely = probabilities.cumsum(-1) - probabilities
    # Rounding of the sum must not cut anything where there is no limit.
    kept = kept_by_k & ((more_likely < top_ps[:, None]) | (top_ps[:, None] >= 1.0))
    threshold = ordered.gather(1, kept.sum(-1, keepdim=True).clamp(min=1) - 1)
    return logits.masked_fill(logits < threshold, float("-inf"))
