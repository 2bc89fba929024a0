"""Statistics by hand-computed cases; how often they err is simulated in test_statistics_simulation.py."""

from __future__ import annotations

import math
from itertools import product
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from touchstone.analysis.statistics import (
    EffectVerdict,
    ElsewhereVerdict,
    Reproduction,
    StatisticsError,
    ablation_effects,
    compare_ratio_elsewhere,
    compare_single_rerun,
    compare_with_paper,
    drift,
    drift_p,
    holm,
    is_equivalent,
    judge,
    log_t_interval,
    max_deviation,
    median_interval,
    min_blocks_to_reject,
    paired_t_p,
    prediction_interval,
    relative_half_width,
    sign_flip_p,
    smallest_sign_flip_p,
    summarize,
    wants_extension,
)
from touchstone.records import Interval, Verdict
from touchstone.verify import arithmetic

STEADY = (100.0, 101.0, 99.0, 100.5, 99.5, 100.0)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
def test_below_six_values_no_interval_of_the_median_exists(n):
    assert median_interval(range(1, n + 1)) is None


@pytest.mark.parametrize(
    ("n", "low", "high", "coverage"),
    [
        (6, 1, 6, 1 - 2 / 64),
        (7, 1, 7, 1 - 2 / 128),
        (8, 1, 8, 1 - 2 / 256),
        (9, 2, 8, 1 - 2 * (1 + 9) / 512),
        (12, 3, 10, 1 - 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_median_interval_lies_between_the_binomial_order_statistics(n, low, high, coverage):
    values = [10.0 * rank for rank in range(n, 0, -1)]
    interval = median_interval(values)
    assert (interval.low, interval.high) == (10 * low, 10 * high)
    assert interval.level == pytest.approx(coverage, abs=1e-12)


def test_median_interval_is_not_misled_by_ties():
    interval = median_interval([5.0] * 5 + [6.0])
    assert (interval.low, interval.high, interval.level) == (5.0, 6.0, 0.96875)


def test_log_t_interval_by_hand():
    """Logs 0, 1, 2: mean 1, standard error 1 / sqrt 3, t(2) at 97.5 % is 4.302653."""
    interval = log_t_interval([1.0, math.e, math.e**2])
    half = 4.302652729911275 / math.sqrt(3)
    assert interval.low == pytest.approx(math.exp(1 - half))
    assert interval.high == pytest.approx(math.exp(1 + half))


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 0.0), (1.0, -1.0)])
def test_log_t_interval_needs_two_positive_values(values):
    assert log_t_interval(values) is None


def test_equal_values_have_an_interval_of_width_zero():
    assert log_t_interval([3.0, 3.0, 3.0]).low == pytest.approx(3.0)
    assert log_t_interval([3.0, 3.0, 3.0]).high == pytest.approx(3.0)


def test_deviation_catches_the_single_run_that_a_coefficient_of_variation_lets_pass():
    values = [100.0] * 5 + [112.5]
    assert stats.variation(values, ddof=1) <= 0.051
    assert max_deviation(values) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("values", "expected"), [((), None), ((0.0, 0.0), 0.0), ((-1.0, 0.0, 1.0), None), ((-100.0, -90.0, -100.0), 0.1)]
)
def test_deviation_at_the_edges(values, expected):
    assert max_deviation(values) == (None if expected is None else pytest.approx(expected))


def test_drift_is_the_theil_sen_line_from_first_to_last():
    """Slopes of 100, 101, 102, 103, 104, 130 have the median 1 (nine of fifteen): 1 x 5 / 102.5."""
    assert drift([100, 101, 102, 103, 104, 130]) == pytest.approx(5 / 102.5)
    assert drift([104, 103, 102, 101, 100, 99]) == pytest.approx(-5 / 101.5)
    assert drift([1.0, 2.0]) is None


