"""The first page: what a reader acts on, chosen from what the chapters show and said by the same views."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from touchstone.analysis.metrics import COMPARISONS, Better
from touchstone.analysis.statistics import EffectVerdict
from touchstone.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from touchstone.analysis.metrics import ComparisonDefinition
    from touchstone.experiment import Bilingual
    from touchstone.records import Effect
    from touchstone.reporting.chapter import TestView
    from touchstone.reporting.numbers import ArmView, NumberView
    from touchstone.reporting.peers import PeersView
    from touchstone.reporting.run_folder import Run
    from touchstone.reporting.sweeps import SweepView, Winners

IDEAS, PEERS = "2", "5"  # parts whose rows have tables of their own
PAYS, COSTS, NO_MATTER, UNDECIDED = "idea_pays", "idea_costs", "idea_no_matter", "idea_undecided"
_SETTLED = frozenset({Verdict.STABLE, Verdict.EXACT})
_SHOWN = frozenset({EffectVerdict.HIGHER, EffectVerdict.LOWER, EffectVerdict.EQUIVALENT, Verdict.EXACT.value})


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key number of one arm."""

    test_id: str
    number: NumberView
    arm: ArmView


@dataclass(frozen=True, slots=True)
class IdeaRow:
    """What one idea changes, and in a word of the glossary whether that pays."""

    test_id: str
    number: NumberView
    arm: ArmView
    word: str


@dataclass(frozen=True, slots=True)
class WhereRow:
    """Where along one sweep which arm is better, by the sweep's leading metric; the chapter has the others."""

    test_id: str
    sweep: SweepView
    winners: Winners


@dataclass(frozen=True, slots=True)
class AbsentRow:
    """Tests that were not measured for one and the same reason."""

    tests: tuple[TestView, ...]
    reason: Bilingual


@dataclass(frozen=True, slots=True)
class FrontPage:
    """The key numbers, the ideas and where they pay, the peers, what is absent; and how many numbers are settled."""

    numbers: tuple[KeyRow, ...]
    ideas: tuple[IdeaRow, ...]
    where: tuple[WhereRow, ...]
    peers: tuple[PeersView, ...]
    absent: tuple[AbsentRow, ...]
    num_settled: int
    num_key: int


def front_page(run: Run, tests: Sequence[TestView]) -> FrontPage:
    """Choose the rows of the first page from the views of the tests, in the plan's order."""
    keys = [statistics for result in run.results for statistics in result.statistics if statistics.key]
    effects = {result.test_id: result.effects for result in run.results}
    ideas = [test for test in tests if _part(test) == IDEAS]
    others = [test for test in tests if _part(test) not in {IDEAS, PEERS}]
    return FrontPage(
        numbers=tuple(chain.from_iterable(map(_key_rows, others))),
        ideas=tuple(chain.from_iterable(_idea_rows(test, effects[test.test_id]) for test in ideas)),
        where=tuple(chain.from_iterable(map(_where_rows, ideas))),
        peers=tuple(test.peers for test in tests if test.peers.rows),
        absent=_absent_rows([test for test in tests if not test.measured]),
        num_settled=sum(statistics.verdict in _SETTLED for statistics in keys),
        num_key=len(keys),
    )


def _absent_rows(absent: Sequence[TestView]) -> tuple[AbsentRow, ...]:
    """Gather the tests of one reason into one row, in the order of their first."""
    reasons = dict.fromkeys(test.reason for test in absent)
    return tuple(AbsentRow(tuple(test for test in absent if test.reason == reason), reason) for reason in reasons)


def _part(test: TestView) -> str:
    return test.test_id.partition(".")[0]


def _key_rows(test: TestView) -> Iterator[KeyRow]:
    for number in test.headline:
        yield from (KeyRow(test.test_id, number, arm) for arm in number.arms)


def _idea_rows(test: TestView, effects: Sequence[Effect]) -> Iterator[IdeaRow]:
    """Take the comparisons only: what one arm alone gave says nothing of the idea."""
    for number in test.headline:
        if (comparison := COMPARISONS.get(number.metric)) is not None:
            effect = next((effect for effect in effects if effect.metric == comparison.metric), None)
            yield from (IdeaRow(test.test_id, number, arm, word_for(comparison, effect)) for arm in number.arms)


def _where_rows(test: TestView) -> Iterator[WhereRow]:
    yield from (WhereRow(test.test_id, sweep, sweep.winners[0]) for sweep in test.sweeps if sweep.winners)


def word_for(comparison: ComparisonDefinition, effect: Effect | None) -> str:
    """Say whether a change for the better was shown, one for the worse, none that matters, or nothing.

    The word is a term of the glossary. An exact count has no interval; that it changed is shown by itself.
    """
    if effect is None or effect.verdict not in _SHOWN:
        return UNDECIDED
    gain = comparison.transform(effect.ratio) - comparison.transform(1.0)
    if effect.verdict == EffectVerdict.EQUIVALENT or gain == 0:
        return NO_MATTER
    return PAYS if (gain > 0) is (comparison.better is Better.HIGHER) else COSTS
