"""Speed-up over the number of devices: measured with intervals, the fitted law and its residuals, and what is absent.

A projection is told apart three times: a dashed line, a marker of its own, and the word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from touchstone.reporting.figures import BLUE, GREY, ORANGE, FigureError, house_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_COLUMNS = 2
_DASHED = (0, (4, 2))
_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class ScalingPanel:
    """One series: (devices, speed-up, ends of the interval) of the measured points, and what the fit says of them.

    `curve` and `projection` follow the fitted law within and beyond what was measured; `residuals` are measured over
    fitted speed-up, less one.
    """

    label: str
    law: str | None
    measured: tuple[tuple[int, float, tuple[float, float] | None], ...]
    absent: tuple[int, ...]
    curve: tuple[tuple[float, float], ...]
    projection: tuple[tuple[float, float], ...]
    projected: tuple[tuple[int, float], ...]
    residuals: tuple[tuple[int, float], ...]


@house_style()
def draw_scaling(panels: Sequence[ScalingPanel]) -> Figure:
    """Speed-up above residuals, two series side by side; FigureError without any."""
    if not panels:
        raise FigureError("a figure of scaling needs at least one series, got none")
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.2, 0.5 + 3.7 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(2.6, 1) * rows)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        counts = sorted({*(count for count, *_ in panel.measured), *panel.absent})
        _draw_speedup(grid[2 * row, column], panel, counts)
        _draw_residuals(grid[2 * row + 1, column], panel, counts)
    for index in range(len(panels), rows * columns):
        row, column = divmod(index, columns)
        grid[2 * row, column].remove()
        grid[2 * row + 1, column].remove()
    return figure


def _count_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(counts) / _MARGIN, max(counts) * _MARGIN)
    axes.xaxis.set_major_locator(FixedLocator(list(counts)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_speedup(axes: Axes, panel: ScalingPanel, counts: Sequence[int]) -> None:
    _count_axis(axes, counts)
    floor = min(1.0, *(speedup if ends is None else ends[0] for _, speedup, ends in panel.measured)) / _MARGIN
    axes.set_yscale("log", base=2)
    axes.set_ylim(floor, max(counts) * _MARGIN)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.plot((min(counts), max(counts)), (min(counts), max(counts)), color=GREY, linewidth=1, label="ideal")
    if panel.curve:
        axes.plot(*zip(*panel.curve, strict=True), color=BLUE, linewidth=1, label=panel.law)
    _draw_projection(axes, panel)
    _draw_measured(axes, panel)
    if panel.absent:
        marks = [floor * 1.06] * len(panel.absent)
        axes.plot(panel.absent, marks, "x", color="black", markersize=6, clip_on=False, label="no value")
    axes.set(title=panel.label, ylabel="speed-up")
    axes.legend(loc="upper left", handlelength=1.8)


def _draw_measured(axes: Axes, panel: ScalingPanel) -> None:
    for count, _, ends in panel.measured:
        if ends is not None:
            axes.plot((count, count), ends, color=BLUE, linewidth=3.5, alpha=0.45, solid_capstyle="butt")
    axes.plot(
        [count for count, *_ in panel.measured],
        [speedup for _, speedup, _ in panel.measured],
        "o",
        color=BLUE,
        markersize=5,
        label="measured",
    )
    for count, speedup, _ in panel.measured[1:]:
        text = f"{100 * speedup / count:.0f} %"
        axes.annotate(text, (count, speedup), (6, -11), textcoords="offset points", fontsize=8, color=BLUE)


def _draw_projection(axes: Axes, panel: ScalingPanel) -> None:
    if not panel.projected:
        return
    axes.plot(*zip(*panel.projection, strict=True), color=ORANGE, linewidth=1, linestyle=_DASHED)
    axes.plot(
        *zip(*panel.projected, strict=True),
        "D",
        color=ORANGE,
        markerfacecolor="white",
        markersize=5,
        linestyle="none",
        label="projection",
    )


def _draw_residuals(axes: Axes, panel: ScalingPanel, counts: Sequence[int]) -> None:
    _count_axis(axes, counts)
    axes.axhline(0, color=GREY, linewidth=0.8)
    shares = [100 * residual for _, residual in panel.residuals]
    axes.vlines([count for count, _ in panel.residuals], 0, shares, color=BLUE, linewidth=1.2)
    axes.plot([count for count, _ in panel.residuals], shares, "o", color=BLUE, markersize=4)
    reach = _MARGIN * max([1.0, *(abs(share) for share in shares)])
    axes.set(ylim=(-reach, reach), xlabel="GPUs", ylabel="residual (%)")
    if not panel.residuals:
        axes.text(0.5, 0.7, "no fit", transform=axes.transAxes, ha="center", color=GREY)
