"""Random schedules, checked token by token against a model that knows no blocks and no batches."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nanoinfer.request import RequestError
from tests.nanoinfer.scheduling.simulated_engine import VOCABULARY, SimulatedEngine


def shared_prompt(family, num_shared, tail):
    """A prompt that begins like all others of its family."""
    return [(family * 7 + k * k) % VOCABULARY for k in range(num_shared)] + tail


class AnySchedule(RuleBasedStateMachine):
    """Arrivals, cancellations, plans and commits in any order, on any small engine."""

    @initialize(
        policy=st.sampled_from(["separated", "mixed"]),
        num_blocks=st.integers(1, 24),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(1, 40),
        prefix_cache=st.booleans(),
        lookahead=st.integers(0, 2),
    )
    def build(self, **options):
        self.engine = SimulatedEngine(max_model_len=60, **options)

    @rule(
        family=st.integers(0, 1),
        num_shared=st.integers(0, 20),
        tail=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
        max_tokens=st.integers(1, 16),
        ignore_eos=st.booleans(),
        stop_token_ids=st.sampled_from([(), (5,)]),
        seed=st.sampled_from([None, 1]),
    )
    def arrive(self, family, num_shared, tail, max_tokens, **sampling):
        prompt = shared_prompt(family, num_shared, tail)
        total = len(prompt) + max_tokens
        cache = self.engine.cache
        if total > 60 or total - 1 > cache.num_blocks * cache.block_size:
            with pytest.raises(RequestError):
                self.engine.submit(prompt, max_tokens=max_tokens, **sampling)
        else:
            self.engine.submit(prompt, max_tokens=max_tokens, **sampling)

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(self.engine.requests), label="request")
        was_finished = request.finish_reason is not None
        cancelled = self.engine.cancel(request.request_id)
        assert cancelled is (None if was_finished else request)

    @precondition(lambda self: len(self.engine.in_flight) <= self.engine.lookahead)
    @rule()
    def schedule(self):
        self.engine.schedule()

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def commit(self):
        self.engine.commit()

    @rule(turns=st.integers(1, 8))
    def run_on(self, turns):
        for _ in range(turns):
            self.engine.step()

    @rule()
    def catch_up(self):
        self.engine.cache.catch_up()
        self.engine.scheduler.check_invariants()

    @rule()
    def forget_prefixes(self):
        self.engine.cache.reset_prefix_cache()
        self.engine.scheduler.check_invariants()

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.drain().check_all_ended_well()


TestAnySchedule = pytest.mark.no_cover(AnySchedule.TestCase)  # the crowds below pass the same lines
TestAnySchedule.settings = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def run_crowd(seed, num_requests=24, **options):
    """Requests of three families that arrive while others run, some cancelled, on an engine that is short of blocks."""
    rng = random.Random(seed)
    engine = SimulatedEngine(num_blocks=20, max_num_seqs=6, **options)
    for _ in range(num_requests):
        tail = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 8))]
        prompt = shared_prompt(rng.randrange(3), rng.randint(0, 30), tail)
        request = engine.submit(prompt, max_tokens=rng.randint(1, 40), ignore_eos=rng.random() < 0.8, seed=seed)
        for _ in range(rng.randint(0, 4)):
            engine.step()
        if rng.random() < 0.1:
            engine.cancel(request.request_id)
    return engine.drain()


COMBINATIONS = list(product(["separated", "mixed"], [False, True], [0, 1], [7, 64]))


@pytest.mark.no_cover
@pytest.mark.parametrize(("policy", "prefix_cache", "lookahead", "budget"), COMBINATIONS)
def test_crowd_short_of_blocks_gets_the_tokens_of_lonely_requests(policy, prefix_cache, lookahead, budget):
    options = {"policy": policy, "prefix_cache": prefix_cache, "lookahead": lookahead}
    engines = [run_crowd(seed, max_num_batched_tokens=budget, **options) for seed in range(2)]
    for engine in engines:
        engine.check_all_ended_well()
    assert sum(request.num_preemptions for engine in engines for request in engine.requests) > 0
    assert (sum(request.num_cached_tokens for engine in engines for request in engine.requests) > 0) is prefix_cache


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(192))
def test_crowds_of_many_seeds(seed):
    policy, prefix_cache, lookahead, budget = COMBINATIONS[seed % len(COMBINATIONS)]
    options = {"policy": policy, "prefix_cache": prefix_cache, "lookahead": lookahead}
    run_crowd(seed, num_requests=60, max_num_batched_tokens=budget, **options).check_all_ended_well()
