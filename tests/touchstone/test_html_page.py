from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "input", "br", "hr", "use", "path", "rect", "mspace"}
OUTSIDE = re.compile(r'(?:src|href|action|data|poster|srcset)="(?!#)|@import|url\((?!#)', re.IGNORECASE)


class Structure(HTMLParser):
    """Collects ids, references and headings, and what was opened and never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: dict[str, list[str]] = {"zh": [], "en": []}

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.references += [values[name].removeprefix("#") for name in ("href", "for") if name in values]
        if re.fullmatch("h[2-4]", tag):
            self.headings[values["id"].partition("-")[0]].append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"


@pytest.fixture(scope="module")
def run_dir(published) -> Path:
    return published.folder


@pytest.fixture(scope="module")
def page(run_dir) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def structure(page) -> Structure:
    parser = Structure()
    parser.feed(page)
    return parser


def test_the_page_asks_for_nothing_outside_of_itself(page):
    assert OUTSIDE.findall(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)) == []
    assert "http" not in page.replace("http://www.w3.org/", "").replace("http-equiv", "")


def test_the_policy_of_the_page_allows_its_own_script_and_no_other(page):
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1).replace("&#39;", "'")
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_element_is_closed_and_every_reference_leads_somewhere(structure):
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert set(structure.references) <= set(structure.ids)


def test_both_languages_have_the_same_headings(structure):
    assert structure.headings["zh"] == structure.headings["en"]
    assert len(structure.headings["en"]) > 20


def test_every_figure_stands_in_the_page_once_and_is_shown_in_both_languages(page, run_dir):
    names = [path.name for path in (run_dir / "figures").glob("*.svg")]
    assert page.count("<symbol ") == len(names) > 0
    assert page.count('<svg class="figure"') == 2 * len(names)


def test_no_markdown_is_left_over(page):
    text = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert "**" not in text
    assert "```" not in text
    assert "|:--" not in text
    assert "$`" not in text
