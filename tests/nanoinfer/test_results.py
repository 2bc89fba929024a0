"""Finished requests and step facts survive the way from an engine to the front door, whatever its clock says."""

import torch

from nanoinfer.execution.channel import Kind, Message
from nanoinfer.request import FinishReason, Request, RequestFacts, RequestOutput, SamplingParams, StepFacts
from nanoinfer.results import Partial, pack_ends, step_facts, step_integers, take_in_tokens

AHEAD_NS = 10**15  # the engine's clock


def output(number, tokens, reason, *, scheduled=True):
    times = tuple(AHEAD_NS + 1000 * number + i for i in range(len(tokens)))
    facts = RequestFacts(
        arrival_ns=AHEAD_NS + number,
        scheduled_ns=AHEAD_NS + 500 if scheduled else None,
        token_times_ns=times,
        num_prompt_tokens=2,
        num_cached_tokens=1,
        num_preemptions=3,
    )
    return RequestOutput(number, (4, 5), tokens, None, reason, facts)


def test_finished_requests_come_back_on_the_front_doors_clock():
    sent = [
        output(7, (1, 2, 3), FinishReason.STOP),
        output(9, (), FinishReason.CANCELLED, scheduled=False),
        output(8, (6,), FinishReason.LENGTH),
    ]
    partials = {number: Partial(Request(number, [4, 5], 2, SamplingParams(), number)) for number in (7, 8, 9)}
    partials[7].token_ids, partials[7].times_ns = [1, 2], [7000, 7001]  # came before
    facts, integers = pack_ends(sent, [2, 0, 0])
    take_in_tokens(Message(Kind.FINISHED, facts, integers), partials, AHEAD_NS)
    back = [partials[one["request_id"]].output(one, AHEAD_NS) for one in facts["requests"]]
    assert [one.request_id for one in back] == [7, 9, 8]
    assert [one.token_ids for one in back] == [(1, 2, 3), (), (6,)]
    assert [one.finish_reason for one in back] == [one.finish_reason for one in sent]
    assert back[0].facts == RequestFacts(7, 500, (7000, 7001, 7002), 2, 1, 3)
    assert back[1].facts.scheduled_ns is None


def test_step_facts_come_back_with_their_engine_and_on_its_front_doors_clock():
    step = StepFacts("mixed", 5, 2, 3, AHEAD_NS + 1, AHEAD_NS + 2, AHEAD_NS + 3, None, graph=True)
    row = torch.tensor(step_integers(step)).tolist()
    assert step_facts(row, 2, AHEAD_NS) == StepFacts("mixed", 5, 2, 3, 1, 2, 3, None, graph=True, rank=2)
