"""`touchstone verify` on a whole run folder: an untouched copy passes, and any changed byte is found and named."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import shutil
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.touchstone.verify.paper_size_run import write_paper_size_run
from tests.touchstone.verify.told import RemakingHere, Story
from touchstone import cli
from touchstone.reporting import report
from touchstone.verify import again, custody, verification
from touchstone.verify.gathered import gather
from touchstone.verify.outcome import NotARunError
from touchstone.verify.places import Report
from touchstone.verify.printed import number_faults
from touchstone.verify.remaking import Remaking
from touchstone.verify.shown import Case
from touchstone.verify.verification import verify_run


def flips(number):
    """Try so many flips; none reaches code that the checks of the untouched run do not, so coverage is not counted."""
    checks = [HealthCheck.function_scoped_fixture]  # the fixtures only read; what a flip changes is put back
    chosen = settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=checks)
    return lambda test: pytest.mark.no_cover(chosen(test))


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
    """A run with every kind of outcome, its report, and what stands for all that is made again from it.

    That it comes out the same again has a test of its own.
    """
    assert published.faults == ()
    home = tmp_path_factory.mktemp("run")
    evidence = shutil.ignore_patterns("ledger.jsonl", "traces")
    return SimpleNamespace(
        folder=shutil.copytree(published.folder, home / "copy"),
        made=shutil.copytree(published.folder, home / "made", ignore=evidence),
        experiments=published.experiments,
    )


@pytest.fixture
def _no_figures(monkeypatch):
    """Leave the drawing away where the last check is left out: no other looks at it."""
    monkeypatch.setattr(report, "write_figures", lambda *_: {})


@pytest.fixture
def quick(run, monkeypatch):
    """Compare with what was made again once, instead of making it for every flip."""
    monkeypatch.setattr(verification, "Remaking", RemakingHere)
    monkeypatch.setattr(again, "made_again", lambda folder, _: again.differences(folder, run.made))
    return lambda folder: verify_run(folder, run.experiments)


def failed(outcomes):
    return {outcome.id for outcome in outcomes if outcome.examined is not None and not outcome.passed}


def named(outcomes):
    return {fault.file for outcome in outcomes for fault in outcome.faults}


@pytest.mark.no_cover
def test_an_untouched_run_passes_every_check(run):
    outcomes = verify_run(run.folder, run.experiments)
    assert [str(fault) for outcome in outcomes for fault in outcome.faults] == []
    assert all(outcome.passed and outcome.examined for outcome in outcomes)
    assert next(outcome.examined for outcome in outcomes if outcome.id == "printed_numbers") > 2000


def test_a_copy_passes_too(run, quick, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    assert failed(quick(copy)) == set()


@pytest.mark.no_cover
def test_the_last_check_can_be_left_out(run, monkeypatch):
    monkeypatch.setattr(verification, "Remaking", None)
    outcomes = verify_run(run.folder, run.experiments, remake=False)
    assert all(outcome.passed for outcome in outcomes)
    assert "made_again" not in {outcome.id for outcome in outcomes}


@pytest.mark.no_cover
@pytest.mark.usefixtures("_no_figures")
def test_a_record_without_the_fields_that_have_a_default_is_verified_too(run, tmp_path):
    """What an earlier version of the instrument wrote is shorter by the fields that were added since."""
    story = Story.read(run.folder)
    for entry in story.entries:
        model = custody._BODIES[entry["kind"]]
        if entry["kind"] != "environment":  # its fingerprint stands in every record
            body = model.model_validate(entry["body"])
            entry["body"] = json.loads(body.model_dump_json(exclude_defaults=True))
    folder = story.write(tmp_path / "run")
    again.make(folder, folder, run.experiments)
    outcomes = verify_run(folder, run.experiments, remake=False)
    assert [str(fault) for outcome in outcomes for fault in outcome.faults] == []
    assert all(outcome.passed for outcome in outcomes)


@pytest.mark.no_cover
@pytest.mark.usefixtures("_no_figures")
def test_settings_that_tests_changed_are_known_to_be_the_engines(run, tmp_path):
    story = Story.read(run.folder)
    last = [entry["body"] for entry in story.entries if entry["kind"] == "attempt" and entry["body"]["engine"]][-1]
    last["engine"]["settings"]["num_kv_blocks"] = 77_713
    folder = story.write(tmp_path / "run")
    again.make(folder, folder, run.experiments)
    assert "77713" in (folder / "report.en.md").read_text(encoding="utf-8")
    outcomes = verify_run(folder, run.experiments, remake=False)
    assert [str(fault) for outcome in outcomes for fault in outcome.faults] == []


def test_a_report_that_cannot_be_made_again_is_a_fault_and_no_crash(run, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    first, *_ = sorted((copy / "traces").iterdir())
    first.unlink()
    with Remaking(copy, run.experiments) as remaking:
        compared, faults = remaking.result()
    assert compared == 0
    assert [fault.file for fault in faults] == ["ledger.jsonl"]
    assert "no report can be made from it" in faults[0].detail


def test_a_process_that_ends_without_a_result_is_a_fault(tmp_path):
    class Unreadable(dict):
        """Stands for what ends the other process before it can say anything, such as a lack of memory."""

        def __reduce__(self):
            return os._exit, (9,)

    with Remaking(tmp_path, {"1.1": Unreadable()}) as remaking:
        compared, (fault,) = remaking.result()
    assert (compared, fault.file) == (0, "report")
    assert "status 9" in fault.detail


def test_a_verification_that_stops_early_leaves_no_process_behind(run):
    with Remaking(run.folder, run.experiments):
        (process,) = multiprocessing.active_children()
    assert not process.is_alive()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_traces_of_the_papers_size_pass_every_check(tmp_path):
    """256 requests of 512 tokens with all their steps, paired blocks and the instrument's repeats."""
    experiments = write_paper_size_run(tmp_path / "run", ("0.1", "1.1", "2.1"))
    again.make(tmp_path / "run", tmp_path / "run", experiments)
    outcomes = verify_run(tmp_path / "run", experiments)
    assert [str(fault) for outcome in outcomes for fault in outcome.faults] == []
    assert all(outcome.passed for outcome in outcomes)


