"""Quotations of a report in other documents: lines of the report, word for word, between two marks.

A document says what it quotes: `<!-- quoted: checks 1.1 timer_not_rounded -->` to `<!-- quoted: end -->`. What stands
between is replaced whenever the paper is made, so that no number of a run is ever typed into a document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.reporting.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from touchstone.reporting.markdown import Glossary, Language

_BLOCK = re.compile(
    r"(?P<begin><!-- quoted: (?P<words>(?!end\b)[^>]+?) -->\n).*?(?P<end><!-- quoted: end -->)", re.DOTALL
)
_TEST = re.compile(r"### \S+ (\d+\.\d+)[:：]")
_METRIC = re.compile(r"#### (.*?) `(\w+)`$")
_IMAGE = re.compile(r"!\[(.*)\]\((figures/([^)]+)\.svg)\)$")
_SETTING = ("cpu", "driver", "pytorch", "commit", "model_source", "weights", "precision")
_GPU_ROW = re.compile(r"\| `GPU \d+` \|")
_SUPPORTING_COLUMNS = 6  # metric, arm, value, interval, verdict, largest deviation
_NO_RUN: Mapping[Language, str] = {
    "zh": "*论文运行尚未提交；提交后由 `make paper` 从其结果填入此处。*",
    "en": "*No paper run is committed yet; `make paper` fills this in from its results.*",
}
_NO_FURTHER_RUN: Mapping[Language, str] = {
    "zh": "*该项运行尚未提交；提交后由 `make paper` 从其结果填入此处。*",
    "en": "*That run is not committed yet; `make paper` fills this in from its results.*",
}
_HASHES = ("ledger_root", "fingerprint")
_PEERS = "5.1"
_OF = "of"


class QuotationError(ReportError):
    """A document quotes what the report does not hold; the message names the quotation."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a report: the test and the metric that it is about, and the title row of its table."""

    text: str
    test_id: str | None
    metric: tuple[str, str] | None
    titles: str | None


def fill(
    document: str, language: Language, report_of: Callable[[str], str | None], glossary: Glossary, folder: str
) -> str:
    """Renew every quotation of a document; `folder` leads from the document to the paper, "" if it is there.

    `report_of` gives the report of a run by its folder inside the paper ("" for the main one), None where there is no
    such run: the quotation then says so. QuotationError names what cannot be found.
    """

    def renewed(match: re.Match[str]) -> str:
        words, inner = _source_of(match["words"])
        if (report := report_of(inner)) is None:
            quoted = (_NO_FURTHER_RUN if inner else _NO_RUN)[language]
        else:
            way = f"{folder}{inner}/" if inner else folder
            quoted = "\n".join(_Source(report, language, glossary, way).quote(words))
        return f"{match['begin']}\n{quoted}\n\n{match['end']}"

    return _BLOCK.sub(renewed, document)


def _source_of(quotation: str) -> tuple[str, str]:
    """Part "engines of peers" into what is quoted and the folder of its run."""
    words, of, inner = quotation.rpartition(f" {_OF} ")
    return (words, inner) if of else (quotation, "")


def quoted_lines(report: str, words: str, language: Language, glossary: Glossary) -> list[str]:
    """Quote from a report outside of any document; QuotationError as for `fill`."""
    return _Source(report, language, glossary, "").quote(words)


def quotations(document: str) -> tuple[str, ...]:
    """List what a document quotes, in order."""
    return tuple(match["words"] for match in _BLOCK.finditer(document))


