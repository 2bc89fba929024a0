"""How often the verdicts err, by simulation of the judging functions themselves; seeded."""

import math
from random import Random

import pytest

from tests.touchstone.reproduce.pairs_of_runs import claim
from touchstone.analysis.statistics import ALPHA, log_t_interval
from touchstone.records import Effect
from touchstone.reporting.values import NOTHING
from touchstone.reproduce import judging
from touchstone.reproduce.claims import Claim
from touchstone.reproduce.comparison import _unpaired
from touchstone.reproduce.outcomes import REFUTED, ClaimVerdict

pytestmark = pytest.mark.no_cover  # thousands of calls of what test_reproduce_verdicts covers

EXPERIMENTS = 120
# Three standard errors of a share of 5 % in that many experiments: a correct rule fails with one seed in 700.
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / EXPERIMENTS)
SPEED = Claim.model_validate(claim("absolute", metric="total_time"))


def values(random, spread, mean=1.0, n=6):
    return [mean * math.exp(random.gauss(0, spread)) for _ in range(n)]


def verdicts(spread, ratio=1.0, n=6):
    random = Random(f"{spread} {ratio} {n}")
    judged = (
        judging._compare_values(SPEED, values(random, spread), values(random, spread, ratio, n), NOTHING, NOTHING)
        for _ in range(EXPERIMENTS)
    )
    return [outcome.verdict for outcome in judged]


@pytest.mark.parametrize("spread", [0.005, 0.05])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_runs_of_one_distribution_are_refuted_at_most_in_alpha_of_cases(spread, n):
    refuted = sum(verdict in REFUTED for verdict in verdicts(spread, n=n)) / EXPERIMENTS
    assert refuted <= ALPHA + SLACK


@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_a_speed_at_the_margin_is_called_reproduced_at_most_in_alpha_of_cases(spread):
    reproduced = verdicts(spread, 1.05).count(ClaimVerdict.REPRODUCED) / EXPERIMENTS
    assert reproduced <= ALPHA + SLACK


def test_a_speed_far_off_is_found_and_an_unchanged_one_confirmed():
    assert verdicts(0.01, 1.15).count(ClaimVerdict.NOT_REPRODUCED) / EXPERIMENTS > 0.95
    assert verdicts(0.01).count(ClaimVerdict.REPRODUCED) / EXPERIMENTS > 0.95


def effect(random, centre, spread=0.03):
    blocks = [math.log(centre) + random.gauss(0, spread) for _ in range(6)]
    ratios = [math.exp(block) for block in blocks]
    return Effect(
        metric="total_time",
        baseline="off",
        treatment="on",
        blocks=tuple(blocks),
        ratio=math.exp(sum(blocks) / len(blocks)),
        interval=log_t_interval(ratios),
        p_sign_flip=None,
        p_holm=None,
        verdict="INCONCLUSIVE",
    )


def test_no_effect_is_refuted_on_other_hardware_at_most_in_alpha_of_cases():
    random = Random(3)
    judged = [judging._equivalent_elsewhere(effect(random, 1.0)) for _ in range(EXPERIMENTS)]
    assert judged.count(ClaimVerdict.REFUTED_HERE) / EXPERIMENTS <= ALPHA + SLACK
    assert judged.count(ClaimVerdict.CONSISTENT) / EXPERIMENTS > 0.5


def test_two_runs_of_one_distribution_differ_at_most_in_alpha_of_cases():
    random = Random(5)
    samples = [(values(random, 0.03), values(random, 0.03)) for _ in range(EXPERIMENTS)]
    found = [_unpaired([sample])[0].verdict for sample in samples]
    assert sum(verdict in {"HIGHER", "LOWER"} for verdict in found) / EXPERIMENTS <= ALPHA + SLACK


def test_holm_keeps_the_rate_over_a_whole_family():
    random = Random(7)
    families = [[(values(random, 0.03), values(random, 0.03)) for _ in range(3)] for _ in range(EXPERIMENTS)]
    alarms = sum(any(one.verdict in {"HIGHER", "LOWER"} for one in _unpaired(family)) for family in families)
    assert alarms / EXPERIMENTS <= ALPHA + SLACK