def test_kendall_p_is_exact_without_ties_and_defined_with_them():
    assert drift_p([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / math.factorial(6))
    assert 0 < drift_p([1, 2, 3, 3, 4, 5]) < 0.05
    assert drift_p([2, 2, 2]) is None
    assert drift_p([1, 2]) is None


@pytest.mark.parametrize(
    ("values", "planned", "verdict"),
    [
        ((), 6, Verdict.INSUFFICIENT),
        (STEADY[:5], 6, Verdict.INSUFFICIENT),
        (STEADY[:2], 2, Verdict.INSUFFICIENT),
        (STEADY, 6, Verdict.STABLE),
        (STEADY[:3], 3, Verdict.STABLE),
        ((100, 100, 100, 100, 100, 105), 6, Verdict.STABLE),
        ((100, 100, 100, 100, 100, 105.1), 6, Verdict.UNSTABLE),
        ((100, 100, 100, 100, 100, 94.9), 6, Verdict.UNSTABLE),
        ((98, 99, 100, 101, 102, 103), 6, Verdict.DRIFTING),
        ((103, 102, 101, 100, 99, 98), 6, Verdict.DRIFTING),
        ((0, 0, 0, 0, 0, 1), 6, Verdict.UNSTABLE),
    ],
)
def test_stability_verdict(values, planned, verdict):
    assert judge(values, planned=planned) is verdict


def test_equal_counts_are_exact_and_unequal_ones_are_judged_like_times():
    assert judge((5.0,), planned=1, counted=True) is Verdict.EXACT
    assert judge((0.0,) * 3, planned=3, counted=True) is Verdict.EXACT
    assert judge((5.0, 5.0), planned=3, counted=True) is Verdict.INSUFFICIENT
    assert judge((5.0, 5.0, 6.0), planned=3, counted=True) is Verdict.UNSTABLE


def test_three_values_are_indicative_and_six_are_not():
    assert summarize(STEADY[:3], planned=3).indicative
    assert not summarize(STEADY, planned=6).indicative


def test_summary_of_nothing_has_no_numbers():
    summary = summarize((), planned=6)
    assert (summary.median, summary.interval, summary.drift, summary.verdict) == (None, None, None, "INSUFFICIENT")


@pytest.mark.parametrize(
    ("values", "extended"),
    [
        ((97.6, 100, 100, 100, 100, 102.4), False),
        ((97.4, 100, 100, 100, 100, 102.6), True),
        ((90, 100, 110), False),
        ((90, 100, 110, 90, 100, 110, 100), False),
    ],
)
def test_extension_is_decided_at_six_values_by_the_width_alone(values, extended):
    assert wants_extension(values) is extended


def test_relative_half_width_refuses_a_centre_that_is_not_positive():
    with pytest.raises(StatisticsError, match="0"):
        relative_half_width(Interval(low=0, high=1, level=0.9, method=""), 0)


@pytest.mark.parametrize(
    ("log_ratios", "p"),
    [
        ((1, 2, 3, 4, 5, 6), 2 / 64),
        ((-1, -2, -3, -4, -5, -6), 2 / 64),
        ((-1, 2, 3, 4, 5, 6), 4 / 64),
        ((1, 1, 1, 1, 1, 1), 2 / 64),
    ],
)
def test_sign_flip_counts_patterns_at_least_as_extreme(log_ratios, p):
    assert sign_flip_p(log_ratios) == pytest.approx(p)


@given(st.lists(st.integers(-30, 30), min_size=6, max_size=9))
def test_sign_flip_is_that_of_whole_numbers_where_the_ratios_add_up_to_nothing(thousandths):
    """Rounding must not decide which patterns tie: 0.1 + 0.2 - 0.3 is 0 in whole numbers and 6e-17 in floats."""
    observed = sum(thousandths)
    sums = [sum(map(mul, thousandths, signs)) for signs in product((1, -1), repeat=len(thousandths))]
    tails = sum(total >= observed for total in sums), sum(total <= observed for total in sums)
    wanted = min(1.0, 2 * min(tails) / len(sums))
    ratios = [number / 1000 for number in thousandths]
    assert sign_flip_p(ratios) == pytest.approx(wanted, abs=1e-12)
    assert arithmetic.sign_flip_p(ratios) == pytest.approx(wanted, abs=1e-12)


def test_sign_flip_of_ratios_that_cancel_is_one():
    assert sign_flip_p([0.1, 0.2, -0.3] * 2) == 1.0


def test_sign_flip_refuses_to_test_where_nothing_could_reject():
    with pytest.raises(StatisticsError, match=r"5 blocks give p >= 0.0625 .* needs 6"):
        sign_flip_p([0.1] * 5)
    with pytest.raises(StatisticsError, match="up to 20"):
        sign_flip_p([0.1] * 21)


def test_six_blocks_are_enough_for_one_exact_test_and_not_for_a_family_of_two():
    assert min_blocks_to_reject() == 6
    assert min_blocks_to_reject(family=2) == 7
    assert smallest_sign_flip_p(6) <= 0.05 < 2 * smallest_sign_flip_p(6)
    assert smallest_sign_flip_p(0) == 1.0


@given(alpha=st.floats(1e-4, 0.99), family=st.integers(1, 50))
def test_minimal_number_of_blocks_can_reject_and_one_fewer_cannot(alpha, family):
    blocks = min_blocks_to_reject(alpha, family)
    assert smallest_sign_flip_p(blocks) * family <= alpha * (1 + 1e-12)
    assert blocks == 1 or smallest_sign_flip_p(blocks - 1) * family > alpha * (1 - 1e-12)


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04: times 4 3 2 1 gives .04 .06 .06 .04, made monotone .04 .06 .06 .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.6, 0.9]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values):
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) or adjusted == pytest.approx(raw)


