import json
import subprocess
import sys

import pytest

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.ledger import NO_PREVIOUS, Ledger, LedgerError, read_ledger
from touchstone.records import Attempt, DeviceWork, EntryKind, ModelSpec, RunEvent, RunPlan
from touchstone.verify.custody import Evidence, check_schemas, read_chain


def event(detail):
    return RunEvent(event="started", at="2026-01-01T00:00:00+00:00", detail=detail)


def write(path, *details):
    with Ledger.create(path) as ledger:
        for detail in details:
            ledger.append(EntryKind.EVENT, event(detail))


def plan_of_version(version):
    return RunPlan(
        schema_version=version,
        profile="smoke",
        seed=0,
        engine="fake",
        device="cpu",
        dtype="float32",
        model=ModelSpec(source="made on the spot", weights="loaded", note=None),
        engine_options={},
        canary_limit=2.0,
        tests=(),
        units=(),
        not_measured=(),
        plan_sha256=NO_PREVIOUS,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.jsonl"


def rehash(raw):
    raw.pop("sha256")
    return canonical_json({**raw, "sha256": sha256_hex(canonical_json(raw))}) + b"\n"


def test_what_was_appended_is_read_back_in_order_with_a_closed_chain(path):
    write(path, "a", "b", "c")
    entries = read_ledger(path)
    assert [entry.body.detail for entry in entries] == ["a", "b", "c"]
    assert [entry.seq for entry in entries] == [0, 1, 2]
    assert entries[0].previous_sha256 == NO_PREVIOUS
    assert [entry.previous_sha256 for entry in entries[1:]] == [entry.sha256 for entry in entries[:-1]]


def test_an_entry_is_on_disk_when_append_returns(path):
    with Ledger.create(path) as ledger:
        ledger.append(EntryKind.EVENT, event("a"))
        assert path.read_bytes().endswith(b"\n")
        assert len(read_ledger(path)) == 1


def test_an_empty_ledger_has_no_entries(path):
    write(path)
    assert read_ledger(path) == ()


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_changed_line_is_named(path, line):
    write(path, "aaa", "bbb", "ccc")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"detail":"', b'"detail":"x')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"line {line}: .*changed"):
        read_ledger(path)


def test_a_line_changed_and_hashed_again_breaks_the_chain_at_the_next_line(path):
    write(path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    raw = json.loads(lines[1])
    raw["body"]["detail"] = "forged"
    path.write_bytes(lines[0] + rehash(raw) + lines[2])
    with pytest.raises(LedgerError, match=r"line 3: .*chain"):
        read_ledger(path)


def test_a_removed_line_is_noticed(path):
    write(path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(LedgerError, match="line 2: seq is 2 where 1 belongs"):
        read_ledger(path)


def test_a_body_of_another_kind_is_refused(path):
    write(path, "a")
    raw = json.loads(path.read_bytes())
    raw["kind"] = "plan"
    path.write_bytes(rehash(raw))
    with pytest.raises(LedgerError, match="line 1: plan, schema_version: Field required; if another version"):
        read_ledger(path)
    with Ledger.create(path.with_name("other.jsonl")) as ledger, pytest.raises(LedgerError, match="holds RunPlan"):
        ledger.append(EntryKind.PLAN, event("a"))


def test_what_a_newer_version_wrote_is_told_from_what_is_broken(path):
    write(path, "a")
    raw = json.loads(path.read_bytes())
    path.write_bytes(rehash(raw | {"body": raw["body"] | {"field_of_tomorrow": 1}}))
    with pytest.raises(
        LedgerError, match=r"line 1: event, field_of_tomorrow: Extra inputs .*read it with that version"
    ):
        read_ledger(path)
    with Ledger.create(path.with_name("other.jsonl")) as ledger:
        ledger.append(EntryKind.PLAN, plan_of_version("2.0"))
    with pytest.raises(LedgerError, match=r"line 1: schema_version is '2\.0', not '1\.0'; .*read it with that version"):
        read_ledger(path.with_name("other.jsonl"))


def test_a_newer_plan_fails_the_verification_with_both_versions(path):
    with Ledger.create(path) as ledger:
        ledger.append(EntryKind.PLAN, plan_of_version("2.0"))
    evidence = Evidence(path.parent)
    assert read_chain(evidence) == ()
    (fault,) = check_schemas(evidence)
    assert "schema_version is '2.0', not '1.0': verify it with the version of Touchstone that wrote it" in str(fault)


@pytest.mark.parametrize("content", [b"\n", b"[]\n", b"nonsense\n", b"{}\n", b"\xff\n"])
def test_what_is_no_entry_is_a_clear_error(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="line 1"):
        read_ledger(path)


def test_a_torn_last_line_is_an_error_to_read_and_set_aside_on_resume(path):
    write(path, "a", "b")
    whole = path.read_bytes()
    torn = whole.splitlines(keepends=True)[1][:-1]
    path.write_bytes(whole + torn)
    with pytest.raises(LedgerError, match=r"line 3: .*torn.*--resume"):
        read_ledger(path)
    with Ledger.resume(path) as ledger:
        assert ledger.torn_file is not None
        assert ledger.torn_file.read_bytes() == torn
        assert path.read_bytes() == whole
        ledger.append(EntryKind.EVENT, event("c"))
    assert [entry.body.detail for entry in read_ledger(path)] == ["a", "b", "c"]


def test_resuming_a_whole_ledger_sets_nothing_aside(path):
    write(path, "a")
    with Ledger.resume(path) as ledger:
        assert ledger.torn_file is None
        assert len(ledger.entries) == 1


def test_resuming_a_forged_ledger_is_refused_and_changes_nothing(path):
    write(path, "a", "b")
    forged = path.read_bytes().replace(b'"b"', b'"x"')
    path.write_bytes(forged + b"torn")
    with pytest.raises(LedgerError, match="line 2"):
        Ledger.resume(path)
    assert path.read_bytes() == forged + b"torn"


def test_a_ledger_is_never_overwritten_and_never_invented(path):
    with pytest.raises(LedgerError, match="no run to resume"):
        Ledger.resume(path)
    write(path, "a")
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path)


def test_two_writers_of_one_ledger_are_refused(path):
    with Ledger.create(path) as ledger:
        ledger.append(EntryKind.EVENT, event("a"))
        code = f"from touchstone.ledger import Ledger; from pathlib import Path; Ledger.resume(Path({str(path)!r}))"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "being written by another run" in second.stderr
        ledger.append(EntryKind.EVENT, event("b"))
    assert len(read_ledger(path)) == 2
    Ledger.resume(path).close()


def test_device_work_that_names_no_arm_keeps_its_line_and_is_the_only_arms(path):
    """Lines from before arms were named say nothing of them; reading changes neither the line nor its hash."""
    work = DeviceWork(device="cuda:0", span_ns=3, busy_ns=2, communication_ns=1)
    attempt = Attempt(
        unit_id="3.1-p0",
        test_id="3.1",
        attempt=1,
        valid=True,
        reason=None,
        started_at="2026-01-01T00:00:00+00:00",
        ended_at="2026-01-01T00:00:00+00:00",
        environment_fingerprint=NO_PREVIOUS,
        plan_sha256=NO_PREVIOUS,
        engine=None,
        startup_s=None,
        measurements=(),
        device_work=(work,),
    )
    with Ledger.create(path) as ledger:
        ledger.append(EntryKind.ATTEMPT, attempt)
    raw = json.loads(path.read_bytes())
    del raw["body"]["device_work"][0]["arm"]
    path.write_bytes(old := rehash(raw))
    (entry,) = read_ledger(path)
    assert entry.body.device_work == (work,)
    assert entry.body.device_work[0].arm is None
    assert entry.sha256 == json.loads(old)["sha256"]
    with Ledger.resume(path) as ledger:
        ledger.append(EntryKind.EVENT, event("later"))
    assert path.read_bytes().startswith(old)
    evidence = Evidence(path.parent)
    assert read_chain(evidence) == ()
    assert check_schemas(evidence) == ()
