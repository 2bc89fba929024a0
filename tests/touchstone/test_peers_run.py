"""Engines side by side: from made-up times to results, both reports and their verification."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest

from tests.touchstone.factories import make_trace
from tests.touchstone.peers_sample import ENGINES, MODEL, READING, TIMES, jitter, write_peers_run
from touchstone.analysis.peers import least_s
from touchstone.analysis.plausibility import arms_interleaved
from touchstone.analysis.results import results_of, write_results
from touchstone.analysis.roofline import fastest, model_work
from touchstone.analysis.runs import read_runs
from touchstone.records import EngineFacts
from touchstone.reporting.report import render_report
from touchstone.reporting.run_folder import load_run
from touchstone.verify.verification import verify_run


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "run"
    experiments = write_peers_run(folder)
    results = results_of(read_runs(folder), experiments)
    write_results(results, folder / "results")
    paths = render_report(load_run(folder, experiments), folder)
    return folder, experiments, {result.test_id: result for result in results}, paths


def faults(folder, experiments):
    found = {outcome.id: outcome.faults for outcome in verify_run(folder, experiments, remake=False)}
    return {name: [fault.detail for fault in told] for name, told in found.items() if told}


def row(result, arm):
    return next(peer for peer in result.peers if peer.arm == arm)


def test_ratios_are_those_of_the_times_round_by_round(sample):
    result = sample[2]["5.1"]
    for engine in ENGINES[1:]:
        told = row(result, engine)
        logs = [math.log(TIMES[engine] * jitter(engine, n) / jitter("nanoinfer", n)) for n in range(3)]
        assert told.rounds == pytest.approx(logs, abs=1e-4)
        assert told.ratio == pytest.approx(TIMES[engine], rel=1e-3)
        assert told.interval.low < told.ratio < told.interval.high
    assert row(result, "nanoinfer").ratio is None


def test_the_interval_is_students_on_three_logarithms(sample):
    told = row(sample[2]["5.1"], "vllm")
    centre = sum(told.rounds) / 3
    spread = math.sqrt(sum((value - centre) ** 2 for value in told.rounds) / 2)
    half_width = 4.302653 * spread / math.sqrt(3)  # t of 2 degrees of freedom, 95 % two-sided
    assert math.log(told.interval.high) - math.log(told.ratio) == pytest.approx(half_width, rel=1e-5)


def test_an_engine_that_a_workload_leaves_out_has_its_reason(sample):
    assert row(sample[2]["5.1@w2"], "transformers").seconds is None
    assert "static batch" in row(sample[2]["5.1@w2"], "transformers").reason


def test_hits_are_counted_on_every_workload(sample):
    results = sample[2]
    assert row(results["5.1"], "vllm").cached_tokens == 0
    assert row(results["5.1@w4"], "vllm").cached_tokens == 8 * 20 * 3


def test_the_least_time_is_that_of_the_work_counted_by_hand():
    model = model_work(EngineFacts(name="x", version="1", settings={}, model=MODEL))
    requests = make_trace(prompts=[10, 20], outputs=3, cached=[0, 5]).requests
    layers = 2 * (128 * 32 * (2 * 4 + 2 * 2) + 3 * 128 * 384)
    head = 2048 * 128
    num_bytes = (layers + head) * 2 * 3 + (5 + 2 * 10 + 3 + 2 * 20 + 3) * 2 * 2 * 2 * 32 * 2
    tokens, outputs = 10 + 15 + 2 * 2, 6
    pairs = 10 * 11 // 2 + (20 * 21 - 5 * 6) // 2 + (2 * 10 + 3) + (2 * 20 + 3)
    num_flops = 2 * (layers * tokens + head * outputs) + pairs * 4 * 4 * 32 * 2
    peaks = fastest([READING])
    assert least_s(requests, model, peaks) == pytest.approx(max(num_bytes / 1.2e10, num_flops / 6e11), rel=1e-12)


def test_the_share_is_the_least_time_over_the_time_taken(sample):
    told = row(sample[2]["5.1"], "vllm")
    assert 0 < told.share < 1
    assert row(sample[2]["5.1"], "nanoinfer").share == pytest.approx(told.share * 1.25, rel=5e-3)


def test_both_reports_show_every_engine_on_every_workload_without_a_fault(sample):
    folder, _, results, paths = sample
    assert not paths.faults
    for language, word in (("en", "Engines on the same requests"), ("zh", "同一批请求上的各引擎")):
        text = (folder / f"report.{language}.md").read_text(encoding="utf-8")
        section = text[text.index(word) :]
        for test_id in results:
            if results[test_id].peers:
                for engine in ENGINES:
                    assert f"| `{test_id}` | `{engine}` |" in section
        assert "max_num_seqs = 256; prefix_cache = False / True" in section
        limits = {"en": "times of the client", "zh": "客户端时间"}[language]
        assert sum(limits in line for line in section.splitlines() if line.startswith("| `5.1")) == 4


def test_verification_finds_the_run_right(sample):
    folder, experiments, _, _ = sample
    assert faults(folder, experiments) == {}


def changed(sample, tmp_path, change):
    """Copy the run, change the comparison in a result file, and verify it."""
    folder, experiments, _, _ = sample
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    path = copy / "results" / "5.1_peers.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told["peers"])
    path.write_text(json.dumps(told), encoding="utf-8")
    return faults(copy, experiments).get("results", [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 0.001),
        ("ratio", 0.8),
        ("rounds", [0.1, 0.1, 0.1]),
        ("share", 0.99),
        ("cached_tokens", 5),
        ("version", "9"),
        ("settings", {}),
        ("reason", "no reason"),
        ("interval", None),
    ],
)
def test_a_comparison_that_was_changed_is_found(sample, tmp_path, field, value):
    found = changed(sample, tmp_path, lambda peers: peers[1].update({field: value}))
    assert any("engine vllm" in detail for detail in found)


def test_an_engine_that_is_left_out_or_made_up_is_found(sample, tmp_path):
    found = changed(sample, tmp_path, lambda peers: peers.pop(1))
    assert any("the engines are not nanoinfer, vllm" in detail for detail in found)


def test_the_first_page_holds_the_comparison_with_workloads_verdicts_and_versions(sample):
    folder, _, _, _ = sample
    for language, title in (("en", "# nanoinfer beside other engines"), ("zh", "# nanoinfer 与其他引擎的对比")):
        text = (folder / f"report.{language}.md").read_text(encoding="utf-8")
        assert text.startswith(title)
        first_page = text.split("\n## ")[1]
        assert first_page.count("| `5.1@w4` | `vllm` | ") == 1
        assert re.search(r"^\| `5\.1@w4` \| 20 .* 128 .* 8\D.*70 % .* 80 %.* \|$", first_page, re.MULTILINE)
        assert re.findall(r"^\| `(\S+)` \| `\S+` \|$", first_page, re.MULTILINE) == list(ENGINES)


def test_engines_that_do_not_take_turns_are_found(sample):
    runs = read_runs(sample[0]).tests["5.1"]
    told = arms_interleaved(runs)
    assert told.passed
    assert told.detail.startswith("9 processes of 3 engines that take turns in 3 rounds, 0 ")
    one_after_the_other = sorted(runs.attempts, key=lambda attempt: attempt[1].engine.name)
    assert not arms_interleaved(replace(runs, attempts=tuple(one_after_the_other))).passed


@pytest.mark.parametrize(
    ("begins", "old", "new", "fault"),
    [
        ("| `5.1@w4` | `vllm` |", "| stable (", "| drifting (", "the verdict on vllm is STABLE"),
        ("| `5.1@w2` | 16 requests", "16 requests", "17 requests", "other requests on `5.1@w2`"),
        ("| `vllm` | `4.0` |", "4.0", "4.1", "version or settings of `vllm`"),
        ("| `vllm` | `greedy", "256", "512", "version or settings of `vllm`"),
    ],
)
def test_what_a_table_of_engines_says_is_held_against_the_ledger(sample, tmp_path, begins, old, new, fault):
    copy = tmp_path / "run"
    shutil.copytree(sample[0], copy)
    path = copy / "report.en.md"
    text = path.read_text(encoding="utf-8")
    line = next(line for line in text.split("\n") if line.startswith(begins))
    assert old in line
    path.write_text(text.replace(line, line.replace(old, new)), encoding="utf-8")
    assert any(fault in detail for detail in faults(copy, sample[1])["printed_numbers"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_number_changed_in_a_report_is_found(sample, tmp_path, language):
    folder, experiments, results, _ = sample
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    path = copy / f"report.{language}.md"
    lines = path.read_text(encoding="utf-8").split("\n")
    index = next(number for number, line in enumerate(lines) if line.startswith("| `5.1` | `vllm` |"))
    cells = lines[index].split("|")
    assert "1.25" in cells[5]
    cells[5] = cells[5].replace("1.25", "1.15")
    lines[index] = "|".join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")
    found = faults(copy, experiments)["printed_numbers"]
    assert any("1.15" in detail for detail in found)
    assert results["5.1"].peers


def test_an_engine_that_never_worked_takes_only_its_own_numbers_away(tmp_path):
    run = tmp_path / "run"
    experiments = write_peers_run(run, failing=frozenset({"transformers"}))
    results = results_of(read_runs(run), experiments)
    write_results(results, run / "results")
    assert not render_report(load_run(run, experiments), run).faults
    told = next(result for result in results if result.test_id == "5.1@first-token")
    broken = row(told, "transformers")
    assert broken.seconds is None
    assert broken.reason == "none of 6 attempts was valid; the last: `the engine broke`"
    for language in ("en", "zh"):
        first_page = (run / f"report.{language}.md").read_text(encoding="utf-8").split("\n## ")[1]
        assert first_page.count("`the engine broke`") == 4, "w2 leaves it out for a reason of its own"
    assert row(told, "vllm").ratio == pytest.approx(1.25, rel=1e-3)
    assert faults(run, experiments) == {}
