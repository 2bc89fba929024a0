"""The adapter of OpenAI servers, against servers of different manners."""

import pytest
import torch

from tests.touchstone.engines.completions_server import Manners, serving
from touchstone.engines.base import EngineError, EngineSpec
from touchstone.engines.registry import build_engine
from touchstone.running.models import make_tiny_model
from touchstone.trace import what_is_wrong
from touchstone.workload import build, fixed

PLAIN = Manners(takes=frozenset({"stream_options"}), tells_ids=False, counts_as_it_goes=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path)
    return str(path)


def ask(folder, manners, workload=None, **options):
    with serving(folder, manners) as (url, server):
        engine = build_engine(EngineSpec("openai-server", folder, "cpu", "float32", options={"url": url} | options))
        try:
            requests = build(workload or fixed(3, 10, 5), engine.vocabulary_size, 1)
            return requests, engine.generate(requests), engine.facts(), server
        finally:
            engine.close()


@pytest.mark.parametrize(
    "manners",
    [
        Manners(),
        Manners(tells_ids=False),
        Manners(tells_ids=False, tokens_per_chunk=2),
        Manners(tokens_per_chunk=3),
        PLAIN,
    ],
    ids=["ids", "running counts", "running counts of two tokens", "ids of three tokens", "a token a chunk"],
)
def test_every_token_is_counted_however_the_server_tells_of_it(folder, manners):
    requests, trace, facts, _ = ask(folder, manners)
    assert what_is_wrong(trace, requests) is None
    assert all(told.cached_tokens == 0 for told in trace.requests)
    assert facts.version == "completions-for-tests"
    assert facts.settings["tells_token_ids"] is manners.tells_ids


def test_tokens_of_one_chunk_share_its_time(folder):
    _, trace, _, _ = ask(folder, Manners(tokens_per_chunk=5), fixed(1, 10, 5))
    assert set(trace.requests[0].emissions) == {trace.requests[0].emissions[0]}


def test_fields_that_the_server_refuses_are_left_away(folder):
    _, _, full, _ = ask(folder, Manners())
    _, _, bare, server = ask(folder, PLAIN)
    assert full.settings["extra_fields"] == "ignore_eos, return_token_ids, stream_options"
    assert bare.settings["extra_fields"] == "stream_options"
    assert server.num_completions == 1 + 3  # one probe that was answered, and the requests


def test_without_ids_the_text_tells_answers_apart(folder):
    requests, trace, _, _ = ask(folder, PLAIN)
    _, again, _, _ = ask(folder, PLAIN)
    assert len({told.output_sha256 for told in trace.requests}) == len(requests)
    assert trace.output_sha256 == again.output_sha256


@pytest.mark.parametrize(
    ("manners", "message"),
    [
        (Manners(tells_ids=False, counts_as_it_goes=False, tokens_per_chunk=2), "without saying how many tokens each"),
        (Manners(stops_early=1), "tokens instead of"),
        (Manners(breaks_off=True), "out of luck"),
        (Manners(takes=frozenset()), "takes no prompt of token ids"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused(folder, manners, message):
    with pytest.raises(EngineError, match=message):
        ask(folder, manners)


def test_a_model_that_is_not_served_is_refused_with_those_that_are(folder):
    with pytest.raises(EngineError, match="offers tiny; served_model is huge"):
        ask(folder, Manners(), served_model="huge")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say where the server listens"),
        ({"url": "localhost"}, "url is 'localhost'"),
        ({"url": "http://127.0.0.1:9/v1"}, "no server answers at http://127.0.0.1:9/v1"),
    ],
)
def test_an_address_that_leads_nowhere_is_an_error_with_the_remedy(folder, options, message):
    with pytest.raises(EngineError, match=message):
        build_engine(EngineSpec("openai-server", folder, "cpu", "float32", options=options))
