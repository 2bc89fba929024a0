"""From repeated values to centre, interval, verdict; from paired blocks to an effect; from two runs to a comparison.

The scores that come in are process medians, positive, in the order in which the processes ran. `docs/statistics.md`
shows how often each interval covers and how often each verdict errs, by simulation of these very functions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from scipy import stats

from touchstone.experiment import EQUIVALENCE_MARGIN
from touchstone.records import Interval, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LEVEL = 0.95
ALPHA = 0.05
TOLERANCE = 0.05  # the plan's ±5 %
DRIFT_LIMIT = 0.025  # half of the tolerance may be a trend
MARGIN = EQUIVALENCE_MARGIN
MIN_FOR_VERDICT = 3  # below it neither spread nor trend can be seen
MIN_FOR_INTERVAL = 6  # smallest n at which [min, max] is a 95 % interval of the median: 1 - 2 / 2^6 = 96.9 %
EXTENDED = 12
EXTENSION_HALF_WIDTH = 0.025
MAX_FOR_EXACT = 20  # 2^20 sign patterns fill some hundred MB; nobody runs so many blocks
_TIE = 1e-12  # far above what adding twenty doubles loses, far below any difference of interest
POWER = 0.8
MAX_NEEDED = 10_000


class StatisticsError(ValueError):
    """Values from which the asked statistic cannot be made; the message names them."""


class EffectVerdict(StrEnum):
    """What paired blocks say about the ratio treatment / baseline; VOID where the run's placebo or control failed."""

    HIGHER = "HIGHER"
    LOWER = "LOWER"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    INSUFFICIENT = "INSUFFICIENT"
    VOID = "VOID"


class Reproduction(StrEnum):
    """What a reviewer's values on the same hardware say about the paper's."""

    REPRODUCED = "REPRODUCED"
    NOT_REPRODUCED = "NOT REPRODUCED"
    INCONCLUSIVE = "INCONCLUSIVE"
    COMPATIBLE = "COMPATIBLE"
    NOT_COMPATIBLE = "NOT COMPATIBLE"


class ElsewhereVerdict(StrEnum):
    """What a ratio measured on other hardware says about the paper's ratio."""

    CONSISTENT = "CONSISTENT"
    REFUTED_HERE = "REFUTED HERE"
    INCONCLUSIVE = "INCONCLUSIVE"


# --- centre, intervals, stability -----------------------------------------------------------------------------------


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Distribution-free interval of the median between two order statistics; None where n cannot give the level.

    `level` of the result is the coverage that these order statistics guarantee, at least the level asked for.
    """
    n = len(values)
    chosen = _order_statistics(n, level)
    if chosen is None:
        return None
    low, high, coverage = chosen
    ordered = sorted(values)
    method = f"order statistics {low} and {high} of {n}"
    return Interval(low=ordered[low - 1], high=ordered[high - 1], level=coverage, method=method)


@cache
def _order_statistics(n: int, level: float) -> tuple[int, int, float] | None:
    """Ranks of the interval of the median of n values, and their coverage; None where n cannot give the level.

    They depend on n alone, so scipy's inversion of the binomial quantile test is asked on the ranks 1..n.
    """
    if n == 0:
        return None
    interval = stats.quantile_test(_array(range(1, n + 1)), q=0, p=0.5).confidence_interval(level)
    ranks = tuple(cast("Iterable[float]", interval))  # its type stub says float, it is a pair
    if any(math.isnan(rank) for rank in ranks):
        return None
    low, high = (int(rank) for rank in ranks)
    return low, high, float(stats.binom.cdf(high - 1, n, 0.5) - stats.binom.cdf(low - 1, n, 0.5))


def log_t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean logarithm, as values; None below two values or where one is not positive."""
    if len(values) < 2 or min(values) <= 0:  # noqa: PLR2004  a spread needs two values
        return None
    low, high = _t_interval([math.log(value) for value in values], level)
    return Interval(low=math.exp(low), high=math.exp(high), level=level, method="t on logarithms")


def max_deviation(values: Sequence[float]) -> float | None:
    """S = max |x - median| / |median|; None without values, or where the median is 0 and the values are not all 0."""
    return _relative_to_median(values, lambda median: max(abs(value - median) for value in values))


