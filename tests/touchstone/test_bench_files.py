import pytest

from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.experiment import INSTRUMENT_TEST, Design, ExperimentError, Profile, is_point, load_experiments
from touchstone.running.planning import REQUIREMENTS

EVERYTHING = {experiment.plan_id: experiment for experiment in load_experiments()}
EXPERIMENTS = {name: experiment for name, experiment in EVERYTHING.items() if not is_point(name)}
POINTS = {name: experiment for name, experiment in EVERYTHING.items() if is_point(name)}


def test_every_measured_test_of_the_plan_and_the_instrument_itself_have_one_bench_file():
    assert list(EXPERIMENTS) == ["0.1", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "5.1"]


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
class TestEachBenchFile:
    def test_its_metrics_are_in_the_dictionary(self, experiment):
        assert {measure.metric for measure in experiment.measures} <= DICTIONARY.keys() | COMPARISONS.keys()

    def test_its_requirements_have_a_reason_in_both_languages(self, experiment):
        assert experiment.requires <= REQUIREMENTS.keys()

    def test_it_has_a_workload_for_every_profile_that_grows_with_the_profile(self, experiment):
        tokens = [
            workload.num_requests * (workload.input_tokens.high + workload.output_tokens.high)
            for workload in (experiment.workload[profile] for profile in Profile)
        ]
        assert tokens == sorted(tokens)

    def test_a_comparison_has_two_arms_of_the_same_options(self, experiment):
        if experiment.design is Design.PAIRED_BLOCKS and experiment.plan_id != INSTRUMENT_TEST:
            baseline, treatment = experiment.arms
            assert baseline.options.keys() == treatment.options.keys()
            assert baseline.options != treatment.options

    def test_no_two_measures_fill_one_field_of_the_plan(self, experiment):
        fields = [measure.result for measure in experiment.measures if measure.result]
        assert len(fields) == len(set(fields))

    def test_both_languages_are_there(self, experiment):
        for text in (experiment.title, experiment.question, experiment.method):
            assert text.en.isascii()
            assert any("一" <= character <= "鿿" for character in text.zh)


def test_the_paper_profile_runs_the_numbers_of_the_plan():
    throughput, latency, prefix = (EXPERIMENTS[test].workload[Profile.PAPER] for test in ("1.1", "1.2", "2.1"))
    assert (throughput.num_requests, throughput.input_tokens.low, throughput.output_tokens.high) == (256, 512, 512)
    assert (latency.concurrency, latency.input_tokens.low, latency.output_tokens.high) == (1, 512, 128)
    assert (prefix.num_requests, prefix.shared_fraction, prefix.prefix_fraction) == (100, 0.7, 0.8)
    assert EXPERIMENTS["3.3"].workload[Profile.PAPER].num_requests == 32


def test_the_placebo_differs_in_nothing_and_the_control_in_a_tenth_of_the_output_alone():
    baseline, placebo, control = EXPERIMENTS[INSTRUMENT_TEST].arms
    assert baseline.options == placebo.options == control.options
    assert (baseline.extra_output, placebo.extra_output, control.extra_output) == (0, 0, 0.1)


def test_strong_scaling_shares_the_workload_of_its_baseline_and_weak_scaling_its_requests_a_gpu():
    baseline = EXPERIMENTS["3.1"]
    assert baseline.workload == EXPERIMENTS["3.2"].workload
    for profile in Profile:
        weak = EXPERIMENTS["3.3"].workload[profile]
        assert (weak.input_tokens, weak.output_tokens) == (
            baseline.workload[profile].input_tokens,
            baseline.workload[profile].output_tokens,
        )


@pytest.mark.parametrize("test_id", ["3.2", "3.3"])
def test_a_series_names_arms_in_the_order_of_their_gpus_and_an_arm_of_the_baseline_with_the_same_work(test_id):
    experiment, baseline = EXPERIMENTS[test_id], EXPERIMENTS["3.1"]
    arms = {arm.name: arm for arm in experiment.arms}
    assert sorted(name for series in experiment.scaling.series for name in series.arms) == sorted(arms)
    for series in experiment.scaling.series:
        counts = [arms[name].num_gpus for name in series.arms]
        assert counts == sorted(set(counts))
        one = next(arm for arm in baseline.arms if arm.name == series.baseline_arm)
        for name, profile in ((name, profile) for name in series.arms for profile in Profile):
            mine = arms[name].requests_per_gpu
            theirs = one.requests_per_gpu
            wanted = baseline.workload[profile].num_requests if theirs is None else theirs[profile]
            given = experiment.workload[profile].num_requests if mine is None else mine[profile]
            assert given == wanted


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder


def test_a_folder_without_bench_files_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="holds no bench files"):
        load_experiments(tmp_path)


def test_a_file_without_an_experiment_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=r"other\.py declares no EXPERIMENT"):
        load_experiments(write(tmp_path, "other.py", "x = 1\n"))


def test_two_files_for_one_test_are_refused(tmp_path):
    text = (
        "from touchstone.experiment import *\nb = Bilingual('a', 'b')\n"
        "EXPERIMENT = Experiment(plan_id='1.1', title=b, question=b, method=b, workload={}, measures=())\n"
    )
    write(tmp_path, "one.py", text)
    with pytest.raises(ExperimentError, match=r"test 1\.1 is declared by more than one"):
        load_experiments(write(tmp_path, "two.py", text))
