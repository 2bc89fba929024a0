"""The estimate of a plan's time: of the size that a fast GPU needs, and the paper's plan within half an hour.

Times here are round guides for the estimate, not results; results are in a run's ledger.
"""

import json
from dataclasses import replace

import pytest

from tests.touchstone.fake_run import environment
from touchstone.engines.base import Capabilities
from touchstone.engines.registry import load_adapter
from touchstone.experiment import Profile, load_experiments
from touchstone.records import ArmSpec, Gpu, ModelSpec
from touchstone.running.estimate import COSTS, Machine, generate_s, seconds_by_test, total_s
from touchstone.running.models import QWEN3_0_6B_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.workload import fixed, ranged

EXPERIMENTS = load_experiments()
MACHINE = Machine("cuda", "float16", QWEN3_0_6B_CONFIG)
OURS = load_adapter("nanoinfer").capabilities()


@pytest.fixture
def planned(tmp_path):
    """Plans for the model that the paper measures, on so many H200s."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_0_6B_CONFIG), encoding="utf-8")
    model = ChosenModel(ModelSpec(source="a shape", weights="synthetic", note=None), tmp_path, 0)

    def make(num_gpus, *, profile=Profile.PAPER, only=(), peers=None):
        gpus = tuple(
            Gpu(index=index, name="G", memory_bytes=141 << 30, compute_capability="9.0", power_limit_w=None)
            for index in range(num_gpus)
        )
        request = RunRequest(profile, "nanoinfer", "cuda", "float16", 0, only, peers=tuple(peers or ()))
        return make_plan(request, EXPERIMENTS, environment(gpus=gpus), model, OURS, peers or {})

    return make


def arm(num_gpus=1, **options):
    return ArmSpec(name="arm", options=options, extra_output=0.0, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("workload", "arm", "about_s"),
    [
        (fixed(256, 512, 512), arm(), 3.5),
        (fixed(256, 512, 1), arm(), 0.25),
        (fixed(1, 512, 128), arm(), 0.1),
        (ranged(256, (100, 1024), (100, 1024)), arm(), 5),
        (fixed(64, 512, 128), arm(), 0.4),
        (fixed(8, 512, 128, concurrency=1), arm(), 0.8),
        (fixed(8, 32, 128), arm(cuda_graphs=True), 0.15),
        (fixed(8, 32, 128), arm(cuda_graphs=False), 1.2),
        (fixed(256, 512, 512), arm(2, tensor_parallel_size=2), 2.5),
        (fixed(256, 512, 512), arm(4, tensor_parallel_size=4), 2),
        (fixed(512, 512, 512), arm(2, data_parallel_size=2), 4),
        (fixed(1024, 512, 512), arm(4, data_parallel_size=4), 4),
    ],
)
def test_the_estimate_of_a_run_is_of_the_right_size(workload, arm, about_s):
    assert about_s / 1.7 < generate_s(workload, arm, {}, MACHINE) < about_s * 1.7


@pytest.mark.parametrize(("num_gpus", "most_s"), [(1, 1130), (2, 1350), (4, 1500)])
def test_the_paper_is_planned_to_end_within_half_an_hour(planned, num_gpus, most_s):
    """Less a reserve for attempts that are repeated."""
    plan = planned(num_gpus)
    assert {test.test_id for test in plan.tests} >= {"0.1", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1", "4.1"}
    assert 0.5 * most_s < total_s(plan.tests, plan.device) < most_s


def test_the_comparison_of_engines_is_planned_to_end_within_half_an_hour_too(planned):
    peer = replace(OURS, needs_checkpoint=True)
    plan = planned(1, only=("5.1",), peers={"vllm": peer, "nano-vllm": peer, "transformers": peer})
    assert 300 < total_s(plan.tests, plan.device) < 1000


def test_what_units_share_is_charged_once(planned):
    alone = {test.test_id: test.estimated_s for test in planned(1, only=("1.3",)).tests}
    together = {test.test_id: test.estimated_s for test in planned(1, only=("1.1", "1.3")).tests}
    start_s = COSTS["cuda"].process_s + COSTS["cuda"].engine_s
    separate = alone["1.3"] + planned(1, only=("1.1",)).tests[0].estimated_s
    assert separate - sum(together.values()) == pytest.approx(6 * start_s, abs=0.2)


def test_a_profiled_run_is_charged_for_each_arm_of_each_process(planned):
    """Without graphs about a second and a half, with them less."""
    plan = planned(1, only=("2.3",))
    profiled = {test.test_id: test for test in plan.tests}
    plain = {name: test.model_copy(update={"profile_devices": False}) for name, test in profiled.items()}
    points = {name for name in profiled if name.startswith("2.3")}
    assert len(points) == 5
    assert all(profiled[name].profile_devices for name in points)
    engines = {unit.unit_id: unit.test_id.encode() for unit in plan.units}
    with_profile, without = (seconds_by_test(plan.units, tests, engines, MACHINE) for tests in (profiled, plain))
    for name in points:
        assert 6 * 1.5 < with_profile[name] - without[name] < 6 * 4


def test_an_arrival_at_half_the_rate_takes_twice_as_long_and_needs_to_know_the_rate(planned):
    tests = {test.test_id: test.estimated_s for test in planned(1, only=("2.2",)).tests}
    assert tests["2.2@load-50"] > 1.2 * tests["2.2@load-90"]


def test_a_slower_engine_that_reports_less_can_be_planned_for_too(planned):
    peer = Capabilities(
        frozenset(), reports_steps=False, reports_cached_tokens=False, reports_memory_parts=False, unreported="no"
    )
    plan = planned(1, profile=Profile.QUICK, only=("5.1",), peers={"mine.adapter": peer})
    assert all(test.estimated_s > 0 for test in plan.tests)
