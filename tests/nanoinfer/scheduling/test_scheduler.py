"""The rules of scheduling, one by one; the model of the simulated engine watches the tokens."""

from __future__ import annotations

import random

import pytest

from nanoinfer.kvcache.blocks import InvariantError
from nanoinfer.kvcache.cache import KVCache
from nanoinfer.request import FinishReason, Request, RequestError, SamplingParams, Status
from nanoinfer.scheduling import make_scheduler
from nanoinfer.scheduling.mixed import MixedScheduler
from nanoinfer.scheduling.plan import Phase
from nanoinfer.scheduling.separated import SeparatedScheduler
from tests.nanoinfer.scheduling.simulated_engine import VOCABULARY, SimulatedEngine, expected_tokens

POLICIES = ["separated", "mixed"]
both_policies = pytest.mark.parametrize("policy", POLICIES)


def prompt_of(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def rows_of(engine, request):
    return [row for plan in engine.plans for row in plan.scheduled if row.request_id == request.request_id]


def ids_of(plan):
    return [row.request_id for row in plan.scheduled]


def shape(plan):
    """(start, number of tokens) of the decodes and of the prefills."""
    return [tuple((row.start, row.num_tokens) for row in rows) for rows in (plan.decodes, plan.prefills)]


# --- policies -------------------------------------------------------------------------------------------------------


def test_factory_builds_the_policy_that_was_named():
    settings = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 1, "eos_token_ids": frozenset()}
    for policy, kind in (("separated", SeparatedScheduler), ("mixed", MixedScheduler)):
        assert type(make_scheduler(policy, KVCache(1, 1, prefix_cache=True), **settings)) is kind


def test_mixed_step_decodes_first_and_fills_the_budget_with_a_chunk():
    engine = SimulatedEngine("mixed", max_num_batched_tokens=10, lookahead=0)
    engine.submit(prompt_of(4, 1), max_tokens=4)
    engine.submit(prompt_of(20, 2), max_tokens=4)
    engine.drain().check_all_ended_well()
    assert [shape(plan) for plan in engine.plans[:3]] == [
        [(), ((0, 4), (0, 6))],
        [((4, 1),), ((6, 9),)],
        [((5, 1),), ((15, 5),)],
    ]
    assert [plan.phase for plan in engine.plans[:4]] == [Phase.PREFILL, Phase.MIXED, Phase.MIXED, Phase.DECODE]


def test_separated_step_prefills_all_that_waits_before_it_decodes():
    engine = SimulatedEngine("separated", max_num_batched_tokens=10, lookahead=0)
    engine.submit(prompt_of(4, 1), max_tokens=3)
    engine.submit(prompt_of(20, 2), max_tokens=3)
    engine.drain().check_all_ended_well()
    assert [shape(plan) for plan in engine.plans] == [
        [(), ((0, 4), (0, 6))],
        [(), ((6, 10),)],
        [(), ((16, 4),)],
        [((4, 1), (20, 1)), ()],
        [((5, 1), (21, 1)), ()],
    ]


def test_separated_decodes_at_least_once_in_as_many_admissions_as_slots():
    engine = SimulatedEngine("separated", max_num_seqs=3, max_num_batched_tokens=4, lookahead=0)
    engine.submit(prompt_of(4), max_tokens=8)
    for k in range(30):
        engine.submit(prompt_of(4, k), max_tokens=1)
    engine.drain().check_all_ended_well()
    phases = [plan.phase for plan in engine.plans[: 4 * 7]]
    assert phases == [Phase.PREFILL, Phase.PREFILL, Phase.PREFILL, Phase.DECODE] * 7


@both_policies
def test_chunks_cover_the_prompt_once_and_only_the_last_one_samples(policy):
    engine = SimulatedEngine(policy, max_num_batched_tokens=4, lookahead=0)
    request = engine.submit(prompt_of(9), max_tokens=2)
    engine.drain().check_all_ended_well()
    rows = rows_of(engine, request)
    assert [(row.start, row.num_tokens, row.samples) for row in rows] == [
        (0, 4, False),
        (4, 4, False),
        (8, 1, True),
        (9, 1, True),
    ]
    assert rows[2].token_ids == (request.token_ids[8],), "a chunk of one token is no decode: its token is on the host"
    assert rows[3].token_ids is None
    assert [len(row.new_blocks) for row in rows] == [3, 0, 0, 0]


@both_policies
def test_more_slots_than_budget_still_gives_every_running_request_a_token_a_step(policy):
    engine = SimulatedEngine(policy, max_num_seqs=8, max_num_batched_tokens=3)
    for k in range(8):
        engine.submit(prompt_of(5, k), max_tokens=6)
    engine.drain().check_all_ended_well()
    assert max(len(plan.scheduled) for plan in engine.plans) == 3


