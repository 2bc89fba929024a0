"""How often the intervals cover and the verdicts err, by small seeded simulations of the functions in use.

Each bound leaves four standard errors of the simulated share, so that a right function never fails and a wrong one
(a one-sided quantile, a missing square root, a swapped sign) always does.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tools import simulate_statistics as simulate
from touchstone.analysis.statistics import EffectVerdict, Reproduction, compare_with_paper

pytestmark = pytest.mark.no_cover  # thousands of calls of what test_statistics covers

REPEATS = 150


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def assert_share(observed, expected, repeats=REPEATS):
    error = math.sqrt(expected * (1 - expected) / repeats)
    assert abs(observed - expected) <= 4 * error + 1e-12


@pytest.mark.parametrize("skewed", [False, True])
def test_interval_of_the_median_covers_as_its_level_says_whatever_the_distribution(rng, skewed):
    observed = simulate.share(REPEATS, lambda: simulate.covers_median(rng, 6, skewed=skewed))
    assert_share(observed, 1 - 2 / 64)


def test_interval_of_twelve_covers_as_its_level_says(rng):
    observed = simulate.share(REPEATS, lambda: simulate.covers_median(rng, 12, skewed=False))
    assert_share(observed, 1 - 2 * 79 / 4096)


def test_log_t_interval_covers_ninety_five_per_cent_of_normal_noise(rng):
    assert_share(simulate.share(REPEATS, lambda: simulate.covers_log_t(rng, 6, skewed=False)), 0.95)


def test_prediction_interval_holds_ninety_five_per_cent_of_single_reruns(rng):
    assert_share(simulate.share(REPEATS, lambda: simulate.covers_next(rng, 6)), 0.95)


def test_steady_scores_are_stable_and_scattered_or_drifting_ones_are_not(rng):
    assert simulate.share(100, lambda: simulate.is_stable(rng, 6, 0.005)) >= 0.97
    assert simulate.share(100, lambda: simulate.is_stable(rng, 6, 0.05)) <= 0.2
    assert simulate.share(100, lambda: simulate.is_stable(rng, 6, 0.005, drift=0.01)) <= 0.05


def test_retrying_three_runs_until_they_pass_makes_noise_look_stable(rng):
    once = simulate.share(200, lambda: simulate.is_stable(rng, 3, 0.05))
    retried = simulate.share(200, lambda: simulate.is_stable(rng, 3, 0.05, attempts=5))
    assert retried > 2 * once


def false_alarms(rng, **case):
    verdicts = [simulate.effect_verdict(rng, **case) for _ in range(REPEATS)]
    return sum(verdict in {EffectVerdict.HIGHER, EffectVerdict.LOWER} for verdict in verdicts) / REPEATS


def test_mirrored_order_keeps_false_alarms_under_drift_within_their_level(rng):
    assert false_alarms(rng, drift=0.002) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / REPEATS)


def test_one_arm_after_the_other_calls_drift_an_effect(rng):
    assert false_alarms(rng, drift=0.002, order=simulate.SEPARATE) >= 0.8


def test_ten_per_cent_of_extra_work_is_detected(rng):
    verdicts = [simulate.effect_verdict(rng, effect=math.log(1.1), noise=0.03) for _ in range(100)]
    assert verdicts.count(EffectVerdict.HIGHER) >= 95


def test_placebo_of_usual_noise_is_equivalent(rng):
    verdicts = [simulate.effect_verdict(rng) for _ in range(100)]
    assert verdicts.count(EffectVerdict.EQUIVALENT) >= 90


def test_a_difference_at_the_margin_is_called_reproduced_in_at_most_five_per_cent(rng):
    verdicts = [simulate.reproduction(rng, ratio=1.05, spread=0.02) for _ in range(REPEATS)]
    limit = 0.05 + 4 * math.sqrt(0.05 * 0.95 / REPEATS)
    assert verdicts.count(Reproduction.REPRODUCED) / REPEATS <= limit
    assert verdicts.count(Reproduction.NOT_REPRODUCED) / REPEATS <= limit


def test_needed_number_of_processes_gives_the_promised_power(rng):
    """A reviewer with the needed n, and spreads as they were, finds an unchanged speed REPRODUCED in 80 % of runs."""
    paper = [100 * math.exp(0.02 * z) for z in (-1.2, -0.6, -0.2, 0.2, 0.6, 1.2)]
    first = compare_with_paper(paper, [100 * math.exp(0.05 * z) for z in (-1, 0, 1)])
    assert first.verdict is Reproduction.INCONCLUSIVE
    spread = float(np.std(np.log(paper), ddof=1))
    verdicts = [
        compare_with_paper(simulate.scores(rng, 6, spread), simulate.scores(rng, first.needed, 0.05)).verdict
        for _ in range(REPEATS)
    ]
    assert 0.7 <= verdicts.count(Reproduction.REPRODUCED) / REPEATS <= 0.9


def test_tables_of_the_document_come_from_the_script():
    """The document holds the markers once, and between them the tables that the script lays out."""
    text = simulate.DOCUMENT.read_text(encoding="utf-8")
    assert text.count(simulate.BEGIN) == text.count(simulate.END) == 1
    inside = text.split(simulate.BEGIN)[1].split(simulate.END)[0]
    assert f"{simulate.REPEATS} simulated experiments a row" in inside
    assert f"seed {simulate.SEED}" in inside


def test_simulation_is_a_function_of_its_seed():
    first, second = (simulate.ablation_table(np.random.default_rng(3), 3).markdown() for _ in range(2))
    assert first == second
    assert first.count("\n") == 2 + 1 + 8
