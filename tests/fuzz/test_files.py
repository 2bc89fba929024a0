"""Every file that the suite reads, damaged in every way: nothing but its documented errors comes out."""

import gzip
import hashlib
import json
import lzma
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from nanoinfer.config import ConfigError
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.decoder import Decoder
from nanoinfer.model.ops import REFERENCE
from nanoinfer.model.weights import checkpoint_files, load_checkpoint
from tests.fuzz.damage import damaged, restructured, values
from tests.fuzz.tally import TRIED
from tests.touchstone.report_sample import write_sample_run
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.ledger import LEDGER_NAME, Ledger, LedgerError, read_ledger
from touchstone.records import ModelSpec
from touchstone.reporting.errors import ReportError
from touchstone.reporting.markdown import TEMPLATES, Glossary
from touchstone.reproduce.claims import load_claims
from touchstone.reproduce.errors import ClaimsError
from touchstone.running import orchestrate
from touchstone.running.models import ChosenModel, ModelError, _weights, make_tiny_model
from touchstone.running.sizes import kv_bytes_per_token, num_parameters
from touchstone.trace import TraceError, load_trace, trace_path
from touchstone.verify import custody
from touchstone.verify.custody import Evidence
from touchstone.verify.verification import _read_results

REPOSITORY = Path(__file__).parents[2]
NORMAL, LONG = 20, 3_000


class Reader:
    """How one kind of file is read, what a good one holds, and which errors a bad one may raise."""

    def __init__(self, home, name, read, errors, *, good=b"", content=None):
        self.path, self.read, self.errors = home / name, read, errors
        self.good = good if content is None else json.dumps(content).encode()
        self.content = content
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def files(self):
        """Draw bytes for the file."""
        drawn = damaged(self.good) | st.binary(max_size=60)
        if self.content is not None:
            shapes = restructured(self.content) | values
            drawn |= shapes.map(lambda value: json.dumps(value, ensure_ascii=True).encode())
        return drawn

    def try_out(self, data):
        """Read one file."""
        self.path.write_bytes(data)
        try:
            self.read(self.path)
        except self.errors as error:
            assert str(error)  # noqa: PT017  each documented error has a message


# --- readers --------------------------------------------------------------------------------------------------------


def resume(path):
    Ledger.resume(path).close()
    for torn in path.parent.glob("*.torn-*"):
        torn.unlink()


def read_chain(path):
    """The checks of `verify` return faults and raise nothing."""
    evidence = Evidence(path.parent)
    if not custody.read_chain(evidence):
        custody.check_schemas(evidence)


def read_trace(path):
    name = sha256_hex(path.read_bytes())
    stored = trace_path(path.parent, name)
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    try:
        load_trace(path.parent, name)
    finally:
        stored.unlink()


def read_compressed_trace(path):
    name = hashlib.sha256(b"any").hexdigest()
    stored = trace_path(path.parent, name)
    stored.parent.mkdir(exist_ok=True)
    shutil.copy(path, stored)
    load_trace(path.parent, name)


def read_packed_trace(path):
    """A trace of a committed run, in xz."""
    name = hashlib.sha256(b"packed").hexdigest()
    stored = path.parent / "traces" / f"{name}.json.xz"
    stored.parent.mkdir(exist_ok=True)
    shutil.copy(path, stored)
    load_trace(path.parent, name)


def verify_trace(path):
    """Faults are returned, none raised."""
    name = sha256_hex(path.read_bytes())
    stored = trace_path(path.parent, name)
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    attempt = {"measurements": [{"trace_sha256": name}], "repeated": None}
    custody.read_traces(Evidence(path.parent, [custody.LedgerLine(1, "attempt", attempt, attempt, "")]))
    stored.unlink()


def read_results(path):
    """Faults are returned, none raised."""
    _read_results(Evidence(path.parents[1]))


def read_glossary(path):
    glossary = Glossary.load(path)
    for key in ("stable", "prefill_throughput"):
        glossary.term(key, "en")
        glossary.unit(key, "zh")


def read_config(path):
    ModelConfig.from_folder(path.parent)


def read_plan_config(path):
    chosen = ChosenModel(ModelSpec(source="a", weights="loaded", note=None), path.parent, None)
    kv_bytes_per_token(chosen.config, "float32")
    num_parameters(chosen.config)


def read_index(path):
    for file in checkpoint_files(path.parent):
        assert file.parent == path.parent


def read_weights(path):
    config = ModelConfig.from_folder(path.parent)
    load_checkpoint(Decoder(config, REFERENCE, 8), config, path.parent)


def read_pending(path):
    orchestrate._read_pending(path.parent)


def read_worker_result(path):
    """A worker's result that cannot be read is an invalid attempt, no error."""
    result = orchestrate._read_result(path, 0, Path("logs/a.log"), 1.0)
    assert result.reason is not None or result.measurements is not None


