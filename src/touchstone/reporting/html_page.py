"""Both reports as one HTML file that asks for nothing: figures, style and script stand inside.

A policy in the page itself forbids every request, so that a file from a stranger is as safe as a picture. The switch
of languages works without the script, which adds the reader's own language, place and choice of light or dark.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from touchstone.reporting.html_figures import symbol
from touchstone.reporting.html_text import Document, document
from touchstone.reporting.markdown import LANGUAGES, TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from touchstone.reporting.markdown import Glossary, Language

FOLDER = TEMPLATES / "html"
_CONTENTS_LEVELS = (2, 3)
_FURTHER_REPORT = re.compile(r"\]\(([\w-]+)/report\.(?:zh|en)\.md\)")
_TAGS: Mapping[Language, str] = {"zh": "zh-Hans", "en": "en"}
_NAMES: Mapping[Language, str] = {"zh": "中文", "en": "English"}


@dataclass(frozen=True, slots=True)
class Edition:
    """One language of the page."""

    key: Language
    tag: str
    name: str
    contents_title: str
    title: str
    body: Markup
    contents: tuple[tuple[int, str, Markup], ...]


def html_page(texts: Mapping[Language, str], figures: Sequence[Path], glossary: Glossary) -> str:
    """Make the page of a report from its Markdown in both languages and its SVG files; same input, same bytes."""
    symbols = {path.name: symbol(path.name, path.read_text(encoding="utf-8")) for path in figures}
    view_boxes = {name: held.view_box for name, held in symbols.items()}
    editions = tuple(_edition(key, document(_without_link(texts[key]), key, view_boxes), glossary) for key in LANGUAGES)
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=True)
    return environment.get_template("page.html").render(
        editions=editions,
        symbols=_finished("".join(held.markup for held in symbols.values())),
        style=_finished((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=_finished(script),
        policy=_policy(script),
    )


def _edition(key: Language, made: Document, glossary: Glossary) -> Edition:
    contents = tuple(
        (heading.level, heading.id, _finished(heading.html))
        for heading in made.headings
        if heading.level in _CONTENTS_LEVELS
    )
    title = glossary.term("contents", key)
    return Edition(key, _TAGS[key], _NAMES[key], title, made.title, _finished(made.body), contents)


def _finished(html: str) -> Markup:
    return Markup(html)  # noqa: S704  files of the repository, and what html_text has escaped


def _without_link(markdown: str) -> str:
    """Drop the link to the report in the other language, which is on the same page; others lead to such pages."""
    lines = markdown.split("\n")
    own = "\n".join(line for line in lines if not (line.startswith("[") and line.endswith(".md)")))
    return _FURTHER_REPORT.sub(r"](\1/report.html)", own)


def _policy(script: str) -> str:
    """Allow this page's own script by its hash and its own style; refuse every request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
