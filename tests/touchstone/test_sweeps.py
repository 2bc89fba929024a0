"""Sweeps: what bench files declare, how points are planned beside their test, and where each lies on its axis."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from touchstone.canonical import canonical_json
from touchstone.coordinates import COORDINATES
from touchstone.engines.base import Capabilities
from touchstone.experiment import (
    Axis,
    ExperimentError,
    Measure,
    Point,
    Profile,
    family_of,
    is_point,
    load_experiments,
    points_of,
)
from touchstone.records import Gpu
from touchstone.running.models import choose_model
from touchstone.running.planning import PlanError, RunRequest, make_plan
from touchstone.workload import fixed

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import environment, experiment

EXPERIMENTS = load_experiments()
POINTS = {each.plan_id: each for each in EXPERIMENTS if is_point(each.plan_id) and each.plan_id.startswith("2.")}
OPTIONS = frozenset(
    {
        *("prefix_cache", "scheduling", "max_num_seqs", "max_num_batched_tokens"),
        *("max_model_len", "kv_cache_bytes", "cuda_graphs"),
    }
)
ALL = Capabilities(OPTIONS, reports_steps=True, reports_cached_tokens=True, reports_memory_parts=True)
H200 = Gpu(index=0, name="G", memory_bytes=141 << 30, compute_capability="9.0", power_limit_w=None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return choose_model(None, "cpu", tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan(tiny):
    def make(profile=Profile.SMOKE, *, only=(), device="cpu", seed=0):
        request = RunRequest(profile, "nanoinfer", device, "float32", seed, only)
        gpus = (H200,) if device == "cuda" else ()
        return make_plan(request, EXPERIMENTS, environment(gpus=gpus), tiny, ALL)

    return make


def planned(plan):
    return {test.test_id: test for test in plan.tests}


class TestDeclarations:
    def test_hit_rates_prompt_lengths_loads_budgets_and_batches_are_swept(self):
        axes = {(family_of(name), each.axis) for name, each in POINTS.items()}
        assert axes == {
            *(("2.1", "shared"), ("2.1", "input_length"), ("2.2", "load"), ("2.2", "token_budget"), ("2.3", "batch")),
        }
        shared = {name for name, each in POINTS.items() if each.axis == "shared"}
        assert shared == {f"2.1@hit-{percent}" for percent in (0, 25, 50, 75, 100)}

    @pytest.mark.parametrize("name", POINTS)
    def test_a_point_differs_from_its_test_in_workload_or_options_and_can_name_a_file(self, name):
        point = POINTS[name]
        test = next(each for each in EXPERIMENTS if each.plan_id == family_of(name))
        assert re.fullmatch(r"\d\.\d@[a-z0-9-]+", name)
        assert (point.arms, point.design, point.margins, point.requires) == (
            *(test.arms, test.design, test.margins, test.requires),
        )
        assert any(
            point.workload[profile] != test.workload[profile]
            or point.engine_options.get(profile) != test.engine_options.get(profile)
            for profile in point.workload
        )
        assert not any(measure.result for measure in point.measures), "the plan's fields are the test's own"

    @pytest.mark.parametrize("name", ["Hit", "hit 25", "hit/25", "", "-25"])
    def test_a_name_that_no_file_can_bear_is_refused(self, name):
        test = experiment("2.1", paired=True)
        axis = Axis("batch", (Measure("total_time"),), (Point(name, {Profile.SMOKE: fixed(1, 1, 1)}),))
        with pytest.raises(ExperimentError, match="use lower-case words and numbers joined by -"):
            points_of(replace(test, sweep=(axis,)))


class TestPlans:
    def test_a_test_is_chosen_with_its_points_and_a_point_alone(self, plan):
        together = [name for name in planned(plan(only=("2.1",))) if family_of(name) == "2.1"]
        assert together == ["2.1", "2.1@hit-0", "2.1@hit-100"]
        assert [*planned(plan(only=("2.1@hit-100",)))] == ["0.1", "2.1@hit-100"]

    def test_an_unknown_point_is_refused(self, plan):
        with pytest.raises(PlanError, match=r"--only names 2\.1@hit-33"):
            plan(only=("2.1@hit-33",))

    def test_a_profile_without_a_workload_leaves_the_point_out_of_the_plan(self, plan):
        smoke = plan()
        assert "2.1@hit-50" not in {*planned(smoke), *(missing.test_id for missing in smoke.not_measured)}
        assert "2.1@hit-50" in planned(plan(Profile.PAPER))

    def test_points_without_a_gpu_say_so_like_their_test(self, plan):
        told = {missing.test_id: missing.reason for missing in plan().not_measured}
        assert told["2.3@batch-256"] == told["2.3"] == "no NVIDIA GPU on this machine"

    def test_points_that_ask_for_nothing_else_get_the_engines_of_their_test(self, plan):
        tests = planned(plan(Profile.PAPER))
        assert tests["2.1"].engine_options == tests["2.1@input-2048"].engine_options
        assert tests["2.1"].engine_options["max_model_len"] == 2048 + 32
        budgets = [tests[name].engine_options["max_num_batched_tokens"] for name in ("2.2", "2.2@budget-512")]
        assert budgets == [2048, 512]

    def test_the_engines_of_a_point_do_not_depend_on_what_else_is_chosen(self, plan):
        alone, whole = plan(Profile.PAPER, only=("2.1@input-128",)), plan(Profile.PAPER)
        assert planned(alone)["2.1@input-128"].engine_options == planned(whole)["2.1@input-128"].engine_options

    def test_the_blocks_of_paired_tests_and_their_points_share_each_process_and_follow_each_other(self, plan):
        units = plan(Profile.PAPER, device="cuda").units
        paired = {"0.1", "2.1", "2.2", "2.3"}
        for number in range(6):
            places = [index for index, unit in enumerate(units) if unit.shared_process == f"blocks-b{number}"]
            members = [units[index].test_id for index in places]
            assert places == list(range(places[0], places[0] + len(places)))
            assert sorted(members) == sorted({*paired, *(point for point in POINTS if family_of(point) in paired)})

    def test_units_on_the_same_engines_follow_each_other_in_a_process(self, plan):
        made = plan(Profile.PAPER, seed=5)
        tests = planned(made)
        for number in range(6):
            row = [tests[unit.test_id] for unit in made.units if unit.shared_process == f"blocks-b{number}"]
            settings = [canonical_json([test.engine_options, [arm.options for arm in test.arms]]) for test in row]
            changes = sum(one != other for one, other in pairwise(settings))
            assert changes == len(set(settings)) - 1 > 1

    def test_the_order_inside_a_process_is_drawn_anew_for_each(self, plan):
        units = plan(Profile.PAPER).units
        orders = {tuple(u.test_id for u in units if u.shared_process == f"blocks-b{number}") for number in range(6)}
        assert len(orders) == 6


class TestCoordinates:
    def test_every_planned_point_lies_on_its_axis_and_no_two_at_one_place(self, plan):
        tests = planned(plan(Profile.PAPER, device="cuda"))
        places = {}
        for name, test in tests.items():
            if test.axis is not None and name in POINTS:
                places.setdefault((family_of(name), test.axis), []).append(COORDINATES[test.axis].of(test))
        assert all(None not in found and len(set(found)) == len(found) > 1 for found in places.values())
        assert sorted(places["2.1", "shared"]) == [0, 25, 50, 75, 100]

    def test_a_test_that_its_axis_includes_lies_between_or_beyond_its_points(self, plan):
        tests = planned(plan(Profile.PAPER, device="cuda"))
        assert COORDINATES["load"].of(tests["2.2"]) is None
        assert COORDINATES["token_budget"].of(tests["2.2"]) == 2048
        assert COORDINATES["batch"].of(tests["2.3"]) == 8