def test_two_one_sided_tests_by_hand():
    """Mean 0.01, standard error 0.01 / sqrt 6: (ln 1.05 - 0.01) / se = 9.5 against t(5) = 2.015."""
    near = [0.0, 0.0, 0.01, 0.01, 0.02, 0.02]
    assert is_equivalent(near)
    assert not is_equivalent([value + 0.04 for value in near])
    assert not is_equivalent([-0.3, 0.3, -0.3, 0.3, 0.0, 0.0])
    assert is_equivalent([0.0] * 6)
    assert not is_equivalent([0.05] * 6)


def test_paired_t_of_constant_ratios_is_decided_by_the_constant():
    assert paired_t_p([0.0, 0.0]) == 1.0
    assert paired_t_p([0.1, 0.1]) == 0.0
    with pytest.raises(StatisticsError, match="at least 2"):
        paired_t_p([0.1])


def test_effect_verdicts():
    blocks = [
        [0.20, 0.21, 0.19, 0.22, 0.20, 0.18],
        [-0.20, -0.21, -0.19, -0.22, -0.20, -0.18],
        [0.001, -0.002, 0.001, 0.0, -0.001, 0.002],
        [0.3, -0.2, 0.1, -0.25, 0.2, -0.1],
        [0.20, 0.21, 0.19],
        [0.20],
    ]
    effects = ablation_effects(blocks)
    assert [effect.verdict for effect in effects] == [
        EffectVerdict.HIGHER,
        EffectVerdict.LOWER,
        EffectVerdict.EQUIVALENT,
        EffectVerdict.INCONCLUSIVE,
        EffectVerdict.INSUFFICIENT,
        EffectVerdict.INSUFFICIENT,
    ]
    assert effects[0].ratio == pytest.approx(math.exp(0.2))
    assert effects[0].interval.low < effects[0].ratio < effects[0].interval.high
    assert effects[0].p_sign_flip == pytest.approx(2 / 64)
    assert effects[4].p_sign_flip is None
    assert effects[4].interval is not None
    assert effects[5].interval is None


def test_one_block_against_the_others_is_not_called_an_effect_by_the_t_test_alone():
    """Five equal gains and one loss: the sign flip, which needs no normal distribution, must agree."""
    (effect,) = ablation_effects([[0.10, 0.11, 0.12, 0.10, 0.11, -0.001]])
    assert effect.p_t < 0.05 < effect.p_sign_flip
    assert effect.verdict is not EffectVerdict.HIGHER


