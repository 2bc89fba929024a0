"""The figure of a sweep: both arms of every block along an axis, and below the ratio of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from touchstone.reporting.figures import BLUE, GREY, RED, FigureError, house_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_MAX_COLUMNS = 3
_SIDE = 0.12  # how far the arms of a pair stand from the middle of their place


@dataclass(frozen=True, slots=True)
class SweepPlace:
    """One place on an axis: both arms' scores and their ratio in each block, the ratio of all and its interval."""

    label: str
    pairs: tuple[tuple[float, float], ...]
    ratios: tuple[float, ...]
    ratio: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class SweepPanel:
    """One metric along an axis, for two arms."""

    label: str
    axis: str
    baseline: str
    treatment: str
    places: tuple[SweepPlace, ...]


@house_style()
def draw_sweep(panels: Sequence[SweepPanel]) -> Figure:
    """Draw each metric as a pair of axes: both arms of every block, and their ratio with the interval of its mean.

    The places stand at equal distances, so that no end of the axis is squeezed.
    """
    if not panels:
        raise FigureError("a figure needs at least one panel, got none")
    rows = -(-len(panels) // _MAX_COLUMNS)
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(1.2 + 2.0 * max(columns, 2), 0.4 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(1.2, 1) * rows)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        if index < len(panels):
            _draw_levels(above, panels[index])
            _draw_ratios(below, panels[index])
        else:
            above.remove()
            below.remove()
    return figure


def _draw_levels(axes: Axes, panel: SweepPanel) -> None:
    """Draw the two arms of each block beside each other and join them, and a line through the medians of each arm."""
    for index, place in enumerate(panel.places):
        for pair in place.pairs:
            axes.plot((index - _SIDE, index + _SIDE), pair, color=GREY, linewidth=0.6, alpha=0.5)
    for arm, (name, colour, marker) in enumerate(((panel.baseline, BLUE, "o"), (panel.treatment, RED, "D"))):
        places = np.arange(len(panel.places)) + _SIDE * (2 * arm - 1)
        values = [[pair[arm] for pair in place.pairs] for place in panel.places]
        for place, row in zip(places, values, strict=True):
            dots = [place] * len(row)
            axes.plot(dots, row, linestyle="none", marker=marker, color=colour, markersize=3, alpha=0.6)
        axes.plot(places, [float(np.median(row)) for row in values], color=colour, linewidth=1.2, label=name)
    axes.set(title=panel.label, xlim=(-0.5, len(panel.places) - 0.5))
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(panel.places)), [""] * len(panel.places))
    axes.legend(loc="best", handlelength=1.4)


def _draw_ratios(axes: Axes, panel: SweepPanel) -> None:
    axes.axhline(1, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    for index, place in enumerate(panel.places):
        dots = [index - _SIDE] * len(place.ratios)
        axes.plot(dots, place.ratios, linestyle="none", marker="o", color=GREY, markersize=3)
        if place.interval is not None:
            axes.plot((index + _SIDE,) * 2, place.interval, color=BLUE, linewidth=2.2, alpha=0.6)
        axes.plot(index + _SIDE, place.ratio, marker="_", markersize=9, color=BLUE)
    axes.set(ylabel=f"{panel.treatment} / {panel.baseline}", xlabel=panel.axis, xlim=(-0.5, len(panel.places) - 0.5))
    axes.set_xticks(range(len(panel.places)), [place.label for place in panel.places])
    axes.locator_params(axis="y", nbins=5)
