"""Each claim judged by the rule of its class, on the same hardware or on other hardware."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from touchstone.analysis import statistics
from touchstone.analysis.statistics import ElsewhereVerdict
from touchstone.experiment import Bilingual
from touchstone.records import Verdict
from touchstone.reporting.formatting import notation_for, number, percent
from touchstone.reporting.values import Amount
from touchstone.reproduce import reasons
from touchstone.reproduce.claims import ClaimClass, Direction
from touchstone.reproduce.errors import ComparisonError
from touchstone.reproduce.obstacles import checks_of, effect_of, failed_check, why_not_measured
from touchstone.reproduce.outcomes import ClaimVerdict, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from touchstone.records import Effect, Interval, MetricStatistics
    from touchstone.reproduce.claims import Claim
    from touchstone.reproduce.measured import MeasuredRun
    from touchstone.reproduce.obstacles import Sides

RATIO_DECIMALS = 3


def judge(claim: Claim, sides: Sides) -> Outcome:
    """Judge one claim; ComparisonError where it names a check, an arm or a count that the paper does not have."""
    obstacle = why_not_measured(claim, sides)
    if obstacle is not None:
        return Outcome(claim, ClaimVerdict.NOT_MEASURED, reason=obstacle.reason, detail=obstacle.detail)
    return _JUDGES[claim.claim_class](claim, sides)


# --- counts, identities, tokens -------------------------------------------------------------------------------------


def _judge_exact(claim: Claim, sides: Sides) -> Outcome:
    """Both runs give one and the same count, process by process."""
    paper, here = (_only_number(claim, run) for _, run in sides.named)
    same = set(paper.values) == set(here.values) and len(set(here.values)) == 1
    verdict = ClaimVerdict.HOLDS if same else ClaimVerdict.REFUTED
    shown = _amount(paper, exact=True), _amount(here, exact=True)
    return Outcome(claim, verdict, *shown, reason=reasons.of_count(paper, here))


def _judge_identity(claim: Claim, sides: Sides) -> Outcome:
    """Look whether the named check, or every check, passes in both runs."""
    paper, here = (checks_of(claim, run) for _, run in sides.named)
    found = [(name, check) for (name, _), checks in zip(sides.named, (paper, here), strict=True) for check in checks]
    failed = [failed_check(name, check) for name, check in found if not check.passed]
    if failed:
        return Outcome(claim, ClaimVerdict.REFUTED, reason=failed[0])
    return Outcome(claim, ClaimVerdict.HOLDS, reason=reasons.of_checks(claim, paper, here))


def _judge_token_hash(claim: Claim, sides: Sides) -> Outcome:
    """Every request returned the same tokens in both runs; another machine's arithmetic may choose others."""
    paper, here = (_answers(run, claim.test_id) for _, run in sides.named)
    shared = paper.keys() & here.keys()
    if not shared:
        reason = Bilingual("the two runs have no timed run in common", "两次运行没有可对应的计时运行")
        return Outcome(claim, ClaimVerdict.NOT_MEASURED, reason=reason)
    pairs = [pair for key in sorted(shared) for pair in zip(paper[key], here[key], strict=True)]
    equal = sum(one == other for one, other in pairs)
    reason = reasons.of_tokens(equal, len(pairs), same_hardware=sides.same_hardware)
    unequal = ClaimVerdict.REFUTED if sides.same_hardware else ClaimVerdict.NOT_COMPARABLE
    return Outcome(claim, ClaimVerdict.HOLDS if equal == len(pairs) else unequal, reason=reason)


def _answers(run: MeasuredRun, test_id: str) -> dict[tuple[str, int, str], tuple[str, ...]]:
    """Output hashes of each timed run, by unit, position in it and arm."""
    test = run.test(test_id)
    return {
        (one.unit_id, one.position, one.arm): tuple(request.output_sha256 for request in one.facts.trace.requests)
        for one in (test.runs if test is not None else ())
    }


# --- speeds ---------------------------------------------------------------------------------------------------------


def _judge_absolute(claim: Claim, sides: Sides) -> Outcome:
    paper, here = (_only_number(claim, run) for _, run in sides.named)
    shown = (_amount(paper), _amount(here))
    if not sides.same_hardware:
        return Outcome(claim, ClaimVerdict.NOT_COMPARABLE, *shown, reason=_shares_of_roofline(paper, here))
    return _compare_values(claim, paper.values, here.values, *shown)


def _shares_of_roofline(paper: MetricStatistics, here: MetricStatistics) -> Bilingual:
    """Say how much of its own machine's bound each speed is, where both records tell it."""
    if paper.roofline is None or here.roofline is None:
        return Bilingual(
            "speeds of different machines are not compared; no share of the roofline is recorded on both sides",
            "不同机器的速度不作比较；两侧并非都记录了 roofline 占比",
        )
    ours, theirs = (percent(item.share) for item in (paper.roofline, here.roofline))
    return Bilingual(
        "speeds of different machines are not compared; share of each machine's own roofline: "
        f"{ours} in the paper, {theirs} here",
        f"不同机器的速度不作比较；各自机器 roofline 的占比：论文 {ours}，本次 {theirs}",
    )


