"""Speed-up, efficiency and serial fractions: by hand, and from a run whose speed-ups are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.touchstone.scaling_sample import SPEEDUPS, write_scaling_run
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.analysis.scaling import declared_fields, fit_law, predicted_speedup, serial_fraction
from touchstone.analysis.statistics import StatisticsError, independent_ratio
from touchstone.experiment import Law


def test_the_ratio_of_independent_samples_is_that_of_their_geometric_means():
    ratio = independent_ratio([4.0, 9.0], [1.6, 2.0, 2.5])
    assert ratio.ratio == pytest.approx(3.0)
    assert ratio.interval.low < 3.0 < ratio.interval.high
    assert math.sqrt(ratio.interval.low * ratio.interval.high) == pytest.approx(3.0)


def test_its_interval_is_welchs_by_the_textbook():
    """Two samples of unequal size and spread, worked out from the formulas of 1947."""
    above, below = [10.0, 10.4, 9.9], [5.0, 5.1, 4.9, 5.05, 4.95, 5.0]
    logs = [[math.log(value) for value in values] for values in (above, below)]
    parts = [stats.tvar(values) / len(values) for values in logs]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 5)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    found = independent_ratio(above, below)
    assert found.interval.high == pytest.approx(found.ratio * math.exp(half))
    assert found.interval.low == pytest.approx(found.ratio / math.exp(half))


def test_one_value_has_no_interval_and_a_rate_of_nothing_no_ratio():
    assert independent_ratio([2.0], [1.0, 1.1]).interval is None
    with pytest.raises(StatisticsError, match="positive"):
        independent_ratio([0.0, 1.0], [1.0, 1.0])


@given(st.sampled_from(Law), st.floats(0.001, 0.9), st.lists(st.integers(2, 64), min_size=2, max_size=5, unique=True))
def test_a_series_that_follows_a_law_gives_its_serial_fraction_back(law, fraction, counts):
    points = [(count, predicted_speedup(law, fraction, count)) for count in counts]
    fit = fit_law(law, points)
    assert fit.serial_fraction == pytest.approx(fraction, rel=1e-6)
    assert max(abs(residual) for residual in fit.residuals) < 1e-6
    for count, speedup in points:
        assert serial_fraction(law, count, speedup) == pytest.approx(fraction, rel=1e-6)


@pytest.mark.parametrize("law", Law)
def test_no_serial_fraction_is_the_ideal_and_all_of_it_is_one_device(law):
    assert predicted_speedup(law, 0.0, 8) == pytest.approx(8)
    assert predicted_speedup(law, 1.0, 8) == pytest.approx(1)


@pytest.mark.parametrize(("law", "speedups"), [(Law.STRONG, (1.7, 2.4, 3.3)), (Law.WEAK, (1.9, 3.5, 6.2))])
def test_a_fit_is_the_least_squares_of_the_straightened_law(law, speedups):
    """No other serial fraction leaves a smaller sum of squares: of 1 / S under Amdahl, of S under Gustafson."""
    points = list(zip((2, 4, 8), speedups, strict=True))
    fit = fit_law(law, points)

    def squares(fraction):
        law_says = [predicted_speedup(law, fraction, count) for count, _ in points]
        pairs = zip(speedups, law_says, strict=True)
        return sum((1 / s - 1 / f) ** 2 if law is Law.STRONG else (s - f) ** 2 for s, f in pairs)

    best = squares(fit.serial_fraction)
    assert all(best < squares(fit.serial_fraction + step) for step in (-1e-3, 1e-3))
    assert fit.residuals == pytest.approx([s / f - 1 for s, f in zip(speedups, fit.fitted, strict=True)])


def test_one_point_is_met_by_any_law_and_so_makes_no_fit():
    assert fit_law(Law.STRONG, [(2, 1.8)]) is None
    assert fit_law(Law.WEAK, []) is None


# --- a run of the scaling tests -------------------------------------------------------------------------------------


def derived(folder, experiments):
    return {result.test_id: result for result in results_of(read_runs(folder), experiments)}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A machine with four GPUs, on which everything but eight devices was measured."""
    folder = tmp_path_factory.mktemp("four")
    experiments = write_scaling_run(folder, 4)
    return SimpleNamespace(results=derived(folder, experiments), experiments=experiments)


def points_of(result, series):
    return {point.num_gpus: point for row in result.scaling if row.id == series for point in row.points}


@pytest.mark.parametrize(
    ("test_id", "series", "kind"),
    [
        ("3.2", "tensor", "TP"),
        ("3.2", "data", "DP"),
        ("3.3", "data", "DP light"),
        ("3.3", "data_full", "DP full"),
        ("3.3", "tensor", "TP light"),
        ("3.3", "tensor_full", "TP full"),
    ],
)
def test_every_series_gives_the_speedups_that_were_made(four, test_id, series, kind):
    points = points_of(four.results[test_id], series)
    for count in (2, 4):
        assert points[count].speedup == pytest.approx(SPEEDUPS[kind][count], rel=0.01)
        assert points[count].efficiency == points[count].speedup / count
        assert points[count].speedup_interval.low < points[count].speedup < points[count].speedup_interval.high
        assert points[count].efficiency_interval.high == points[count].speedup_interval.high / count