@both_policies
def test_large_request_is_not_overtaken(policy):
    engine = SimulatedEngine(policy, num_blocks=10, block_size=4)
    engine.submit(prompt_of(12, 1), max_tokens=12)
    large = engine.submit(prompt_of(30, 2), max_tokens=4)
    small = engine.submit(prompt_of(1, 3), max_tokens=2)
    engine.drain().check_all_ended_well()
    assert large.scheduled_ns <= small.scheduled_ns


# --- planning ahead -------------------------------------------------------------------------------------------------


@both_policies
@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_no_step_is_planned_beyond_max_tokens(policy, lookahead):
    engine = SimulatedEngine(policy, lookahead=lookahead)
    request = engine.submit(prompt_of(3), max_tokens=5)
    engine.drain().check_all_ended_well()
    assert [row.num_outputs for row in rows_of(engine, request)] == [0, 1, 2, 3, 4]


def test_nothing_to_do_plans_nothing():
    engine = SimulatedEngine()
    assert engine.schedule() is None
    engine.submit(prompt_of(3), max_tokens=1)
    assert engine.schedule() is not None
    assert engine.schedule() is None, "the only token is on its way"
    assert engine.scheduler.num_in_flight == 1
    engine.commit()
    assert not engine.scheduler.has_unfinished


def test_decode_is_planned_before_the_host_knows_its_token():
    engine = SimulatedEngine()
    request = engine.submit(prompt_of(3), max_tokens=3)
    plans = [engine.schedule() for _ in range(3)]
    assert [shape(plan) for plan in plans] == [[(), ((0, 3),)], [((3, 1),), ()], [((4, 1),), ()]]
    assert request.num_output_tokens == 0
    assert request.num_pending_outputs == 3
    for _ in plans:
        engine.commit()
    engine.check_all_ended_well()


def stopping_prompt(after):
    """A prompt whose greedy outputs reach a stop token exactly as output number `after`."""
    for seed in range(1000):
        prompt = prompt_of(6, seed)
        if len(expected_tokens(prompt, SamplingParams(max_tokens=after + 3))) == after:
            return prompt
    raise AssertionError("no such prompt")


@both_policies
def test_surplus_token_after_a_stop_is_discarded(policy):
    engine = SimulatedEngine(policy)
    request = engine.submit(stopping_prompt(after=2), max_tokens=9, ignore_eos=False)
    for _ in range(3):
        engine.schedule()
    engine.commit()
    assert engine.commit() == [request]
    assert request.finish_reason is FinishReason.STOP
    assert engine.cache.num_used == 0
    assert engine.scheduler.num_in_flight == 1
    assert engine.commit() == []
    assert request.num_output_tokens == len(request.token_times_ns) == 2
    engine.check_all_ended_well()


@both_policies
def test_slot_and_blocks_of_a_stopped_request_are_used_while_its_surplus_step_is_in_flight(policy):
    engine = SimulatedEngine(policy, max_num_seqs=1, num_blocks=4, prefix_cache=False)
    engine.submit(stopping_prompt(after=2), max_tokens=9, ignore_eos=False)
    second = engine.submit(prompt_of(12, 99), max_tokens=4)
    for _ in range(3):
        engine.schedule()
    engine.commit()
    engine.commit()
    engine.schedule()
    assert second.slot == 0
    assert engine.scheduler.num_in_flight == 2
    engine.drain().check_all_ended_well()


def test_stop_token_of_the_request_ends_it_even_when_eos_is_ignored():
    outputs = expected_tokens(prompt_of(5), SamplingParams(max_tokens=9, ignore_eos=True))
    engine = SimulatedEngine()
    request = engine.submit(prompt_of(5), max_tokens=9, stop_token_ids=(outputs[3],))
    engine.drain().check_all_ended_well()
    assert request.output_token_ids == outputs[: outputs.index(outputs[3]) + 1]
    assert request.finish_reason is FinishReason.STOP


def test_steps_are_committed_in_order_and_once():
    engine = SimulatedEngine()
    engine.submit(prompt_of(3), max_tokens=3)
    first, second = engine.schedule(), engine.schedule()
    with pytest.raises(ValueError, match="step 1 is not the oldest step in flight"):
        engine.scheduler.commit(second, [1], 0)
    engine.scheduler.commit(first, [1], 0)
    with pytest.raises(ValueError, match="step 0 is not the oldest step in flight"):
        engine.scheduler.commit(first, [1], 0)


