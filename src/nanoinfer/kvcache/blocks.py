"""Free list and reference counts of the KV cache's blocks. Knows no tokens and no requests."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


class InvariantError(AssertionError):
    """A structure contradicts itself: a defect of the engine, never of its input."""


def require(condition: bool, message: str) -> None:
    """Raise InvariantError with the message unless the condition holds."""
    if not condition:
        raise InvariantError(message)


class BlockPool:
    """Blocks `0 .. num_blocks - 1`, each in exactly one of three states.

    free         on the free list; nobody may read it
    referenced   in the block tables of as many requests as its count says
    kept         count 0 but not on the free list: someone else (the prefix index) still has a use for its content
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"the KV pool has {num_blocks} blocks; it needs at least 1")
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks on the free list."""
        return len(self._free)

    def is_referenced(self, block: int) -> bool:
        """Whether a request uses the block."""
        return self._references[block] > 0

    def take(self, count: int) -> list[int]:
        """Hand out free blocks with one reference each; the caller has made sure that there are so many."""
        first = len(self._free) - count
        taken = self._free[first:]
        taken.reverse()
        del self._free[first:]
        self.reuse(taken)
        return taken

    def reuse(self, blocks: Iterable[int]) -> None:
        """Give one reference to each of some blocks that have none and are not on the free list."""
        references = self._references
        for block in blocks:
            references[block] = 1

    def share(self, block: int) -> None:
        """Add a reference to a block that is referenced or kept."""
        self._references[block] += 1

    def drop(self, blocks: Iterable[int]) -> list[int]:
        """Remove one reference from each; return those without any left, which the caller must now free or keep."""
        references, idle = self._references, []
        for block in blocks:
            count = references[block] - 1
            if count < 0:
                raise InvariantError(f"block {block} is released more often than it was taken")
            references[block] = count
            if count == 0:
                idle.append(block)
        return idle

    def free(self, blocks: Iterable[int]) -> None:
        """Put blocks without references on the free list."""
        self._free.extend(blocks)

    def check_invariants(self, tables: Iterable[Sequence[int]], kept: Collection[int]) -> None:
        """Hold the counts against the block tables in use, and the three states against each other.

        `tables` are all block tables in use, `kept` the blocks that someone keeps without a reference.
        """
        uses = Counter(chain.from_iterable(tables))
        free = set(self._free)
        require(len(free) == len(self._free), "a block is on the free list twice")
        require(not free & set(kept), "a kept block is on the free list")
        for block, count in enumerate(self._references):
            require(count == uses[block], f"block {block} counts {count} references, {uses[block]} tables hold it")
            idle = block in free or block in kept
            require(idle == (count == 0), f"block {block} has {count} references and is {'idle' if idle else 'lost'}")
