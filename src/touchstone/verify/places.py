"""A report read line by line: in which chapter, test, metric, table and formula each line stands.

The titles of a table's columns are turned back into terms of the glossary: one set of rules reads both languages.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

GLOSSARY = Path(__file__).resolve().parents[3] / "templates" / "terms.toml"
CODE = re.compile(r"`([^`]+)`")
_TEST = re.compile(r"^### \S+ (\d+\.\d+)[:：]")
_METRIC = re.compile(r"^#### (.*?) `(\w+)`$")
_LABEL = re.compile(r"^\*\*([^*]+)\*\*(?::|：)")
_BORDER = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a report and where it stands."""

    number: int
    text: str
    chapter: str | None
    test_id: str | None
    metric: str | None
    label: str | None
    columns: tuple[str, ...]
    formula: int


@dataclass(frozen=True, slots=True)
class Report:
    """One report, line by line."""

    language: str
    file: str
    text: str
    places: tuple[Place, ...]
    names: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, language: str) -> Report:
        """Read a report and find the place of every line."""
        text = path.read_text(encoding="utf-8")
        reader = _Reader(_terms(language))
        places = tuple(reader.place(number, line) for number, line in enumerate(text.split("\n"), start=1))
        return cls(language, path.name, text, places, reader.names)


def _terms(language: str) -> dict[str, str]:
    """Glossary terms by their words."""
    terms = tomllib.loads(GLOSSARY.read_text(encoding="utf-8"))["terms"]
    return {term[language].strip(): key for key, term in terms.items()}


@dataclass(slots=True)
class _Reader:
    """Keeps in mind in which chapter, test, metric, table and formula a line stands."""

    terms: Mapping[str, str]
    names: dict[str, str] = field(default_factory=dict)
    chapter: str | None = None
    test_id: str | None = None
    metric: str | None = None
    label: str | None = None
    columns: tuple[str, ...] = ()
    formulas: int = 0
    fenced: bool = False

    def place(self, number: int, line: str) -> Place:
        """Note what a line changes, and say where it stands."""
        if line.startswith("```"):
            self.fenced = not self.fenced
            self.formulas += self.fenced
        elif not self.fenced:
            self._read(line)
        formula = self.formulas if self.fenced and not line.startswith("```") else 0
        return Place(number, line, self.chapter, self.test_id, self.metric, self.label, self.columns, formula)

    def _read(self, line: str) -> None:
        if line.startswith("#"):
            self._heading(line)
        elif not line.startswith("|"):
            self.columns = ()
        elif not self.columns:
            self.columns = tuple(self.terms.get(cell, cell) for cell in cells(line))
        if found := _LABEL.match(line):
            self.label = self.terms.get(found.group(1), found.group(1))

    def _heading(self, line: str) -> None:
        self.columns, self.label, self.metric, self.formulas = (), None, None, 0
        if line.startswith(("# ", "## ")):
            self.chapter, self.test_id = self.terms.get(line.lstrip("# ")), None
        elif found := _TEST.match(line):
            self.test_id = found.group(1)
        elif found := _METRIC.match(line):
            self.metric = found.group(2)
            self.names[found.group(1).casefold()] = self.metric


def cells(row: str) -> list[str]:
    """Split a table row."""
    return [cell.strip() for cell in _BORDER.split(row.strip())[1:-1]]


def is_head(place: Place, words: Mapping[str, str]) -> bool:
    """Whether a row is the title row or the line under it."""
    row = cells(place.text)
    return row == [words.get(column, column) for column in place.columns] or set("".join(row)) <= {":", "-"}


def is_item(text: str) -> bool:
    """Whether a line under a label says something: the label alone announces a list, an item a line."""
    return text.startswith("- ") or bool(_LABEL.sub("", text).strip() and _LABEL.match(text))


def bare(cell: str) -> str:
    """Take the marks of code off a cell."""
    return cell.strip("`")