def _compare_values(
    claim: Claim, paper: Sequence[float], here: Sequence[float], shown_paper: Amount, shown_here: Amount
) -> Outcome:
    """Two one-sided Welch tests; a single rerun is held against the prediction interval."""
    if len(paper) < 2 or not here or min(*paper, *here) <= 0:  # noqa: PLR2004  a spread needs two values
        reason = reasons.of_too_few(len(paper), len(here))
        return Outcome(claim, ClaimVerdict.INCONCLUSIVE, shown_paper, shown_here, reason=reason)
    if len(here) == 1:
        interval = statistics.prediction_interval(paper)
        single = statistics.compare_single_rerun(paper, here[0])
        centre = math.sqrt(interval.low * interval.high)
        reason = reasons.of_single_rerun(here[0], interval, len(paper), single)
        ratio = _ratio_of(here[0] / centre)
        return Outcome(claim, ClaimVerdict(single.value), shown_paper, shown_here, ratio, reason=reason)
    compared = statistics.compare_with_paper(paper, here)
    return Outcome(
        claim,
        ClaimVerdict(compared.verdict.value),
        shown_paper,
        shown_here,
        ratio_amount(compared.ratio, compared.interval),
        reasons.of_comparison(compared, len(paper), len(here)),
    )


# --- ratios of a switch ---------------------------------------------------------------------------------------------


def _judge_ratio(claim: Claim, sides: Sides) -> Outcome:
    paper, here = (effect_of(claim, run) for _, run in sides.named)
    shown = ratio_amount(paper.ratio, paper.interval), ratio_amount(here.ratio, here.interval)
    doubt = _what_the_paper_lacks(claim, paper)
    if doubt is not None and claim.direction is not None:
        return Outcome(claim, doubt, *shown, reason=reasons.of_the_papers_lack(claim.direction, paper))
    if paper.verdict == here.verdict == Verdict.EXACT:
        same = math.isclose(paper.ratio, here.ratio, rel_tol=1e-12)  # the quotient of the same counts
        verdict = ClaimVerdict.HOLDS if same else ClaimVerdict.REFUTED
        return Outcome(claim, verdict, *shown, reason=reasons.of_counted_ratio(same=same))
    if sides.same_hardware:
        return _with_direction(_compare_values(claim, _ratios(paper), _ratios(here), *shown), here)
    if claim.direction is Direction.EQUIVALENT:
        verdict = _equivalent_elsewhere(here)
        return Outcome(claim, verdict, *shown, reason=reasons.of_equivalence_elsewhere(verdict))
    verdict = _by_direction(paper, here)
    return Outcome(claim, verdict, *shown, reason=reasons.of_direction_elsewhere(verdict, paper, here))


def _with_direction(outcome: Outcome, here: Effect) -> Outcome:
    """Add what the claimed direction says: its opposite here refutes, whatever the size of the ratio."""
    direction, told = outcome.claim.direction, outcome.reason
    if direction in _OPPOSITE and _shows(here, _OPPOSITE[direction]):
        reason = reasons.of_opposite(direction, here)
        return replace(outcome, verdict=ClaimVerdict.NOT_REPRODUCED, reason=reason)
    open_size = outcome.verdict is ClaimVerdict.INCONCLUSIVE and direction is not None and _shows(here, direction)
    return replace(outcome, reason=reasons.sentences(reasons.SIZE_OPEN, told)) if open_size and told else outcome


_OPPOSITE = {Direction.HIGHER: Direction.LOWER, Direction.LOWER: Direction.HIGHER}


def _what_the_paper_lacks(claim: Claim, paper: Effect) -> ClaimVerdict | None:
    """Hold the claimed direction against the paper's own effect first; None where the paper shows it."""
    if claim.direction is None or _shows(paper, claim.direction):
        return None
    opposite = _OPPOSITE.get(claim.direction)
    refuted = opposite is not None and _shows(paper, opposite)
    return ClaimVerdict.REFUTED if refuted else ClaimVerdict.INCONCLUSIVE


def _shows(effect: Effect, direction: Direction) -> bool:
    """Whether an effect has a direction: by its verdict, or by the ratio of its counts."""
    if effect.verdict != Verdict.EXACT:
        return effect.verdict == direction.name
    sides = {Direction.HIGHER: effect.ratio > 1, Direction.LOWER: effect.ratio < 1}
    return sides.get(direction, effect.ratio == 1)


def _by_direction(paper: Effect, here: Effect) -> ClaimVerdict:
    """Judge by intervals; where one has none, counts by their side of 1, and anything else not at all."""
    if paper.interval is not None and here.interval is not None:
        return ClaimVerdict(statistics.compare_ratio_elsewhere(paper.interval, here.interval).value)
    if here.interval is None and here.verdict != Verdict.EXACT:
        return ClaimVerdict.INCONCLUSIVE
    for direction, opposite in _OPPOSITE.items():
        if _shows(paper, direction):
            return _three_way(agrees=_shows(here, direction), contradicts=_shows(here, opposite))
    return ClaimVerdict.INCONCLUSIVE


