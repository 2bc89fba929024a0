"""Join radon and lizard to the syntax tree on the line of `def`, and explain every difference or name it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lizard
from radon.complexity import cc_visit
from radon.visitors import Class

from lizard_layout import predict_layout
from syntax_tree import Cause, read_tree
from touchstone.records import FunctionMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lizard_layout import LizardLayout
    from syntax_tree import Function, SyntaxTree


@dataclass(frozen=True, slots=True)
class ToolCounts:
    """What one tool reports for a file: complexity by line of `def`, every report kept; classes for radon only."""

    complexities: dict[int, list[int]]
    class_lines: frozenset[int] = frozenset()

    @property
    def num_functions(self) -> int:
        """Functions as the tool would count them, twice reported ones twice."""
        return sum(map(len, self.complexities.values()))

    def complexity(self, line: int) -> int | None:
        """Look up the complexity of the function at `line`; None when it does not report one."""
        found = self.complexities.get(line)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class JoinedFile:
    """One file after the join. `unexplained` holds one sentence a difference, each beginning with file:line."""

    source_lines: int
    num_classes: int
    functions: tuple[FunctionMetrics, ...]
    radon: ToolCounts
    lizard: ToolCounts
    file_causes: frozenset[Cause]
    unexplained: tuple[str, ...]


def ask_radon(source: str) -> ToolCounts:
    """Take radon's default view, as `radon cc` prints it: functions, classes and methods, nothing nested deeper."""
    found: dict[int, list[int]] = {}
    classes = set()
    for block in cc_visit(source):
        if isinstance(block, Class):
            classes.add(block.lineno)
        else:
            found.setdefault(block.lineno, []).append(block.complexity)
    return ToolCounts(found, frozenset(classes))


def ask_lizard(file: str, source: str) -> ToolCounts:
    """Take lizard's function list with its default extensions; `file` only tells it the language."""
    found: dict[int, list[int]] = {}
    for function in lizard.analyze_file.analyze_source_code(file, source).function_list:
        found.setdefault(function.start_line, []).append(function.cyclomatic_complexity)
    return ToolCounts(found)


def join(file: str, source: str) -> JoinedFile:
    """Measure `source` with all three; SyntaxError when it is no Python."""
    tree = read_tree(source)
    layout = predict_layout(tree)
    radon, liz = ask_radon(source), ask_lizard(file, source)
    return JoinedFile(
        source_lines=tree.source_lines,
        num_classes=tree.num_classes,
        functions=tuple(_describe(file, f, layout, radon, liz) for f in tree.functions),
        radon=radon,
        lizard=liz,
        file_causes=frozenset({Cause.RADON_HIDES_CLASS} if tree.num_classes > len(tree.radon_class_lines) else ()),
        unexplained=tuple(f"{file}:{text}" for text in _unexplained(tree, layout, radon, liz)),
    )


def _describe(
    file: str, function: Function, layout: LizardLayout, radon: ToolCounts, liz: ToolCounts
) -> FunctionMetrics:
    return FunctionMetrics(
        file=file,
        line=function.line,
        name=function.name,
        num_lines=function.num_lines,
        complexity_radon=radon.complexity(function.line),
        complexity_lizard=liz.complexity(function.line),
        difference_causes=tuple(sorted(_causes(function, layout))),
    )


def _causes(function: Function, layout: LizardLayout) -> set[Cause]:
    """Why the tools differ on this function, whether or not the differences cancel out."""
    points: Counter[Cause] = Counter()
    for cause, radon, liz in function.decisions:
        if cause is not None:
            points[cause] += abs(radon - liz)
    causes = {cause for cause, weight in points.items() if weight}
    if layout.misplaced[function.line]:
        causes.add(Cause.MISPLACED)
    if layout.case_names[function.line]:
        causes.add(Cause.CASE_NAME)
    if not function.radon_shows:
        causes.add(Cause.RADON_HIDES_FUNCTION)
    if function.line in layout.omitted:
        causes.add(layout.omitted[function.line])
    return causes


def _unexplained(tree: SyntaxTree, layout: LizardLayout, radon: ToolCounts, liz: ToolCounts) -> Iterator[str]:
    """Say, for every line and both tools, where the report is not exactly what the causes predict."""
    radon_expected = {
        function.line: [1 + sum(decision.radon for decision in function.decisions)]
        for function in tree.functions
        if function.radon_shows
    }
    lizard_expected = {
        function.line: [_lizard_complexity(function, layout)] * layout.reported[function.line]
        for function in tree.functions
        if layout.reported[function.line]
    }
    names = {function.line: function.name for function in tree.functions}
    yield from _mismatches("radon", names, radon.complexities, radon_expected)
    yield from _mismatches("lizard", names, liz.complexities, lizard_expected)
    for line in sorted(radon.class_lines ^ tree.radon_class_lines):
        yield f"{line} class: radon and the syntax tree disagree that a class is here"


def _lizard_complexity(function: Function, layout: LizardLayout) -> int:
    own = 1 + sum(decision.lizard for decision in function.decisions)
    return own + layout.misplaced[function.line] + layout.case_names[function.line]


def _mismatches(
    tool: str, names: dict[int, str], observed: dict[int, list[int]], expected: dict[int, list[int]]
) -> Iterator[str]:
    for line in sorted(observed.keys() | expected.keys()):
        got, predicted = observed.get(line), expected.get(line)
        if got != predicted:
            name = names.get(line, "no function of the syntax tree")
            yield f"{line} {name}: {tool} reports {_spell(got)}, its known habits predict {_spell(predicted)}"


def _spell(complexities: list[int] | None) -> str:
    return "nothing" if complexities is None else " and ".join(map(str, complexities))