PAPER = (100.0, 101.0, 99.0, 100.5, 99.5, 102.0)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.0, Reproduction.REPRODUCED),
        (1.02, Reproduction.REPRODUCED),
        (1.05, Reproduction.INCONCLUSIVE),
        (1 / 1.05, Reproduction.INCONCLUSIVE),
        (1.10, Reproduction.NOT_REPRODUCED),
        (0.90, Reproduction.NOT_REPRODUCED),
    ],
)
def test_reviewer_comparison_by_the_place_of_the_interval(factor, verdict):
    comparison = compare_with_paper(PAPER, [factor * value for value in PAPER])
    assert comparison.verdict is verdict
    assert comparison.ratio == pytest.approx(factor)
    assert (comparison.needed is not None) == (verdict is Reproduction.INCONCLUSIVE)


def test_welch_interval_agrees_with_the_two_one_sided_tests():
    """At a bound placed on the interval's upper end the upper one-sided test has p = 5 % exactly."""
    reviewer = (98.0, 103.0, 100.0)
    comparison = compare_with_paper(PAPER, reviewer)
    ours = [math.log(value) for value in PAPER]
    theirs = [math.log(value) - math.log(comparison.interval.high) for value in reviewer]
    assert stats.ttest_ind(theirs, ours, equal_var=False, alternative="less").pvalue == pytest.approx(0.05)


def test_needed_processes_grow_with_the_spread_and_can_be_out_of_reach():
    wide = compare_with_paper(PAPER, (96.0, 104.0, 100.0))
    wider = compare_with_paper(PAPER, (92.0, 109.0, 100.0))
    assert 3 <= wide.needed < wider.needed
    noisy_paper = (80.0, 120.0, 100.0)
    assert compare_with_paper(noisy_paper, (92.0, 109.0, 100.0)).needed is None


def test_samples_without_spread_are_compared_as_points():
    assert compare_with_paper((100.0, 100.0), (104.0, 104.0)).verdict is Reproduction.REPRODUCED
    assert compare_with_paper((100.0, 100.0), (106.0, 106.0)).verdict is Reproduction.NOT_REPRODUCED


def test_prediction_interval_by_hand_and_single_reruns_against_it():
    """Logs 0, 1, 2: s = 1, t(2) = 4.302653, half-width 4.302653 x sqrt(4/3)."""
    interval = prediction_interval([1.0, math.e, math.e**2])
    half = 4.302652729911275 * math.sqrt(4 / 3)
    assert math.log(interval.high) == pytest.approx(1 + half)
    assert math.log(interval.low) == pytest.approx(1 - half)
    assert compare_single_rerun(PAPER, 100.0) is Reproduction.COMPATIBLE
    assert compare_single_rerun(PAPER, prediction_interval(PAPER).high) is Reproduction.COMPATIBLE
    assert compare_single_rerun(PAPER, 110.0) is Reproduction.NOT_COMPATIBLE


@pytest.mark.parametrize("values", [(1.0,), (1.0, 0.0), (1.0, -2.0)])
def test_comparison_refuses_values_without_logarithm_or_spread(values):
    with pytest.raises(StatisticsError):
        compare_with_paper(PAPER, values)


@pytest.mark.parametrize(
    ("paper", "here", "verdict"),
    [
        ((1.1, 1.2), (1.3, 1.5), ElsewhereVerdict.CONSISTENT),
        ((0.7, 0.8), (0.9, 0.99), ElsewhereVerdict.CONSISTENT),
        ((1.1, 1.2), (0.8, 0.9), ElsewhereVerdict.REFUTED_HERE),
        ((1.1, 1.2), (0.9, 1.1), ElsewhereVerdict.INCONCLUSIVE),
        ((0.9, 1.1), (1.1, 1.2), ElsewhereVerdict.INCONCLUSIVE),
    ],
)
def test_ratio_on_other_hardware_is_judged_by_direction(paper, here, verdict):
    intervals = (Interval(low=low, high=high, level=0.95, method="t") for low, high in (paper, here))
    assert compare_ratio_elsewhere(*intervals) is verdict


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=12), st.floats(0.01, 1000.0))
def test_verdict_does_not_depend_on_the_unit(values, scale):
    spread = max_deviation(values)
    assert max_deviation([scale * value for value in values]) == pytest.approx(spread, abs=1e-9)
