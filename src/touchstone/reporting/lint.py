"""Lints of the report: no typed-in digit in a template, the same numbers in both languages, no loose term or table.

Every lint returns its faults as readable lines; an empty tuple means that there is none.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from jinja2.lexer import (
    TOKEN_COMMENT,
    TOKEN_DATA,
    TOKEN_FLOAT,
    TOKEN_INTEGER,
    TOKEN_LINECOMMENT,
    TOKEN_STRING,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jinja2 import Environment

    from touchstone.reporting.markdown import Language

# Digits that name things: the tests of the plan, and words of the field that hold a digit.
TEST_IDS = ("0.1", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "4.1", "5.1")
WORDS_WITH_DIGITS = ("SHA-256", "p50", "p90", "p99", "macros.md.j2", "peers.md.j2")
# Integers that may stand inside a Jinja expression: an index, a step, a comparison with "none" or "one".
STRUCTURAL_INTEGERS = frozenset({"0", "1"})

_NAMES = re.compile(
    r"(?<![\w.])(?:" + "|".join(re.escape(name) for name in (*TEST_IDS, *WORDS_WITH_DIGITS)) + r")(?![\w%])"
)
_HEADING_NUMBER = re.compile(r"^(#{1,6} )\d+(?:\.\d+)*\.? ", re.MULTILINE)
_DIGITS = re.compile(r"\d[\d,.]*")
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_CJK = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+")
_FENCE = re.compile(r"^(```+)[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_MATH_FENCE = re.compile(r"^```math\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_HTML_TAG = re.compile(r"</?[a-z]+>")
_LINK_TARGET = re.compile(r"\]\([^)]*\)")
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_DELIMITER_CELL = re.compile(r"\s*:?-+:?\s*")


def digits_in_text(text: str) -> tuple[str, ...]:
    """Digits in a text that people typed, apart from heading numbers, test ids and words that hold a digit."""
    bare = _NAMES.sub("", _HEADING_NUMBER.sub(r"\1", text))
    return tuple(match.group() for match in _DIGITS.finditer(bare))


def template_digit_faults(environment: Environment, source: str) -> tuple[str, ...]:
    """Digits that a template states by itself; comments are free.

    Outside expressions: `digits_in_text`. Inside: no float, no integer but 0 and 1, and strings as outside.
    """
    faults: list[str] = []
    for line, kind, value in environment.lex(source):
        found = _digits_of_token(kind, value)
        faults.extend(f"line {line}: {digits} is typed in; let it come from the context" for digits in found)
    return tuple(faults)


def _digits_of_token(kind: str, value: str) -> tuple[str, ...]:
    if kind in {TOKEN_COMMENT, TOKEN_LINECOMMENT}:
        return ()
    if kind == TOKEN_FLOAT or (kind == TOKEN_INTEGER and value not in STRUCTURAL_INTEGERS):
        return (value,)
    return digits_in_text(value) if kind in {TOKEN_DATA, TOKEN_STRING} else ()


def numbers_in(markdown: str) -> Counter[str]:
    """Multiset of the numbers in a text; thousands separators do not count."""
    return Counter(match.group().replace(",", "") for match in _NUMBER.finditer(markdown))


def language_number_faults(first: str, second: str) -> tuple[str, ...]:
    """Numbers that stand more often in one of two renderings than in the other."""
    ours, theirs = numbers_in(first), numbers_in(second)
    numbers = sorted(ours.keys() | theirs.keys())
    return tuple(
        f"{number}: {ours[number]} times in the first language, {theirs[number]} times in the second"
        for number in numbers
        if ours[number] != theirs[number]
    )


def unsourced_number_faults(markdown: str, sources: Iterable[str]) -> tuple[str, ...]:
    """Numbers of a rendering that are in none of the texts that it was made from."""
    known = {number for source in sources for number in numbers_in(source)}
    return tuple(
        f"{number}: no value of the context holds it" for number in sorted(numbers_in(markdown)) if number not in known
    )


def glossary_faults(
    chinese: str, english: str, terms: Mapping[str, Mapping[Language, str]], units: Iterable[str] = ()
) -> tuple[str, ...]:
    """Chinese characters in the English prose, and English terms in the Chinese prose that the glossary translates.

    Code, mathematics and link targets are not prose; a unit in brackets is a symbol.
    """
    faults = [f"English report: {match.group()!r} is not translated" for match in _CJK.finditer(prose(english))]
    chinese_prose = prose(chinese)
    for unit in units:
        chinese_prose = chinese_prose.replace(f"[{unit}]", "")
    for key, term in terms.items():
        if _is_translated(term) and _word_pattern(term["en"]).search(chinese_prose):
            faults.append(f"Chinese report: {term['en']!r} stands where the glossary ({key}) says {term['zh']!r}")
    return tuple(faults)


def _is_translated(term: Mapping[Language, str]) -> bool:
    """Whether the Chinese term is Chinese and does not hold the English one; punctuation is no term."""
    is_word = any(character.isalpha() for character in term["en"])
    return is_word and bool(_CJK.search(term["zh"])) and term["en"].casefold() not in term["zh"].casefold()


def _word_pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(words)}(?![\w-])", re.IGNORECASE | re.ASCII)


def prose(markdown: str) -> str:
    """Return the text without fenced blocks, code spans, link targets and HTML tags."""
    return _HTML_TAG.sub("", _LINK_TARGET.sub("]", _CODE_SPAN.sub(" ", _FENCE.sub("", markdown))))


def table_faults(markdown: str) -> tuple[str, ...]:
    """Tables that GitHub would not show as meant: ragged rows, a bad delimiter row, no blank line before."""
    lines = _FENCE.sub(lambda match: "\n" * match.group().count("\n"), markdown).split("\n")
    faults: list[str] = []
    for start, rows in _tables(lines):
        if start and lines[start - 1].strip():
            faults.append(f"line {start + 1}: no blank line before the table")
        faults.extend(_faults_of_rows(start, rows))
    return tuple(faults)


def _tables(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    start = None
    for index, line in enumerate([*lines, ""]):
        if line.startswith("|"):
            start = index if start is None else start
        elif start is not None:
            yield start, lines[start:index]
            start = None


def _faults_of_rows(start: int, rows: list[str]) -> Iterator[str]:
    counts = [len(_cells(row)) for row in rows]
    if len(rows) < 2 or not all(_DELIMITER_CELL.fullmatch(cell) for cell in _cells(rows[1])):  # noqa: PLR2004  header, delimiter
        yield f"line {start + 1}: a table needs a header and a delimiter row"
        return
    if len(rows) == 2:  # noqa: PLR2004  header, delimiter
        yield f"line {start + 1}: the table has no rows"
    for offset, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if count != counts[0] or not row.rstrip().endswith("|"):
            yield f"line {start + offset + 1}: {count} cells where the header has {counts[0]}"


def _cells(row: str) -> list[str]:
    return _CELL_BORDER.split(row.strip())[1:-1]


def math_faults(markdown: str) -> tuple[str, ...]:
    """Formulas that MathJax on GitHub would refuse: unbalanced braces, a bare per cent sign, no ASCII, empty."""
    faults: list[str] = []
    for match in _MATH_FENCE.finditer(markdown):
        formula, line = match.group(1), markdown.count("\n", 0, match.start()) + 1
        bare = re.sub(r"\\[\\{}%]", "", formula)
        if bare.count("{") != bare.count("}"):
            faults.append(f"line {line}: braces of the formula do not balance")
        if "%" in bare:
            faults.append(f"line {line}: a bare % begins a comment in the formula")
        if not formula.strip() or not formula.isascii():
            faults.append(f"line {line}: the formula is empty or holds a character outside ASCII")
    if "$$" in _FENCE.sub("", markdown):
        faults.append("display mathematics stands outside a math fence, where Markdown eats its backslashes")
    return tuple(faults)