def drift(values: Sequence[float]) -> float | None:
    """Theil-Sen slope times (n - 1) over the median: the trend from the first process to the last. None below n = 3."""
    if len(values) < MIN_FOR_VERDICT:
        return None
    slope = float(stats.theilslopes(_array(values)).slope)
    return _relative_to_median(values, lambda _: slope * (len(values) - 1))


def drift_p(values: Sequence[float]) -> float | None:
    """Two-sided p of Kendall's tau against the order of the processes; None below n = 3 and for equal values.

    Exact without ties; with ties scipy's exact method does not exist and the normal approximation is taken.
    """
    if len(values) < MIN_FOR_VERDICT or len(set(values)) == 1:
        return None
    method: Literal["exact", "asymptotic"] = "exact" if len(set(values)) == len(values) else "asymptotic"
    return float(stats.kendalltau(_array(range(len(values))), _array(values), method=method).pvalue)


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that is said about the scores of one metric."""

    n: int
    median: float | None
    interval: Interval | None
    log_t_interval: Interval | None
    max_deviation: float | None
    drift: float | None
    drift_p: float | None
    verdict: Verdict
    indicative: bool


def summarize(values: Sequence[float], *, planned: int, counted: bool = False) -> Summary:
    """Describe process scores and judge them; `planned` is the n decided in advance.

    `counted` says that the metric counts things: equal counts are EXACT, unequal ones are judged like any other.
    """
    return Summary(
        n=len(values),
        median=float(np.median(values)) if values else None,
        interval=median_interval(values),
        log_t_interval=log_t_interval(values),
        max_deviation=max_deviation(values),
        drift=drift(values),
        drift_p=drift_p(values),
        verdict=judge(values, planned=planned, counted=counted),
        indicative=len(values) < MIN_FOR_INTERVAL,
    )


def judge(values: Sequence[float], *, planned: int, counted: bool = False) -> Verdict:
    """Decide the stability of process scores; the first rule that holds gives the verdict.

    1. INSUFFICIENT: fewer than the planned number of values.
    2. EXACT: a count that is the same in every process.
    3. INSUFFICIENT: fewer than three values.
    4. UNSTABLE: S > 5 %, or S undefined because the median is 0 and the values are not.
    5. DRIFTING: |drift| > 2.5 %.
    6. STABLE. (INVALID is decided by the attempts, not by the values.)

    Below n = 6 the verdict is indicative: no 95 % interval of the median exists.
    """
    if not values or len(values) < planned:
        return Verdict.INSUFFICIENT
    if counted and len(set(values)) == 1:
        return Verdict.EXACT
    if len(values) < MIN_FOR_VERDICT:
        return Verdict.INSUFFICIENT
    spread, trend = max_deviation(values), drift(values)
    if spread is None or spread > TOLERANCE:
        return Verdict.UNSTABLE
    if trend is None or abs(trend) > DRIFT_LIMIT:
        return Verdict.DRIFTING
    return Verdict.STABLE


def relative_half_width(interval: Interval, centre: float) -> float:
    """Half the width of an interval as a share of its centre; the centre must be positive."""
    if centre <= 0:
        raise StatisticsError(f"the centre is {centre}; a relative width needs a positive one")
    return (interval.high - interval.low) / 2 / centre


def wants_extension(values: Sequence[float]) -> bool:
    """Whether a key number is extended from 6 processes to 12: the half-width of its median's interval exceeds 2.5 %.

    Declared in advance and applied once, at n = 6 exactly; it looks at the width and never at an effect or a p-value.
    """
    interval = median_interval(values)
    if len(values) != MIN_FOR_INTERVAL or interval is None or min(values) <= 0:
        return False
    return relative_half_width(interval, float(np.median(values))) > EXTENSION_HALF_WIDTH


# --- ablations: paired blocks ---------------------------------------------------------------------------------------


def smallest_sign_flip_p(blocks: int) -> float:
    """Smallest two-sided p that the exact sign-flip test can give with this many blocks: 2 / 2^n."""
    return 1.0 if blocks < 1 else 2.0 ** (1 - blocks)


def min_blocks_to_reject(alpha: float = ALPHA, family: int = 1) -> int:
    """Smallest number of blocks at which the exact sign-flip test can reject at `alpha` among `family` tests (Holm)."""
    if not (0 < alpha < 1 and family >= 1):
        raise StatisticsError(f"alpha is {alpha} and family {family}; use 0 < alpha < 1 and at least one test")
    return math.ceil(1 - math.log2(alpha / family))


def sign_flip_p(log_ratios: Sequence[float], alpha: float = ALPHA) -> float:
    """Exact two-sided p of "the log-ratios are symmetric about 0", over all 2^n sign patterns.

    Patterns tie with the data where their sums differ by less than `_TIE` of the largest log-ratio. scipy's own p takes
    100 epsilon of the *sum*, so that rounding would decide where the data add up to almost nothing.
    Refuses to test where no data could reject at `alpha`, and more blocks than can be enumerated.
    """
    n = len(log_ratios)
    if n < min_blocks_to_reject(alpha):
        raise StatisticsError(
            f"{n} blocks give p >= {smallest_sign_flip_p(n):g} whatever the data; rejecting at {alpha:g} needs "
            f"{min_blocks_to_reject(alpha)}"
        )
    if n > MAX_FOR_EXACT:
        raise StatisticsError(f"{n} blocks have 2^{n} sign patterns; the exact test goes up to {MAX_FOR_EXACT}")
    # As many resamples as there are patterns make scipy enumerate them; its type stubs do not know math.inf.
    test = stats.permutation_test(
        [_array(log_ratios)], _sum_along, permutation_type="samples", n_resamples=2**n, vectorized=True
    )
    sums, observed, slack = test.null_distribution, float(test.statistic), _TIE * max(map(abs, log_ratios))
    tails = np.count_nonzero(sums >= observed - slack), np.count_nonzero(sums <= observed + slack)
    return min(1.0, 2 * int(min(tails)) / len(sums))


def paired_t_p(log_ratios: Sequence[float]) -> float:
    """Two-sided p of the t test of mean log-ratio 0; at least two blocks."""
    _need(log_ratios, 2)
    if _is_constant(log_ratios):
        return 1.0 if log_ratios[0] == 0 else 0.0
    return float(stats.ttest_1samp(_array(log_ratios), 0.0).pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment of a family of p-values, in their order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def is_equivalent(log_ratios: Sequence[float], margin: float = MARGIN, alpha: float = ALPHA) -> bool:
    """Two one-sided t tests: both must reject that the ratio lies outside 1 / (1 + margin) .. 1 + margin."""
    _need(log_ratios, 2)
    bound = math.log1p(margin)
    if _is_constant(log_ratios):
        return abs(log_ratios[0]) < bound
    above = stats.ttest_1samp(_array(log_ratios), -bound, alternative="greater").pvalue
    below = stats.ttest_1samp(_array(log_ratios), bound, alternative="less").pvalue
    return bool(max(above, below) <= alpha)


@dataclass(frozen=True, slots=True)
class AblationEffect:
    """The ratio treatment / baseline: geometric mean over blocks, t interval, exact p where n allows one."""

    blocks: tuple[float, ...]
    ratio: float
    interval: Interval | None
    p_t: float | None
    p_sign_flip: float | None
    p_holm: float | None
    verdict: EffectVerdict


def ablation_effects(families: Sequence[Sequence[float]], margin: float = MARGIN) -> tuple[AblationEffect, ...]:
    """Judge a family of effects, one sequence of block log-ratios each.

    Holm is applied to the t tests. Applied to the sign flips it could never reject two effects at n = 6, for
    2 x 2 / 2^6 = 0.0625; the sign flip stands beside as the test that needs no normal distribution.

    The first rule that holds gives the verdict: INSUFFICIENT below 6 blocks; HIGHER or LOWER where Holm's p and the
    sign flip's p are both at most 5 %; EQUIVALENT where two one-sided t tests place the ratio within the margin;
    INCONCLUSIVE.
    """
    testable = [index for index, blocks in enumerate(families) if len(blocks) >= 2]  # noqa: PLR2004  t needs two
    adjusted = dict(zip(testable, holm([paired_t_p(families[index]) for index in testable]), strict=True))
    return tuple(_ablation_effect(blocks, adjusted.get(index), margin) for index, blocks in enumerate(families))


def _ablation_effect(log_ratios: Sequence[float], p_holm: float | None, margin: float) -> AblationEffect:
    _need(log_ratios, 1)
    several = p_holm is not None
    exact = min_blocks_to_reject() <= len(log_ratios) <= MAX_FOR_EXACT
    p_sign_flip = sign_flip_p(log_ratios) if exact else None
    return AblationEffect(
        blocks=tuple(log_ratios),
        ratio=math.exp(float(np.mean(log_ratios))),
        interval=log_t_interval([math.exp(value) for value in log_ratios]) if several else None,
        p_t=paired_t_p(log_ratios) if several else None,
        p_sign_flip=p_sign_flip,
        p_holm=p_holm,
        verdict=_effect_verdict(log_ratios, p_holm, p_sign_flip, margin),
    )


def _effect_verdict(
    log_ratios: Sequence[float], p_holm: float | None, p_sign_flip: float | None, margin: float
) -> EffectVerdict:
    if p_holm is None or p_sign_flip is None:
        return EffectVerdict.INSUFFICIENT
    if p_holm <= ALPHA and p_sign_flip <= ALPHA:
        return EffectVerdict.HIGHER if float(np.mean(log_ratios)) > 0 else EffectVerdict.LOWER
    return EffectVerdict.EQUIVALENT if is_equivalent(log_ratios, margin) else EffectVerdict.INCONCLUSIVE


# --- independent samples ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndependentRatio:
    """The ratio of the geometric means of two independent samples; no interval where one holds a single value."""

    ratio: float
    interval: Interval | None


def independent_ratio(above: Sequence[float], below: Sequence[float], level: float = LEVEL) -> IndependentRatio:
    """Divide the geometric means of positive process scores of two arms that ran in processes of their own.

    The interval is Welch's for a difference of means, on logarithms (Welch 1947).
    """
    ours, theirs = _logs(above, 1), _logs(below, 1)
    ratio = math.exp(float(np.mean(ours) - np.mean(theirs)))
    if min(len(ours), len(theirs)) < 2:  # noqa: PLR2004  a spread needs two values
        return IndependentRatio(ratio, None)
    low, high = _welch_interval(ours, theirs, level)
    interval = Interval(low=math.exp(low), high=math.exp(high), level=level, method="Welch t on logarithms")
    return IndependentRatio(ratio, interval)


# --- a reviewer's run against the paper's ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reviewer / paper on the same hardware; `interval` is the 90 % one whose ends are the two one-sided tests.

    `needed` is, for an INCONCLUSIVE comparison, how many processes the reviewer needs so that an unchanged speed is
    found REPRODUCED with 80 % probability; None where the paper's own spread forbids it, and for other verdicts.
    """

    ratio: float
    interval: Interval
    verdict: Reproduction
    needed: int | None


