"""What Python's own syntax tree says about a file: its lines, classes and functions, and what each tool should count.

Cyclomatic complexity after McCabe (1976) is 1 plus the number of decisions. radon and lizard agree on most decisions;
where they do not, the syntax tree tells how many points each of them gives, and the `Cause` names the disagreement.
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Scopes = tuple[FunctionNode | ast.ClassDef, ...]

LAYOUT = frozenset({tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER})
NO_CODE = LAYOUT | {tokenize.COMMENT}


class Cause(StrEnum):
    """A known reason for radon and lizard to differ from each other or from the syntax tree."""

    ASSERT = "radon counts an assert"
    INSIDE_ASSERT = "radon does not look inside an assert"
    LOOP_ELSE = "radon counts the else of a loop"
    TRY_ELSE = "radon counts the else of a try"
    EXCEPT_STAR = "radon does not know except*"
    HEADER = "radon does not look into defaults and annotations of a function"
    INNER_DECORATOR = "radon does not look into decorators of a nested function"
    INNER_CLASS = "radon does not look into a class inside a function"
    FINALLY = "lizard counts finally"
    IRREFUTABLE_CASE = "lizard counts a case that always matches"
    CASE_GUARD = "lizard counts the guard of a case"
    CASE_NAME = "lizard takes a variable named case for the keyword"
    MISPLACED = "lizard charges decisions to another function"
    RADON_HIDES_FUNCTION = "radon hides a function inside a function or an inner class"
    RADON_HIDES_CLASS = "radon hides a class inside a function or a class"
    ONE_LINE = "lizard omits a function on one line"
    REPLACED = "lizard reports another function in its place"
    FORGIVEN = "lizard omits the next function that ends after 'lizard forgive'"
    GENERATED = "lizard stops at 'GENERATED CODE'"
    UNREADABLE = "radon exits 0 and lizard guesses on a file that is no Python"


class Decision(NamedTuple):
    """The points that radon and lizard give to one construct; `cause` is None where they agree by nature."""

    cause: Cause | None
    radon: int
    lizard: int


@dataclass(slots=True)
class Function:
    """One `def`: where it is, whether radon shows it, and the decisions that belong to it.

    `on_one_line`: the body begins on the line that ends the header, as in `def f(): ...`.
    """

    node: FunctionNode
    name: str
    radon_shows: bool
    on_one_line: bool
    decisions: list[Decision] = field(default_factory=list)

    @property
    def line(self) -> int:
        """The line of `def`, decorators excluded."""
        return self.node.lineno

    @property
    def num_lines(self) -> int:
        """Lines from `def` to the last statement, nested functions and docstring included, decorators excluded."""
        return self.end_line - self.line + 1

    @property
    def end_line(self) -> int:
        """The last line of the last statement."""
        return self.node.end_lineno or self.node.lineno


@dataclass(frozen=True, slots=True)
class SyntaxTree:
    """Everything that is counted from the tree and the token stream of one file."""

    lines: tuple[str, ...]
    source_lines: int
    functions: tuple[Function, ...]
    num_classes: int
    radon_class_lines: frozenset[int]
    tokens: tuple[tokenize.TokenInfo, ...]
    case_lines: frozenset[int]


def read_tree(source: str) -> SyntaxTree:
    """Parse `source` (its newlines line feeds); SyntaxError or tokenize.TokenError when it is no Python."""
    module = ast.parse(source)
    tokens = tuple(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = split_lines(source)
    collector = _Collector(lines)
    collector.collect(module)
    return SyntaxTree(
        lines=lines,
        source_lines=_count_source_lines(module, tokens),
        functions=tuple(collector.functions),
        num_classes=collector.num_classes,
        radon_class_lines=frozenset(collector.radon_class_lines),
        tokens=tokens,
        case_lines=frozenset(n.pattern.lineno for n in ast.walk(module) if isinstance(n, ast.match_case)),
    )


def split_lines(text: str) -> tuple[str, ...]:
    """Split at line feeds; a line feed at the end of the file ends its last line and begins no other."""
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def _count_source_lines(module: ast.Module, tokens: tuple[tokenize.TokenInfo, ...]) -> int:
    """Count lines that hold code: no blank lines, no comments, no statements that are only a string (docstrings)."""
    occupied: set[int] = set()
    for token in tokens:
        if token.type not in NO_CODE:
            occupied.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            occupied.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(occupied)


class _Collector:
    """Walk a module once; give every decision to the innermost function around it."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self._lines = lines
        self.functions: list[Function] = []
        self.num_classes = 0
        self.radon_class_lines: set[int] = set()

    def collect(self, module: ast.Module) -> None:
        self._walk_children(module, owner=None, scopes=(), blind=None)
        self.functions.sort(key=lambda function: function.line)

    def _walk(self, node: ast.AST, owner: Function | None, scopes: Scopes, blind: Cause | None) -> None:
        """`scopes` are the classes and functions around the node; `blind` is why radon does not see it."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._enter_function(node, owner, scopes, blind)
            return
        if isinstance(node, ast.ClassDef):
            self._enter_class(node, owner, scopes, blind)
            return
        if owner is not None:
            owner.decisions.extend(_weigh(node) if blind is None else _weigh_blind(node, blind))
        if isinstance(node, ast.Assert):
            blind = blind or Cause.INSIDE_ASSERT
        self._walk_children(node, owner, scopes, blind)

    def _walk_children(self, node: ast.AST, owner: Function | None, scopes: Scopes, blind: Cause | None) -> None:
        for child in ast.iter_child_nodes(node):
            self._walk(child, owner, scopes, blind)

    def _enter_function(self, node: FunctionNode, owner: Function | None, scopes: Scopes, blind: Cause | None) -> None:
        function = Function(
            node=node,
            name=".".join(scope.name for scope in (*scopes, node)),
            radon_shows=not scopes or (len(scopes) == 1 and isinstance(scopes[0], ast.ClassDef)),
            on_one_line=not self._begins_line(node.body[0]),
        )
        self.functions.append(function)
        for decorator in node.decorator_list:
            self._walk(decorator, owner, scopes, blind or Cause.INNER_DECORATOR)
        header = [node.args, *([node.returns] if node.returns else []), *getattr(node, "type_params", [])]
        for part in header:
            self._walk(part, function, (*scopes, node), Cause.HEADER)
        for statement in node.body:
            self._walk(statement, function, (*scopes, node), None)

    def _begins_line(self, node: ast.stmt) -> bool:
        before = self._lines[node.lineno - 1].encode()[: node.col_offset]  # columns of the tree are UTF-8 bytes
        return not before.strip()

    def _enter_class(self, node: ast.ClassDef, owner: Function | None, scopes: Scopes, blind: Cause | None) -> None:
        self.num_classes += 1
        if not scopes:
            self.radon_class_lines.add(node.lineno)
        self._walk_children(node, owner, (*scopes, node), blind or Cause.INNER_CLASS)


def decisions_in_string(literal: str) -> int:
    """Count the decisions in a string literal: only the replacement fields of an f-string hold any."""
    if not literal.lower().startswith(("f", "rf")):
        return 0
    return sum(decision.lizard for node in ast.walk(ast.parse(literal, mode="eval")) for decision in _weigh(node))


def _weigh(node: ast.AST) -> Iterator[Decision]:
    """Say what each tool gives to a node that both of them see."""
    match node:
        case ast.If() | ast.IfExp():
            yield Decision(None, 1, 1)
        case ast.For() | ast.AsyncFor() | ast.While():
            yield Decision(None, 1, 1)
            yield Decision(Cause.LOOP_ELSE, bool(node.orelse), 0)
        case ast.comprehension():
            yield Decision(None, 1 + len(node.ifs), 1 + len(node.ifs))
        case ast.BoolOp():
            yield Decision(None, len(node.values) - 1, len(node.values) - 1)
        case ast.Try():
            yield Decision(None, len(node.handlers), len(node.handlers))
            yield Decision(Cause.TRY_ELSE, bool(node.orelse), 0)
            yield Decision(Cause.FINALLY, 0, bool(node.finalbody))
        case ast.TryStar():
            yield Decision(Cause.EXCEPT_STAR, 0, len(node.handlers))
            yield Decision(Cause.FINALLY, 0, bool(node.finalbody))
        case ast.Match():
            yield from _weigh_match(node)
        case ast.Assert():
            yield Decision(Cause.ASSERT, 1, 0)
        case _:
            pass


def _weigh_match(node: ast.Match) -> Iterator[Decision]:
    """Weigh a match; radon gives one point less when any case is `_` or a bare name, guarded or not."""
    irrefutable = any(isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None for case in node.cases)
    yield Decision(None, len(node.cases) - irrefutable, len(node.cases) - irrefutable)
    yield Decision(Cause.IRREFUTABLE_CASE, 0, irrefutable)
    yield Decision(Cause.CASE_GUARD, 0, sum(case.guard is not None for case in node.cases))


def _weigh_blind(node: ast.AST, cause: Cause) -> Iterator[Decision]:
    """Say what lizard gives to a node that radon does not visit."""
    yield Decision(cause, 0, sum(decision.lizard for decision in _weigh(node)))
