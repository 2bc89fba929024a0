"""Lies about an arm: what its cache found, when its requests came, whether it replayed graphs, what its passes say."""

from __future__ import annotations

from functools import partial

import pytest

from tests.touchstone.factories import FakeRun, make_trace, make_workload, pair_seed
from tests.touchstone.test_results import quality_attempt
from tests.touchstone.verify.told import Story
from touchstone.analysis.prediction import hit_blocks
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.records import EngineFacts
from touchstone.verify import custody
from touchstone.verify.expected import result_faults
from touchstone.verify.gathered import gather
from touchstone.workload import build

ABBA = ("off", "on", "on", "off")
BLOCK, VOCABULARY = 16, 1000
SHARED = make_workload(num_requests=6, shared_fraction=0.5, prefix_fraction=0.8)
ARRIVING = make_workload(num_requests=6, request_rate_per_s=1000.0)
TEXT = Bilingual("text", "文字")
OPTIONS = {"2.1": "prefix_cache", "2.2": "scheduling", "2.3": "cuda_graphs"}


def experiment(test_id):
    return Experiment(
        plan_id=test_id,
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload={Profile.SMOKE: make_workload()},
        measures=(Measure("total_time"),),
        arms=tuple(Arm(name, options) for name, options in arms_of(test_id).items()),
        design=Design.PAIRED_BLOCKS,
    )


def arms_of(test_id):
    values = {"off": "separated", "on": "mixed"} if test_id == "2.2" else {"off": False, "on": True}
    return {arm: {OPTIONS[test_id]: value} for arm, value in values.items()}


