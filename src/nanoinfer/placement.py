"""Which of several engines a request goes to."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from nanoinfer.kvcache.prefix import extend_chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoinfer.config import Placement
    from nanoinfer.request import Request

REMEMBERED_BLOCKS = 1 << 18  # digests of prompts given before, the oldest forgotten first


class Dispatcher:
    """Spreads requests by outstanding work: the prompt and output tokens that an engine was given and has not finished.

    With "prefix" placement, tokens at the beginning of a prompt that an engine was given before count as done there, as
    far as they fill blocks. So a request follows its prefix until the detour costs more than the prefix saves. Whether
    the engine still has those blocks is not asked; where it has not, the request only loses the advantage.
    """

    def __init__(self, num_engines: int, placement: Placement, block_size: int) -> None:
        self._outstanding = [0] * num_engines
        self._placed: dict[int, tuple[int, int]] = {}
        self._by_prefix = placement == "prefix"
        self._block_size = block_size
        self._holders: OrderedDict[bytes, set[int]] = OrderedDict()

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Tokens that each engine has still to do."""
        return tuple(self._outstanding)

    def place(self, request: Request) -> int:
        """Choose an engine for a request and count its work; of equals the first."""
        digests = self._digests(request) if self._by_prefix else []
        saved = [self._block_size * self._num_held(digests, engine) for engine in range(len(self._outstanding))]
        cost = [left - known for left, known in zip(self._outstanding, saved, strict=True)]
        engine = cost.index(min(cost))
        work = request.num_prompt_tokens + request.sampling.max_tokens - saved[engine]
        self._outstanding[engine] += work
        self._placed[request.request_id] = engine, work
        self._remember(digests, engine)
        return engine

    def finish(self, request_id: int) -> int:
        """Forget a request's work; returns the engine that had it."""
        engine, work = self._placed.pop(request_id)
        self._outstanding[engine] -= work
        return engine

    def engine_of(self, request_id: int) -> int | None:
        """Return the engine that works on a request; None when none does."""
        placed = self._placed.get(request_id)
        return None if placed is None else placed[0]

    def forget_prefixes(self) -> None:
        """Forget which engine was given which prompt."""
        self._holders.clear()

    def _digests(self, request: Request) -> list[bytes]:
        """Chain of the blocks that a prefix cache could hold: the last token is always computed."""
        digests: list[bytes] = []
        extend_chain(digests, request.token_ids, self._block_size, (request.num_prompt_tokens - 1) // self._block_size)
        return digests

    def _num_held(self, digests: Sequence[bytes], engine: int) -> int:
        for count, digest in enumerate(digests):
            if engine not in self._holders.get(digest, ()):
                return count
        return len(digests)

    def _remember(self, digests: Sequence[bytes], engine: int) -> None:
        for digest in digests:
            self._holders.setdefault(digest, set()).add(engine)
            self._holders.move_to_end(digest)
        while len(self._holders) > REMEMBERED_BLOCKS:
            self._holders.popitem(last=False)
