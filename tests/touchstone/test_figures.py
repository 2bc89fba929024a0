from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from touchstone.reporting import figures
from touchstone.reporting.figures import (
    RESIDUAL,
    Distribution,
    FigureError,
    PairPanel,
    RepetitionPanel,
    draw_complexity,
    draw_distributions,
    draw_memory,
    draw_pairs,
    draw_repetitions,
    save_svg,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.figure import Figure

PANEL = RepetitionPanel("rate", ((9.0, 10.0), (10.0, 10.2), (11.0, 11.2)), (9.5, 10.0, 11.1), 10.0)
PAIR = PairPanel("total_time (s)", "off", "on", ((10.0, 6.0), (11.0, 6.4)), 0.59, (0.55, 0.62))

DRAWINGS: dict[str, Callable[[], Figure]] = {
    "repetitions": lambda: draw_repetitions([PANEL] * 4, 0.05),
    "distributions": lambda: draw_distributions(
        [Distribution("TTFT", tuple(map(float, range(900))), {"p50": 450.0})], "ms"
    ),
    "memory": lambda: draw_memory({"weights": 2.0, "KV pool": 3.0, RESIDUAL: -0.5}, 4.5, "GB"),
    "complexity": lambda: draw_complexity({"radon": (1, 1, 2, 9), "lizard": (1, 2, 2, 9)}),
    "pairs": lambda: draw_pairs([PAIR, PAIR]),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_the_same_byte_for_byte_and_needs_no_font(name, tmp_path: Path):
    for run in ("first", "second"):
        save_svg(DRAWINGS[name](), tmp_path / run / "figure.svg")
    svg = (tmp_path / "first/figure.svg").read_text()
    assert svg == (tmp_path / "second/figure.svg").read_text()
    assert "<text" not in svg
    assert "<dc:date>" not in svg
    assert '<g id="text_1">' in svg


def test_a_character_without_a_glyph_is_refused_by_name(tmp_path: Path):
    panel = RepetitionPanel("吞吐量", PANEL.repetitions, PANEL.values, PANEL.median)
    with pytest.raises(FigureError, match=r"bad\.svg.*missing"):
        save_svg(draw_repetitions([panel], 0.05), tmp_path / "bad.svg")


def test_a_figure_without_panels_is_refused():
    with pytest.raises(FigureError, match="at least one panel"):
        draw_repetitions([], 0.05)


def test_points_outside_the_band_are_marked_apart():
    axes = draw_repetitions([PANEL], 0.05).axes[0]
    marked = {line.get_marker(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() in {"o", "D"}}
    assert marked["o"] == pytest.approx([-5.0, 0.0])
    assert marked["D"] == pytest.approx([11.0])


def test_the_memory_bar_ends_on_the_total():
    axes = draw_memory({"weights": 2.0, "KV pool": 3.0, RESIDUAL: -0.5}, 4.5, "GB").axes[0]
    last = axes.patches[-1]
    assert last.get_x() + last.get_width() == pytest.approx(4.5)
    assert axes.lines[0].get_xdata()[0] == 4.5


def test_a_part_keeps_its_colour_when_another_is_absent():
    with_graphs = draw_memory({"weights": 1.0, "CUDA graphs": 1.0, "other": 1.0}, 3.0, "GB").axes[0].patches[-1]
    without = draw_memory({"weights": 1.0, "CUDA graphs": 0.0, "other": 1.0}, 2.0, "GB").axes[0].patches[-1]
    assert with_graphs.get_facecolor() == without.get_facecolor()


def test_the_distribution_curve_ends_at_one_however_many_samples():
    for count in (1, 5, 5000):
        panel = Distribution("TTFT", tuple(map(float, range(count))), {})
        curve = draw_distributions([panel], "ms").axes[0].lines[0]
        assert curve.get_ydata()[0] == 0
        assert curve.get_ydata()[-1] == 1
        assert curve.get_xdata()[-1] == count - 1
        assert len(curve.get_xdata()) <= figures._ECDF_POINTS + 1


def test_every_pair_is_a_line_and_a_point():
    slopes, ratios = draw_pairs([PAIR]).axes
    assert len(slopes.lines) == len(PAIR.pairs)
    points = next(line for line in ratios.lines if line.get_marker() == "o")
    assert points.get_xdata() == pytest.approx([0.6, 6.4 / 11])
