"""Requests go to the engine with the least to do; with prefix placement, what an engine knows counts as done."""

from nanoinfer.placement import Dispatcher
from nanoinfer.request import Request, SamplingParams


def request(number, prompt, max_tokens=10):
    ids = list(prompt)
    return Request(number, ids, len(ids), SamplingParams(max_tokens=max_tokens), 0)


def test_equal_requests_go_round():
    dispatcher = Dispatcher(3, "least_work", 4)
    assert [dispatcher.place(request(number, range(8))) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert dispatcher.outstanding == (54, 36, 36)


def test_work_counts_until_it_is_finished():
    dispatcher = Dispatcher(2, "least_work", 4)
    assert dispatcher.place(request(0, range(100), 50)) == 0
    assert [dispatcher.place(request(number, range(20), 10)) for number in range(1, 6)] == [1] * 5
    assert dispatcher.place(request(6, range(5))) == 0  # 150 each: the first of equals
    assert dispatcher.engine_of(3) == 1
    assert dispatcher.finish(0) == 0
    assert dispatcher.engine_of(0) is None
    assert dispatcher.outstanding == (15, 150)


def test_a_request_follows_its_prefix_until_the_detour_costs_more_than_it_saves():
    dispatcher = Dispatcher(2, "prefix", 4)
    shared = list(range(40))
    assert dispatcher.place(request(0, [*shared, 90], 5)) == 0
    assert dispatcher.place(request(1, [50] * 41, 5)) == 1
    assert dispatcher.outstanding == (46, 46)
    assert dispatcher.place(request(2, [*shared, 91], 5)) == 0  # 40 tokens are known there: 6 are left
    assert dispatcher.place(request(3, [*shared, 92], 60)) == 0
    assert dispatcher.outstanding == (113, 46)
    assert dispatcher.place(request(4, [*shared, 93], 5)) == 1  # 67 more wait there than here
    assert dispatcher.place(request(5, [*shared, 94], 5)) == 1  # where the prefix is known by now


def test_only_whole_blocks_of_a_common_beginning_count():
    dispatcher = Dispatcher(2, "prefix", 4)
    dispatcher.place(request(0, range(12), 1))
    dispatcher.place(request(1, [77] * 12, 1))
    assert dispatcher.outstanding == (13, 13)
    assert dispatcher.place(request(2, [0, 1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9], 1)) == 0
    assert dispatcher.outstanding == (22, 13)  # one block of four was known


def test_forgotten_prefixes_draw_nobody():
    dispatcher = Dispatcher(2, "prefix", 4)
    dispatcher.place(request(0, range(12), 1))
    dispatcher.finish(0)
    dispatcher.place(request(1, [77] * 5, 1))
    dispatcher.forget_prefixes()
    assert dispatcher.place(request(2, range(12), 1)) == 1
