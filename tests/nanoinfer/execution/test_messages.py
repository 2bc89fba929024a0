"""Messages and steps arrive as they were sent."""

import socket
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoinfer.execution.batch import BatchShape
from nanoinfer.execution.channel import Channel, ChannelClosedError, Kind
from nanoinfer.execution.decode_rows import StagedRows
from nanoinfer.execution.seeds import Seeds
from nanoinfer.execution.staging import StagedDecodes, StagedPrefills, Stager
from nanoinfer.execution.wire import decode, encode
from nanoinfer.request import SamplingParams
from nanoinfer.scheduling.plan import Phase, ScheduledRequest, StepPlan


@pytest.fixture
def ends():
    ours, theirs = (Channel(one) for one in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("count", [0, 1, 1 << 13, 1 << 20])  # the largest is split by the socket
def test_facts_and_integers_arrive_as_they_were_sent(ends, count):
    integers = torch.arange(count) * 3 - 2**62
    sender = threading.Thread(target=ends[0].send, args=(Kind.STEP, {"a": [1, None, "ü"]}, integers))
    sender.start()
    message = ends[1].receive()
    sender.join()
    assert (message.kind, message.facts) == (Kind.STEP, {"a": [1, None, "ü"]})
    assert torch.equal(message.integers, integers)


def test_a_message_without_facts_has_none(ends):
    ends[0].send(Kind.BEAT)
    message = ends[1].receive()
    assert (message.kind, message.facts, len(message.integers)) == (Kind.BEAT, {}, 0)


def test_messages_of_several_threads_do_not_mix(ends):
    threads = [
        threading.Thread(target=lambda k=k: [ends[0].send(Kind.TOKENS, integers=torch.full((5000,), k))] * 2)
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    found = [ends[1].receive().integers for _ in threads]
    assert sorted(int(integers[0]) for integers in found) == [0, 1, 2, 3]
    assert all(len(set(integers.tolist())) == 1 for integers in found)
    for thread in threads:
        thread.join()


def test_a_closed_channel_says_so_to_both_ends(ends):
    ends[0].close()
    with pytest.raises(ChannelClosedError):
        ends[1].receive()
    with pytest.raises(ChannelClosedError):
        ends[1].send(Kind.STEP, integers=torch.zeros(1 << 16, dtype=torch.int64))


def test_half_a_message_is_none(ends):
    ends[0].connection.sendall(b"\x04\x00\x00")
    ends[0].close()
    with pytest.raises(ChannelClosedError):
        ends[1].receive()


def test_a_damaged_stream_is_refused_before_memory_is_taken_for_it(ends):
    ends[0].connection.sendall(b"\xff" * 16)
    with pytest.raises(ValueError, match="the stream is damaged"):
        ends[1].receive()


# --- steps ------------------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 2**40)] * 4), min_size=1, max_size=9),
    padded=st.integers(0, 5),
    restricted=st.booleans(),
    replay=st.booleans(),
)
@settings(max_examples=30)
def test_decodes_come_back_with_their_rows(rows, padded, restricted, replay):
    integers = torch.tensor(rows + [rows[0]] * padded).T.contiguous()
    order = np.random.default_rng(0).permutation(len(rows))
    back = decode(encode(StagedDecodes(StagedRows(integers, order), restricted, replay)))
    assert isinstance(back, StagedDecodes)
    assert torch.equal(back.staged.rows, integers)
    assert (len(back.staged.order), back.restricted, back.replay) == (len(rows), restricted, replay)


def plan():
    decodes = (ScheduledRequest(10, 3, 16, 1, None, (8,), 4, True, 5, None),)
    sampling = SamplingParams(temperature=0.7, top_p=0.9, seed=2**62 + 1)
    prefills = (ScheduledRequest(12, 2, 4, 3, (50, 51, 52), (5, 6), 0, True, 0, sampling),)
    return StepPlan(0, Phase.MIXED, decodes, prefills)


def stager():
    return Stager(Seeds(0), num_slots=4, num_blocks=20, vocab_size=100, pin_memory=False)


@pytest.mark.parametrize("shapes", [(), (BatchShape(9, 4, 3, 4, 5, 3),)])
def test_prefills_come_back_field_by_field(shapes):
    staged = stager().stage(plan(), (), shapes)
    back = decode(encode(staged))
    assert isinstance(back, StagedPrefills)
    assert (back.restricted, back.replay) == (staged.restricted, staged.replay)
    flat = staged.flat
    assert torch.equal(back.flat.integers, flat.integers)
    assert (back.flat.shape, back.flat.num_sampled) == (flat.shape, 2)
    assert (back.flat.max_decode_context, back.flat.max_prefill_len) == (17, 3)


def test_steps_are_replayed_where_a_graph_holds_them_and_no_choice_is_restricted():
    shape = BatchShape(9, 4, 3, 4, 5, 3)
    free = StepPlan(0, Phase.MIXED, plan().decodes, (plan().prefills[0]._replace(sampling=SamplingParams()),))
    assert [stager().stage(free, (), shapes).replay for shapes in ((), (shape,), (shape._replace(tokens=3),))] == [
        False,
        True,
        False,
    ]
    limited = stager().stage(plan(), (), (shape,))
    assert (limited.replay, limited.flat.shape.tokens) == (False, 4)


def test_a_slot_with_limits_restricts_every_step_that_samples_it_and_no_other():
    own = stager()
    assert own.stage(plan(), (1, 2)).restricted
    limited, free = (ScheduledRequest(12, slot, 7, 1, None, (), 2, True, 1, None) for slot in (2, 3))
    alone = own.stage(StepPlan(1, Phase.DECODE, (free,), ()), (1, 2))
    both = own.stage(StepPlan(2, Phase.DECODE, (free, limited), ()), (1, 2))
    assert (alone.restricted, alone.replay) == (False, True)
    assert (both.restricted, both.replay) == (True, False)