def compare_with_paper(paper: Sequence[float], reviewer: Sequence[float], margin: float = MARGIN) -> Comparison:
    """Two one-sided Welch tests at 5 % on logarithms, both sides with at least two positive process scores.

    REPRODUCED: the 90 % interval of reviewer / paper lies within 1 / (1 + margin) .. 1 + margin. NOT REPRODUCED: it
    lies wholly outside. INCONCLUSIVE: it crosses a bound.
    """
    ours, theirs = _logs(paper, 2), _logs(reviewer, 2)
    low, high = _welch_interval(theirs, ours, 1 - 2 * ALPHA)
    bound = math.log1p(margin)
    verdict = _place(low, high, bound)
    open_question = verdict is Reproduction.INCONCLUSIVE
    return Comparison(
        ratio=math.exp(float(np.mean(theirs) - np.mean(ours))),
        interval=Interval(low=math.exp(low), high=math.exp(high), level=1 - 2 * ALPHA, method="Welch t on logarithms"),
        verdict=verdict,
        needed=_needed_processes(ours, theirs, bound) if open_question else None,
    )


def prediction_interval(paper: Sequence[float], level: float = LEVEL) -> Interval:
    """Where one further process score falls with this probability, if nothing changed: t on logarithms."""
    logs = _logs(paper, 2)
    quantile = float(stats.t.ppf((1 + level) / 2, len(logs) - 1))
    centre, half = float(np.mean(logs)), quantile * float(np.std(logs, ddof=1)) * math.sqrt(1 + 1 / len(logs))
    low, high = math.exp(centre - half), math.exp(centre + half)
    return Interval(low=low, high=high, level=level, method="prediction of one value, t on logarithms")


