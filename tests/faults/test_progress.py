"""With a pool of a few blocks every request that is taken comes to its end; every other is refused with the reason.

The oldest unfinished request is the measure of progress. It is never preempted for another's sake, so between two of
its tokens lie at most as many steps as the policy lets others prefill: a bound that holds whatever arrives, is
preempted or is cancelled, and from which it follows that requests cannot preempt one another for ever.
"""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nanoinfer import LLM, ConfigError, RequestError, SamplingParams
from tests.nanoinfer.scheduling.simulated_engine import VOCABULARY, SimulatedEngine

MAX_LEN = 40


def steps_between_tokens(engine):
    """Most plans between two tokens of the oldest request: prefills of others, its own prefill, and the late stop."""
    scheduler = engine.scheduler
    chunks = -(-MAX_LEN // scheduler.max_num_batched_tokens)
    others = scheduler.max_num_running if engine.policy == "separated" else 0
    return (others + 1) * chunks + 1 + engine.lookahead


class Watched:
    """An engine whose every plan is held against the bound."""

    def __init__(self, **options):
        self.engine = SimulatedEngine(max_model_len=MAX_LEN, **options)
        self.bound = steps_between_tokens(self.engine)
        self.oldest, self.since = None, 0

    def turn(self):
        num_plans = len(self.engine.plans)
        self.engine.step()
        for plan in self.engine.plans[num_plans:]:
            self.look(plan)

    def look(self, plan):
        unfinished = [request for request in self.engine.requests if request.finish_reason is None]
        oldest = unfinished[0].request_id if unfinished else None
        gained = any(row.request_id == oldest and row.samples for row in plan.scheduled)
        self.since = 0 if gained or oldest != self.oldest else self.since + 1
        self.oldest = oldest
        assert self.since <= self.bound, f"request {oldest} waits for its next token since {self.since} steps"

    def drain(self):
        while self.engine.scheduler.has_unfinished or self.engine.in_flight:
            self.turn()
        self.engine.check_all_ended_well()
        tokens = sum(request.num_output_tokens for request in self.engine.requests)
        assert len(self.engine.plans) <= self.bound * (tokens + len(self.engine.requests) * (1 + self.engine.lookahead))


# (prompt, max_tokens, turns before the next arrival, whether it is cancelled at once)
requests = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 6), st.integers(0, 9).map(lambda draw: draw == 0)),
    min_size=1,
    max_size=12,
)


@pytest.mark.no_cover
@settings(max_examples=250, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=requests,
    policy=st.sampled_from(["separated", "mixed"]),
    num_blocks=st.integers(1, 12),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(1, 40),
    prefix_cache=st.booleans(),
    lookahead=st.integers(0, 2),
)
@example(
    arrivals=[(4, 28, 0, False)] * 6,
    policy="separated",
    num_blocks=8,
    block_size=4,
    max_num_seqs=5,
    max_num_batched_tokens=8,
    prefix_cache=False,
    lookahead=1,
)
def test_the_oldest_request_gains_a_token_within_a_bounded_number_of_steps(arrivals, **options):
    watched = Watched(**options)
    engine = watched.engine
    room = engine.cache.num_blocks * engine.cache.block_size
    for number, (num_prompt, max_tokens, turns, cancelled) in enumerate(arrivals):
        prompt = [(number + position) % VOCABULARY for position in range(num_prompt)]
        if num_prompt + max_tokens > MAX_LEN or num_prompt + max_tokens - 1 > room:
            with pytest.raises(RequestError, match=r"over max_model_len|KV blocks, but the pool has"):
                engine.submit(prompt, max_tokens=max_tokens)
            continue
        request = engine.submit(prompt, max_tokens=max_tokens)
        for _ in range(turns):
            watched.turn()
        if cancelled:
            engine.cancel(request.request_id)
    watched.drain()


@pytest.mark.parametrize("policy", ["separated", "mixed"])
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_requests_that_each_need_the_whole_pool_do_not_preempt_one_another_for_ever(policy, prefix_cache, lookahead):
    watched = Watched(
        policy=policy, num_blocks=9, block_size=4, max_num_seqs=4, prefix_cache=prefix_cache, lookahead=lookahead
    )
    for number in range(4):
        watched.engine.submit([number] * 4, max_tokens=33)
    watched.drain()
    preemptions = [request.num_preemptions for request in watched.engine.requests]
    assert preemptions[0] == 0
    assert 0 < sum(preemptions) <= 4 * len(preemptions)


# --- the same on the real engine ------------------------------------------------------------------------------------


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


@pytest.mark.no_cover
@pytest.mark.parametrize("policy", ["separated", "mixed"])
def test_a_pool_of_four_blocks_serves_what_fits_and_refuses_what_outgrows_it(folder, policy):
    small = {"device": "cpu", "num_kv_blocks": 4, "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 16}
    with LLM(folder, scheduling=policy, **small) as llm:
        assert llm.max_model_len == 64
        prompts = [[number + 1] * 20 for number in range(6)]
        together = llm.generate(prompts, greedy(44))
        alone = [llm.generate([prompt], greedy(44))[0] for prompt in prompts]
        assert [output.token_ids for output in together] == [output.token_ids for output in alone]
        with pytest.raises(RequestError, match=r"20 prompt \+ 45 output = 65 tokens, over max_model_len 64; shorten"):
            llm.generate([*prompts, [1] * 20], greedy(45))
        assert not llm.has_unfinished


def test_a_pool_without_room_for_one_sequence_is_refused_when_it_is_built(folder):
    with pytest.raises(ConfigError, match=r"KV"):
        LLM(folder, device="cpu", max_model_len=64, num_kv_blocks=2)
    with pytest.raises(ConfigError, match=r"KV"):
        LLM(folder, device="cpu", kv_cache_bytes=100)