class _Source:
    """A report that can be quoted from."""

    def __init__(self, report: str, language: Language, glossary: Glossary, folder: str) -> None:
        self._lines = tuple(_placed(report))
        self._folder, self._name = folder, f"report.{language}.md"
        self._term = {key: term[language] for key, term in glossary.terms.items()}
        self._kinds: Mapping[str, Callable[[list[str]], Iterable[str]]] = {
            "key-numbers": lambda _: self._table("share_of_bound"),
            "ideas": lambda _: self._table("does_it_pay"),
            "absent": lambda _: self._absent(),
            "setting": lambda _: self._facts(_SETTING),
            "identity": lambda _: self._facts((*_SETTING, *_HASHES)),
            "engines": lambda _: self._engines(),
            "report": lambda _: [f"[{self._folder}{self._name}]({self._folder}{self._name})"],
            "checks": self._checks,
            "metrics": self._metrics,
            "figure": self._figure,
        }

    def quote(self, words: str) -> list[str]:
        kind, *rest = words.split()
        if kind not in self._kinds:
            raise QuotationError(f"{kind!r} is no kind of quotation; they are {', '.join(self._kinds)}")
        lines = list(self._kinds[kind](rest))
        if not lines:
            raise QuotationError(f"the report holds nothing for the quotation {words!r}")
        return lines

    def _table(self, last_title: str) -> Iterator[str]:
        """Take the table of the first page whose last column has this title."""
        end = f"| {self._term[last_title]} |"
        yield from (line.text for line in self._lines if line.test_id is None and (line.titles or "").endswith(end))

    def _absent(self) -> Iterator[str]:
        titles = f"| {self._term['test']} | {self._term['reason']} |"
        rows = [line.text for line in self._lines if line.test_id is None and line.titles == titles]
        yield from rows or [f"{self._term['not_measured']}{self._term['colon']}{self._term['none']}"]

    def _facts(self, keys: tuple[str, ...]) -> Iterator[str]:
        """Take what a headline number must not stand without: the processors, and the facts of these names."""
        titles = f"| {self._term['item']} | {self._term['value']} |"
        rows = [line.text for line in self._lines if line.test_id is None and line.titles == titles]
        begins = tuple(f"| {self._term[key]} |" for key in keys)
        yield from (*rows[:2], *(row for row in rows if _GPU_ROW.match(row) or row.startswith(begins)))

    def _engines(self) -> Iterator[str]:
        """Take the first page's comparison of engines: workloads, times, versions; or why there is none."""
        term = self._term
        starts = (
            f"| {term['workload']} | {term['requests_asked_for']} |",
            f"| {term['workload']} | {term['engine']} | ",
            f"| {term['engine']} | {term['version']} |",
        )
        own = [line for line in self._lines if line.test_id is None]
        tables = [[line.text for line in own if (line.titles or "").startswith(start)] for start in starts]
        held = [table for table in tables if table]
        if not held:
            yield from filter(None, [self._why_absent(_PEERS)])
        for index, table in enumerate(held):
            yield from ([""] if index else []) + table

    def _checks(self, words: list[str]) -> Iterator[str]:
        """Take rows of a test's table of checks: the test, then the names of the checks."""
        test_id, *names = words
        if (absent := self._why_absent(test_id)) is not None:
            yield absent
            return
        start = f"| {self._term['check']} |"
        rows = [line.text for line in self._lines if line.test_id == test_id and (line.titles or "").startswith(start)]
        chosen = [self._only((row for row in rows if row.startswith(f"| `{name}` |")), name) for name in names]
        yield from (*rows[:2], *chosen)

    def _metrics(self, words: list[str]) -> Iterator[str]:
        """Take what a test says of metrics: the data of a headline metric, the rows of a supporting one."""
        test_id, *names = words
        if (absent := self._why_absent(test_id)) is not None:
            yield absent
            return
        for name in names:
            lines = [*self._data(test_id, name)] or [*self._supporting(test_id, name)]
            if not lines:
                raise QuotationError(f"the report holds no metric {name!r} of test {test_id}")
            yield from lines

    def _data(self, test_id: str, name: str) -> Iterator[str]:
        own = [line for line in self._lines if line.test_id == test_id and line.metric and line.metric[1] == name]
        label = f"**{self._term['data']}**{self._term['colon']}"
        start = next((index for index, line in enumerate(own) if line.text.startswith(label.rstrip())), None)
        if start is None:
            return
        title, said = f"{own[0].metric[0] if own[0].metric else ''} `{name}`", own[start].text[len(label) :]
        arms = [line.text.removeprefix("- ") for line in _items(own[start + 1 :])]
        yield from (f"- {title}{self._term['colon']}{text}" for text in ([said] if said.strip() else arms))

    def _supporting(self, test_id: str, name: str) -> Iterator[str]:
        colon = self._term["colon"]
        for line in self._lines:
            if line.test_id == test_id and line.titles is not None and f" `{name}` | " in line.text:
                cells = [cell.strip() for cell in line.text.strip("| ").split(" | ")]
                if len(cells) == _SUPPORTING_COLUMNS:
                    said = [cell for cell in cells[2:-1] if cell != "—"]
                    yield f"- {cells[0]}{colon}{cells[1]} {' · '.join(said)}"

    def _figure(self, words: list[str]) -> Iterator[str]:
        for line in self._lines:
            image = _IMAGE.match(line.text)
            if image is not None and image[3] == words[0]:
                yield f"![{image[1]}]({self._folder}{image[2]})"

    def _why_absent(self, test_id: str) -> str | None:
        label = f"**{self._term['not_measured']}**"
        own = (line.text for line in self._lines if line.test_id == test_id and line.text.startswith(label))
        return next(own, None)

    @staticmethod
    def _only(rows: Iterator[str], name: str) -> str:
        row = next(rows, None)
        if row is None:
            raise QuotationError(f"the report holds no check {name!r}")
        return row


def _items(lines: Iterable[_Line]) -> Iterator[_Line]:
    """Take the list items that begin after blank lines."""
    for line in lines:
        if line.text.startswith("- "):
            yield line
        elif line.text:
            return


def _placed(report: str) -> Iterator[_Line]:
    test_id: str | None = None
    metric: tuple[str, str] | None = None
    titles: str | None = None
    for text in report.split("\n"):
        if text.startswith(("# ", "## ", "### ")):
            found = _TEST.match(text)
            test_id, metric = (None if found is None else found[1]), None
        elif text.startswith("#### "):
            named = _METRIC.match(text)
            metric = None if named is None else (named[1], named[2])
        titles = (titles or text) if text.startswith("|") else None
        yield _Line(text, test_id, metric, titles)