# --- any byte --------------------------------------------------------------------------------------------------------


def flip(path, place, change):
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] = (data[place] + change) % 256
    path.write_bytes(data)


class Touched:
    """Change a file of the run for as long as a check takes, and put it back."""

    def __init__(self, path):
        self.path, self.before = path, path.read_bytes()

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.path.write_bytes(self.before)


@flips(100)
@given(place=st.integers(0, 2**40), change=st.integers(1, 255))
def test_a_changed_byte_in_the_ledger_is_found_and_the_line_named(run, quick, place, change):
    path = run.folder / "ledger.jsonl"
    with Touched(path):
        line = path.read_bytes()[: place % path.stat().st_size].count(b"\n") + 1
        flip(path, place, change)
        outcomes = quick(run.folder)
    assert failed(outcomes) == {"hash_chain"}
    assert {fault.file for fault in outcomes[0].faults} == {"ledger.jsonl"}
    assert line in {fault.line for fault in outcomes[0].faults}


@flips(50)
@given(which=st.integers(0, 10**6), place=st.integers(0, 2**40), change=st.integers(1, 255))
def test_a_changed_byte_in_a_trace_is_found_and_the_file_named(run, quick, which, place, change):
    paths = sorted((run.folder / "traces").iterdir())
    path = paths[which % len(paths)]
    with Touched(path) as touched:
        offset = place % len(touched.read_bytes())
        assume(offset not in {8, 9})  # gzip's note on level and system, which says nothing of the content
        content = gzip.decompress(touched.read_bytes())
        flip(path, place, change)
        assume(not is_the_same_content(path.read_bytes(), content) or offset < 8)
        outcomes = quick(run.folder)
    assert failed(outcomes) == {"traces"}
    assert named(outcomes) == {f"traces/{path.name}"}


def is_the_same_content(compressed, content):
    """Whether a flip hit a bit that the compressed form does not use."""
    try:
        return gzip.decompress(compressed) == content
    except (OSError, EOFError, zlib.error):
        return False


@flips(20)
@given(which=st.integers(0, 10**6), place=st.integers(0, 2**40), change=st.integers(1, 255))
def test_a_changed_byte_in_a_published_file_is_found_and_the_file_named(run, quick, which, place, change):
    paths = [*sorted(run.folder.glob("report.*.md")), *sorted((run.folder / "results").iterdir())]
    path = paths[which % len(paths)]
    with Touched(path):
        flip(path, place, change)
        outcomes = quick(run.folder)
    assert "made_again" in failed(outcomes)
    assert str(path.relative_to(run.folder)) in named(outcomes)


PARTS = {
    "ledger": "ledger.jsonl",
    "traces": "traces/*",
    "results": "results/*",
    "reports": "report.*",
    "figures": "figures/*",
}


def edited(data, rng):
    """Change, insert or delete some bytes in a row at a random place."""
    place, length = rng.randrange(len(data)), rng.choice([1, 1, 1, 2, 5, 40])
    kind = rng.choice(["change", "insert", "delete"])
    some = bytes(rng.choice(b"0123456789.,- \n|`%\x00\xff") for _ in range(length))
    after = place if kind == "insert" else place + length
    return data[:place] + (b"" if kind == "delete" else some) + data[after:]


def unfound_edits(run, verify, part, count, seed):
    """Edit files of one part, one at a time, and list the edits that are not found or whose file is not named."""
    rng, unfound = random.Random(seed), []
    paths = sorted(run.folder.glob(PARTS[part]))
    for _ in range(count):
        path = rng.choice(paths)
        data = path.read_bytes()
        changed = edited(data, rng)
        if changed == data or (part == "traces" and says_the_same(data, changed)):
            continue
        with Touched(path):
            path.write_bytes(changed)
            outcomes = verify(run.folder)
        if not failed(outcomes) or str(path.relative_to(run.folder)) not in named(outcomes):
            unfound.append((path.name, data, changed))
    return unfound