EXPERIMENTS = {test_id: experiment(test_id) for test_id in OPTIONS}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Three paired tests whose arms do what they are asked to."""
    engine = EngineFacts(
        name="fake",
        version="1",
        settings={"block_size": BLOCK},
        model={"vocab_size": VOCABULARY},
        shares_at_admission=True,
    )
    fake = FakeRun(tmp_path_factory.mktemp("good"), engine=engine)
    workloads = {"2.1": SHARED, "2.2": ARRIVING, "2.3": make_workload()}
    for test_id, workload in workloads.items():
        units = fake.plan_test(test_id, processes=6, order=ABBA, arms=arms_of(test_id), workload=workload)
        for unit in units:
            traces = [trace_of(test_id, arm, pair_seed(unit, place), unit.process) for place, arm in enumerate(ABBA)]
            fake.attempt(unit, traces)
    story = Story.read(fake.write())
    for run in story.runs("2.3", "on"):
        story.retrace(run, replay)
    return story


def trace_of(test_id, arm, seed, process):
    slow = 1 + 0.003 * (process % 3)
    if test_id == "2.1":
        prompts = [request.prompt_token_ids for request in build(SHARED, VOCABULARY, seed)]
        found = [BLOCK * blocks for blocks in hit_blocks(prompts, range(6), BLOCK)] if arm == "on" else [0] * 6
        return make_trace(prompts=[100] * 6, cached=found, prefill_ms=100 * slow)
    if test_id == "2.2":
        arrivals = [request.arrival_ns / 1e6 for request in build(ARRIVING, 2, seed)]
        return make_trace(prompts=[100] * 6, arrivals_ms=arrivals, prefill_ms=100 * slow)
    return make_trace(prefill_ms=100 * slow)


def replay(trace):
    for step in trace["steps"]:
        step["graph"] = step["kind"] == "decode"


def caught(story, folder):
    evidence = custody.Evidence(story.write(folder))
    assert not custody.read_chain(evidence)
    assert not custody.read_traces(evidence)
    results = [result.model_dump(mode="json") for result in results_of(read_runs(folder), EXPERIMENTS)]
    tests = gather(evidence)
    assert [fault for told in results for fault in result_faults(evidence, tests, EXPERIMENTS, told)] == []
    return {check["id"] for result in results for check in result["checks"] if not check["passed"]}


def test_the_good_run_is_caught_at_nothing(good, tmp_path):
    folder = tmp_path / "run"
    assert caught(good.copy(), folder) == set()
    made = {check.id for result in results_of(read_runs(folder), EXPERIMENTS) for check in result.checks}
    assert made >= {"cache_hits_as_predicted", "arrivals_as_drawn", "graphs_as_asked", "passes_agree"}


def test_a_cache_that_finds_too_little_is_caught_by_cache_hits_as_predicted(good, tmp_path):
    """In every run of the arm, so that its passes still agree."""
    story = good.copy()

    def find_less(trace):
        request = next(request for request in trace["requests"] if request["cached_tokens"])
        request["cached_tokens"] -= BLOCK
        trace["steps"][0]["prefill_tokens"] += BLOCK

    for run in story.runs("2.1", "on"):
        story.retrace(run, find_less)
    assert caught(story, tmp_path / "run") == {"cache_hits_as_predicted"}


def test_requests_that_are_held_back_are_caught_by_arrivals_as_drawn(good, tmp_path):
    story = good.copy()

    def hold_back(trace):
        for name in ("arrival_ns", "scheduled_ns"):
            trace["requests"][-1][name] += 2_000

    story.retrace(next(story.runs("2.2", "on")), hold_back)
    assert caught(story, tmp_path / "run") == {"arrivals_as_drawn"}


def test_an_arm_that_replays_nothing_is_caught_by_graphs_as_asked(good, tmp_path):
    story = good.copy()

    def run_eagerly(trace):
        for step in trace["steps"]:
            step["graph"] = False

    story.retrace(next(story.runs("2.3", "on")), run_eagerly)
    assert caught(story, tmp_path / "run") == {"graphs_as_asked"}


def test_a_first_pass_that_is_always_warm_is_caught_by_passes_agree(good, tmp_path):
    """One arm is a third faster in its first pass of every block, which its second pass does not repeat."""
    story = good.copy()
    first = [run for run in story.runs("2.3", "on") if run["position"] == ABBA.index("on")]
    for run, factor in zip(first, (0.66, 0.67, 0.65, 0.68, 0.66, 0.67), strict=True):
        story.retrace(run, partial(quicken, factor=factor))
    assert caught(story, tmp_path / "run") == {"passes_agree"}


def quicken(trace, *, factor):
    for request in trace["requests"]:
        request.update({name: round(request[name] * factor) for name in ("arrival_ns", "scheduled_ns")})
    trace["emission_times_ns"] = [round(time * factor) for time in trace["emission_times_ns"]]
    trace["duration_ns"] = round(trace["duration_ns"] * factor)
    for step in trace["steps"]:
        step.update({name: round(step[name] * factor) for name in ("begin_ns", "launched_ns", "end_ns")})


# --- the code's own counts --------------------------------------------------------------------------------------------


def caught_in_code(folder, **lies):
    result = next(
        result
        for result in results_of(read_runs(FakeRun(folder, quality=quality_attempt(**lies)).write()), {})
        if result.test_id == "4.1"
    )
    return {check.id for check in result.checks if not check.passed}


def test_an_unexplained_difference_is_caught_by_tool_differences_explained(tmp_path):
    assert caught_in_code(tmp_path, unexplained=("a.py:1",)) == {"tool_differences_explained"}


def test_a_function_left_out_is_caught_by_functions_add_up(tmp_path):
    functions = quality_attempt().code.functions
    assert caught_in_code(tmp_path, functions=functions[1:]) == {"functions_add_up"}


def test_a_file_that_is_no_python_is_caught_by_all_files_parsed(tmp_path):
    first, *others = quality_attempt().code.files
    broken = first.model_copy(update={"error": "line 1: invalid syntax"})
    assert caught_in_code(tmp_path, files=(broken, *others)) == {"all_files_parsed"}
