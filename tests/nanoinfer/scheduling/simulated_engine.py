"""An engine whose model is arithmetic: it computes next tokens from simulated paged memory, exactly as plans say.

The model has the dependencies of a transformer. In every layer each position writes a key/value that depends on its own
hidden state, then reads those of all positions up to itself through its block table. So a wrong table, a block shared
between different histories, a block overwritten too early or a position left out changes the tokens that come out, and
`expected_tokens` (the same model on contiguous memory) tells.
"""

from __future__ import annotations

from collections import deque

from nanoinfer.kvcache.cache import KVCache
from nanoinfer.request import FinishReason, Request, SamplingParams, Status
from nanoinfer.scheduling import make_scheduler
from nanoinfer.scheduling.plan import Phase

VOCABULARY = 13
EOS = 0
NUM_LAYERS = 2


def mix(*values):
    """A hash that is the same in every process: tuples of integers are not salted."""
    return hash(values)


def choose(hidden, sampling, num_outputs):
    """The 'sampled' token depends on the logits, the request's seed and the index of the output."""
    return mix(hidden, sampling.seed or 0, num_outputs) % VOCABULARY


def is_stop(token_id, sampling):
    return (token_id == EOS and not sampling.ignore_eos) or token_id in sampling.stop_token_ids


def expected_tokens(prompt, sampling):
    """Outputs of one request alone, on contiguous memory."""
    memory = [[] for _ in range(NUM_LAYERS)]
    pending, outputs = list(prompt), []
    while True:
        for token_id in pending:
            hidden = mix(token_id, len(memory[0]))
            for layer in range(NUM_LAYERS):
                memory[layer].append(mix(layer, hidden))
                hidden = mix(hidden, *memory[layer])
        outputs.append(choose(hidden, sampling, len(outputs)))
        if len(outputs) == sampling.max_tokens or is_stop(outputs[-1], sampling):
            return outputs
        pending = outputs[-1:]


