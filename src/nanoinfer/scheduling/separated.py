"""A step is all prefill or all decode: Nano-vLLM's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoinfer.scheduling.scheduler import Scheduler, Selection

if TYPE_CHECKING:
    from nanoinfer.kvcache.cache import KVCache


class SeparatedScheduler(Scheduler):
    """Prefill while there is something to prefill and room for it, otherwise decode all running requests together.

    New requests start soon and decode in large batches; running requests pay with a pause while others prefill. The
    pause is bounded: after as many admissions as requests can run at once, a decode step comes first. Mostly the
    number of slots keeps that bound by itself; requests that end with their first token would not.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        super().__init__(
            cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
        )
        self._num_admitted_since_decode = 0

    def _select(self) -> Selection:
        if self._num_admitted_since_decode >= self.max_num_running:
            return self._select_decodes() or self._select_prefills()
        return self._select_prefills() or self._select_decodes()

    def _select_prefills(self) -> Selection:
        prefills = self._prefill(self.max_num_batched_tokens)
        self._num_admitted_since_decode += len([row for row in prefills if row.sampling is not None])
        return Selection(prefills=tuple(prefills))

    def _select_decodes(self) -> Selection:
        decodes = self._decode()
        if decodes:
            self._num_admitted_since_decode = 0
        return Selection(decodes=tuple(decodes))
