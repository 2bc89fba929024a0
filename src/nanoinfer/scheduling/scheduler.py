"""Queues, admission, preemption and commit: what both policies share.

    waiting --admit--> prefilling (in chunks) --> decoding --commit--> finished
       ^                    |                        |
       +------- preempt ----+------------------------+

Steps may be planned ahead: `schedule` may be called while earlier plans are not committed yet. Three things make that
safe. How many tokens a request will have is known without knowing the tokens. The device runs the steps in the order
of the plans, so a block or slot that was given up may be planned for another request at once. And a row of a request
that has ended in the meantime is discarded at its commit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoinfer.kvcache.blocks import InvariantError, require
from nanoinfer.kvcache.prefix import extend_chain, lazy_chain
from nanoinfer.request import FinishReason, RequestError, Status
from nanoinfer.scheduling.plan import Phase, ScheduledRequest, StepPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nanoinfer.kvcache.cache import KVCache
    from nanoinfer.request import Request

# A new request is admitted beside running ones only if these can grow for so many steps with the blocks that remain
# (one block each, or their mean demand where blocks are longer). Otherwise a full pool would admit a prompt, compute
# it and take its blocks back at the next block boundary of an older request, again and again.
GROWTH_STEPS = 16


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a policy has chosen for one step; false when there are none."""

    decodes: tuple[ScheduledRequest, ...] = ()
    prefills: tuple[ScheduledRequest, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.decodes or self.prefills)

    @property
    def phase(self) -> Phase:
        """What kind of step the rows make."""
        if self.decodes and self.prefills:
            return Phase.MIXED
        return Phase.DECODE if self.decodes else Phase.PREFILL


@dataclass(frozen=True, slots=True)
class _Flight:
    """A plan that is not committed yet, and the request of each of its rows (an id could be used again)."""

    plan: StepPlan
    requests: tuple[Request, ...]


class _CommitFirstError(Exception):
    """A request must be preempted, but a step in flight holds tokens that its resumption needs."""


