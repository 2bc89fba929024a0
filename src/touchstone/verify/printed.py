"""Every number of both reports, found at its place and held against the number that the evidence gives there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import numbers
from touchstone.verify.outcome import Fault
from touchstone.verify.places import cells
from touchstone.verify.printed_lines import LineRules
from touchstone.verify.quotable import Quotable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.verify.custody import Evidence
    from touchstone.verify.places import Report
    from touchstone.verify.shown import Case

Json: TypeAlias = "dict[str, Any]"


def language_faults(reports: Mapping[str, Report]) -> tuple[Fault, ...]:
    """Numbers that stand in one report more often than in the other."""
    if len(reports) < 2:  # noqa: PLR2004  two languages
        return ()
    first, second = (Counter(numbers(report.text)) for report in reports.values())
    names = [report.file for report in reports.values()]
    return tuple(
        Fault(names[0], f"{number} stands {first[number]} times here, {second[number]} times in {names[1]}")
        for number in sorted(first.keys() | second.keys())
        if first[number] != second[number]
    )


def root_hash_faults(
    evidence: Evidence, reports: Mapping[str, Report], results: Mapping[str, Json]
) -> tuple[Fault, ...]:
    """Results and reports that were made from another state of the ledger."""
    root = evidence.root_sha256
    stale = [
        Fault(file, f"made from a ledger whose root hash is {told['evidence']['ledger_root_sha256']}, not {root}")
        for file, told in results.items()
        if told["evidence"] is not None and told["evidence"]["ledger_root_sha256"] != root
    ]
    for report in reports.values():
        rows = [p for p in report.places if p.chapter == "provenance" and cells(p.text)[1:] == [f"`{root}`"]]
        if not rows:
            stale.append(Fault(report.file, f"does not carry the ledger's root hash {root}"))
    return tuple(stale)


def number_faults(case: Case, reports: Mapping[str, Report]) -> tuple[int, tuple[Fault, ...]]:
    """Check every line of every report; return how many numbers there are, and what is wrong."""
    quotable = Quotable(case)
    faults = [fault for report in reports.values() for fault in LineRules(case, report, quotable).faults()]
    return sum(len(numbers(report.text)) for report in reports.values()), tuple(faults)
