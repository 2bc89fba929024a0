"""Figures of the report as SVG files: the same bytes from the same numbers, on any machine, in both languages.

Text inside a figure is limited to symbols, units and identifiers that need no translation, and is drawn as outlines
(`svg.fonttype: path`) of the font that matplotlib ships: no reader needs a font, so no glyph can show as a box. The
sentences belong to the captions in the report. Colours are those of Okabe and Ito, told apart with any colour vision.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from touchstone.canonical import atomic_write
from touchstone.reporting.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C"
_PART_COLOURS = (BLUE, SKY, GREEN, YELLOW, ORANGE, GREY, PURPLE)
_LINE_COLOURS = (BLUE, RED, GREEN, PURPLE)

_STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "touchstone",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

RESIDUAL = "residual"  # the part of the memory bar that no other part explains; hatched, and negative at times

_ECDF_POINTS = 400
_MAX_COLUMNS = 3


class FigureError(ReportError):
    """A figure cannot be drawn as promised; the message names the figure and what is wrong."""


@dataclass(frozen=True, slots=True)
class RepetitionPanel:
    """One key metric: a row of timed repetitions for each process, and the median of the process scores."""

    label: str
    repetitions: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]
    median: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """One pooled sample with the percentiles to mark, by name."""

    label: str
    samples: tuple[float, ...]
    percentiles: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PairPanel:
    """Paired blocks of an ablation: one (baseline, treatment) value a block, and the interval of their ratio."""

    label: str
    baseline: str
    treatment: str
    pairs: tuple[tuple[float, float], ...]
    ratio: float
    interval: tuple[float, float] | None


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the style of all figures; matplotlib reads settings both when artists are made and when they are drawn."""
    with mpl.rc_context(_STYLE):
        yield


@house_style()
def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure without date and with fixed ids; FigureError if a character has no glyph in the font."""
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"Glyph .* missing")
        try:
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        except UserWarning as warning:
            raise FigureError(f"{path.name}: {warning}; use a label that the figure font holds") from warning
    atomic_write(path, svg.getvalue())


@house_style()
def draw_repetitions(panels: Sequence[RepetitionPanel], tolerance: float) -> Figure:
    """Every repetition and every process score as deviation from the median, against the band of ±`tolerance`."""
    figure, grid = _panel_grid(len(panels), height=2.1)
    for axes, panel in zip(grid, panels, strict=True):
        _draw_repetition_panel(axes, panel, tolerance)
    figure.supylabel("x / median − 1 (%)", fontsize="medium")
    return figure


def _draw_repetition_panel(axes: Axes, panel: RepetitionPanel, tolerance: float) -> None:
    band = 100 * tolerance
    deviations = np.array([100 * (value - panel.median) / panel.median for value in panel.values])
    axes.axhspan(-band, band, color=GREY, alpha=0.18, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for index, row in enumerate(panel.repetitions, start=1):
        shown = [100 * (value - panel.median) / panel.median for value in row]
        axes.plot([index] * len(row), shown, linestyle="none", marker="_", markersize=9, color=GREY)
    numbers = np.arange(1, len(deviations) + 1)
    inside = np.abs(deviations) <= band
    axes.plot(numbers[inside], deviations[inside], "o", color=BLUE, markersize=5)
    axes.plot(numbers[~inside], deviations[~inside], "D", color=RED, markersize=5)
    every = [100 * (value / panel.median - 1) for row in panel.repetitions for value in row]
    reach = 1.15 * max(1.4 * band, np.abs(deviations).max(initial=0), np.abs(every).max(initial=0))
    axes.set(title=panel.label, ylim=(-reach, reach), xlim=(0.4, len(deviations) + 0.6), xlabel="process")
    axes.set_xticks(numbers)


@house_style()
def draw_distributions(distributions: Sequence[Distribution], unit: str) -> Figure:
    """Empirical distribution functions side by side, with their percentiles marked and named."""
    figure, grid = _panel_grid(len(distributions), height=2.4)
    for axes, distribution in zip(grid, distributions, strict=True):
        _draw_distribution(axes, distribution, unit)
    grid[0].set_ylabel("ECDF")
    return figure


def _draw_distribution(axes: Axes, distribution: Distribution, unit: str) -> None:
    samples = np.sort(np.asarray(distribution.samples, dtype=float))
    shares = np.arange(1, samples.size + 1) / samples.size
    if samples.size > _ECDF_POINTS:  # equal steps of rank keep the curve and bound the size of the file
        chosen = np.unique(np.linspace(0, samples.size - 1, _ECDF_POINTS).round().astype(int))
        samples, shares = samples[chosen], shares[chosen]
    axes.step(np.concatenate((samples[:1], samples)), np.concatenate(((0.0,), shares)), where="post", color=BLUE)
    marks = zip(distribution.percentiles.items(), (GREEN, ORANGE, RED, PURPLE), strict=False)
    for (name, value), colour in marks:
        axes.axvline(value, color=colour, linewidth=1, linestyle=(0, (4, 2)), label=name)
    axes.set(title=distribution.label, xlabel=unit, ylim=(0, 1.02))
    axes.margins(x=0.04)
    axes.locator_params(axis="x", nbins=5)
    if distribution.percentiles:
        axes.legend(loc="lower right", handlelength=1.6, frameon=True, framealpha=0.9, edgecolor="none")


@house_style()
def draw_memory(parts: Mapping[str, float], total: float, unit: str) -> Figure:
    """One stacked bar of all parts beside a line at the device's own total, on which the bar must end."""
    figure = Figure(figsize=(7.2, 1.9), layout="constrained")
    axes = figure.add_subplot()
    left = 0.0
    coloured = zip(parts.items(), _PART_COLOURS, strict=False)  # a part keeps its colour when another is absent
    for name, size, colour in ((name, size, colour) for (name, size), colour in coloured if size):
        hatch, edge = ("////", "black") if name == RESIDUAL else (None, "white")
        axes.barh(0, size, left=left, height=0.5, color=colour, edgecolor=edge, hatch=hatch, linewidth=0.6, label=name)
        left += size
    axes.axvline(total, ymin=0.05, ymax=0.95, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label="total")
    axes.set(yticks=[], xlabel=unit, ylim=(-0.42, 0.42))
    axes.set_xlim(0, 1.02 * max(total, left, sum(size for size in parts.values() if size > 0)))
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.2)
    return figure