def says_the_same(data, changed):
    """Whether an edit left gzip's content alone, and hit only what a reader ignores: two notes, and unused bits."""
    header = [place for place in range(8) if data[place : place + 1] != changed[place : place + 1]]
    return not header and len(data) == len(changed) and is_the_same_content(changed, gzip.decompress(data))


@pytest.mark.no_cover  # likewise
@pytest.mark.parametrize("part", PARTS)
def test_any_edit_of_any_file_is_found_and_the_file_named(run, quick, part):
    assert unfound_edits(run, quick, part, count=6, seed=5) == []


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.timeout(1800)  # three hundred whole verifications, on a machine that may be busy
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", range(5))
def test_any_of_many_edits_is_found_and_the_file_named(run, quick, part, seed):
    assert unfound_edits(run, quick, part, count=300, seed=seed) == []


def digits_of(text, rng, count):
    """Places of digits that state results: table cells and formulas, outside code spans, links and headings."""
    places, offset = [], 0
    for line in text.split("\n"):
        if line.startswith("| ") and "`" not in line.split("|")[-2]:
            start = line.rfind("|", 0, line.rfind("|"))
            places += [offset + i for i in range(start, len(line)) if line[i].isdigit()]
        offset += len(line) + 1
    return rng.sample(places, count)


def test_a_changed_digit_in_a_table_is_found_by_the_independent_numbers_alone(run, tmp_path):
    """Without looking at the bytes: what the other code works out again suffices."""
    evidence = custody.Evidence(run.folder)
    assert (custody.read_chain(evidence), custody.read_traces(evidence)) == ((), ())
    told = (json.loads(path.read_text(encoding="utf-8")) for path in (run.folder / "results").iterdir())
    results = {result["test_id"]: result for result in told}
    case = Case(evidence, gather(evidence), run.experiments, results)
    path = tmp_path / "report.en.md"
    text, rng = (run.folder / path.name).read_text(encoding="utf-8"), random.Random(8)
    chapters = text[: text.index("### Test 4.1")]
    start = chapters.index("### Test 1.1")
    found = 0
    sampled = digits_of(chapters[start:], rng, 12)
    for offset in sampled:
        place = start + offset
        other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
        path.write_text(text[:place] + other + text[place + 1 :], encoding="utf-8")
        _, wrong = number_faults(case, {"en": Report.read(path, "en")})
        found += text[:place].count("\n") + 1 in {fault.line for fault in wrong}
    assert found == len(sampled)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results/1.1_throughput.json", "figures/repetitions-1.1.svg", "report.zh.md"])
def test_a_missing_file_is_named(run, quick, tmp_path, name):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    (copy / name).unlink()
    outcomes = quick(copy)
    assert "made_again" in failed(outcomes)
    assert name in named(outcomes)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", ["results/1.1_better.json", "figures/extra.svg"])
def test_a_file_too_many_is_named(run, quick, tmp_path, name):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    source = copy / "results/1.1_throughput.json"
    (copy / name).write_bytes(source.read_bytes())
    assert name in named(quick(copy))


def test_a_missing_trace_and_one_too_many_are_named(run, quick, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    first, *_ = sorted((copy / "traces").iterdir())
    first.rename(first.with_name("0" * 64 + ".json.gz"))
    outcomes = quick(copy)
    assert failed(outcomes) == {"traces"}
    assert named(outcomes) == {f"traces/{first.name}", f"traces/{'0' * 64}.json.gz"}


def test_a_line_cut_off_is_a_broken_chain_or_an_unfinished_end(run, quick, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    ledger = copy / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-10])
    assert failed(quick(copy)) == {"hash_chain"}


# --- bad input and the command line ----------------------------------------------------------------------------------


def test_a_folder_without_ledger_or_report_is_no_run(run, tmp_path):
    with pytest.raises(NotARunError, match=r"holds no ledger\.jsonl"):
        verify_run(tmp_path, {})
    shutil.copy(run.folder / "ledger.jsonl", tmp_path)
    with pytest.raises(NotARunError, match="make it with `touchstone report"):
        verify_run(tmp_path, {})


def test_a_ledger_without_a_plan_is_no_run(run, tmp_path):
    line = (run.folder / "ledger.jsonl").read_bytes().split(b"\n")[0]
    (tmp_path / "ledger.jsonl").write_bytes(line + b"\n")
    (tmp_path / "results").mkdir()
    with pytest.raises(NotARunError, match="holds no plan"):
        verify_run(tmp_path, {})


@pytest.mark.parametrize("lie", [False, True])
def test_the_command_names_the_file_and_tells_by_its_exit_code(run, quick, tmp_path, monkeypatch, capsys, lie):
    assert quick
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    if lie:
        path = copy / "results/1.1_throughput.json"
        told = json.loads(path.read_text(encoding="utf-8"))
        told["statistics"][0]["median"] *= 1.1
        path.write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["touchstone", "verify", str(copy)])
    monkeypatch.setattr(cli._console, "_width", 200)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().out
    assert (ended.value.code or 0) == int(lie)
    assert ("results/1.1_throughput.json: prefill_throughput (default): median is" in shown) == lie


def test_the_command_says_what_is_missing_in_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["touchstone", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "holds no ledger.jsonl" in capsys.readouterr().err
