"""Runs beside a run, such as the comparison of engines beside the paper's: what the first page says of them.

A further run has a ledger, an environment and a report of its own in a folder inside the run's. Its comparison is
quoted from its report word for word, with the machine, the versions and the hashes that tell it from the run that
quotes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.ledger import LEDGER_NAME
from touchstone.reporting.errors import ReportError
from touchstone.reporting.markdown import LANGUAGES
from touchstone.reporting.quotation import quoted_lines
from touchstone.reporting.values import Code, Verbatim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from touchstone.reporting.markdown import Glossary


@dataclass(frozen=True, slots=True)
class FurtherRun:
    """A run beside this one that compares engines: its folder, its comparison, and what it was made on and from."""

    folder: Code
    engines: Verbatim
    identity: Verbatim


def further_runs(run_dir: Path, glossary: Glossary) -> tuple[FurtherRun, ...]:
    """Quote every run in a folder of `run_dir` that compares engines, by the names of the folders.

    ReportError where such a run has no report yet.
    """
    return tuple(_further_runs(run_dir, glossary))


def _further_runs(run_dir: Path, glossary: Glossary) -> Iterator[FurtherRun]:
    for ledger in sorted(run_dir.glob(f"*/{LEDGER_NAME}")):
        told = {kind: _quoted(ledger.parent, kind, glossary) for kind in ("engines", "identity")}
        if told["engines"].en.startswith("|"):  # else it says why it compares none
            yield FurtherRun(Code(ledger.parent.name), **told)


def _quoted(folder: Path, words: str, glossary: Glossary) -> Verbatim:
    texts: dict[str, str] = {}
    for language in LANGUAGES:
        path = folder / f"report.{language}.md"
        if not path.is_file():
            raise ReportError(f"{folder} holds a run without {path.name}; make it with `touchstone report {folder}`")
        report = path.read_text(encoding="utf-8")
        texts[language] = "\n".join(quoted_lines(report, words, language, glossary))
    return Verbatim(**texts)
