"""The kinds of value that the report's templates may print, and nothing else; `reporting.markdown` prints them.

A value is language-neutral (digits and a unit), bilingual, or the name of a glossary term. A bare float, a bool or None
is refused by the templates, so that no number reaches the page without its digits having been decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from touchstone.experiment import Bilingual


@dataclass(frozen=True, slots=True)
class Amount:
    """Digits, or several numbers in digits, and the unit by its key in the glossary; an empty unit prints nothing."""

    text: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """A glossary term by its key."""

    key: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text that is shown verbatim in both languages: an identifier, a version, a message of a program."""

    text: str


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Finished Markdown in both languages: lines of another report, which are printed as they stand there."""

    en: str
    zh: str


Printable: TypeAlias = "Amount | Term | Code | Bilingual | str | int"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a two-column table."""

    label: Printable
    value: Printable


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric means, whichever dictionary it comes from; `formula` is LaTeX."""

    name: Bilingual
    formula: str
    how: Bilingual


@dataclass(frozen=True, slots=True)
class FigureView:
    """One figure file and its caption, which is also its alternative text; one of scaling stands with its table."""

    path: str
    caption: Bilingual
    scaling: bool = False


NOTHING = Amount("—")
