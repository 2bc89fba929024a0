"""What keeps a claim from being judged.

A number is compared only where both runs measured it, let it stand (no failed check, no withheld value, no void
effect), and did the same work; otherwise the claim is NOT MEASURED, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.plausibility import REFUSES_TIMES
from touchstone.experiment import Bilingual
from touchstone.reproduce.claims import EVERY_CHECK, ClaimClass, points_of
from touchstone.reproduce.errors import ComparisonError
from touchstone.reproduce.work import work_differences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.records import Check, Effect
    from touchstone.reproduce.claims import Claim
    from touchstone.reproduce.measured import MeasuredRun


# Checks that fail where a machine is slow, restless or shared, whatever was computed.
CHECKS_OF_TIMES = REFUSES_TIMES | {"not_far_below_roofline", "machine_steady", "machine_undisturbed", "passes_agree"}


@dataclass(frozen=True, slots=True)
class Sides:
    """The two runs, and whether one hardware made them."""

    paper: MeasuredRun
    reviewer: MeasuredRun
    same_hardware: bool

    @property
    def named(self) -> tuple[tuple[Bilingual, MeasuredRun], ...]:
        """Both runs with how they are called in a sentence."""
        return ((_PAPER, self.paper), (_REVIEWER, self.reviewer))


_PAPER = Bilingual("the paper's run", "论文的运行")
_REVIEWER = Bilingual("this run", "本次运行")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a claim cannot be judged; `detail` is the same in both languages."""

    reason: Bilingual
    detail: str = ""


def why_not_measured(claim: Claim, sides: Sides) -> Obstacle | None:
    """Give the first obstacle to judging a claim; None where there is none.

    ComparisonError where the claim names a number, a check or an effect that the paper measured the test without.
    """
    finders = (_absent, _absent_arms, _failed_checks, _other_work, _withheld, _no_check, _no_effect)
    return next((reason for find in finders for reason in find(claim, sides)), None)


def checks_of(claim: Claim, run: MeasuredRun) -> tuple[Check, ...]:
    """Look up the checks that an identity is about; empty where the run has none of that name."""
    checks = run.results[claim.test_id].checks
    return tuple(check for check in checks if claim.metric in {EVERY_CHECK, check.id})


def effect_of(claim: Claim, run: MeasuredRun) -> Effect:
    """Look up the paired effect that a claim is about; ComparisonError names what exists."""
    effect = run.effect(claim.test_id, claim.metric or "", claim.arm)
    if effect is None:
        known = ", ".join(f"{item.metric} ({item.treatment})" for item in run.results[claim.test_id].effects)
        raise ComparisonError(
            f"claim {claim.id!r}: test {claim.test_id} in {run.directory} has no paired effect on {claim.metric!r}; it "
            f"has {known or 'none'}"
        )
    return effect


def _absent(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    for name, run in sides.named:
        result = run.results.get(claim.test_id)
        if result is None:
            yield Obstacle(Bilingual(f"{name.en} did not plan this point", f"{name.zh}的计划不含该取值点"))
        elif result.status != "measured":
            yield Obstacle(
                Bilingual(
                    f"{name.en} has not measured this test, which it explains by: {result.reason}",
                    f"{name.zh}未测量本项，其说明为：{result.reason_zh}",
                )
            )


def _absent_arms(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    """Name arms that a machine could not run, such as those for more GPUs than it has."""
    arms = {point.arm for point in points_of(claim)}
    for name, run in sides.named:
        test = run.test(claim.test_id)
        for row in test.planned.absent_arms if test is not None else ():
            if row.arm.name in arms:
                yield Obstacle(Bilingual(f"{name.en}: {row.reason}", f"{name.zh}：{row.reason_zh}"))


def _failed_checks(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    """Name failed checks, which void every number of their test; an identity is a claim about the check itself.

    What was counted and answered does not depend on how long it took: checks of times leave counts and tokens alone.
    """
    if claim.claim_class is ClaimClass.IDENTITY:
        return
    harmless = CHECKS_OF_TIMES if claim.claim_class in {ClaimClass.EXACT, ClaimClass.TOKEN_HASH} else frozenset()
    for name, run in sides.named:
        for check in run.results[claim.test_id].checks:
            if not check.passed and check.id not in harmless:
                yield Obstacle(failed_check(name, check))


def failed_check(name: Bilingual, check: Check) -> Bilingual:
    """Say which check failed in which run, and from what this was decided."""
    return Bilingual(
        f"{name.en} does not pass the check {check.id}: {check.detail}",
        f"{name.zh}未通过检查 {check.id}：{check.detail_zh}",
    )


def _other_work(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    if claim.claim_class is ClaimClass.ABSOLUTE and not sides.same_hardware:
        return  # it is not comparable anyway
    differences = work_differences(
        claim.claim_class, claim.test_id, sides.paper, sides.reviewer, same_hardware=sides.same_hardware
    )
    if differences:
        reason = Bilingual("the two runs did different work, paper / here", "两次运行的工作不同，论文 / 本次")
        yield Obstacle(reason, "; ".join(map(str, differences)))


def _withheld(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    for name, run in sides.named:
        for point in points_of(claim):
            numbers = run.statistics(claim.test_id, point.metric, point.arm)
            if numbers.withheld is not None:
                yield Obstacle(Bilingual(f"{name.en}: {numbers.withheld}", f"{name.zh}：{numbers.withheld_zh}"))


def _no_check(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    if claim.claim_class is not ClaimClass.IDENTITY:
        return
    if not checks_of(claim, sides.paper):
        known = ", ".join(check.id for check in sides.paper.results[claim.test_id].checks)
        raise ComparisonError(
            f"claim {claim.id!r}: test {claim.test_id} in {sides.paper.directory} has no check {claim.metric!r}; it "
            f"has {known or 'none'}, and {EVERY_CHECK} stands for all of them"
        )
    if not checks_of(claim, sides.reviewer):
        yield Obstacle(Bilingual("the check does not apply to this run", "该检查不适用于本次运行"))


def _no_effect(claim: Claim, sides: Sides) -> Iterator[Obstacle]:
    if claim.claim_class is not ClaimClass.RATIO:
        return
    effects = (effect_of(claim, sides.paper), sides.reviewer.effect(claim.test_id, claim.metric or "", claim.arm))
    for (name, _), effect in zip(sides.named, effects, strict=True):
        if effect is None:
            yield Obstacle(Bilingual(f"{name.en} gives no such ratio", f"{name.zh}没有给出该比值"))
        elif effect.void is not None:
            yield Obstacle(Bilingual(f"{name.en}: {effect.void}", f"{name.zh}：{effect.void_zh}"))
