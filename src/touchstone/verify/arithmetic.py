"""Order statistics, Student's t, Kendall's tau and sign flips from first principles: no library that the results used.

Every function says its textbook. What the results took from scipy is worked out here another way, so that a wrong call
there cannot repeat itself here.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TINY = 1e-300
_STEPS = 200


def median(values: Sequence[float]) -> float:
    """Middle value, or the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, summed without rounding error."""
    return math.fsum(values) / len(values)


def median_ranks(n: int, level: float = 0.95) -> tuple[int, int, float] | None:
    """Ranks (from 1) of the order statistics that hold the median with at least `level`, and their coverage.

    Coverage of ranks l and n + 1 - l is 1 - 2 P(Binomial(n, 1/2) < l) (Conover, Practical Nonparametric Statistics).
    """

    def below(rank: int) -> float:
        return math.fsum(math.comb(n, k) for k in range(rank)) / 2.0**n

    allowed = [rank for rank in range(1, n // 2 + 1) if below(rank) <= (1 - level) / 2]
    if not allowed:
        return None
    rank = allowed[-1]
    return rank, n + 1 - rank, 1 - 2 * below(rank)


def t_two_sided_p(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t: the regularized incomplete beta function I_x(f/2, 1/2) at x = f / (f + t^2)."""
    return 1.0 if t == 0 else _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@cache
def t_quantile(level: float, freedom: float) -> float:
    """Find the t that |T| stays below with probability `level`, by bisection."""
    low, high = 0.0, 1.0
    while t_two_sided_p(high, freedom) > 1 - level:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided_p(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Lentz's continued fraction (Abramowitz and Stegun 26.5.8), turned round where it converges slowly."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            fraction *= c * d
    return math.exp(log_front) * fraction / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def t_of_mean(values: Sequence[float], centre: float = 0.0) -> tuple[float, float]:
    """Student's t of "the mean is `centre`" and the standard error; infinite t where nothing spreads."""
    middle = mean(values)
    variance = math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)
    error = math.sqrt(variance / len(values))
    return ((middle - centre) / error if error else math.inf), error


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean; a point where all values are equal."""
    if len(set(values)) == 1:
        return values[0], values[0]
    _, error = t_of_mean(values)
    half = t_quantile(level, len(values) - 1) * error
    return mean(values) - half, mean(values) + half


def theil_sen(values: Sequence[float]) -> float:
    """Median of the slopes between all pairs of points (i, value i)."""
    return median([(values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2)])


def kendall_p(values: Sequence[float]) -> float:
    """Two-sided p of Kendall's tau against the order; exact without ties, else normal with tied variance.

    Exact by counting permutations by inversions; the variance is Kendall's (Rank Correlation Methods, 4.3).
    """
    n = len(values)
    score = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in combinations(range(n), 2))
    if len(set(values)) == n:
        pairs = n * (n - 1) // 2
        counts = _permutations_by_inversions(n)
        inversions = (pairs - abs(score)) // 2
        return min(1.0, 2 * sum(counts[: inversions + 1]) / math.factorial(n))
    ties = [values.count(value) for value in set(values)]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    return math.erfc(abs(score) / math.sqrt(2 * variance))


def _permutations_by_inversions(n: int) -> list[int]:
    counts = [1]
    for size in range(2, n + 1):
        longer = [0] * (len(counts) + size - 1)
        for inversions, count in enumerate(counts):
            for more in range(size):
                longer[inversions + more] += count
        counts = longer
    return counts


def sign_flip_p(values: Sequence[float]) -> float:
    """Exact two-sided p of the sum under all sign patterns: twice the smaller tail, at most 1.

    Sums within 1e-12 of the largest value are equal.
    """
    observed, slack = math.fsum(values), 1e-12 * max(map(abs, values))
    sums = [
        math.fsum(s * v for s, v in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=len(values))
    ]
    above = sum(total >= observed - slack for total in sums)
    below = sum(total <= observed + slack for total in sums)
    return min(1.0, 2 * min(above, below) / len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    ranked = sorted(enumerate(p_values), key=lambda item: item[1])
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, (index, p) in enumerate(ranked):
        running = max(running, min(1.0, p * (len(p_values) - place)))
        adjusted[index] = running
    return adjusted
