"""Which block holds which content: chained content hash -> block, and the order in which blocks are given up.

A block's digest covers its own token ids and, through its parent's digest, everything before it; equal digests mean
equal tokens at equal positions, so equal keys and values. The digest is 128 bits of BLAKE2b: an accidental collision
among n blocks has probability about n**2 / 2**129, and none is known how to make on purpose.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

from nanoinfer.kvcache.blocks import require

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

DIGEST_BYTES = 16


def extend_chain(digests: list[bytes], token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Append the digests that are missing for the first `num_blocks` full blocks of `token_ids`."""
    parent = digests[-1] if digests else b""
    content = array("i", token_ids[len(digests) * block_size : num_blocks * block_size])
    block_bytes, content_bytes = block_size * content.itemsize, content.tobytes()
    for start in range(0, len(content_bytes), block_bytes):
        parent = blake2b(parent + content_bytes[start : start + block_bytes], digest_size=DIGEST_BYTES).digest()
        digests.append(parent)


class PrefixIndex:
    """Findable blocks by digest, and among them the idle ones (no request uses them) from oldest to newest."""

    def __init__(self) -> None:
        self._block_by_digest: dict[bytes, int] = {}
        self._digest_by_block: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        """Whether the block is findable."""
        return block in self._digest_by_block

    @property
    def idle(self) -> Collection[int]:
        """Findable blocks that no request uses, the next to be evicted first."""
        return self._idle.keys()

    @property
    def num_idle(self) -> int:
        """How many blocks `evict` could give up."""
        return len(self._idle)

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest findable beginning of the chain."""
        blocks = []
        for digest in digests:
            block = self._block_by_digest.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, digests: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Make used blocks findable; where another block has a content already, that one stays the findable one."""
        block_by_digest, digest_by_block = self._block_by_digest, self._digest_by_block
        for digest, block in zip(digests, blocks, strict=True):
            if digest not in block_by_digest:
                block_by_digest[digest] = block
                digest_by_block[block] = digest

    def retire(self, block: int) -> None:
        """Note that the last user of a findable block has left: it is now the newest of the idle ones."""
        self._idle[block] = None

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
        return idle

    def check_invariants(self) -> None:
        """Digest and block name each other; only findable blocks are idle."""
        inverse = {block: digest for digest, block in self._block_by_digest.items()}
        require(len(inverse) == len(self._block_by_digest), "a block is findable under two digests")
        require(inverse == self._digest_by_block, "digest -> block and block -> digest disagree")
        require(self._idle.keys() <= inverse.keys(), "a block that cannot be found waits for eviction")
