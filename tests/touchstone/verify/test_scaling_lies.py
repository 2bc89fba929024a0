"""Lies about scaling: told in the evidence, the check made for each notices; told in a published file, verify does."""

from __future__ import annotations

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest

from tests.touchstone.scaling_sample import write_scaling_run
from tests.touchstone.verify.told import Story
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.analysis.scaling import fit_law, serial_fraction
from touchstone.experiment import Law
from touchstone.reporting import report
from touchstone.verify import again, custody, scaling
from touchstone.verify.gathered import gather
from touchstone.verify.places import Report
from touchstone.verify.printed import number_faults
from touchstone.verify.shown import Case
from touchstone.verify.verification import verify_run

BASELINE = "3.1"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Strong scaling and its baseline on a machine with four GPUs."""
    folder = tmp_path_factory.mktemp("good")
    experiments = write_scaling_run(folder, 4, only=("3.1", "3.2"))
    return SimpleNamespace(folder=folder, experiments=experiments, story=Story.read(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Baseline and strong scaling with their reports, without the figures, of which no check here speaks."""
    folder = tmp_path_factory.mktemp("published")
    experiments = write_scaling_run(folder, 4, only=("3.1", "3.2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_figures", lambda *_: {})
        assert again.make(folder, folder, experiments) == ()
    return SimpleNamespace(folder=folder, experiments=experiments)


# --- lies in the evidence -------------------------------------------------------------------------------------------


def caught(good, story, folder, test_id="3.2"):
    """Derive the results of a story and name the failed checks of one test; verify must agree with every result."""
    story.write(folder)
    derived = results_of(read_runs(folder), good.experiments)
    results = {result.test_id: result.model_dump(mode="json") for result in derived}
    evidence = custody.Evidence(folder)
    assert (custody.read_chain(evidence), custody.read_traces(evidence)) == ((), ())
    tests = gather(evidence)
    for name, told in results.items():
        assert list(scaling.scaling_faults(tests, good.experiments.get(name), told, results)) == []
    told = results[test_id]
    failed = {check["id"] for check in told["checks"] if not check["passed"]}
    speedups = [point["speedup"] for row in told["scaling"] for point in row["points"][1:]]
    if failed:
        assert set(speedups) == {None}, "a failed check takes every speed-up back"
        assert all(value is None for name, value in told["results"].items() if "efficiency" in name)
    return failed


def change_runs(story, test_id, arm, change):
    for run in list(story.runs(test_id, arm)):
        story.retrace(run, change)


@pytest.mark.no_cover
def test_the_good_run_is_caught_at_nothing(good, tmp_path):
    assert caught(good, good.story.copy(), tmp_path / "run") == set()


def test_fewer_requests_on_more_gpus_are_caught_by_scaling_same_work(good, tmp_path):
    """Half of the requests would look like twice the speed of a rate that counts requests."""
    story = good.story.copy()

    def halve(trace):
        trace["requests"] = trace["requests"][:32]
        for step in trace["steps"]:
            step["prefill_tokens"] //= 2
            step["decode_tokens"] //= 2
            step["batch"] //= 2

    for arm in ("TP 2", "TP 4"):
        change_runs(story, "3.2", arm, halve)
    assert caught(good, story, tmp_path / "run") == {"scaling_same_work"}


def test_other_prompts_than_the_baselines_are_caught_by_scaling_same_work(good, tmp_path):
    story = good.story.copy()
    next(story.runs("3.2", "DP 4"))["seed"] += 1
    assert caught(good, story, tmp_path / "run") == {"scaling_same_work"}


def test_work_that_does_not_grow_in_proportion_is_caught_in_weak_scaling(good, tmp_path):
    write_scaling_run(tmp_path / "weak", 2, only=("3.1", "3.3"))
    story = Story.read(tmp_path / "weak")

    def drop_one(trace):
        trace["requests"] = trace["requests"][:-1]
        steps = trace["steps"]
        steps[0]["prefill_tokens"] -= 64
        for step in steps[1:]:
            step["decode_tokens"] -= 1

    change_runs(story, "3.3", "DP 2 light", drop_one)
    assert caught(good, story, tmp_path / "run", "3.3") == {"scaling_same_work"}


def test_a_larger_cache_on_several_gpus_is_caught_by_scaling_same_kv_pool(good, tmp_path):
    story = good.story.copy()
    for run in story.runs("3.2", "DP 2"):
        memory = run["memory"]
        for device in memory["devices"]:
            device["kv_pool_bytes"] += 10**9
        memory["kv_pool_bytes"] += 2 * 10**9
        memory["residual_bytes"] = 0
        memory["device_total_peak_bytes"] += 2 * 10**9 - 1
    assert caught(good, story, tmp_path / "run") == {"scaling_same_kv_pool"}


def test_an_efficiency_over_a_nominal_number_of_gpus_is_caught_by_scaling_devices_as_planned(good, tmp_path):
    """An arm that is called four GPUs and ran on two of them."""
    story = good.story.copy()
    for run in story.runs("3.2", "DP 4"):
        run["memory"]["devices"] = run["memory"]["devices"][:2]
    assert caught(good, story, tmp_path / "run") == {"scaling_devices_as_planned"}


def test_a_baseline_that_ran_on_two_gpus_is_caught_by_scaling_devices_as_planned(good, tmp_path):
    story = good.story.copy()
    two = next(story.runs("3.2", "DP 2"))["memory"]["devices"]
    for run in story.runs(BASELINE, "full"):
        run["memory"]["devices"] = two
    assert caught(good, story, tmp_path / "run") == {"scaling_devices_as_planned"}


def slow_down(trace):
    """Let a run take half as long again."""
    trace["duration_ns"] = 3 * trace["duration_ns"] // 2
    trace["emission_times_ns"] = [3 * time // 2 for time in trace["emission_times_ns"]]
    for step in trace["steps"]:
        for name in ("begin_ns", "launched_ns", "end_ns"):
            step[name] = 3 * step[name] // 2


def test_a_slow_baseline_is_caught_by_efficiency_within_ideal(good, tmp_path):
    """The denominator slowed down by a third makes every efficiency of data parallelism too good to be true."""
    story = good.story.copy()
    change_runs(story, BASELINE, "full", slow_down)
    assert caught(good, story, tmp_path / "run") == {"efficiency_within_ideal"}


def test_a_baseline_that_was_short_of_memory_excuses_more_than_the_ideal(good, tmp_path):
    """One device that had to compute requests again gains more than its share from others: that is no lie."""
    story = good.story.copy()

    def preempt(trace):
        slow_down(trace)
        trace["requests"][0]["preemptions"] = 1

    change_runs(story, BASELINE, "full", preempt)
    story.write(tmp_path / "run")
    derived = results_of(read_runs(tmp_path / "run"), good.experiments)
    results = {result.test_id: result.model_dump(mode="json") for result in derived}
    told = results["3.2"]
    check = next(check for check in told["checks"] if check["id"] == "efficiency_within_ideal")
    assert check["passed"]
    assert "short of KV blocks" in check["detail"]
    assert max(point["efficiency"] or 0 for row in told["scaling"] for point in row["points"]) > 1.05
    evidence = custody.Evidence(tmp_path / "run")
    assert (custody.read_chain(evidence), custody.read_traces(evidence)) == ((), ())
    assert list(scaling.scaling_faults(gather(evidence), good.experiments["3.2"], told, results)) == []


# --- lies in a published file ---------------------------------------------------------------------------------------


def faults_of(published, folder):
    """What the independent numbers find, without making anything again."""
    outcomes = verify_run(folder, published.experiments, remake=False)
    return {outcome.id: [str(fault) for fault in outcome.faults] for outcome in outcomes if outcome.faults}


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published.folder, tmp_path / "copy")


def test_an_untouched_copy_passes(published, copy):
    assert faults_of(published, copy) == {}


def retell(folder, change, name="3.2_strong_scaling.json"):
    path = folder / "results" / name
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def points(told, series=0):
    return told["scaling"][series]["points"]


def type_in_baseline(told):
    points(told)[0]["throughput"] = 1362.13
    told["results"]["1gpu_throughput"] = 1362.13


def speed_up_by_typed_in_baseline(told):
    """Tell everything consistently with a denominator that nothing measured."""
    for row in told["scaling"]:
        for point in row["points"][1:]:
            if point["speedup"] is not None:
                point["speedup"] *= 1.1
                point["efficiency"] *= 1.1
                point["serial_fraction"] = serial_fraction(Law.STRONG, point["num_gpus"], point["speedup"])
                for name in ("speedup_interval", "efficiency_interval"):
                    point[name] = point[name] | {end: 1.1 * point[name][end] for end in ("low", "high")}
        known = [(point["num_gpus"], point["speedup"]) for point in row["points"][1:] if point["speedup"] is not None]
        row["fit"] = fit_law(Law.STRONG, known).model_dump(mode="json")
    for name, value in told["results"].items():
        told["results"][name] = value and (1.1 * value if "efficiency" in name else value)


def nominal_count(told):
    points(told)[1]["efficiency"] = points(told)[1]["speedup"] / 1.5


def narrow_interval(told):
    interval = points(told)[2]["speedup_interval"]
    middle = math.sqrt(interval["low"] * interval["high"])
    interval["low"], interval["high"] = (math.sqrt(middle * end) for end in (interval["low"], interval["high"]))


def better_fit(told):
    told["scaling"][0]["fit"]["serial_fraction"] /= 2


def smaller_residuals(told):
    fit = told["scaling"][0]["fit"]
    fit["residuals"] = [residual / 10 for residual in fit["residuals"]]


def projection_as_result(told):
    """Put what the law says of eight devices where a measurement belongs."""
    point = points(told)[3]
    point.update(throughput=36_000.0, speedup=2.5, efficiency=2.5 / 8, serial_fraction=0.3, reason=None, reason_zh=None)
    told["results"]["8gpu_throughput"], told["results"]["8gpu_efficiency"] = 36_000.0, 100 * 2.5 / 8


def drop_absent_row(told):
    points(told).pop()


def hide_a_speedup(told):
    points(told)[2].update(speedup=None, efficiency=None, reason="it was late", reason_zh="太晚了")


def drop_series(told):
    told["scaling"].pop()


def another_field(told):
    told["results"]["4gpu_efficiency"] += 5


@pytest.mark.parametrize(
    "lie",
    [
        type_in_baseline,
        speed_up_by_typed_in_baseline,
        nominal_count,
        narrow_interval,
        better_fit,
        smaller_residuals,
        projection_as_result,
        drop_absent_row,
        hide_a_speedup,
        drop_series,
        another_field,
    ],
)
def test_a_lie_in_the_results_is_found_by_the_independent_numbers(published, copy, lie):
    retell(copy, lie)
    found = faults_of(published, copy)
    assert set(found) == {"results"}
    assert all("3.2_strong_scaling.json" in fault for fault in found["results"])


def test_scaling_of_a_test_that_has_none_is_refused(published, copy):
    told = json.loads((copy / "results" / "3.2_strong_scaling.json").read_text(encoding="utf-8"))
    retell(copy, lambda other: other.update(scaling=told["scaling"]), "3.1_single_gpu.json")
    assert "declares none" in " ".join(faults_of(published, copy)["results"])


@pytest.fixture(scope="module")
def case(published):
    """What the reports are held against, worked out once."""
    evidence = custody.Evidence(published.folder)
    assert (custody.read_chain(evidence), custody.read_traces(evidence)) == ((), ())
    told = (json.loads(path.read_text(encoding="utf-8")) for path in (published.folder / "results").iterdir())
    results = {result["test_id"]: result for result in told}
    return Case(evidence, gather(evidence), published.experiments, results)


def lines_found(case, path, language, text):
    """Lines of a changed report in which a number is not the right one."""
    path.write_text(text, encoding="utf-8")
    _, faults = number_faults(case, {language: Report.read(path, language)})
    return {fault.line for fault in faults}


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("row", ["`TP 4` |", "`TP 8` |"])
def test_a_changed_digit_in_a_row_of_scaling_is_found(published, case, tmp_path, language, row):
    """Every cell of a row, one after the other; in the row of an absent arm the dash is given a number."""
    path = tmp_path / "report.md"
    lines = (published.folder / f"report.{language}.md").read_text(encoding="utf-8").split("\n")
    assert lines_found(case, path, language, "\n".join(lines)) == set()
    place = next(number for number, line in enumerate(lines) if row in line and line.count("|") == 12)
    cells = lines[place].split("|")
    for index in range(3, 12):
        digits = [at for at, character in enumerate(cells[index]) if character.isdigit()]
        if not digits and "—" not in cells[index]:
            continue
        other = cells[index].replace("—", "7", 1)
        if digits:
            at = digits[-1]
            other = cells[index][:at] + str((int(cells[index][at]) + 1) % 10) + cells[index][at + 1 :]
        changed = "|".join([*cells[:index], other, *cells[index + 1 :]])
        text = "\n".join([*lines[:place], changed, *lines[place + 1 :]])
        assert lines_found(case, path, language, text) == {place + 1}, changed


def test_a_changed_residual_law_or_fitted_point_is_found(published, case, tmp_path):
    text = (published.folder / "report.en.md").read_text(encoding="utf-8")
    lines = text.split("\n")
    place, row = next(item for item in enumerate(lines) if item[1].startswith("| tensor parallel | Amdahl's law |"))
    residual = re.sub(r"\d (?=%, )", lambda digit: f"{(int(digit[0]) + 1) % 10} ", row)
    assert residual != row
    for changed in (residual, row.replace("Amdahl's", "Gustafson's"), row.replace("2, 4", "2, 8")):
        assert lines_found(case, tmp_path / "report.md", "en", text.replace(row, changed)) == {place + 1}
