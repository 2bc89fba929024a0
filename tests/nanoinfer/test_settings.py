"""Settings of engine and requests: whatever is given, a sentence names field, value and remedy."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoinfer import ConfigError, RequestError, SamplingParams
from nanoinfer.config import EngineConfig
from nanoinfer.fields import _kinds

WRONG = {
    "an integer of at most 64 bits": ("16", 16.0, True, [16], 2**63, -(2**63) - 1, np.int64(16), math.nan),
    "a number": ("0.5", True, [0.5], (), b"1", 10**400, np.float32(0.5)),
    "True or False": (1, 0, "no", "False", 1.0, np.bool_(1)),
    "a text in quotes": (0, b"cpu", ["cpu"], True),
    "a tuple of integers such as (1, 2)": ([1], 1, ("1",), (1.0,), (True,), None, (2**64,)),
}


def engine(**options):
    return EngineConfig(**({"model": "folder"} | options))


CASES = [
    (make, error, field.name, value, kind.wanted)
    for make, kind_of, error in ((engine, EngineConfig, ConfigError), (SamplingParams, SamplingParams, RequestError))
    for field in fields(kind_of)
    for kind in (_kinds(kind_of)[field.name],)
    for value in (
        *WRONG.get(kind.wanted.removesuffix(", or None"), ("other", 3, [])),
        *(() if "None" in kind.wanted else (None,)),
    )
]


def test_every_field_of_both_is_among_the_cases():
    assert {name for *_, name, _, _ in CASES} == {
        field.name for settings in (EngineConfig, SamplingParams) for field in fields(settings)
    }


@pytest.mark.parametrize(("make", "error", "name", "value", "wanted"), CASES)
def test_a_value_of_another_type_is_refused_with_field_value_and_remedy(make, error, name, value, wanted):
    with pytest.raises(error) as raised:
        make(**{name: value})
    assert str(raised.value) == f"{name} is {value!r}; use {wanted}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": math.nan}, "temperature is nan; use 0 for greedy or a number from 1e-06 to 1e"),
        ({"temperature": math.inf}, "temperature is inf; use 0"),
        ({"temperature": -0.5}, "temperature is -0.5; use 0"),
        ({"temperature": 1e-7}, "temperature is 1e-07; use 0"),
        ({"temperature": 1e39}, r"temperature is 1e\+39; use 0"),
        ({"top_p": 0}, "top_p is 0; use a number above 0 and at most 1, or None"),
        ({"top_p": math.nan}, "top_p is nan; use"),
        ({"top_p": 1.01}, "top_p is 1.01; use"),
        ({"top_k": 0}, "top_k is 0; use at least 1, or None"),
        ({"max_tokens": 0}, "max_tokens is 0; ask for at least 1"),
        ({"max_tokens": -5}, "max_tokens is -5; ask for at least 1"),
        ({"seed": -1}, "seed is -1; use an integer from 0"),
    ],
)
def test_sampling_that_has_no_meaning_is_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be at least 1"),
        ({"num_kv_blocks": -4}, "num_kv_blocks is -4; it must be at least 1"),
        ({"block_size": 0}, "block_size is 0; use a power of two"),
        ({"memory_fraction": math.nan}, "memory_fraction is nan; use a number above 0"),
        ({"memory_fraction": 0}, "memory_fraction is 0; use"),
        ({"rank_timeout_s": math.nan}, "rank_timeout_s is nan; use seconds above 0 and at most 1000000"),
        ({"rank_timeout_s": math.inf}, "rank_timeout_s is inf; use seconds"),
        ({"seed": -1}, "seed is -1; use an integer from 0"),
        ({"scheduling": "seperated"}, "scheduling is 'seperated'; use one of separated, mixed"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        engine(**options)


def test_good_values_at_the_edges_are_taken():
    for temperature in (0, 0.0, 1, 1e-6, 1e6):
        assert SamplingParams(temperature=temperature).is_greedy == (temperature == 0)
    SamplingParams(top_p=1, top_k=1, max_tokens=1, seed=2**63 - 1, stop_token_ids=(0, 5))
    engine(memory_fraction=1, rank_timeout_s=1, max_model_len=None, dtype=None, overlap=None, seed=0, block_size=1)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.tuples(st.integers())


@given(st.data())
def test_whatever_a_field_is_given_it_is_taken_or_refused_by_its_own_name(data):
    kind_of, error = data.draw(st.sampled_from([(EngineConfig, ConfigError), (SamplingParams, RequestError)]))
    name = data.draw(st.sampled_from([field.name for field in fields(kind_of)]))
    value = data.draw(anything)
    try:
        kind_of(**({"model": "folder"} if kind_of is EngineConfig else {}) | {name: value})
    except error as refused:
        assert str(refused).startswith(f"{name} is {value!r}; ")  # noqa: PT017  it names itself
