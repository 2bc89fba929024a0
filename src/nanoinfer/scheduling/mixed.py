"""Decodes and prefill chunks share every step: vLLM's way."""

from __future__ import annotations

from nanoinfer.scheduling.scheduler import Scheduler, Selection


class MixedScheduler(Scheduler):
    """Decode every running request in every step, and fill the rest of the token budget with prefill chunks.

    Running requests never pause for others; a prompt may take several steps, each slowed by the decodes beside it.
    Prefill cannot starve: a request that prefills is one of the running ones, at most as many run as the budget has
    tokens, and each of the others takes one.
    """

    def _select(self) -> Selection:
        decodes = self._decode()
        prefills = self._prefill(self.max_num_batched_tokens - len(decodes))
        return Selection(tuple(decodes), tuple(prefills))
