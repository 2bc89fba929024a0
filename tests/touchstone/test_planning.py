import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.base import Capabilities
from touchstone.engines.registry import load_adapter
from touchstone.environment import capture
from touchstone.experiment import Profile, is_point, load_experiments
from touchstone.records import Gpu
from touchstone.running.models import QWEN3_0_6B_CONFIG, TINY_CONFIG, choose_model
from touchstone.running.planning import PlanError, RunRequest, make_plan
from touchstone.running.sizes import kv_bytes_per_token, num_parameters

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import environment

EXPERIMENTS = load_experiments()
OPTIONS = frozenset(
    {"prefix_cache", "scheduling", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "kv_cache_bytes"}
)
ALL = Capabilities(OPTIONS, reports_steps=True, reports_cached_tokens=True, reports_memory_parts=True)
GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return choose_model(None, "cpu", tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan(tiny):
    def make(*, profile=Profile.SMOKE, seed=0, device="cpu", only=(), capabilities=ALL, **hardware):
        dtype = "float16" if device == "cuda" else "float32"
        request = RunRequest(profile, "nanoinfer", device, dtype, seed, only)
        return make_plan(request, EXPERIMENTS, environment(**hardware), tiny, capabilities)

    return make


def gpus(count, memory_bytes=141 * GIB):
    return tuple(
        Gpu(index=index, name="G", memory_bytes=memory_bytes, compute_capability="9.0", power_limit_w=None)
        for index in range(count)
    )


def reasons(plan):
    """Why tests of the plan are not measured; the comparison of engines needs a second engine and is told apart."""
    whole = (missing for missing in plan.not_measured if not is_point(missing.test_id) and missing.test_id != "5.1")
    return {missing.test_id: missing.reason for missing in whole}


def chosen(plan):
    return [test.test_id for test in plan.tests if not is_point(test.test_id)]


def test_without_a_gpu_seven_tests_are_measured_and_four_say_why_not(plan):
    made = plan()
    assert chosen(made) == ["0.1", "1.1", "1.2", "1.3", "2.1", "2.2", "4.1"]
    assert reasons(made) == dict.fromkeys(["2.3", "3.1", "3.2", "3.3"], "no NVIDIA GPU on this machine")
    assert all("GPU" in missing.reason_zh for missing in made.not_measured if missing.test_id in reasons(made))


def test_what_an_engine_does_not_have_is_off_already_and_cannot_be_on(plan):
    """Placebo and control ask for the cache to be off; only the test of the cache needs one."""
    made = plan(only=("2.1",), capabilities=replace(ALL, options=OPTIONS - {"prefix_cache"}))
    own = next(test for test in made.tests if test.test_id == "0.1")
    assert [arm.options for arm in own.arms] == [{}, {}, {}]
    assert reasons(made)["2.1"] == "not implemented by this engine yet: option prefix_cache"


def test_with_one_gpu_the_baseline_is_measured_and_scaling_says_how_many_there_are(plan):
    made = plan(device="cuda", gpus=gpus(1))
    assert "3.1" in {test.test_id for test in made.tests}
    assert reasons(made) == {
        "2.3": "not implemented by this engine yet: option cuda_graphs",
        "3.2": "several GPUs are needed, this machine has 1",
        "3.3": "several GPUs are needed, this machine has 1",
    }


def test_with_eight_gpus_the_missing_engine_options_are_the_reason(plan):
    told = reasons(plan(device="cuda", gpus=gpus(8)))
    assert told["3.2"] == "not implemented by this engine yet: option tensor_parallel_size"
    assert told["3.3"] == "not implemented by this engine yet: option data_parallel_size"


def test_a_processor_run_beside_a_gpu_says_that_it_was_asked_for(plan):
    assert reasons(plan(gpus=gpus(1)))["3.1"] == "the run was asked for on the processor, not on the GPU"


def test_an_engine_that_does_not_report_facts_leaves_out_what_needs_them(plan):
    silent = Capabilities(OPTIONS, reports_steps=False, reports_cached_tokens=False, reports_memory_parts=False)
    told = reasons(plan(capabilities=silent))
    assert told["2.1"] == "this engine does not report cached prompt tokens"
    assert told["2.2"] == "this engine does not report its steps"


def test_only_selects_and_names_what_it_left_out(plan):
    made = plan(only=("1.1", "4.1"))
    assert chosen(made) == ["1.1", "4.1"]
    assert reasons(made)["1.2"] == "left out of this run by --only"


def test_an_unknown_test_is_refused_with_the_known_ones(plan):
    with pytest.raises(PlanError, match=r"--only names 9\.9; the tests are 0\.1, 1\.1, .*4\.1"):
        plan(only=("1.1", "9.9"))


class TestScaling:
    PARALLEL = Capabilities(
        OPTIONS | {"tensor_parallel_size", "data_parallel_size"},
        reports_steps=True,
        reports_cached_tokens=True,
        reports_memory_parts=True,
    )

    @pytest.fixture
    def of(self, plan):
        def tests(count, capabilities=self.PARALLEL, profile=Profile.PAPER):
            made = plan(device="cuda", gpus=gpus(count), profile=profile, capabilities=capabilities)
            return {test.test_id: test for test in made.tests}, made

        return tests

    def test_arms_for_more_gpus_than_there_are_are_absent_with_the_reason(self, of):
        tests, _ = of(4)
        assert [arm.name for arm in tests["3.2"].arms] == ["TP 2", "TP 4", "DP 2", "DP 4"]
        assert {absent.arm.name: absent.reason for absent in tests["3.2"].absent_arms} == dict.fromkeys(
            ["TP 8", "DP 8"], "8 GPUs are needed, this machine has 4"
        )
        assert all("8" in absent.reason_zh for absent in tests["3.2"].absent_arms)

    def test_an_engine_without_one_kind_of_parallelism_still_runs_the_other(self, of):
        tensor = Capabilities(
            self.PARALLEL.options - {"data_parallel_size"},
            reports_steps=True,
            reports_cached_tokens=True,
            reports_memory_parts=True,
        )
        tests, _ = of(2, tensor)
        assert [arm.name for arm in tests["3.2"].arms] == ["TP 2"]
        reasons_of = {absent.arm.name: absent.reason for absent in tests["3.2"].absent_arms}
        assert reasons_of["DP 2"] == "not implemented by this engine yet: option data_parallel_size"
        assert reasons_of["DP 8"] == "8 GPUs are needed, this machine has 2"

    def test_a_model_that_cannot_be_split_so_is_known_before_a_process_fails(self, of):
        """The tiny model has four heads; eight GPUs can hold eight replicas of it and no eight shards."""
        tests, _ = of(8)
        assert "DP 8" in {arm.name for arm in tests["3.2"].arms}
        assert {absent.arm.name: absent.reason for absent in tests["3.2"].absent_arms} == {
            "TP 8": "the model's 4 attention heads cannot be shared equally by 8 GPUs"
        }

    def test_the_baseline_knows_one_gpu_and_both_sizes(self, of):
        tests, _ = of(8)
        assert {arm.name: (arm.num_gpus, arm.num_requests) for arm in tests["3.1"].arms} == {
            "full": (1, None),
            "light": (1, 32),
        }
        assert tests["3.1"].workload.num_requests == tests["3.2"].workload.num_requests == 256

    def test_work_grows_with_the_gpus_in_weak_scaling_alone(self, of):
        tests, _ = of(8)
        assert {arm.num_requests for arm in tests["3.2"].arms} == {None}
        asked = {arm.name: arm.num_requests for arm in tests["3.3"].arms}
        assert (asked["DP 2 light"], asked["DP 8 light"], asked["TP 4 full"]) == (64, 256, 1024)
        assert all(arm.num_requests % arm.num_gpus == 0 for arm in tests["3.3"].arms)

    @pytest.mark.parametrize("profile", list(Profile))
    def test_every_device_of_every_arm_gets_the_same_kv_pool(self, of, profile):
        tests, _ = of(8, profile=profile)
        assert len({tests[test].engine_options["kv_cache_bytes"] for test in ("3.1", "3.2", "3.3")}) == 1

    def test_scaling_runs_on_the_very_prompts_of_the_baseline(self, of):
        _, made = of(2)
        seeds = {
            test: {unit.process: unit.seed for unit in made.units if unit.test_id == test} for test in ("3.1", "3.2")
        }
        assert seeds["3.2"].items() <= seeds["3.1"].items()
        assert len(seeds["3.1"]) == 6


class TestOrder:
    def test_the_seed_alone_decides_it(self, plan):
        assert plan(seed=3) == plan(seed=3)
        first, second = plan(seed=3), plan(seed=4)
        assert [unit.unit_id for unit in first.units] != [unit.unit_id for unit in second.units]
        assert {unit.unit_id for unit in first.units} == {unit.unit_id for unit in second.units}

    def test_rounds_interleave_the_tests(self, plan):
        rounds = [unit.process for unit in plan().units]
        assert rounds == sorted(rounds)
        first = {unit.test_id for unit in plan().units if unit.process == 0}
        assert first == {test.test_id for test in plan().tests}

    def test_every_process_has_an_id_and_a_seed_of_its_own(self, plan):
        units = plan().units
        assert len({unit.unit_id for unit in units}) == len({unit.seed for unit in units}) == len(units)
        assert sum(not is_point(unit.test_id) for unit in units) == 34

    def test_blocks_are_abba_or_baab_and_both_come(self, plan):
        orders = Counter(unit.arm_order for seed in range(8) for unit in plan(seed=seed).units if unit.test_id == "2.1")
        assert orders.keys() == {("off", "on", "on", "off"), ("on", "off", "off", "on")}
        assert min(orders.values()) >= 12


def test_the_hash_covers_every_other_field(plan):
    made = plan()
    assert made.plan_sha256 == sha256_hex(canonical_json(made.model_dump(mode="json", exclude={"plan_sha256"})))
    assert made.plan_sha256 != plan(seed=1).plan_sha256


@pytest.mark.parametrize(("profile", "n", "k"), [(Profile.SMOKE, 6, 3), (Profile.QUICK, 3, 1), (Profile.PAPER, 6, 3)])
def test_a_profile_says_how_often_a_key_number_is_measured(plan, profile, n, k):
    throughput = next(test for test in plan(profile=profile).tests if test.test_id == "1.1")
    assert (throughput.num_processes, throughput.num_repetitions) == (n, k)


def test_a_smoke_run_is_planned_to_end_within_five_minutes(plan):
    assert sum(test.estimated_s for test in plan().tests) < 300


class TestSharedProcesses:
    @pytest.fixture
    def units(self, plan):
        every = replace(ALL, options=load_adapter("nanoinfer").capabilities().options)
        return plan(profile=Profile.PAPER, device="cuda", gpus=gpus(4), capabilities=every).units

    def test_arms_on_the_same_number_of_devices_share_a_process_in_each_round(self, units):
        members = {}
        for unit in units:
            members.setdefault(unit.shared_process, set()).add((unit.test_id, unit.arm_order[:1]))
        one, tensor, data = members["engine-1x1-p5"], members["engine-2x1-p0"], members["engine-1x4-p2"]
        assert {test for test, _ in one} == {"1.1", "1.2", "1.3", "3.1"}
        assert tensor == {("3.2", ("TP 2",)), ("3.3", ("TP 2 light",)), ("3.3", ("TP 2 full",))}
        assert data == {("3.2", ("DP 4",)), ("3.3", ("DP 4 light",)), ("3.3", ("DP 4 full",))}

    def test_they_are_measured_on_one_engine(self, plan):
        every = replace(ALL, options=load_adapter("nanoinfer").capabilities().options)
        made = plan(profile=Profile.PAPER, device="cuda", gpus=gpus(4), capabilities=every)
        tests = {test.test_id: test for test in made.tests}
        assert len({canonical_json(tests[name].engine_options) for name in ("1.1", "1.2", "1.3", "3.1", "3.2")}) == 1
        options = {arm.name: arm.options for test in ("3.2", "3.3") for arm in tests[test].arms}
        assert options["TP 4"] == options["TP 4 light"] == options["TP 4 full"]

    def test_without_a_gpu_memory_is_measured_in_a_process_of_its_own(self, plan):
        names = {unit.test_id: unit.shared_process for unit in plan().units}
        assert (names["1.1"], names["1.2"], names["1.3"]) == ("engine-1x1-p5", "engine-1x1-p5", None)

    def test_what_shares_with_nothing_has_no_name_for_it(self, plan):
        assert {unit.shared_process for unit in plan(only=("1.1", "4.1")).units} == {None}


class TestKvPool:
    def size(self, plan, **options):
        return next(test for test in plan(**options).tests if test.test_id == "1.1").engine_options["kv_cache_bytes"]

    def test_all_requests_fit_and_every_arm_has_the_same(self, plan):
        tokens = 16 * (64 + 32)
        assert self.size(plan) >= tokens * kv_bytes_per_token(TINY_CONFIG, "float32")
        prefix = next(test for test in plan().tests if test.test_id == "2.1")
        assert "kv_cache_bytes" in prefix.engine_options
        assert all("kv_cache_bytes" not in arm.options for arm in prefix.arms)

    def test_it_never_exceeds_the_memory(self, plan):
        small = self.size(plan, profile=Profile.PAPER, device="cuda", gpus=gpus(1, memory_bytes=GIB // 4))
        assert small < GIB // 4 < self.size(plan, profile=Profile.PAPER, device="cuda", gpus=gpus(1)) * 2

    def test_a_model_that_does_not_fit_is_refused(self, plan):
        with pytest.raises(PlanError, match=r"do not fit 0\.0 GB of memory"):
            plan(memory_bytes=1 << 20)

    def test_an_engine_without_the_option_is_not_given_it(self, plan):
        capabilities = Capabilities(
            OPTIONS - {"kv_cache_bytes"}, reports_steps=True, reports_cached_tokens=True, reports_memory_parts=True
        )
        tests = plan(capabilities=capabilities).tests
        assert all("kv_cache_bytes" not in test.engine_options for test in tests)


def test_sizes_of_the_plans_model_are_the_published_ones():
    """112 KiB of KV a token in 16-bit, and 0.6 billion parameters, 0.44 billion of them not in the embedding."""
    assert kv_bytes_per_token(QWEN3_0_6B_CONFIG, "float16") == 112 * 1024
    assert num_parameters(QWEN3_0_6B_CONFIG) == pytest.approx(0.596e9, rel=0.001)
    assert num_parameters(QWEN3_0_6B_CONFIG) - 151936 * 1024 == pytest.approx(0.44e9, rel=0.002)


def test_the_tiny_model_runs_on_one_thread_and_a_real_one_on_all(plan, tmp_path):
    assert plan().threads == 1
    (tmp_path / "config.json").write_bytes(canonical_json(TINY_CONFIG))
    own = choose_model(str(tmp_path), "cpu", tmp_path)
    request = RunRequest(Profile.SMOKE, "nanoinfer", "cpu", "float32", 0)
    assert make_plan(request, EXPERIMENTS, environment(), own, ALL).threads == 2


def test_a_real_environment_can_be_planned_for(tiny):
    request = RunRequest(Profile.SMOKE, "nanoinfer", "cpu", "float32", 0)
    assert make_plan(request, EXPERIMENTS, capture(), tiny, ALL).tests


class TestTheInstrumentsOwnTest:
    @pytest.mark.parametrize(("only", "tests"), [(("2.1",), ["0.1", "2.1"]), (("1.1",), ["1.1"])])
    def test_it_joins_every_choice_that_holds_a_paired_test(self, plan, only, tests):
        assert chosen(plan(only=only)) == tests

    def test_its_blocks_run_every_arm_forth_and_back(self, plan):
        orders = {unit.arm_order for seed in range(4) for unit in plan(seed=seed).units if unit.test_id == "0.1"}
        assert all(order == tuple(reversed(order)) and len(set(order)) == 3 for order in orders)
        assert len(orders) > 2

    def test_its_longest_outputs_fit_the_model_length(self, plan):
        own = next(test for test in plan().tests if test.test_id == "0.1")
        assert own.engine_options["max_model_len"] == 8 + 66
        assert own.repeat_last

    def test_the_limits_of_validity_are_part_of_the_plan(self, plan):
        assert (plan().canary_limit, plan().telemetry_enforced) == (2.0, False)
        paper = plan(profile=Profile.PAPER)
        assert (paper.canary_limit, paper.telemetry_enforced) == (0.03, True)
        assert {test.test_id: test.margin for test in plan().tests if test.margin and not is_point(test.test_id)} == {
            "0.1": 0.1,
            "2.1": 0.05,
            "2.2": 0.05,
        }
