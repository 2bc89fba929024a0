"""How a run with several engines is planned."""

import pytest

from touchstone.engines.base import Capabilities
from touchstone.environment import capture
from touchstone.experiment import Profile, family_of, load_experiments
from touchstone.running.models import ChosenModel, ModelSpec, make_tiny_model
from touchstone.running.planning import PlanError, RunRequest, make_plan

EXPERIMENTS = load_experiments()


def capable(*options, **more):
    reported = {"reports_steps": True, "reports_cached_tokens": True, "reports_memory_parts": True}
    return Capabilities(frozenset(options), **reported | more)


OURS = capable(
    "prefix_cache", "scheduling", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes", "max_model_len"
)
THEIRS = capable("prefix_cache", "max_model_len", fixed={"prefix_cache": True})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder)
    return ChosenModel(ModelSpec(source="tiny", weights="synthetic", note=None), folder, None)


@pytest.fixture(scope="module")
def plan(model):
    here = capture()

    def make(peers=None, engine="nanoinfer", own=OURS, only=("5.1",), **request):
        peers = {} if peers is None else peers
        asked = RunRequest(Profile.SMOKE, engine, "cpu", "float32", 0, only, peers=tuple(peers), **request)
        return make_plan(asked, EXPERIMENTS, here, model, own, peers)

    return make


def planned(plan, test_id):
    return next(test for test in plan.tests if test.test_id == test_id)


def test_engines_are_arms_in_the_order_in_which_they_were_asked_for(plan):
    test = planned(plan({"transformers": THEIRS}), "5.1")
    assert [(arm.name, arm.engine) for arm in test.arms] == [
        ("nanoinfer", "nanoinfer"),
        ("transformers", "transformers"),
    ]
    assert test.absent_arms == ()


def test_an_engine_of_the_users_own_is_an_arm_too(plan):
    test = planned(plan({"my.own.adapter": THEIRS}), "5.1")
    assert [(arm.name, arm.engine) for arm in test.arms][1] == ("adapter", "my.own.adapter")


def test_an_engine_keeps_the_one_position_that_it_has_of_a_shared_option(plan):
    made = plan({"transformers": THEIRS})
    ours, theirs = planned(made, "5.1").arms
    assert ours.options["prefix_cache"] is False
    assert "prefix_cache" not in theirs.options
    assert "kv_cache_bytes" not in theirs.options
    assert theirs.options["max_model_len"] == ours.options["max_model_len"]
    warm = planned(made, "5.1@w4").arms[0].options
    assert warm == ours.options | {"prefix_cache": True}


def test_a_point_leaves_out_an_engine_and_says_why(plan):
    made = plan({"transformers": THEIRS, "other": THEIRS})
    assert [arm.name for arm in planned(made, "5.1@w2").arms] == ["nanoinfer", "other"]
    absent = {arm.arm.name: arm.reason for arm in planned(made, "5.1@w2").absent_arms}
    assert "static batch" in absent["transformers"]


def test_one_process_of_an_engine_serves_all_points_and_engines_take_turns(plan):
    made = plan({"transformers": THEIRS})
    units = [unit for unit in made.units if family_of(unit.test_id) == "5.1"]
    processes = {unit.shared_process for unit in units}
    assert processes == {f"5.1-{name}-p{index}" for name in ("nanoinfer", "transformers") for index in range(3)}
    order = list(dict.fromkeys(unit.shared_process for unit in units))
    assert [name[-1] for name in order] == ["0", "0", "1", "1", "2", "2"]


def test_every_engine_gets_the_same_prompts(plan):
    units = [unit for unit in plan({"transformers": THEIRS}).units if unit.test_id == "5.1"]
    seeds = {(unit.process, unit.seed) for unit in units}
    assert len(units) == 6
    assert len(seeds) == 3


def test_points_on_the_same_settings_follow_each_other_so_that_engines_are_built_twice_at_most(plan):
    made = plan({"transformers": THEIRS})
    for process in range(3):
        row = [unit.test_id for unit in made.units if unit.shared_process == f"5.1-nanoinfer-p{process}"]
        assert row.index("5.1@w4") in (0, len(row) - 1)


def test_one_engine_alone_is_not_compared(plan):
    made = plan(only=())
    reason = next(missing.reason for missing in made.not_measured if missing.test_id == "5.1")
    assert "one engine alone has no peer" in reason


def test_a_gpu_engine_is_absent_without_a_gpu(plan):
    test = planned(plan({"vllm": capable(needs_gpu=True), "other": THEIRS}), "5.1")
    assert {arm.arm.name: arm.reason for arm in test.absent_arms}["vllm"] == "this engine needs an NVIDIA GPU"


def test_tests_say_why_an_engine_cannot_take_them(plan):
    alone = capable("prefix_cache", "scheduling", "max_num_seqs", "max_num_batched_tokens", alone=True)
    made = plan(own=alone, only=())
    told = {missing.test_id: missing.reason for missing in made.not_measured}
    assert "a process can hold one such engine only" in told["2.1"]
    fixed = capable(
        "prefix_cache", "scheduling", "max_num_seqs", "max_num_batched_tokens", fixed={"scheduling": "mixed"}
    )
    told = {missing.test_id: missing.reason for missing in plan(own=fixed, only=()).not_measured}
    assert told["2.2"] == "this engine has scheduling = mixed only"
    assert "2.1" not in told


def test_the_users_options_reach_the_engine_that_they_are_for(plan):
    made = plan(
        {"transformers": THEIRS},
        engine_options={"nanoinfer": {"max_num_seqs": 4}, "transformers": {"max_model_len": 99}},
    )
    ours, theirs = planned(made, "5.1").arms
    assert ours.options["max_num_seqs"] == 4
    assert theirs.options["max_model_len"] == 99
    assert made.engine_options == {"max_num_seqs": 4}


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"engine_options": {"nanoinfer": {"speed": 9}}}, "has no option speed"),
        ({"engine_options": {"vllm": {"max_num_seqs": 9}}}, "no --engine names"),
        ({"peers": {"nanoinfer": OURS}}, "more than once"),
    ],
)
def test_engines_and_options_that_make_no_sense_are_refused(plan, request_fields, message):
    with pytest.raises(PlanError, match=message):
        plan(**request_fields)