class SimulatedRunner:
    """Keeps per slot what a real runner keeps, changes it only as plans say, and refuses plans that contradict it."""

    def __init__(self, num_blocks, block_size, num_slots):
        self.block_size = block_size
        self.memory = [["never written"] * (num_blocks * block_size) for _ in range(NUM_LAYERS)]
        self.tables = [[] for _ in range(num_slots)]
        self.sampling = [None] * num_slots
        self.last_token = [None] * num_slots
        self.num_computed = [0] * num_slots

    def run(self, plan):
        """Compute one step and return one token id for each row that samples."""
        slots = [row.slot for row in plan.scheduled]
        assert len(set(slots)) == len(slots), "a slot appears twice in a step"
        inputs = [self._prepare(row) for row in plan.scheduled]
        places = [self._places(row) for row in plan.scheduled]
        hidden = [
            [mix(token_id, row.start + i) for i, token_id in enumerate(ids)]
            for row, ids in zip(plan.scheduled, inputs, strict=True)
        ]
        for layer in range(NUM_LAYERS):
            self._layer(layer, plan, places, hidden)
        return [self._sample(row, h[-1]) for row, h in zip(plan.scheduled, hidden, strict=True) if row.samples]

    def _prepare(self, row):
        slot = row.slot
        assert (row.sampling is not None) == (row.num_old_blocks == 0), "settings come with a new slot and only then"
        if row.num_old_blocks == 0:
            self.tables[slot], self.sampling[slot] = [], row.sampling
            self.last_token[slot], self.num_computed[slot] = None, row.start
        assert len(self.tables[slot]) == row.num_old_blocks
        assert self.num_computed[slot] == row.start, "positions are computed once each, in order"
        self.tables[slot].extend(row.new_blocks)
        self.num_computed[slot] = row.context_len
        ids = (self.last_token[slot],) if row.token_ids is None else row.token_ids
        assert len(ids) == row.num_tokens
        assert None not in ids
        return ids

    def _places(self, row):
        table, size = self.tables[row.slot], self.block_size
        return [table[p // size] * size + p % size for p in range(row.context_len)]

    def _layer(self, layer, plan, places, hidden):
        memory = self.memory[layer]
        for row, row_places, row_hidden in zip(plan.scheduled, places, hidden, strict=True):
            for i, value in enumerate(row_hidden):
                memory[row_places[row.start + i]] = mix(layer, value)
        for row, row_places, row_hidden in zip(plan.scheduled, places, hidden, strict=True):
            for i, value in enumerate(row_hidden):
                row_hidden[i] = mix(value, *(memory[place] for place in row_places[: row.start + i + 1]))

    def _sample(self, row, hidden):
        token_id = choose(hidden, self.sampling[row.slot], row.num_outputs)
        self.last_token[row.slot] = token_id
        return token_id


class SimulatedEngine:
    """Scheduler, cache and simulated runner; `lookahead` plans may be made before the oldest is committed."""

    def __init__(
        self,
        policy="mixed",
        *,
        num_blocks=64,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_model_len=1000,
        prefix_cache=True,
        lookahead=1,
    ):
        self.cache = KVCache(num_blocks, block_size, prefix_cache=prefix_cache)
        self.scheduler = make_scheduler(
            policy,
            self.cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
        )
        self.policy = policy
        self.lookahead = lookahead
        self.runner = SimulatedRunner(num_blocks, block_size, max_num_seqs)
        self.requests = []
        self.finished = []
        self.plans = []
        self.in_flight = deque()
        self.now_ns = 0

    def submit(self, prompt, **sampling):
        """Add a request; `ignore_eos` unless told otherwise."""
        params = SamplingParams(**{"ignore_eos": True, **sampling})
        request = Request(len(self.requests), list(prompt), len(prompt), params, self.now_ns)
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def schedule(self):
        """Plan one step and launch it: the device computes it now, the host learns the tokens at `commit`."""
        self.now_ns += 1
        plan = self.scheduler.schedule(self.now_ns)
        self.scheduler.check_invariants()
        if plan is not None:
            self._check_plan(plan)
            self.plans.append(plan)
            self.in_flight.append((plan, self.runner.run(plan)))
        return plan

    def commit(self):
        """Commit the oldest plan in flight."""
        self.now_ns += 1
        plan, sampled = self.in_flight.popleft()
        finished = self.scheduler.commit(plan, sampled, self.now_ns)
        self.scheduler.check_invariants()
        self.finished.extend(finished)
        return finished

    def cancel(self, request_id):
        request = self.scheduler.cancel(request_id)
        self.scheduler.check_invariants()
        return request

    def step(self):
        """One turn of the engine's loop."""
        plan = self.schedule() if len(self.in_flight) <= self.lookahead else None
        if self.in_flight and (plan is None or len(self.in_flight) > self.lookahead):
            self.commit()
            return
        assert plan is not None or not self.scheduler.has_unfinished, "nothing is in flight and nothing can be planned"

    def drain(self):
        """Run to the end; every turn makes progress, so the number of turns is bounded."""
        turns = 0
        while self.scheduler.has_unfinished or self.in_flight:
            self.step()
            turns += 1
            assert turns < 20_000, "the engine does not come to an end"
        return self

    def check_all_ended_well(self):
        """Everything is given back, and every request has the tokens that it would have had alone."""
        assert self.cache.num_used == 0
        for request in self.requests:
            self._check_ended_well(request)

    def _check_ended_well(self, request):
        prompt, outputs = request.token_ids[: request.num_prompt_tokens], list(request.output_token_ids)
        expected = expected_tokens(prompt, request.sampling)
        assert request.status is Status.FINISHED
        assert (request.slot, request.block_table, request.num_pending_outputs) == (None, [], 0)
        assert len(request.token_times_ns) == len(outputs)
        assert request.token_times_ns == sorted(request.token_times_ns)
        if request.finish_reason is FinishReason.CANCELLED:
            assert outputs == expected[: len(outputs)]
            return
        assert outputs == expected
        assert request.arrival_ns <= request.scheduled_ns < request.token_times_ns[0]
        stopped = is_stop(outputs[-1], request.sampling)
        assert request.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert request.num_cached_tokens < request.num_prompt_tokens

    def _check_plan(self, plan):
        assert plan.scheduled, "an empty plan"
        num_tokens = plan.num_decode_tokens + plan.num_prefill_tokens
        assert num_tokens <= self.scheduler.max_num_batched_tokens
        if self.policy == "separated":
            assert plan.phase is not Phase.MIXED
        for row in plan.scheduled:
            sampling = self.requests[row.request_id].sampling
            assert row.num_outputs < sampling.max_tokens, "planned beyond max_tokens"
        assert all(row.token_ids is None and row.samples for row in plan.decodes)
        assert all(row.token_ids is not None for row in plan.prefills)
