"""Figures inside the page: each SVG file once, as a symbol, with ids of its own and the page's colours.

What matplotlib draws in pure black is drawn in the colour of the text, and what it draws in white in that of the
paper, so that a figure is read on a dark page as on a light one. Other colours carry meaning and stay. Coordinates are
cut to a hundredth of a point, which nobody sees; transformations, which multiply, are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from touchstone.reporting.html_text import figure_id

_ROOT = re.compile(r"<svg\b[^>]*>(.*)</svg>", re.DOTALL)
_VIEW_BOX = re.compile(r'<svg\b[^>]*\bviewBox="([\d. -]+)"')
_UNUSED = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", re.DOTALL)
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(\bxlink:href="#|\bhref="#|\burl\(#)')
_COORDINATES = re.compile(r'\b(?:d|x|y|points)="[^"]*"')
_FINER_THAN_SEEN = re.compile(r"(\.\d\d)\d+")
_BLANKS = re.compile(r">\s+<")


class FigureFormatError(ValueError):
    """A figure file is not an SVG with a view box; the message names the file."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One figure as the page holds it: its view box and the symbol's markup."""

    view_box: str
    markup: str


def symbol(name: str, svg: str) -> Symbol:
    """Turn the text of an SVG file into a symbol whose id is `figure_id(name)`."""
    root, box = _ROOT.search(svg), _VIEW_BOX.search(svg)
    if root is None or box is None:
        raise FigureFormatError(f"{name} is no SVG with a viewBox; make it again with `touchstone report`")
    own = figure_id(name)
    drawn = _UNUSED.sub("", root.group(1))
    drawn = _ID.sub(rf'id="{own}-\1"', drawn)
    drawn = _REFERENCE.sub(rf"\1{own}-", drawn).replace("xlink:href", "href")
    drawn = drawn.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")
    drawn = _COORDINATES.sub(lambda match: _FINER_THAN_SEEN.sub(r"\1", match.group()), drawn)
    drawn = _BLANKS.sub("><", drawn).strip()
    markup = f'<symbol id="{own}" viewBox="{box.group(1)}" fill="currentColor">{drawn}</symbol>'
    return Symbol(box.group(1), markup)
