"""What engines and their front door tell each other survives the way, whatever their clocks say."""

import json

import torch

from nanoinfer.execution.channel import Kind, Message
from nanoinfer.request import FinishReason, Request, RequestFacts, SamplingParams, StepFacts
from nanoinfer.results import (
    Partial,
    pack_ends,
    pack_requests,
    step_facts,
    step_integers,
    take_in_tokens,
    unpack_requests,
)

AHEAD_NS = 10**15  # the engine's clock


def ended(number, tokens, reason, *, scheduled=True):
    request = Request(number, [4, 5, *tokens], 2, SamplingParams(), AHEAD_NS + number, finish_reason=reason)
    request.scheduled_ns = AHEAD_NS + 500 if scheduled else None
    request.token_times_ns = [AHEAD_NS + 1000 * number + i for i in range(len(tokens))]
    request.num_cached_tokens, request.num_preemptions = 1, 3
    return request


def test_requests_arrive_as_they_were_made_on_the_engines_clock():
    plain, picky = SamplingParams(), SamplingParams(temperature=0, top_k=3, seed=5, stop_token_ids=(7, 8))
    made = [
        Request(3, [1, 2, 3], 3, plain, 30),
        Request(4, [9], 1, picky, 40),
        Request(6, [2**40, 0], 2, SamplingParams(), 60),
    ]
    facts, integers = pack_requests(made, AHEAD_NS)
    assert len(facts["samplings"]) == 2
    back = unpack_requests(Message(Kind.ADD, json.loads(json.dumps(facts)), integers))
    assert [(one.request_id, one.token_ids, one.num_prompt_tokens, one.sampling, one.arrival_ns) for one in back] == [
        (one.request_id, one.token_ids, one.num_prompt_tokens, one.sampling, one.arrival_ns + AHEAD_NS) for one in made
    ]


def test_finished_requests_come_back_on_the_front_doors_clock():
    sent = [
        ended(7, (1, 2, 3), FinishReason.STOP),
        ended(9, (), None, scheduled=False),  # cancelled
        ended(8, (6,), FinishReason.LENGTH),
    ]
    partials = {number: Partial(Request(number, [4, 5], 2, SamplingParams(), number)) for number in (7, 8, 9)}
    partials[7].token_ids, partials[7].times_ns = [1, 2], [7000, 7001]  # came before
    facts, integers = pack_ends(sent, [2, 0, 0])
    take_in_tokens(Message(Kind.FINISHED, facts, integers), partials, AHEAD_NS)
    back = [partials[one["request_id"]].output(one, AHEAD_NS) for one in facts["requests"]]
    assert [one.request_id for one in back] == [7, 9, 8]
    assert [one.token_ids for one in back] == [(1, 2, 3), (), (6,)]
    assert [one.finish_reason for one in back] == [FinishReason.STOP, FinishReason.CANCELLED, FinishReason.LENGTH]
    assert back[0].facts == RequestFacts(7, 500, (7000, 7001, 7002), 2, 1, 3)
    assert back[1].facts.scheduled_ns is None


def test_step_facts_come_back_with_their_engine_and_on_its_front_doors_clock():
    step = StepFacts("mixed", 5, 2, 3, AHEAD_NS + 1, AHEAD_NS + 2, AHEAD_NS + 3, None, graph=True)
    row = torch.tensor(step_integers(step)).tolist()
    assert step_facts(row, 2, AHEAD_NS) == StepFacts("mixed", 5, 2, 3, 1, 2, 3, None, graph=True, rank=2)