def _equivalent_elsewhere(here: Effect) -> ClaimVerdict:
    """Judge "makes no difference" here: the interval inside the margin around 1, or wholly outside of it."""
    if here.verdict == Verdict.EXACT:
        return _three_way(agrees=here.ratio == 1, contradicts=here.ratio != 1)
    if here.interval is None:
        return ClaimVerdict.INCONCLUSIVE
    bound = 1 + statistics.MARGIN
    outside = here.interval.low > bound or here.interval.high < 1 / bound
    return _three_way(agrees=statistics.is_equivalent(here.blocks), contradicts=outside)


def _three_way(*, agrees: bool, contradicts: bool) -> ClaimVerdict:
    if agrees:
        return ClaimVerdict(ElsewhereVerdict.CONSISTENT.value)
    return ClaimVerdict.REFUTED_HERE if contradicts else ClaimVerdict.INCONCLUSIVE


def _ratios(effect: Effect) -> list[float]:
    return [math.exp(block) for block in effect.blocks]


# --- orders ---------------------------------------------------------------------------------------------------------


def _judge_shape(claim: Claim, sides: Sides) -> Outcome:
    """Every number is larger than the one before it, in both runs, by one-sided Welch tests at 5 %."""
    runs = [(name, _rises(claim, run)) for name, run in sides.named]
    steps = {step for _, found in runs for step in found}
    answer = next(one for one in (False, None, True) if one in steps)
    shown = _in_order(claim, sides.paper), _in_order(claim, sides.reviewer)
    return Outcome(claim, _OF_ORDER[answer], *shown, reason=reasons.of_order(claim.ascending, runs, answer))


_OF_ORDER = {False: ClaimVerdict.REFUTED, None: ClaimVerdict.INCONCLUSIVE, True: ClaimVerdict.HOLDS}


def _in_order(claim: Claim, run: MeasuredRun) -> Amount:
    """Write the numbers in the order of the claim."""
    amounts = [_amount(item) for item in _points(claim, run)]
    return Amount("; ".join(amount.text for amount in amounts), amounts[0].unit)


def _rises(claim: Claim, run: MeasuredRun) -> list[bool | None]:
    """One answer a step: larger, smaller, or not to be told apart (None)."""
    return [_is_larger(low.values, high.values) for low, high in pairwise(_points(claim, run))]


def _is_larger(low: Sequence[float], high: Sequence[float]) -> bool | None:
    if min(len(low), len(high)) < 2 or min(*low, *high) <= 0:  # noqa: PLR2004  a spread needs two values
        return None
    interval = statistics.compare_with_paper(low, high).interval
    return True if interval.low > 1 else False if interval.high < 1 else None


def _points(claim: Claim, run: MeasuredRun) -> list[MetricStatistics]:
    found = [run.statistics(claim.test_id, point.metric, point.arm) for point in claim.ascending]
    if len(units := {item.unit for item in found}) > 1:
        raise ComparisonError(f"claim {claim.id!r} orders numbers of different units: {', '.join(sorted(units))}")
    return found


# --- small parts ----------------------------------------------------------------------------------------------------


def _only_number(claim: Claim, run: MeasuredRun) -> MetricStatistics:
    return run.statistics(claim.test_id, claim.metric or "", claim.arm)


def _amount(numbers: MetricStatistics, *, exact: bool = False) -> Amount:
    """Write a median, with its interval where it has one, its unit and the digits that its noise allows."""
    if numbers.median is None:
        return Amount("—")
    notation = notation_for(numbers, exact_value=exact)
    interval = None if exact else numbers.interval
    ends = "" if interval is None else f" [{notation.write(interval.low)}, {notation.write(interval.high)}]"
    return Amount(f"{notation.write(numbers.median)}{ends}", notation.scale.symbol)


def ratio_amount(ratio: float, interval: Interval | None) -> Amount:
    """Write a ratio with its interval."""
    if interval is None:
        return _ratio_of(ratio)
    noise = (interval.high - interval.low) / 2
    low, high = (number(end, noise) for end in (interval.low, interval.high))
    return Amount(f"{number(ratio, noise)} [{low}, {high}]")


def _ratio_of(ratio: float) -> Amount:
    return Amount(f"{ratio:.{RATIO_DECIMALS}f}")


_JUDGES: dict[ClaimClass, Callable[[Claim, Sides], Outcome]] = {
    ClaimClass.EXACT: _judge_exact,
    ClaimClass.IDENTITY: _judge_identity,
    ClaimClass.TOKEN_HASH: _judge_token_hash,
    ClaimClass.RATIO: _judge_ratio,
    ClaimClass.ABSOLUTE: _judge_absolute,
    ClaimClass.SHAPE: _judge_shape,
}
