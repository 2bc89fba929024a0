"""Which function lizard charges with which lines: lizard reads tokens and indentation, not syntax.

A function exists for lizard from the first line that is indented more than the line before, until the first line that
is indented less. A one-line `def f(): ...` therefore never closes: what follows is charged to it, and when the
enclosing function ends, the one-liner is reported in its place. A continuation line left of the body ends a function
early. This module follows these rules over Python's own tokens, so that each misplaced decision is predicted exactly.
"""

from __future__ import annotations

import tokenize
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from syntax_tree import LAYOUT, NO_CODE, Cause, decisions_in_string

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syntax_tree import Function, SyntaxTree

KEYWORDS = frozenset({"if", "elif", "for", "while", "except", "finally", "and", "or"})
VARIABLE_FOLLOWERS = frozenset(
    {"=", ".", ":", ",", "(", "[", "+=", "-=", "*=", "/=", "//=", "&=", "|=", "^=", "<<=", ">>=", ":="}
)
"""After `case` at the start of a line, these tell lizard that it is a variable."""
TAB_WIDTH = 8
MODULE = 0
"""The line number under which lizard keeps code outside functions."""


@dataclass(frozen=True, slots=True)
class LizardLayout:
    """Predicted for each line of `def`, where the syntax tree alone cannot tell.

    How often it is reported; how many decisions are charged to it beyond its own; how many variables named `case` are
    taken for the keyword; why it is missing.
    """

    reported: Counter[int]
    misplaced: dict[int, int]
    case_names: Counter[int]
    omitted: dict[int, Cause]


def predict_layout(tree: SyntaxTree) -> LizardLayout:
    """Follow lizard's rules over the tokens of a file; lines of `def` are the keys of every field."""
    reader = _Reader(tree)
    reader.read()
    owned = _decisions_by_syntax(tree)
    lines = [function.line for function in tree.functions]
    return LizardLayout(
        reported=Counter(reader.reported),
        misplaced={line: reader.charged[line] - owned[line] for line in lines},
        case_names=reader.case_names,
        omitted={f.line: _why_omitted(f, reader) for f in tree.functions if f.line not in reader.reported},
    )


def _why_omitted(function: Function, reader: _Reader) -> Cause:
    if function.line in reader.forgiven:
        return Cause.FORGIVEN
    if reader.stopped_at is not None and (function.line > reader.stopped_at or function.line in reader.open_at_stop):
        return Cause.GENERATED
    return Cause.ONE_LINE if function.on_one_line else Cause.REPLACED


def _decisions_by_syntax(tree: SyntaxTree) -> Counter[int]:
    """Decision keywords by the line of the innermost `def` around them."""
    owned: Counter[int] = Counter()
    pending = sorted(tree.functions, key=lambda function: function.line, reverse=True)
    around: list[Function] = []
    for token in tree.tokens:
        while around and token.start >= (around[-1].end_line, around[-1].node.end_col_offset or 0):
            around.pop()
        while pending and token.start >= (pending[-1].line, pending[-1].node.col_offset):
            around.append(pending.pop())
        owned[around[-1].line if around else MODULE] += _count_decisions(token, tree)
    return owned


def _count_decisions(token: tokenize.TokenInfo, tree: SyntaxTree) -> int:
    if token.type == tokenize.STRING:  # up to Python 3.11 an f-string is one token, whatever it computes
        return decisions_in_string(token.string)
    return token.type == tokenize.NAME and (token.string in KEYWORDS or _is_case(token, tree))


def _is_case(token: tokenize.TokenInfo, tree: SyntaxTree) -> bool:
    line, column = token.start
    return token.string == "case" and line in tree.case_lines and not tree.lines[line - 1][:column].strip()


def _find_case_names(tree: SyntaxTree) -> Iterator[tuple[int, int]]:
    """Find variables named `case` that lizard takes for the keyword: first in a line, or right after the keyword."""
    starts = [(token, first) for token, first in _with_line_starts(tree.tokens) if token.type not in LAYOUT]
    after_keyword = False
    for (token, first), (follower, _) in pairwise(starts):
        is_keyword = _is_case(token, tree)
        looks_like_keyword = after_keyword or (first and follower.string not in VARIABLE_FOLLOWERS)
        if token.string == "case" and not is_keyword and looks_like_keyword:
            yield token.start
        after_keyword = is_keyword