@house_style()
def draw_complexity(columns: Mapping[str, Sequence[int]]) -> Figure:
    """How many functions have which cyclomatic complexity, one set of bars a tool; a log scale keeps the tail seen."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    highest = max((max(values, default=0) for values in columns.values()), default=0)
    bins = np.arange(1, highest + 1)
    width = 0.8 / max(len(columns), 1)
    for index, ((name, values), colour) in enumerate(zip(columns.items(), _LINE_COLOURS, strict=False)):
        counts = np.bincount(np.asarray(values, dtype=int), minlength=highest + 1)[1:]
        offset = (index - (len(columns) - 1) / 2) * width
        axes.bar(bins + offset, counts, width=width, color=colour, label=name)
    axes.set(yscale="log", xlabel="cyclomatic complexity", ylabel="functions", xlim=(0.4, highest + 0.6))
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    return figure


@house_style()
def draw_pairs(panels: Sequence[PairPanel]) -> Figure:
    """Each block's ratio treatment / baseline with the interval of their mean; every pair is a point."""
    figure = Figure(figsize=(7.2, 0.5 + 2.2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(1, 1.4))
    for (slopes, ratios), panel in zip(grid, panels, strict=True):
        _draw_slopes(slopes, panel)
        _draw_ratios(ratios, panel)
    return figure


def _draw_slopes(axes: Axes, panel: PairPanel) -> None:
    for baseline, treatment in panel.pairs:
        axes.plot((0, 1), (baseline, treatment), "-o", color=BLUE, alpha=0.6, markersize=4, linewidth=1)
    axes.set(title=panel.label, xlim=(-0.3, 1.3))
    axes.set_xticks((0, 1), (panel.baseline, panel.treatment))


def _draw_ratios(axes: Axes, panel: PairPanel) -> None:
    ratios = [treatment / baseline for baseline, treatment in panel.pairs]
    if panel.interval is not None:
        axes.axvspan(*panel.interval, color=BLUE, alpha=0.15, linewidth=0)
    axes.axvline(panel.ratio, color=BLUE, linewidth=1.2)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    axes.plot(ratios, range(1, len(ratios) + 1), "o", color=BLUE, markersize=5)
    axes.set(xlabel=f"{panel.treatment} / {panel.baseline}", ylabel="block", ylim=(len(ratios) + 0.6, 0.4))
    axes.set_yticks(range(1, len(ratios) + 1))


@house_style()
def _panel_grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of page width with `count` panels, at most three a row."""
    if count < 1:
        raise FigureError("a figure needs at least one panel, got none")
    rows = -(-count // _MAX_COLUMNS)
    columns = -(-count // rows)
    figure = Figure(figsize=(7.2, 0.4 + height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]