class Scheduler(ABC):
    """Plans steps and is the only writer of request state. Policies choose what goes into a step (`_select`).

    Rules of both policies:

    - Requests are admitted in the order of arrival; none overtakes a larger one that waits for room.
    - A request is admitted when it gets a slot and blocks for all its known tokens. So prefill never runs out of
      blocks, and at most one request, the newest of the running ones, is between two chunks of its prefill.
    - When a decode finds no free block, the most recently admitted request is preempted: it gives up its blocks and
      waits at the front of the queue, to be computed again from its prompt and the outputs so far. The oldest request
      is never preempted for another's sake, and `add` made sure that it fits alone: there is always progress.
    - At least the last known token of an admitted request is computed, because its logits are needed: of a prompt of n
      tokens at most (n - 1) // block_size blocks are taken from the prefix cache. A prompt that is cached wholly
      computes its last block again, into a block of its own.

    `max_num_seqs` slots; `max_num_batched_tokens` positions a step; `max_model_len` prompt plus output; `eos_token_ids`
    end a request unless it ignores them.
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
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        # Every running request must be able to take a token of each step's budget.
        self.max_num_running = min(max_num_seqs, max_num_batched_tokens)
        self._cache = cache
        self._eos_token_ids = eos_token_ids
        self._unfinished: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}  # in the order of admission
        self._prefilling: Request | None = None  # the newest running one, while part of its known tokens is unplanned
        self._free_slots = list(range(self.max_num_running - 1, -1, -1))
        self._in_flight: deque[_Flight] = deque()
        self._num_steps = 0

    # --- queries ----------------------------------------------------------------------------------------------------

    @property
    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._unfinished)

    @property
    def num_waiting(self) -> int:
        """Requests that hold no slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot and blocks."""
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        """Plans that wait for their commit; may be above 0 when all requests have finished."""
        return len(self._in_flight)

    def check_fits(self, request: Request) -> None:
        """Refuse a request that can never run, however empty the engine is: RequestError says why. Changes nothing."""
        prompt, output = request.num_prompt_tokens, request.sampling.max_tokens
        if prompt < 1:
            raise RequestError(f"request {request.request_id} has an empty prompt; give at least one token")
        asked = f"request {request.request_id} asks for {prompt} prompt + {output} output = {prompt + output} tokens"
        if prompt + output > self.max_model_len:
            raise RequestError(
                f"{asked}, over max_model_len {self.max_model_len}; shorten the prompt, lower max_tokens or raise it"
            )
        blocks = self._cache.blocks_for(prompt + output - 1)  # the last token's keys and values are never needed
        if blocks > self._cache.num_blocks:
            raise RequestError(
                f"{asked}, which fill {blocks} KV blocks, but the pool has {self._cache.num_blocks} blocks of "
                f"{self._cache.block_size} tokens; shorten the prompt, lower max_tokens or enlarge the KV cache"
            )

    # --- commands ---------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request; RequestError when it can never run."""
        if request.request_id in self._unfinished:
            raise RequestError(f"request id {request.request_id} is taken by an unfinished request; use another")
        self.check_fits(request)
        self._unfinished[request.request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: int) -> Request | None:
        """End a request now, even while a step computes it; None when no such request is unfinished."""
        request = self._unfinished.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.CANCELLED)
        return request

    def schedule(self, now_ns: int) -> StepPlan | None:
        """Plan the next step; None when there is nothing to do before a commit or a new request."""
        try:
            selection = self._select()
        except _CommitFirstError:
            return None
        if not selection:
            return None
        plan = StepPlan(self._num_steps, selection.phase, selection.decodes, selection.prefills)
        requests = tuple([self._running[row.request_id] for row in plan.scheduled])
        for request in requests[len(plan.decodes) :]:
            if request.scheduled_ns is None:
                request.scheduled_ns = now_ns
        self._in_flight.append(_Flight(plan, requests))
        self._num_steps += 1
        return plan

    def commit(self, plan: StepPlan, sampled: Sequence[int], now_ns: int) -> list[Request]:
        """Take in the tokens of the oldest plan in flight and return the requests that they finished.

        `sampled` holds one id for each row of `plan.scheduled` that samples, in that order. Ids of requests that have
        ended since the plan was made are dropped.
        """
        if not self._in_flight or self._in_flight[0].plan is not plan:
            raise ValueError(f"step {plan.step} is not the oldest step in flight; commit steps once, in their order")
        rows = plan.scheduled
        sampling = [
            (row, request) for row, request in zip(rows, self._in_flight[0].requests, strict=True) if row.samples
        ]
        if len(sampled) != len(sampling):
            raise ValueError(f"step {plan.step} samples {len(sampling)} tokens, but {len(sampled)} ids came back")
        self._in_flight.popleft()
        finished = []
        for (row, request), token_id in zip(sampling, sampled, strict=True):
            if request.status is Status.RUNNING and self._accept(request, row, token_id, now_ns):
                finished.append(request)
        return finished

    def check_invariants(self) -> None:
        """Walk scheduler, requests and cache; raise InvariantError at the first contradiction."""
        running = list(self._running.values())
        self._cache.check_invariants(request.block_table for request in running)
        slots = [self._slot(request) for request in running] + self._free_slots
        require(sorted(slots) == list(range(self.max_num_running)), "a slot is lost or given twice")
        queued = [request.request_id for request in (*running, *self._waiting)]
        require(sorted(queued) == sorted(self._unfinished), "a request is lost or queued twice")
        if self._prefilling is not None:
            require(self._prefilling is running[-1], "a request that prefills is not the newest")
        for request in running:
            self._check_running(request)
        for request in self._waiting:
            require(request.status is Status.WAITING, f"request {request.request_id} waits as {request.status}")
            require(request.slot is None and not request.block_table, f"request {request.request_id} waits with blocks")

    # --- what policies choose from ----------------------------------------------------------------------------------

    @abstractmethod
    def _select(self) -> Selection:
        """Choose the rows of the next step."""

    def _decode(self) -> list[ScheduledRequest]:
        """Advance every decoding request by one token, preempting others if that is what it takes.

        Raises _CommitFirstError, with nothing changed, where a preemption has to wait for a commit.
        """
        decoding = self._decoding()
        while self._num_blocks_wanted(decoding) > self._cache.num_free:
            if self._in_flight:
                raise _CommitFirstError
            self._preempt_newest()
            decoding = self._decoding()
        return [self._decode_row(request) for request in decoding]

    def _prefill(self, budget: int) -> list[ScheduledRequest]:
        """Go on with the prefill that was begun, then admit waiting requests, for at most `budget` tokens."""
        rows = []
        while budget > 0:
            is_new = self._prefilling is None
            request = self._prefilling or self._admit()
            if request is None:
                break
            rows.append(self._prefill_row(request, budget, is_new=is_new))
            budget -= rows[-1].num_tokens
        return rows

    # --- admission and prefill --------------------------------------------------------------------------------------

    def _admit(self) -> Request | None:
        """Give the first waiting request a slot and blocks for all its known tokens; None if it has to wait on."""
        if not self._waiting or len(self._running) == self.max_num_running:
            return None
        request = self._waiting[0]
        num_tokens = len(request.token_ids)
        digests = self._digests(request, 0, (num_tokens - 1) // self._cache.block_size)
        reservation = self._cache.reserve(digests, num_tokens, headroom=self._growth_headroom())
        if reservation is None:
            return None
        self._waiting.popleft()
        request.status = Status.RUNNING
        request.slot = self._free_slots.pop()
        request.block_table = reservation.block_table
        request.num_scheduled_tokens = reservation.num_hit_blocks * self._cache.block_size
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_scheduled_tokens
        self._running[request.request_id] = request
        return request

    def _growth_headroom(self) -> int:
        """Blocks to leave to the running requests; see GROWTH_STEPS."""
        return -(-len(self._running) * GROWTH_STEPS // max(GROWTH_STEPS, self._cache.block_size))

    def _prefill_row(self, request: Request, budget: int, *, is_new: bool) -> ScheduledRequest:
        begin = request.num_scheduled_tokens
        end = min(begin + budget, len(request.token_ids))
        is_last = end == len(request.token_ids)
        request.num_scheduled_tokens = end
        request.num_pending_outputs = 1 if is_last else 0
        self._prefilling = None if is_last else request
        self._publish(request, begin, end)
        return ScheduledRequest(
            request_id=request.request_id,
            slot=self._slot(request),
            start=begin,
            num_tokens=end - begin,
            token_ids=tuple(request.token_ids[begin:end]),
            new_blocks=tuple(request.block_table) if is_new else (),
            num_old_blocks=0 if is_new else len(request.block_table),
            samples=is_last,
            num_outputs=request.num_output_tokens,
            sampling=request.sampling if is_new else None,
        )

    # --- decode -----------------------------------------------------------------------------------------------------

    def _decoding(self) -> list[Request]:
        """List the running requests that have their prefill planned and are not planned up to max_tokens yet."""
        return [
            request
            for request in self._running.values()
            if request is not self._prefilling
            and len(request.token_ids) - request.num_prompt_tokens + request.num_pending_outputs
            < request.sampling.max_tokens
        ]

    def _num_blocks_wanted(self, decoding: Sequence[Request]) -> int:
        size = self._cache.block_size
        return len([r for r in decoding if r.num_scheduled_tokens == len(r.block_table) * size])

    def _decode_row(self, request: Request) -> ScheduledRequest:
        position = request.num_scheduled_tokens
        num_old_blocks = len(request.block_table)
        is_full = position == num_old_blocks * self._cache.block_size
        new_blocks = (self._cache.append(request.block_table),) if is_full else ()
        num_outputs = len(request.token_ids) - request.num_prompt_tokens + request.num_pending_outputs
        request.num_scheduled_tokens = position + 1
        request.num_pending_outputs += 1
        # Positional, because this line runs for every running request in every step.
        return ScheduledRequest(
            request.request_id,
            self._slot(request),
            position,
            1,
            None,
            new_blocks,
            num_old_blocks,
            True,
            num_outputs,
            None,
        )

    # --- how requests give back what they hold ----------------------------------------------------------------------

    def _preempt_newest(self) -> None:
        """Send the most recently admitted request back to the front of the queue; nothing may be in flight."""
        request = next(reversed(self._running.values()))
        self._give_back(request)
        request.status = Status.WAITING
        request.num_preemptions += 1
        self._waiting.appendleft(request)

    def _accept(self, request: Request, row: ScheduledRequest, token_id: int, now_ns: int) -> bool:
        """Append a sampled token to its request; whether that finished the request."""
        request.token_ids.append(token_id)
        request.token_times_ns.append(now_ns)
        request.num_pending_outputs -= 1
        if row.token_ids is None and row.context_len % self._cache.block_size == 0:
            self._publish(request, row.start, row.context_len)
        reason = self._reason_to_finish(request, token_id)
        if reason is None:
            return False
        self._finish(request, reason)
        return True

    def _reason_to_finish(self, request: Request, token_id: int) -> FinishReason | None:
        sampling = request.sampling
        if token_id in self._eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        return (
            FinishReason.LENGTH if len(request.token_ids) - request.num_prompt_tokens == sampling.max_tokens else None
        )

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.status is Status.RUNNING:
            self._give_back(request)
        else:
            self._waiting.remove(request)
        del self._unfinished[request.request_id]
        request.status = Status.FINISHED
        request.finish_reason = reason

    def _give_back(self, request: Request) -> None:
        """Take a running request's slot and blocks away and forget what was computed for it."""
        del self._running[request.request_id]
        if request is self._prefilling:
            self._prefilling = None
        self._free_slots.append(self._slot(request))
        self._cache.release(request.block_table)
        request.slot = None
        request.block_table = []
        request.num_scheduled_tokens = 0
        request.num_pending_outputs = 0

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _slot(self, request: Request) -> int:
        if request.slot is None:
            raise InvariantError(f"request {request.request_id} runs without a slot")
        return request.slot

    def _digests(self, request: Request, begin: int, end: int) -> Iterator[bytes]:
        """Yield the chained content hashes of full blocks `begin .. end - 1` as they are asked for."""
        return lazy_chain(request.block_digests, request.token_ids, self._cache.block_size, begin, end)

    def _publish(self, request: Request, begin: int, end: int) -> None:
        """Make the blocks findable that positions `begin .. end - 1` complete.

        For prefill that is when the step is planned: all keys and values of a layer are written before its attention
        reads, so requests of the same step may already share them.
        """
        first, last = begin // self._cache.block_size, end // self._cache.block_size
        if first < last:
            self._cache.publish(self._digests(request, first, last), request.block_table[first:last])

    def _check_running(self, request: Request) -> None:
        name = f"request {request.request_id}"
        known, capacity = len(request.token_ids), len(request.block_table) * self._cache.block_size
        is_prefilling = request is self._prefilling
        require(request.status is Status.RUNNING, f"{name} runs as {request.status}")
        require(request.num_scheduled_tokens <= capacity, f"{name} has computed beyond its blocks")
        require(request.num_output_tokens < request.sampling.max_tokens, f"{name} runs on after its last token")
        if is_prefilling:
            require(request.num_pending_outputs == 0, f"{name} samples before its prefill ends")
            require(request.num_scheduled_tokens < known <= capacity, f"{name} has nothing left to prefill, or no room")
        else:
            planned = known + request.num_pending_outputs - 1
            require(request.num_scheduled_tokens == planned, f"{name} has computed another number than planned")
        if self._cache.prefix_cache:
            fresh: list[bytes] = []
            extend_chain(fresh, request.token_ids, self._cache.block_size, len(request.block_digests))
            require(fresh == request.block_digests, f"{name} carries digests of other tokens")
