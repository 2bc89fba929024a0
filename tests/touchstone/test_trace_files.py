import gzip
import json
import lzma
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.touchstone.factories import make_trace
from touchstone.canonical import atomic_write, canonical_json, sha256_hex
from touchstone.records import Trace
from touchstone.trace import TraceError, load_trace, pack_trace, store_trace, trace_path


def trace(duration_ns=5):
    return Trace(
        duration_ns=duration_ns,
        emission_times_ns=(1, 2),
        requests=(),
        steps=None,
        peak_concurrency=None,
        peak_kv_blocks_used=None,
        output_sha256="0" * 64,
    )


def test_a_stored_trace_is_loaded_by_its_hash(tmp_path):
    sha256 = store_trace(tmp_path, trace())
    assert sha256 == sha256_hex(canonical_json(trace()))
    assert load_trace(tmp_path, sha256) == trace()


def test_equal_traces_give_equal_files(tmp_path):
    first = trace_path(tmp_path / "a", store_trace(tmp_path / "a", trace()))
    second = trace_path(tmp_path / "b", store_trace(tmp_path / "b", trace()))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4)


def test_a_changed_trace_is_refused(tmp_path):
    sha256 = store_trace(tmp_path, trace())
    trace_path(tmp_path, sha256).write_bytes(gzip.compress(canonical_json(trace(duration_ns=6))))
    with pytest.raises(TraceError, match="not to its name"):
        load_trace(tmp_path, sha256)


@pytest.mark.parametrize("keep", [0, 5, 30])
def test_a_damaged_trace_is_refused(tmp_path, keep):
    sha256 = store_trace(tmp_path, trace())
    path = trace_path(tmp_path, sha256)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TraceError):
        load_trace(tmp_path, sha256)


def packed(tmp_path, told):
    """A folder that holds a trace as a committed run does, and nothing else."""
    sha256 = store_trace(tmp_path / "run", told)
    size = pack_trace(tmp_path / "run", sha256, tmp_path / "paper")
    path = trace_path(tmp_path / "paper", sha256)
    assert (path.suffixes, path.stat().st_size) == ([".json", ".xz"], size)
    return sha256, path


def test_packing_a_trace_loses_nothing(tmp_path):
    sha256, path = packed(tmp_path, trace())
    assert lzma.decompress(path.read_bytes()) == canonical_json(trace())
    assert load_trace(tmp_path / "paper", sha256) == trace() == load_trace(tmp_path / "run", sha256)


def test_packing_takes_less_room_than_measuring(tmp_path):
    long = trace().model_copy(update={"emission_times_ns": tuple(range(10**9, 2 * 10**9, 10**6))})
    sha256, path = packed(tmp_path, long)
    assert path.stat().st_size < trace_path(tmp_path / "run", sha256).stat().st_size


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:9], lambda data: data + b"x"])
def test_a_damaged_packed_trace_is_refused(tmp_path, change):
    sha256, path = packed(tmp_path, trace())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError, match="the file is damaged"):
        load_trace(tmp_path / "paper", sha256)


def test_a_changed_packed_trace_is_refused(tmp_path):
    sha256, path = packed(tmp_path, trace())
    path.write_bytes(lzma.compress(canonical_json(trace(duration_ns=6))))
    with pytest.raises(TraceError, match="not to its name"):
        load_trace(tmp_path / "paper", sha256)


def test_a_damaged_trace_is_not_packed(tmp_path):
    sha256 = store_trace(tmp_path, trace())
    trace_path(tmp_path, sha256).write_bytes(b"nothing")
    with pytest.raises(TraceError, match="damaged"):
        pack_trace(tmp_path, sha256, tmp_path / "paper")


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(TraceError, match="is missing"):
        load_trace(tmp_path, "a" * 64)


class TestCanonicalJson:
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"]))
    )
    values: ClassVar = st.recursive(
        scalars,
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )

    @pytest.mark.no_cover
    @given(value=values)
    def test_reading_it_back_gives_the_same_value_and_the_same_bytes(self, value):
        data = canonical_json(value)
        assert json.loads(data) == value
        assert canonical_json(json.loads(data)) == data
        assert b"\n" not in data

    def test_key_order_does_not_matter(self):
        assert canonical_json({"b": 1, "a": "试"}) == '{"a":"试","b":1}'.encode() == canonical_json({"a": "试", "b": 1})

    def test_nan_is_refused(self):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json(float("nan"))


def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("place", [-1, 3, 10**12])
def test_a_token_at_a_moment_that_does_not_exist_is_refused(tmp_path, place):
    made = make_trace()
    first = made.requests[0].model_copy(update={"emissions": (0, 1, place)})
    sha256 = store_trace(tmp_path, made.model_copy(update={"requests": (first, *made.requests[1:])}))
    with pytest.raises(TraceError, match="request 0: a token names a moment that is none of the 3"):
        load_trace(tmp_path, sha256)
