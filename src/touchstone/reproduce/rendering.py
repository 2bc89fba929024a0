"""A reproduction as Markdown in both languages and as a table for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from touchstone.analysis.statistics import ALPHA, MARGIN
from touchstone.canonical import atomic_write
from touchstone.experiment import Bilingual
from touchstone.reporting.formatting import percent
from touchstone.reporting.markdown import GLOSSARY_FILE, LANGUAGES, TEMPLATES, Glossary, markdown_environment, render
from touchstone.reporting.values import Amount, Code, Row, Term
from touchstone.reproduce.machines import shown
from touchstone.reproduce.outcomes import HELD, REFUTED, ClaimVerdict, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from touchstone.reporting.markdown import Language
    from touchstone.reproduce.machines import Difference
    from touchstone.reproduce.measured import MeasuredRun
    from touchstone.reproduce.outcomes import Outcome
    from touchstone.reproduce.reproduction import Reproduction

_OVERALL = {
    ExitCode.ALL_HOLD: Term("all_hold"),
    ExitCode.REFUTED: Term("some_refuted"),
    ExitCode.INCONCLUSIVE: Term("some_open"),
}


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One claim as the templates print it."""

    id: Code
    text: Bilingual
    verdict: str
    paper: Amount
    here: Amount
    ratio: Amount
    reason: Bilingual | None
    detail: Code | None


@dataclass(frozen=True, slots=True)
class TestClaims:
    """The claims about one test."""

    test_id: str
    title: Bilingual
    claims: tuple[ClaimRow, ...]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One fact in which the environments differ."""

    key: Code
    paper: Code
    here: Code


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Which run: what a reader can look it up by."""

    ledger_root: Code
    plan_hash: Code
    fingerprint: Code
    commit: Code


def reproduction_context(reproduction: Reproduction, glossary: Glossary) -> dict[str, object]:
    """Arrange everything that the templates may print; nothing in it depends on the language or on the clock."""
    return {
        "overall": _OVERALL[reproduction.status],
        "hardware": Term("same_hardware_yes" if reproduction.same_hardware else "same_hardware_no"),
        "counts": _counts(reproduction.outcomes, glossary),
        "tests": tuple(_tests(reproduction)),
        "decisive": tuple(map(_difference_row, reproduction.decisive)),
        "other": tuple(map(_difference_row, reproduction.other)),
        "meanings": _meanings(glossary),
        "paper": _run_facts(reproduction.paper),
        "here": _run_facts(reproduction.reviewer),
        "margin": Amount(percent(MARGIN, 0)),
        "level": Amount(percent(1 - 2 * ALPHA, 0)),
    }


def render_reproduction(reproduction: Reproduction) -> dict[Language, str]:
    """Render the Markdown of each language; the same ledgers and claims give the same bytes."""
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    context = reproduction_context(reproduction, glossary)
    return {
        language: render(markdown_environment(language, glossary), f"reproduction.{language}.md.j2", context)
        for language in LANGUAGES
    }


def write_reproduction(reproduction: Reproduction, out_dir: Path) -> tuple[Path, ...]:
    """Write `reproduction.zh.md` and `reproduction.en.md` and return their paths."""
    paths = []
    for language, text in render_reproduction(reproduction).items():
        path = out_dir / f"reproduction.{language}.md"
        atomic_write(path, text.encode())
        paths.append(path)
    return tuple(paths)


def _counts(outcomes: Iterable[Outcome], glossary: Glossary) -> tuple[Row, ...]:
    found = [outcome.verdict for outcome in outcomes]
    return tuple(Row(_word(glossary, verdict), found.count(verdict)) for verdict in ClaimVerdict if verdict in found)


def _word(glossary: Glossary, verdict: ClaimVerdict) -> Bilingual:
    word = glossary.claims[verdict]
    return Bilingual(word["en"], word["zh"])


def _meanings(glossary: Glossary) -> tuple[Row, ...]:
    return tuple(
        Row(
            _word(glossary, verdict),
            Bilingual(glossary.claims[verdict]["meaning_en"], glossary.claims[verdict]["meaning_zh"]),
        )
        for verdict in ClaimVerdict
    )


def _tests(reproduction: Reproduction) -> Iterable[TestClaims]:
    for test_id, result in reproduction.paper.results.items():
        rows = tuple(_claim_row(item) for item in reproduction.outcomes if item.claim.test_id == test_id)
        if rows:
            yield TestClaims(test_id, Bilingual(result.test_name, result.zh.test_name), rows)


def _claim_row(outcome: Outcome) -> ClaimRow:
    return ClaimRow(
        id=Code(outcome.claim.id),
        text=Bilingual(outcome.claim.text.en, outcome.claim.text.zh),
        verdict=outcome.verdict.value,
        paper=outcome.paper,
        here=outcome.here,
        ratio=outcome.ratio,
        reason=outcome.reason,
        detail=Code(outcome.detail) if outcome.detail else None,
    )


def _difference_row(difference: Difference) -> DifferenceRow:
    return DifferenceRow(Code(difference.key), Code(shown(difference.first)), Code(shown(difference.second)))


def _run_facts(run: MeasuredRun) -> RunFacts:
    return RunFacts(
        ledger_root=Code(run.ledgered.root_sha256),
        plan_hash=Code(run.plan.plan_sha256),
        fingerprint=Code(run.environment.fingerprint),
        commit=Code(run.environment.source.commit or ""),
    )


# --- the terminal ---------------------------------------------------------------------------------------------------


def claim_table(reproduction: Reproduction) -> Table:
    """Return the claims with their verdicts for the terminal; what is remarked on them is too long for a column."""
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    table = Table("claim", "verdict", "paper", "this run", "this / paper", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[2:5]:
        column.justify = "right"
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for outcome in reproduction.outcomes:
        amounts = (Text(_plain(amount, glossary)) for amount in (outcome.paper, outcome.here, outcome.ratio))
        verdict = Text(outcome.verdict.value, style=_style(outcome.verdict))
        table.add_row(Text(outcome.claim.id), verdict, *amounts)
    return table


def claim_remarks(reproduction: Reproduction) -> tuple[Text, ...]:
    """Say what a verdict was decided from or what would decide it, a line a claim that has something to say."""
    told = ((outcome, _remark(outcome)) for outcome in reproduction.outcomes)
    return tuple(Text.assemble((outcome.claim.id, "bold"), f": {remark}") for outcome, remark in told if remark)


def environment_table(reproduction: Reproduction) -> Table:
    """Return the facts in which the environments differ; those that make the hardware another one come first."""
    table = Table("fact", "paper", "this run", "hardware", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for differences, decisive in ((reproduction.decisive, "another"), (reproduction.other, "")):
        for difference in differences:
            table.add_row(difference.key, Text(shown(difference.first)), Text(shown(difference.second)), decisive)
    return table


def _plain(amount: Amount, glossary: Glossary) -> str:
    return f"{amount.text} {glossary.unit(amount.unit, 'en')}".strip()


def _style(verdict: ClaimVerdict) -> str:
    if verdict in HELD:
        return "green"
    if verdict in REFUTED:
        return "red"
    return "yellow" if verdict is ClaimVerdict.INCONCLUSIVE else "dim"


def _remark(outcome: Outcome) -> str:
    parts = [outcome.reason.en if outcome.reason is not None else "", outcome.detail]
    return ": ".join(filter(None, parts))