def test_wrong_number_of_sampled_tokens_is_refused_before_anything_changes():
    engine = SimulatedEngine()
    engine.submit(prompt_of(3), max_tokens=3)
    plan = engine.schedule()
    with pytest.raises(ValueError, match="samples 1 tokens, but 2 ids came back"):
        engine.scheduler.commit(plan, [1, 2], 0)
    engine.drain().check_all_ended_well()


# --- cancellation ---------------------------------------------------------------------------------------------------


@both_policies
def test_request_cancelled_in_flight_gives_its_blocks_back_at_once(policy):
    engine = SimulatedEngine(policy)
    request = engine.submit(prompt_of(9, 1), max_tokens=9)
    other = engine.submit(prompt_of(9, 2), max_tokens=9)
    for _ in range(3):
        engine.schedule()
    used = engine.cache.num_used
    assert engine.cancel(request.request_id) is request
    assert request.finish_reason is FinishReason.CANCELLED
    assert engine.cache.num_used < used
    engine.commit()
    assert (request.num_output_tokens, other.num_output_tokens) == (0, 1)
    engine.drain().check_all_ended_well()


def test_waiting_request_is_cancelled_and_never_planned():
    engine = SimulatedEngine(max_num_seqs=1)
    engine.submit(prompt_of(3), max_tokens=2)
    waiting = engine.submit(prompt_of(3), max_tokens=2)
    engine.schedule()
    assert engine.cancel(waiting.request_id) is waiting
    engine.drain().check_all_ended_well()
    assert waiting.scheduled_ns is None
    assert rows_of(engine, waiting) == []


def test_request_cancelled_between_chunks_leaves_its_computed_blocks_findable():
    engine = SimulatedEngine(max_num_batched_tokens=8)
    first = engine.submit(prompt_of(20), max_tokens=2)
    engine.schedule()
    engine.cancel(first.request_id)
    second = engine.submit(prompt_of(20), max_tokens=2)
    engine.drain().check_all_ended_well()
    assert second.num_cached_tokens == 8


def test_unknown_and_finished_requests_cannot_be_cancelled():
    engine = SimulatedEngine()
    request = engine.submit(prompt_of(3), max_tokens=1)
    engine.drain()
    assert engine.cancel(request.request_id) is None
    assert engine.cancel(77) is None
    assert request.finish_reason is FinishReason.LENGTH


def test_id_of_a_cancelled_request_can_be_used_again_while_its_step_is_in_flight():
    engine = SimulatedEngine()
    old = engine.submit(prompt_of(5, 1), max_tokens=4)
    engine.schedule()
    engine.cancel(old.request_id)
    engine.requests.pop()
    new = engine.submit(prompt_of(5, 2), max_tokens=4)
    assert new.request_id == old.request_id
    engine.drain().check_all_ended_well()
    assert old.num_output_tokens == 0


# --- preemption -----------------------------------------------------------------------------------------------------


def crowded(policy, **options):
    """Three requests that fit together at first but not to their ends."""
    engine = SimulatedEngine(policy, num_blocks=14, block_size=4, **{"prefix_cache": False, **options})
    requests = [engine.submit(prompt_of(9, k), max_tokens=24, seed=k) for k in range(3)]
    return engine, requests


@both_policies
@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preempted_request_resumes_with_same_tokens(policy, lookahead, prefix_cache):
    engine, requests = crowded(policy, lookahead=lookahead, prefix_cache=prefix_cache)
    engine.drain().check_all_ended_well()
    assert requests[2].num_preemptions > 0
    rows = rows_of(engine, requests[2])
    admissions = [row for row in rows if row.sampling is not None]
    assert len(admissions) == 1 + requests[2].num_preemptions
    assert admissions[1].num_outputs > 0
    assert [row.num_outputs for row in rows if row.samples] == list(range(24)), "seeded sampling goes on where it was"


@both_policies
def test_oldest_request_is_never_preempted_and_the_newest_always_first(policy):
    engine, requests = crowded(policy)
    engine.drain()
    assert requests[0].num_preemptions == 0
    assert requests[1].num_preemptions <= requests[2].num_preemptions
    assert [request.request_id for request in engine.finished] == [0, 1, 2]


@both_policies
def test_preempted_request_waits_before_those_that_never_ran(policy):
    engine, requests = crowded(policy, max_num_seqs=3)
    late = engine.submit(prompt_of(4, 9), max_tokens=2)
    while not requests[2].num_preemptions:
        engine.step()
    assert requests[2].status is late.status is Status.WAITING
    assert engine.scheduler.num_waiting == 2
    engine.drain().check_all_ended_well()
    resumed_step = [
        plan.step for plan in engine.plans for row in plan.prefills if row.request_id == 2 and row.num_outputs
    ]
    assert resumed_step[0] <= min(plan.step for plan in engine.plans if late.request_id in ids_of(plan))


