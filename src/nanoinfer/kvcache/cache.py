"""The paged KV cache as the scheduler sees it: who holds which blocks, and which prefixes are computed already.

Only numbers of blocks live here; the keys and values themselves lie in tensors of the runner, indexed by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoinfer.kvcache.blocks import BlockPool, require
from nanoinfer.kvcache.prefix import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks for a newly admitted request; the first `num_hit_blocks` of the table are computed already."""

    block_table: list[int]
    num_hit_blocks: int


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """Tokens looked up and found since the cache was made, over all admissions (also those after a preemption)."""

    num_queried_tokens: int
    num_hit_tokens: int


class KVCache:
    """Reference-counted blocks with a prefix index over them.

    A block that no request uses stays findable by its content until it is needed for something else; the one unused
    longest goes first, and of one request's blocks the last before the first, because a block without its
    predecessors cannot be found.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; a block holds at least 1 token")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._pool = BlockPool(num_blocks)
        self._index = PrefixIndex()
        self._peak_used = 0
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now, idle findable ones included."""
        return self._pool.num_free + self._index.num_idle

    @property
    def num_used(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.num_free

    @property
    def peak_used(self) -> int:
        """Most blocks held at the same time since the last `reset_peak_used`."""
        return self._peak_used

    @property
    def statistics(self) -> PrefixStatistics:
        """How often prefixes were looked up and found."""
        return PrefixStatistics(self._num_queried_tokens, self._num_hit_tokens)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill, the last perhaps in part."""
        return -(-num_tokens // self.block_size)

    def lookup(self, digests: Iterable[bytes]) -> list[int]:
        """Return the blocks that hold the longest known beginning of a chain of digests; changes nothing."""
        return self._index.find(digests) if self.prefix_cache else []

    def reserve(self, digests: Iterable[bytes], num_tokens: int, *, headroom: int = 0) -> Reservation | None:
        """Give a request blocks for `num_tokens` tokens, sharing those whose content is known already.

        `digests` is the chain of the full blocks that may be shared; none is asked for after the first that is unknown.
        None, and nothing changed, unless afterwards at least `headroom` blocks remain free.
        """
        hits = self.lookup(digests)
        num_fresh = self.blocks_for(num_tokens) - len(hits)
        num_idle_hits = len([block for block in hits if not self._pool.is_referenced(block)])
        if num_fresh + headroom > self.num_free - num_idle_hits:
            return None
        for block in hits:
            self._share(block)
        self._num_hit_tokens += len(hits) * self.block_size
        if self.prefix_cache:
            self._num_queried_tokens += num_tokens
        block_table = hits + self._take(num_fresh)
        self._peak_used = max(self._peak_used, self.num_used)
        return Reservation(block_table, len(hits))

    def append(self, block_table: list[int]) -> int:
        """Lengthen a block table by one fresh block and return it; the caller has made sure that one is free."""
        (block,) = self._take(1)
        block_table.append(block)
        self._peak_used = max(self._peak_used, self.num_used)
        return block

    def publish(self, digests: Iterable[bytes], blocks: Sequence[int]) -> None:
        """Make blocks of a table findable that follow each other; their tokens are computed, or will be in this step.

        Of the digests all but the first are asked for when somebody looks for the first, or at `catch_up`.
        """
        if self.prefix_cache:
            self._index.publish(digests, blocks)

    def catch_up(self) -> None:
        """Do what is left to do of `publish`; nothing that can be seen changes."""
        self._index.catch_up()

    def release(self, block_table: Sequence[int]) -> None:
        """Drop one reference to each block of a table; findable blocks stay so until they are evicted."""
        self._pool.free(self._index.retire(self._pool.drop(reversed(block_table))))

    def reset_prefix_cache(self) -> None:
        """Forget all contents, so that the next requests compute everything; blocks in use stay with their users."""
        self._pool.free(self._index.clear())

    def reset_peak_used(self) -> None:
        """Count the peak from now on."""
        self._peak_used = self.num_used

    def check_invariants(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Walk pool and index against all block tables in use; raise InvariantError at the first contradiction."""
        tables = list(block_tables)
        self._index.check_invariants()
        self._pool.check_invariants(tables, self._index.idle)
        for block in self._index.idle:
            require(not self._pool.is_referenced(block), f"block {block} waits for eviction while it is in use")
        for block in self._index.late:
            require(self._pool.is_referenced(block), f"block {block} waits to be entered, but nobody uses it")
        require(self.num_used == len({block for table in tables for block in table}), "used blocks are miscounted")
        require(self.num_used <= self._peak_used, "more blocks are used than the peak says")

    def _share(self, block: int) -> None:
        if not self._pool.is_referenced(block):
            self._index.revive(block)
        self._pool.share(block)

    def _take(self, count: int) -> list[int]:
        """Take free blocks, and where these do not suffice, those that have been idle longest."""
        taken = self._pool.take(min(count, self._pool.num_free))
        if len(taken) < count:
            evicted = self._index.evict(count - len(taken))
            self._pool.reuse(evicted)
            taken += evicted
        return taken
