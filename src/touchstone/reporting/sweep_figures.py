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
_HEADROOM = 1.06  # of the levels, so that no dot is cut in half
_LEAST_SPAN = 0.002  # of the ratios to both sides of 1: less than that is no difference to look at
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
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.4)
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
    highest = max((value for place in panel.places for pair in place.pairs for value in pair), default=0.0)
    axes.set_ylim(0, _HEADROOM * highest or 1.0)
    axes.set_xticks(range(len(panel.places)), [""] * len(panel.places))


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
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1 - _LEAST_SPAN), max(high, 1 + _LEAST_SPAN))