@both_policies
def test_preemption_waits_for_the_tokens_in_flight(policy):
    engine, requests = crowded(policy)
    while not requests[2].num_preemptions:
        plan = engine.schedule()
        if plan is None:
            assert engine.in_flight, "nothing in flight and yet nothing planned"
            assert requests[2].num_preemptions == 0
            engine.commit()
        if requests[2].num_preemptions:
            assert len(engine.in_flight) == 1, "the step that follows the preemption is the only one in flight"
    engine.drain().check_all_ended_well()


@both_policies
def test_cached_tokens_are_those_of_the_first_admission(policy):
    engine, requests = crowded(policy, prefix_cache=True)
    engine.drain().check_all_ended_well()
    assert requests[2].num_preemptions > 0
    assert engine.cache.statistics.num_hit_tokens > 0, "the preempted request found its own blocks again"
    assert [request.num_cached_tokens for request in requests] == [0, 0, 0]


@both_policies
def test_request_that_fills_the_whole_pool_runs_to_its_end(policy):
    engine = SimulatedEngine(policy, num_blocks=5, block_size=4, max_num_batched_tokens=7)
    for k in range(4):
        engine.submit(prompt_of(10, k), max_tokens=11)
    engine.drain().check_all_ended_well()


@both_policies
def test_admission_leaves_running_requests_a_block_to_grow_into(policy):
    engine = SimulatedEngine(policy, num_blocks=7, block_size=4, lookahead=0)
    running = engine.submit(prompt_of(8, 1), max_tokens=5)
    late = engine.submit(prompt_of(20, 2), max_tokens=1)
    engine.drain().check_all_ended_well()
    assert late.num_preemptions == 0
    assert late.scheduled_ns > running.token_times_ns[-1]