def ask_whether_finished(path):
    """Whatever lies there, the answer is yes or no."""
    assert orchestrate.is_finished(path.parent) in {True, False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A good run: the lines of its ledger, a trace, and a result."""
    folder = tmp_path_factory.mktemp("sample")
    experiments = write_sample_run(folder)
    lines = (folder / LEDGER_NAME).read_bytes().splitlines(keepends=True)
    trace = gzip.decompress(min((folder / "traces").iterdir()).read_bytes())
    result = next(result for result in results_of(read_runs(folder), experiments) if result.test_id == "2.1")
    return lines, json.loads(trace), result.model_dump(mode="json")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    small = config | {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return config, small | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}


@pytest.fixture(scope="module")
def readers(home, sample, model):
    lines, trace, result = sample
    config, small = model
    ledger = b"".join(lines[:4])
    claims = (REPOSITORY / "paper" / "claims.yaml").read_bytes()
    for name in ("config", "generation", "weights", "index"):
        (home / name).mkdir()
    (home / "generation" / "config.json").write_text(json.dumps(config))
    (home / "weights" / "config.json").write_text(json.dumps(small))
    (home / "index" / "model.safetensors").write_bytes(b"")
    pending = {"units": [{"unit_id": "1", "test_id": "1", "attempt": 1, "started_at": ""}]}
    outcome = {"engine": None, "startup_s": 1.0, "measurements": [], "reason": None, "repeated": None}
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    return {
        "ledger, read": Reader(home, f"a/{LEDGER_NAME}", read_ledger, LedgerError, good=ledger),
        "ledger, resumed": Reader(home, f"b/{LEDGER_NAME}", resume, LedgerError, good=ledger),
        "ledger, verified": Reader(home, f"c/{LEDGER_NAME}", read_chain, (), good=ledger),
        "ledger, asked for its end": Reader(home, f"d/{LEDGER_NAME}", ask_whether_finished, (), good=lines[-1]),
        "trace": Reader(home, "e/trace", read_trace, TraceError, content=trace),
        "trace, compressed": Reader(home, "f/trace", read_compressed_trace, TraceError, good=gzip.compress(b"{}")),
        "trace, packed": Reader(home, "n/trace", read_packed_trace, TraceError, good=lzma.compress(b"{}")),
        "trace, verified": Reader(home, "g/trace", verify_trace, (), content=trace),
        "result, verified": Reader(home, "h/results/1.1_a.json", read_results, (), content=result),
        "claims.yaml": Reader(home, "i/claims.yaml", load_claims, ClaimsError, good=claims),
        "terms.toml": Reader(
            home, "j/terms.toml", read_glossary, ReportError, good=(TEMPLATES / "terms.toml").read_bytes()
        ),
        "config.json": Reader(home, "config/config.json", read_config, ConfigError, content=config),
        "config.json, planned with": Reader(home, "k/config.json", read_plan_config, ModelError, content=config),
        "generation_config.json": Reader(
            home, "generation/generation_config.json", read_config, ConfigError, content={"eos_token_id": [0, 1]}
        ),
        "index of shards": Reader(home, "index/model.safetensors.index.json", read_index, ConfigError, content=index),
        "safetensors": Reader(home, "weights/model.safetensors", read_weights, ConfigError, good=weights_of(small)),
        "pending.json": Reader(home, "l/pending.json", read_pending, LedgerError, content=pending),
        "result of a worker": Reader(home, "m/result.json", read_worker_result, (), content=outcome),
    }


def weights_of(config):
    return save(dict(_weights(config, 0)))


NAMES = (
    "ledger, read",
    "ledger, resumed",
    "ledger, verified",
    "ledger, asked for its end",
    "trace",
    "trace, compressed",
    "trace, packed",
    "trace, verified",
    "result, verified",
    "claims.yaml",
    "terms.toml",
    "config.json",
    "config.json, planned with",
    "generation_config.json",
    "index of shards",
    "safetensors",
    "pending.json",
    "result of a worker",
)


def fuzz(name, strategy, attempt, num_examples):
    """Try a check on so many drawn inputs, the same ones each time, and count them."""

    @settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(drawn=strategy)
    def probe(drawn):
        TRIED[name] += 1
        attempt(drawn)

    probe()


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_raises_only_what_is_documented(readers, name):
    readers[name].try_out(readers[name].good)
    fuzz(name, readers[name].files(), readers[name].try_out, NORMAL)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_damaged_in_thousands_of_ways_raises_only_what_is_documented(readers, name):
    fuzz(name, readers[name].files(), readers[name].try_out, LONG)


# --- ledgers with right hashes and wrong content --------------------------------------------------------------------


def chained(entries):
    """Write entries with hashes that fit, whatever they hold."""
    previous, lines = "0" * 64, []
    for seq, entry in enumerate(entries):
        fields = entry | {"seq": seq, "previous_sha256": previous}
        fields.pop("sha256", None)
        previous = sha256_hex(canonical_json(fields))
        lines.append(canonical_json(fields | {"sha256": previous}) + b"\n")
    return b"".join(lines)


def entries_with_one_changed(lines):
    entries = [json.loads(line) for line in lines]
    return st.integers(0, len(entries) - 1).flatmap(
        lambda index: restructured(entries[index]).map(lambda entry: [*entries[:index], entry, *entries[index + 1 :]])
    )


def read_rehashed(path):
    def attempt(entries):
        try:
            path.write_bytes(chained([entry if isinstance(entry, dict) else {"body": entry} for entry in entries]))
        except ValueError:  # NaN or half a character, which canonical JSON cannot hold
            return
        read_chain(path)
        try:
            read_ledger(path)
        except LedgerError as error:
            assert "line" in str(error)  # noqa: PT017  it names the place

    return attempt


def test_a_ledger_with_right_hashes_and_wrong_content_is_refused_by_its_line(sample, tmp_path):
    attempt = read_rehashed(tmp_path / LEDGER_NAME)
    fuzz("ledger, hashed again", entries_with_one_changed(sample[0][:5]), attempt, NORMAL)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_ledgers_with_right_hashes_and_wrong_content_are_refused(sample, tmp_path):
    attempt = read_rehashed(tmp_path / LEDGER_NAME)
    fuzz("ledger, hashed again", entries_with_one_changed(sample[0][:5]), attempt, LONG)