def compare_single_rerun(paper: Sequence[float], rerun: float) -> Reproduction:
    """Judge a reviewer's single process score: COMPATIBLE inside the 95 % prediction interval, ends included."""
    interval = prediction_interval(paper)
    inside = interval.low <= rerun <= interval.high
    return Reproduction.COMPATIBLE if inside else Reproduction.NOT_COMPATIBLE


def compare_ratio_elsewhere(paper: Interval, here: Interval) -> ElsewhereVerdict:
    """Judge an on / off ratio measured on other hardware by its direction.

    CONSISTENT: both intervals lie on the same side of 1. REFUTED HERE: on opposite sides. Otherwise INCONCLUSIVE.
    """
    sides = _side_of_one(paper) * _side_of_one(here)
    if sides == 0:
        return ElsewhereVerdict.INCONCLUSIVE
    return ElsewhereVerdict.CONSISTENT if sides > 0 else ElsewhereVerdict.REFUTED_HERE


# --- small parts ----------------------------------------------------------------------------------------------------


def _side_of_one(interval: Interval) -> int:
    return (interval.low > 1) - (interval.high < 1)


def _place(low: float, high: float, bound: float) -> Reproduction:
    if -bound < low and high < bound:
        return Reproduction.REPRODUCED
    if high < -bound or low > bound:
        return Reproduction.NOT_REPRODUCED
    return Reproduction.INCONCLUSIVE


