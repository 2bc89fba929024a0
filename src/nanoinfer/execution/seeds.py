"""Which seed a request's tokens are drawn with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoinfer.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Seeds:
    """Seeds of requests: their own, or one that follows from the engine's seed and the request's number."""

    engine_seed: int

    def of(self, request_id: int, sampling: SamplingParams) -> int:
        """Return the request's seed, 0 .. 2**63 - 1; the same in every process and after a preemption."""
        if sampling.seed is not None:
            return sampling.seed
        digest = hashlib.blake2b(f"{self.engine_seed}:{request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1
