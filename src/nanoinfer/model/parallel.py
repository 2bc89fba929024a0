"""Tensor parallelism: which part of a layer a rank holds, and how the parts are added up.

Hidden states are whole on every rank. Attention heads, the MLP's inner width and the vocabulary are split: matrices
that widen hold some of their outputs (column parallel), matrices that narrow hold some of their inputs (row parallel)
and leave a partial sum, which all ranks add up. So a layer needs two sums, the embedding one, and sampling one more of
a few bytes: of the vocabulary each rank knows only the best of its own part. (Shoeybi et al., Megatron-LM, 2019.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from nanoinfer.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.model.config import ModelConfig

EXACT_IN_FLOAT32 = 2**24  # token ids travel as float32 next to their scores


class Collectives(Protocol):
    """What ranks do together; every rank calls the same methods with the same shapes in the same order."""

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """Return a place (num_rows, width) from which `all_reduce` needs no copy; None where there is none."""
        ...

    def all_reduce(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Sum x over the ranks. x may be overwritten; the result may be too, by the next sum, unless `keep`."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Stack x (...) of all ranks, in their order: (ranks, ...)."""
        ...


class Alone:
    """The collectives of one device."""

    def workspace(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | None:  # noqa: ARG002  the protocol's parameters
        """Nothing is added up, so no place is better than another."""
        return None

    def all_reduce(self, x: Tensor, *, keep: bool = False) -> Tensor:  # noqa: ARG002  likewise
        """Return x."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return x as the only entry."""
        return x[None]


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """One rank's place among `size` ranks that share a model."""

    rank: int
    size: int
    collectives: Collectives

    # --- who holds what -----------------------------------------------------------------------------------------------

    def part(self, total: int) -> range:
        """Return this rank's indices of `total`: consecutive, and as many as every other rank's or one fewer."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def kv_heads(self, num_kv_heads: int) -> range:
        """Return this rank's KV heads: its part, or the one that it shares with neighbours where ranks exceed heads."""
        if self.size <= num_kv_heads:
            return self.part(num_kv_heads)
        head = self.rank * num_kv_heads // self.size
        return range(head, head + 1)

    def local(self, config: ModelConfig) -> ModelConfig:
        """Return the shape of this rank's layers; ConfigError when the model cannot be split so."""
        self._check(config)
        return replace(
            config,
            num_heads=len(self.part(config.num_heads)),
            num_kv_heads=len(self.kv_heads(config.num_kv_heads)),
            intermediate_size=len(self.part(config.intermediate_size)),
        )

    def _check(self, config: ModelConfig) -> None:
        asked = f"tensor_parallel_size is {self.size}"
        if config.num_heads % self.size:
            raise ConfigError(f"{asked}; use a number that divides the model's {config.num_heads} attention heads")
        if config.num_kv_heads % self.size and self.size % config.num_kv_heads:
            raise ConfigError(f"{asked}; use a divisor or a multiple of the model's {config.num_kv_heads} KV heads")
        if config.intermediate_size % self.size:
            raise ConfigError(f"{asked}; use a number that divides intermediate_size {config.intermediate_size}")
        if self.size > 1 and not self.size <= config.vocab_size <= EXACT_IN_FLOAT32:
            raise ConfigError(f"{asked}; a vocabulary of {config.vocab_size} tokens cannot be split so; use 1")

    # --- sums ---------------------------------------------------------------------------------------------------------

    def best_token(self, scores: Tensor, token_ids: Tensor) -> Tensor:
        """Choose, for each of S rows, the token of the rank whose score (S,) float32 is highest; returns (S,) int64.

        Every rank fills its own place of a table of zeros; their sum is the table of all. Of equal scores the lowest
        rank's wins, which has the lowest token.
        """
        if self.size == 1:
            return token_ids
        table = scores.new_zeros((self.size, 2, len(scores)))
        table[self.rank, 0] = scores
        table[self.rank, 1] = token_ids
        table = self.collectives.all_reduce(table)
        winners = table[:, 0].argmax(0, keepdim=True)
        return table[:, 1].gather(0, winners)[0].long()

    def whole_logits(self, logits: Tensor, vocab_size: int) -> Tensor:
        """Join the ranks' logits (S, part of V) to (S, V)."""
        if self.size == 1:
            return logits
        parts = [TensorParallel(rank, self.size, self.collectives).part(vocab_size) for rank in range(self.size)]
        widest = max(map(len, parts))
        padded = torch.nn.functional.pad(logits, (0, widest - logits.shape[1]))
        gathered = self.collectives.all_gather(padded)
        return torch.cat([gathered[rank, :, : len(part)] for rank, part in enumerate(parts)], dim=1)


SINGLE = TensorParallel(0, 1, Alone())