def test_the_denominator_is_the_number_of_test_3_1(four):
    scores = {item.arm: item for item in four.results["3.1"].statistics if item.metric == "e2e_throughput"}
    for test_id, series, arm in (("3.2", "tensor", "full"), ("3.3", "data", "light"), ("3.3", "data_full", "full")):
        one = points_of(four.results[test_id], series)[1]
        assert (one.test_id, one.arm, one.throughput) == ("3.1", arm, scores[arm].median)
        assert (one.speedup, one.efficiency, one.speedup_interval) == (1.0, 1.0, None)
    assert "1 GPU" not in {item.arm for result in four.results.values() for item in result.statistics}


def test_eight_gpus_are_not_measured_with_the_reason_and_without_any_number(four):
    point = points_of(four.results["3.2"], "tensor")[8]
    assert point.reason == "8 GPUs are needed, this machine has 4"
    assert "8" in point.reason_zh
    assert point.num_requests == 64
    assert {point.throughput, point.speedup, point.efficiency, point.serial_fraction} == {None}
    assert four.results["3.2"].status == "measured"


def test_the_plans_fields_are_there_for_every_count_and_empty_for_absent_ones(four):
    for test_id in ("3.2", "3.3"):
        results = four.results[test_id].results
        assert list(results) == list(declared_fields(four.experiments[test_id]))
        assert results["8gpu_throughput"] is results["8gpu_efficiency"] is None
        assert results["1gpu_throughput"] > 0
    assert four.results["3.2"].results["2gpu_efficiency"] == pytest.approx(80, rel=0.01)
    assert four.results["3.3"].results["4gpu_efficiency_data_full"] == pytest.approx(98, rel=0.01)
    assert four.results["3.1"].results["1gpu_throughput"] == four.results["3.2"].results["1gpu_throughput"]


def test_a_growing_fraction_of_karp_and_flatt_shows_what_is_no_serial_work(four):
    points = points_of(four.results["3.2"], "tensor")
    assert points[4].serial_fraction > points[2].serial_fraction > 0.2
    fit = next(row.fit for row in four.results["3.2"].scaling if row.id == "tensor")
    assert points[2].serial_fraction < fit.serial_fraction < points[4].serial_fraction


def test_all_checks_of_a_good_run_pass(four):
    for test_id in ("3.1", "3.2", "3.3"):
        assert [check.id for check in four.results[test_id].checks if not check.passed] == []
    assert {"scaling_same_work", "scaling_same_kv_pool", "scaling_devices_as_planned", "efficiency_within_ideal"} <= {
        check.id for check in four.results["3.3"].checks
    }


def test_each_arm_is_judged_by_its_own_number_of_processes(four):
    assert {item.verdict for item in four.results["3.2"].statistics if item.key} == {"STABLE"}


def test_one_gpu_alone_shows_the_baseline_and_says_why_the_others_are_missing(tmp_path):
    results = derived(tmp_path, write_scaling_run(tmp_path, 1))
    for test_id in ("3.2", "3.3"):
        result = results[test_id]
        assert (result.status, result.reason) == ("not measured", "several GPUs are needed, this machine has 1")
        assert result.results["1gpu_throughput"] > 0
        assert result.results["2gpu_throughput"] is None
        for row in result.scaling:
            one, *others = row.points
            assert one.speedup == 1.0
            assert {point.reason for point in others} == {result.reason}
            assert row.fit is None


def test_a_test_without_its_baseline_keeps_its_throughputs_and_no_speedup(tmp_path):
    result = derived(tmp_path, write_scaling_run(tmp_path, 2, only=("3.2",)))["3.2"]
    point = points_of(result, "data")[2]
    assert point.throughput > 0
    assert point.speedup is None
    assert point.reason == "no baseline: left out of this run by --only"
    assert result.results["1gpu_throughput"] is None


def test_an_arm_without_a_valid_process_says_so(tmp_path):
    result = derived(tmp_path, write_scaling_run(tmp_path, 4, failing=frozenset({"DP 4"})))["3.2"]
    assert {point.reason for point in points_of(result, "data").values()} >= {
        "more than 20% of the attempts were invalid"
    }


def test_without_a_gpu_nothing_is_said_of_scaling(tmp_path):
    results = derived(tmp_path, write_scaling_run(tmp_path, 0, ("1.1", "3.1", "3.2", "3.3")))
    for test_id in ("3.1", "3.2", "3.3"):
        assert (results[test_id].status, results[test_id].scaling) == ("not measured", ())
        assert set(results[test_id].results.values()) == {None}
