"""Whatever a server answers, it becomes a trace or the refusal of an engine, and nothing else."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.damage import damaged, restructured, values
from tests.fuzz.tally import TRIED
from touchstone.engines.base import EngineError, GenerationRequest
from touchstone.engines.openai_server import OpenAIServerEngine, Server, _Client

REQUEST = GenerationRequest(request_id=0, prompt_token_ids=(1, 2, 3), num_output_tokens=2)
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}
CHUNKS = (
    {"choices": [{"text": "a", "token_ids": [5]}], "usage": USAGE},
    {"choices": [{"text": "b", "token_ids": [6]}], "usage": USAGE | {"completion_tokens": 2}},
)
TEXT_ONLY = tuple({"choices": [{"text": each["choices"][0]["text"]}], "usage": each["usage"]} for each in CHUNKS)
STATUSES = (200, 200, 200, 200, 400, 500)


class Answer:
    """A response whose lines are given."""

    def __init__(self, status, lines):
        self.status, self.content = status, self._each(lines)

    async def _each(self, lines):
        for line in lines:
            yield line

    async def text(self):
        return "no"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass


def ask(lines, status=200):
    """Generate one request from a server that answers in these lines."""
    engine = object.__new__(OpenAIServerEngine)
    engine._loop = asyncio.new_event_loop()
    session = SimpleNamespace(post=lambda *_args, **_options: Answer(status, lines))
    engine._client = _Client(session, "http://any", Server("any", "any", {}, tells_ids=True))
    try:
        return engine.generate([REQUEST])
    finally:
        engine._loop.close()


def lines_of(chunks):
    return [b"data: " + json.dumps(chunk).encode() + b"\n" for chunk in chunks] + [b"data: [DONE]\n"]


@st.composite
def answers(draw):
    """The lines of a good answer, of which a part is another, is cut, or is missing."""
    chunks = list(draw(st.sampled_from([CHUNKS, TEXT_ONLY])))
    place = draw(st.integers(0, len(chunks) - 1))
    if draw(st.booleans()):
        chunks[place] = draw(restructured(chunks[place]) | values)
    lines = lines_of(chunks)
    if draw(st.booleans()):
        lines[place] = draw(damaged(lines[place]))
    return lines if draw(st.integers(0, 4)) else lines[:place]


def try_many(num_examples):
    @settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(lines=answers(), status=st.sampled_from(STATUSES))
    def probe(lines, status):
        TRIED["answers of a server"] += 1
        try:
            assert ask(lines, status).requests[0].emissions
        except EngineError as error:
            assert "the server" in str(error)  # noqa: PT017  it says who is at fault

    probe()


@pytest.mark.parametrize("chunks", [CHUNKS, TEXT_ONLY])
def test_a_good_answer_is_read(chunks):
    (request,) = ask(lines_of(chunks)).requests
    assert len(request.emissions) == 2


@pytest.mark.parametrize(
    "chunk",
    [
        7,
        None,
        [],
        {"usage": 3, "choices": [{"text": "a"}]},
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"token_ids": "ab"}]},
        {"choices": [{"token_ids": [2**40, 1]}]},
        {"choices": [{"text": 5}]},
        {"choices": [{"text": "a"}], "usage": {"completion_tokens": 10**12}},
        {"choices": [{"text": "a"}], "usage": {"completion_tokens": "2"}},
    ],
)
def test_a_chunk_of_another_shape_is_refused_by_what_is_wrong(chunk):
    with pytest.raises(EngineError, match="the server"):
        ask(lines_of([chunk]))


def test_whatever_a_server_answers_becomes_a_trace_or_a_refusal():
    try_many(60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_answers_become_a_trace_or_a_refusal():
    try_many(3_000)