class _Reader:
    """lizard's bookkeeping: a stack of indentations, some of which carry a function."""

    def __init__(self, tree: SyntaxTree) -> None:
        self.reported: list[int] = []
        self.charged: Counter[int] = Counter()
        self.case_names: Counter[int] = Counter()
        self.forgiven: set[int] = set()
        self.open_at_stop: set[int] = set()
        self.stopped_at: int | None = None
        self._tree = tree
        self._case_names = frozenset(_find_case_names(tree))
        self._blocks: list[tuple[int, int | None]] = []
        self._current = MODULE
        self._pending: int | None = None
        self._forgive = False
        self._header = _Header()

    def read(self) -> None:
        """Read until the end, where every block closes, or until a comment stops lizard, where none does."""
        for token, begins_line in _with_line_starts(self._tree.tokens):
            if token.type == tokenize.COMMENT:
                if self._obey_comment(token):
                    return
            elif token.type not in NO_CODE:
                self._take(token, begins_line=begins_line)
        self._indent(0, "")

    def _take(self, token: tokenize.TokenInfo, *, begins_line: bool) -> None:
        if begins_line and self._header.lets_indentation_count:
            self._indent(self._width(token), token.string)
        self.charged[self._current] += _count_decisions(token, self._tree)
        self.case_names[self._current] += token.start in self._case_names
        if self._header.feed(token):
            self._current = self._pending = token.start[0]

    def _width(self, token: tokenize.TokenInfo) -> int:
        line, column = token.start
        return len(self._tree.lines[line - 1][:column].replace("\t", " " * TAB_WIDTH))

    def _obey_comment(self, token: tokenize.TokenInfo) -> bool:
        """Return whether the comment stops lizard."""
        text = token.string.lstrip("#").strip().removeprefix("#")
        if text.startswith("lizard forgive"):
            self._forgive = self._forgive or not text.startswith("lizard forgive global")
            return False
        if "GENERATED CODE" not in text:
            return False
        self.stopped_at = token.start[0]
        self.open_at_stop = {line for _, line in self._blocks if line is not None} | {self._current}
        return True

    def _indent(self, width: int, first_token: str) -> None:
        while self._blocks and self._blocks[-1][0] > width and not first_token.startswith(")"):
            self._close_block()
        if width > (self._blocks[-1][0] if self._blocks else 0):
            self._blocks.append((width, self._pending))
            self._pending = None

    def _close_block(self) -> None:
        _, function = self._blocks.pop()
        self._pending = None
        if function is None:
            return
        if self._forgive:
            self.forgiven.add(self._current)
        else:
            self.reported.append(self._current)
        self._forgive = False
        self._current = next((line for _, line in reversed(self._blocks) if line is not None), MODULE)


class _Header:
    """Where lizard is inside `def name(...)`: there, indentation counts only after a closing parenthesis."""

    def __init__(self) -> None:
        self._expects_name = False
        self._depth = 0
        self._open = False
        self._last = ""

    @property
    def lets_indentation_count(self) -> bool:
        return not self._open or self._last == ")"

    def feed(self, token: tokenize.TokenInfo) -> bool:
        """Take the next token; return whether it is the name of a new function."""
        text = token.string
        if self._expects_name:
            self._expects_name, self._open, self._depth, self._last = False, True, 0, text
            return True
        if self._open:
            self._last = text
            self._depth += (text in {"(", "[", "{"}) - (text in {")", "]", "}"})
            self._open = not (self._depth == 0 and text == ")")
        elif text == "def":
            self._expects_name = True
        return False


def _with_line_starts(tokens: tuple[tokenize.TokenInfo, ...]) -> Iterator[tuple[tokenize.TokenInfo, bool]]:
    """Pair each token with whether it is the first of its line; joined lines and strings begin none."""
    begins_line = True
    for token in tokens:
        yield token, begins_line
        if token.type in {tokenize.NL, tokenize.NEWLINE}:
            begins_line = True
        elif token.type not in NO_CODE:
            begins_line = False