# --- prefix cache ---------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@both_policies
@pytest.mark.parametrize("budget", [16384, 700])
@pytest.mark.parametrize("block_size", [1, 16, 64, 256])
def test_hundred_requests_with_one_prefix_that_arrive_together_compute_it_once(policy, budget, block_size):
    rng = random.Random(0)
    cache = KVCache(100 * (514 // block_size + 1), block_size, prefix_cache=True)
    scheduler = make_scheduler(
        policy,
        cache,
        max_num_seqs=256,
        max_num_batched_tokens=budget,
        max_model_len=1024,
        eos_token_ids=frozenset(),
    )
    prefix = [rng.randrange(10_000) for _ in range(409)]
    requests = []
    for k in range(100):
        shared = prefix if k < 70 else []
        prompt = shared + [rng.randrange(10_000) + 10_000 for _ in range(512 - len(shared))]
        requests.append(Request(k, prompt, 512, SamplingParams(max_tokens=2), 0))
    rng.shuffle(requests)
    for request in requests:
        scheduler.add(request)
    num_computed = 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule(0)
        num_computed += plan.num_prefill_tokens
        scheduler.commit(plan, [k for k, row in enumerate(plan.scheduled) if row.samples], 0)
        if plan.step % 16 == 0:
            scheduler.check_invariants()
    num_hits = 69 * (409 // block_size) * block_size
    assert sum(request.num_cached_tokens for request in requests) == num_hits
    assert num_computed == 100 * 512 - num_hits
    assert cache.statistics.num_hit_tokens == num_hits
    assert cache.statistics.num_queried_tokens == 100 * 512


@both_policies
def test_requests_of_one_step_share_blocks_that_the_step_itself_fills(policy):
    engine = SimulatedEngine(policy, max_num_batched_tokens=100)
    requests = [engine.submit([*prompt_of(16), k], max_tokens=3) for k in range(3)]
    plan = engine.schedule()
    assert [(row.start, row.num_tokens) for row in plan.prefills] == [(0, 17), (16, 1), (16, 1)]
    assert len({tuple(request.block_table[:4]) for request in requests}) == 1
    engine.drain().check_all_ended_well()


@both_policies
def test_planning_prompts_with_nothing_in_common_hashes_their_first_blocks_only(policy):
    engine = SimulatedEngine(policy, max_num_batched_tokens=100)
    requests = [engine.submit([k, *prompt_of(16)], max_tokens=3) for k in range(3)]
    engine.schedule()
    assert [len(request.block_digests) for request in requests] == [1, 1, 1]
    engine.cache.catch_up()
    assert [len(request.block_digests) for request in requests] == [4, 4, 4]
    engine.drain().check_all_ended_well()


def test_only_blocks_that_a_chunk_has_filled_are_shared():
    engine = SimulatedEngine(max_num_batched_tokens=10, lookahead=0)
    engine.submit(prompt_of(20), max_tokens=1)
    engine.schedule()
    digests = engine.requests[0].block_digests
    assert len(engine.cache.lookup(digests)) == 2
    engine.commit()
    engine.drain()
    assert len(engine.cache.lookup(digests)) == 5


@both_policies
@pytest.mark.parametrize(("length", "num_cached"), [(15, 12), (16, 12), (17, 16)])
def test_last_token_of_a_wholly_cached_prompt_is_computed_into_a_block_of_its_own(policy, length, num_cached):
    engine = SimulatedEngine(policy)
    engine.submit(prompt_of(length), max_tokens=4)
    again = engine.submit(prompt_of(length), max_tokens=4)
    engine.drain().check_all_ended_well()
    assert again.num_cached_tokens == num_cached


@both_policies
def test_next_turn_of_a_conversation_finds_the_generated_tokens(policy):
    engine = SimulatedEngine(policy)
    first = engine.submit(prompt_of(6), max_tokens=12)
    engine.drain()
    second = engine.submit([*first.token_ids, 1, 2, 3], max_tokens=4)
    engine.drain().check_all_ended_well()
    assert second.num_cached_tokens == 16, "of 18 tokens the last one's keys and values were never computed"


@both_policies
def test_switched_off_prefix_cache_computes_every_prompt_token(policy):
    engine = SimulatedEngine(policy, prefix_cache=False)
    requests = [engine.submit(prompt_of(16), max_tokens=3) for _ in range(5)]
    engine.drain().check_all_ended_well()
    assert sum(plan.num_prefill_tokens for plan in engine.plans) == 5 * 16
    assert [request.num_cached_tokens for request in requests] == [0] * 5


# --- what is refused ------------------------------------------------------------------------------------------------


def test_request_over_max_model_len_is_refused_with_value_and_remedy():
    engine = SimulatedEngine(max_model_len=20)
    message = r"12 prompt \+ 9 output = 21 tokens, over max_model_len 20; shorten the prompt, lower max_tokens"
    with pytest.raises(RequestError, match=message):
        engine.submit(prompt_of(12), max_tokens=9)
    engine.submit(prompt_of(12), max_tokens=8)
    engine.drain().check_all_ended_well()


def test_request_over_the_whole_pool_is_refused_with_value_and_remedy():
    engine = SimulatedEngine(num_blocks=3, block_size=4)
    with pytest.raises(RequestError, match=r"fill 4 KV blocks, but the pool has 3 blocks of 4 tokens; .* enlarge"):
        engine.submit(prompt_of(8), max_tokens=6)
    engine.submit(prompt_of(8), max_tokens=5)
    engine.drain().check_all_ended_well()


def test_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="empty prompt"):
        SimulatedEngine().submit([])


def test_id_of_an_unfinished_request_is_refused():
    engine = SimulatedEngine()
    request = engine.submit(prompt_of(3))
    twin = Request(request.request_id, [1], 1, SamplingParams(), 0)
    with pytest.raises(RequestError, match="request id 0 is taken"):
        engine.scheduler.add(twin)
    engine.schedule()
    with pytest.raises(RequestError, match="request id 0 is taken"):
        engine.scheduler.add(twin)


# --- the checker itself ---------------------------------------------------------------------------------------------


def lose_a_slot(scheduler):
    scheduler._free_slots.pop()


def lose_a_request(scheduler):
    del scheduler._unfinished[0]


def swap_a_block(scheduler):
    scheduler._running[0].block_table[0] = scheduler._running[1].block_table[0]


def forget_a_digest_chain(scheduler):
    scheduler._running[0].block_digests[0] = b"other"


def skip_a_position(scheduler):
    scheduler._running[0].num_scheduled_tokens += 1


def prefill_the_oldest(scheduler):
    scheduler._prefilling = scheduler._running[0]


def finish_in_secret(scheduler):
    scheduler._running[0].status = Status.FINISHED


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_slot,
        lose_a_request,
        swap_a_block,
        forget_a_digest_chain,
        skip_a_position,
        prefill_the_oldest,
        finish_in_secret,
    ],
)
def test_checker_finds_the_damage(damage):
    engine = SimulatedEngine()
    for k in range(2):
        engine.submit(prompt_of(6, k), max_tokens=5)
    engine.schedule()
    engine.scheduler.check_invariants()
    damage(engine.scheduler)
    with pytest.raises(InvariantError):
        engine.scheduler.check_invariants()
