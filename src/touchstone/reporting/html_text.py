"""Markdown of a report to HTML: tables that scroll, formulas as MathML, figures by reference, headings with ids.

The Markdown is the report's own, and only three kinds of HTML may stand in it: `<details>`, `</details>` and
`<summary>` lines of the templates. Every other text is escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

_DISCLOSURE = re.compile(r"(?:<details>|</details>|<summary>[^<>]*</summary>|\s)*")
_TASK = re.compile(r"\[([ x])\] ")
_UNIT = re.compile(r"(?<=\d) (?=%|×|tok/s|ms\b|s\b|GB\b|MB\b|kB\b)")
_BOXES = {"x": "☑ ", " ": "☐ "}
_DEEPEST_ID = 4


@dataclass(frozen=True, slots=True)
class Heading:
    """One heading of a document: its level, its id in the page, and its text as HTML."""

    level: int
    id: str
    html: str


@dataclass(frozen=True, slots=True)
class Document:
    """One Markdown document as HTML: the title, everything after it, and the headings below the title."""

    title: str
    body: str
    headings: tuple[Heading, ...]


def document(markdown: str, prefix: str, view_boxes: Mapping[str, str]) -> Document:
    """Render a document whose first line is its title; the ids of its headings are `prefix-1`, `prefix-2`, ...

    `view_boxes` has, by file name, the view box of every figure that the page holds; an image without one is a
    KeyError. Equal structure gives equal ids, so that two languages can be read side by side.
    """
    parser = _parser(view_boxes)
    environment: dict[str, Any] = {"prefix": prefix, "headings": []}
    title, _, rest = markdown.partition("\n")
    body = parser.render(rest, environment)
    return Document(title.removeprefix("# ").strip(), body, tuple(environment["headings"]))


def _parser(view_boxes: Mapping[str, str]) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.core.ruler.before("text_join", "inline_formulas", _inline_formulas)
    parser.core.ruler.push("task_items", _task_items)
    parser.core.ruler.push("units", _keep_units)
    parser.core.ruler.push("alignment", _name_alignment)
    parser.core.ruler.push("headings", _number_headings)
    parser.core.ruler.push("captions", _mark_captions)
    rules: Mapping[str, Callable[..., str]] = {
        "html_block": _html_block,
        "html_inline": _html_inline,
        "fence": _fence,
        "formula": _formula,
        "table_open": _table_open,
        "table_close": _table_close,
        "image": lambda _, tokens, index, *__: _figure(tokens[index], view_boxes),
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def mathml(formula: str, *, display: bool) -> str:
    """Convert a LaTeX formula to MathML, which browsers show without any script."""
    return str(convert(formula.strip(), display="block" if display else "inline"))


# --- rules over the tokens ------------------------------------------------------------------------------------------


def _inline(state: StateCore) -> Iterator[Token]:
    return (token for token in state.tokens if token.type == "inline" and token.children)


def _inline_formulas(state: StateCore) -> None:
    """Take a code span between dollar signs for a formula, as GitHub does: $`x`$.

    An escaped dollar sign is text from outside. It is a token of its own kind until the tokens of a text are joined.
    """
    for token in _inline(state):
        children = token.children or []
        for before, code, after in zip(children, children[1:], children[2:], strict=False):
            if (before.type, code.type, after.type) != ("text", "code_inline", "text"):
                continue
            if before.content.endswith("$") and after.content.startswith("$"):
                code.type = "formula"
                before.content, after.content = before.content[:-1], after.content[1:]


def _task_items(state: StateCore) -> None:
    """Show the boxes of a task list as characters: they say something, and nobody ticks them."""
    for opening, paragraph in zip(state.tokens, state.tokens[2:], strict=False):
        if opening.type == "list_item_open" and paragraph.children:
            first = paragraph.children[0]
            first.content = _TASK.sub(lambda match: _BOXES[match.group(1)], first.content, count=1)


def _keep_units(state: StateCore) -> None:
    """Keep a number and its unit on one line."""
    for token in _inline(state):
        for child in token.children or []:
            if child.type == "text":
                child.content = _UNIT.sub("\u00a0", child.content)


def _name_alignment(state: StateCore) -> None:
    """Say "right" by a class of one letter, and left, the usual way, by nothing: a page has ten thousands of cells."""
    for token in state.tokens:
        if token.type in {"td_open", "th_open"} and "style" in token.attrs:
            token.attrs = {"class": "r"} if str(token.attrs["style"]).endswith("right") else {}


def _number_headings(state: StateCore) -> None:
    headings: list[Heading] = state.env["headings"]
    write = RendererHTML(state.md).renderInline
    for opening, content in zip(state.tokens, state.tokens[1:], strict=False):
        if opening.type == "heading_open" and (level := int(opening.tag[1:])) <= _DEEPEST_ID:
            name = f"{state.env['prefix']}-{len(headings) + 1}"
            opening.attrSet("id", name)
            html = write(content.children or [], state.md.options, state.env)
            headings.append(Heading(level, name, html))


def _mark_captions(state: StateCore) -> None:
    """Mark the paragraph right after a figure, which repeats its caption for the eye."""
    figure_before = False
    for opening, content in zip(state.tokens, state.tokens[1:], strict=False):
        if opening.type == "paragraph_open":
            if figure_before:
                opening.attrSet("class", "caption")
            children = content.children or []
            figure_before = len(children) == 1 and children[0].type == "image"


# --- rules that write -----------------------------------------------------------------------------------------------


def _html_block(_: object, tokens: Sequence[Token], index: int, *__: object) -> str:
    content = tokens[index].content
    return content if _DISCLOSURE.fullmatch(content) else f"<p>{escape(content)}</p>\n"


def _html_inline(_: object, tokens: Sequence[Token], index: int, *__: object) -> str:
    return escape(tokens[index].content)


def _fence(_: object, tokens: Sequence[Token], index: int, *__: object) -> str:
    content = tokens[index].content
    if tokens[index].info.strip() == "math":
        return f'<div class="formula" tabindex="0">{mathml(content, display=True)}</div>\n'
    return f'<pre tabindex="0"><code>{escape(content)}</code></pre>\n'


def _formula(_: object, tokens: Sequence[Token], index: int, *__: object) -> str:
    return mathml(tokens[index].content, display=False)


def _table_open(*_: object) -> str:
    return '<div class="table" tabindex="0"><table>\n'


def _table_close(*_: object) -> str:
    return "</table></div>\n"


def _figure(token: Token, view_boxes: Mapping[str, str]) -> str:
    """Show a figure that the page holds once, by reference; its alternative text is its caption."""
    name = PurePosixPath(str(token.attrGet("src"))).name
    return (
        f'<svg class="figure" role="img" viewBox="{view_boxes[name]}" aria-label="{escape(token.content)}">'
        f'<use href="#{figure_id(name)}"/></svg>'
    )


def figure_id(name: str) -> str:
    """Name a figure file inside the page: latency-1.1.svg is figure-latency-1-1."""
    return "figure-" + re.sub(r"\W+", "-", name.removesuffix(".svg"))