def _needed_processes(paper: Sequence[float], reviewer: Sequence[float], bound: float) -> int | None:
    """Smallest reviewer n with 80 % power at a true ratio of 1, both spreads as observed and the paper's n fixed.

    Power of two one-sided tests at difference 0 is 2 F(bound / se - t) - 1, F and t Student's with Welch's degrees of
    freedom (Schuirmann 1987, the shifted central t approximation).
    """
    sizes = range(max(2, len(reviewer)), MAX_NEEDED + 1)
    index = bisect_left(sizes, POWER, key=lambda size: _equivalence_power(paper, reviewer, size, bound))
    return sizes[index] if index < len(sizes) else None


def _equivalence_power(paper: Sequence[float], reviewer: Sequence[float], size: int, bound: float) -> float:
    ours = float(np.var(paper, ddof=1)) / len(paper)
    theirs = float(np.var(reviewer, ddof=1)) / size
    freedom = (ours + theirs) ** 2 / (ours**2 / (len(paper) - 1) + theirs**2 / (size - 1))
    quantile = float(stats.t.ppf(1 - ALPHA, freedom))
    return float(2 * stats.t.cdf(bound / math.sqrt(ours + theirs) - quantile, freedom) - 1)


def _welch_interval(first: Sequence[float], second: Sequence[float], level: float) -> tuple[float, float]:
    """Welch's interval of mean(first) - mean(second); a point where neither sample has any spread."""
    if _is_constant(first) and _is_constant(second):
        return first[0] - second[0], first[0] - second[0]
    interval = stats.ttest_ind(_array(first), _array(second), equal_var=False).confidence_interval(level)
    return float(interval.low), float(interval.high)


def _t_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    if _is_constant(values):
        return values[0], values[0]
    interval = stats.ttest_1samp(_array(values), 0.0).confidence_interval(level)
    return float(interval.low), float(interval.high)


def _logs(values: Sequence[float], at_least: int) -> list[float]:
    _need(values, at_least)
    if min(values) <= 0:
        raise StatisticsError(f"a value is {min(values)}; logarithms need positive values")
    return [math.log(value) for value in values]


def _need(values: Sequence[float], at_least: int) -> None:
    if len(values) < at_least:
        raise StatisticsError(f"{len(values)} values; at least {at_least} are needed")


def _array(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.fromiter(values, dtype=np.float64, count=len(values))


def _sum_along(samples: np.ndarray[Any, np.dtype[np.float64]], axis: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(samples.sum(axis=axis))


def _is_constant(values: Sequence[float]) -> bool:
    return len(set(values)) == 1


def _relative_to_median(values: Sequence[float], amount: Callable[[float], float]) -> float | None:
    """Divide an amount by the size of the median; 0 for values that are all equal, None where that has no meaning."""
    if not values:
        return None
    if _is_constant(values):
        return 0.0
    median = float(np.median(values))
    return amount(median) / abs(median) if median != 0 else None
