"""Which block holds which content: chained content hash -> block, and the order in which blocks are given up.

A block's digest covers its own token ids and, through its parent's digest, everything before it; equal digests mean
equal tokens at equal positions, so equal keys and values. The digest is 128 bits of BLAKE2b: an accidental collision
among n blocks has probability about n**2 / 2**129, and none is known how to make on purpose.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from nanoinfer.kvcache.blocks import require

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

DIGEST_BYTES = 16


def extend_chain(digests: list[bytes], token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Append the digests that are missing for the first `num_blocks` full blocks of `token_ids`, ids below 2**31."""
    parent = digests[-1] if digests else b""
    content = np.array(token_ids[len(digests) * block_size : num_blocks * block_size], np.int32)
    block_bytes, content_bytes = block_size * content.itemsize, content.tobytes()
    for start in range(0, len(content_bytes), block_bytes):
        parent = blake2b(parent + content_bytes[start : start + block_bytes], digest_size=DIGEST_BYTES).digest()
        digests.append(parent)


def lazy_chain(
    digests: list[bytes], token_ids: Sequence[int], block_size: int, begin: int, end: int
) -> Iterator[bytes]:
    """Yield the digests of blocks `begin .. end - 1`, appending to `digests` what is missing as late as possible.

    The first is made when it is asked for, all others together when the second is: whoever finds nothing under the
    first need not hash the rest.
    """
    for stop in (min(begin + 1, end), end):
        if len(digests) < stop:
            extend_chain(digests, token_ids, block_size, stop)
        yield from digests[begin:stop]
        begin = stop


class PrefixIndex:
    """Findable blocks by digest, and among them the idle ones (no request uses them) from oldest to newest.

    Of blocks published together the first is entered at once and the rest late: before `find` looks beyond a first
    block, before blocks retire, or at `catch_up`. So where prompts have nothing in common, only the hashing of their
    first blocks delays the step that computes them. What is found does not depend on when the rest is entered, but for
    a content that several blocks hold: then another of them may be the findable one, or stay when one is evicted.
    """

    def __init__(self) -> None:
        self._block_by_digest: dict[bytes, int] = {}
        self._digest_by_block: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._late: list[tuple[Iterator[bytes], Sequence[int]]] = []

    @property
    def idle(self) -> Collection[int]:
        """Findable blocks that no request uses, the next to be evicted first."""
        return self._idle.keys()

    @property
    def late(self) -> set[int]:
        """Blocks that are published and still to be entered."""
        return {block for _, blocks in self._late for block in blocks}

    @property
    def num_idle(self) -> int:
        """How many blocks `evict` could give up."""
        return len(self._idle)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest findable beginning of the chain; asks for no digest after the first miss."""
        blocks = []
        for digest in digests:
            block = self._block_by_digest.get(digest)
            if block is None:
                break
            blocks.append(block)
            if self._late:
                self.catch_up()
        return blocks

    def publish(self, digests: Iterable[bytes], blocks: Sequence[int]) -> None:
        """Make used blocks findable; of several with one content the one entered first is findable."""
        digests = iter(digests)
        self._enter(islice(digests, 1), blocks[:1])
        if len(blocks) > 1:
            self._late.append((digests, blocks[1:]))

    def catch_up(self) -> None:
        """Enter what was published and not entered yet; blocks must still be used when this happens."""
        for digests, blocks in self._late:
            self._enter(digests, blocks)
        self._late.clear()

    def _enter(self, digests: Iterable[bytes], blocks: Sequence[int]) -> None:
        block_by_digest, digest_by_block = self._block_by_digest, self._digest_by_block
        for digest, block in zip(digests, blocks, strict=True):
            if block_by_digest.setdefault(digest, block) == block:
                digest_by_block[block] = digest

    def retire(self, blocks: Iterable[int]) -> list[int]:
        """Note that blocks have lost their last user, the newest idle one last; return those that are not findable."""
        self.catch_up()
        digest_by_block, idle, unknown = self._digest_by_block, self._idle, []
        for block in blocks:
            if block in digest_by_block:
                idle[block] = None
            else:
                unknown.append(block)
        return unknown

    def revive(self, block: int) -> None:
        """Note that an idle block is in use again."""
        del self._idle[block]

    def evict(self, count: int) -> list[int]:
        """Forget the blocks that have been idle longest and return them, the first one first; there must be so many."""
        evicted = list(islice(self._idle, count))
        idle, block_by_digest, digest_by_block = self._idle, self._block_by_digest, self._digest_by_block
        for block in evicted:
            del idle[block]
            del block_by_digest[digest_by_block.pop(block)]
        return evicted

    def clear(self) -> list[int]:
        """Forget everything; return the blocks that were idle."""
        idle = list(self._idle)
        self._idle.clear()
        self._block_by_digest.clear()
        self._digest_by_block.clear()
        self._late.clear()
        return idle

    def check_invariants(self) -> None:
        """Digest and block name each other; only findable blocks are idle."""
        inverse = {block: digest for digest, block in self._block_by_digest.items()}
        require(len(inverse) == len(self._block_by_digest), "a block is findable under two digests")
        require(inverse == self._digest_by_block, "digest -> block and block -> digest disagree")
        require(self._idle.keys() <= inverse.keys(), "a block that cannot be found waits for eviction")
