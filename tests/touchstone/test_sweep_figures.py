"""The figure of a sweep: the same bytes from the same numbers, every block drawn, and nothing drawn from nothing."""

import math
import random

import pytest

from touchstone.reporting.figures import FigureError, save_svg
from touchstone.reporting.sweep_figures import SweepPanel, SweepPlace, draw_sweep


def panel(seed, labels=("1", "8", "256", "∞")):
    chance = random.Random(seed)
    places = []
    for number, label in enumerate(labels):
        logs = [chance.gauss(-0.1 * number, 0.05) for _ in range(6)]
        baselines = [100 * (1 + number) * chance.gauss(1, 0.05) for _ in logs]
        pairs = tuple((base, base * math.exp(log)) for base, log in zip(baselines, logs, strict=True))
        mean = math.exp(sum(logs) / 6)
        interval = None if number == 1 else (mean * 0.93, mean * 1.07)
        places.append(SweepPlace(label, pairs, tuple(map(math.exp, logs)), mean, interval))
    return SweepPanel("e2e_throughput\n(prompt + output tokens/s)", "batch (requests)", "off", "on", tuple(places))


@pytest.mark.parametrize(("count", "shape"), [(1, (2, 1)), (3, (2, 3)), (7, (6, 3))])
def test_each_metric_has_a_pair_of_axes_three_metrics_a_row(count, shape):
    figure = draw_sweep([panel(seed) for seed in range(count)])
    assert len(figure.axes) == 2 * count
    rows = {round(axes.get_subplotspec().rowspan.start) for axes in figure.axes}
    columns = {round(axes.get_subplotspec().colspan.start) for axes in figure.axes}
    assert (len(rows), len(columns)) == shape


def test_every_block_is_drawn_in_both_arms_and_as_a_ratio():
    shown = panel(1)
    levels, ratios = draw_sweep([shown]).axes
    drawn = {round(float(y), 9) for line in levels.lines for y in line.get_ydata()}
    dots = {round(float(y), 9) for line in ratios.lines for y in line.get_ydata()}
    for place in shown.places:
        assert {round(value, 9) for pair in place.pairs for value in pair} <= drawn
        assert {round(ratio, 9) for ratio in (*place.ratios, place.ratio)} <= dots
    assert [label.get_text() for label in ratios.get_xticklabels()] == ["1", "8", "256", "∞"]
    highest = max(value for place in shown.places for pair in place.pairs for value in pair)
    assert levels.get_ylim()[0] == 0 < highest < levels.get_ylim()[1]


def test_arms_without_a_difference_do_not_fill_the_axes_with_rounding():
    pairs = ((10.0, 10.0 + 1e-6), (10.0, 10.0 - 1e-6))
    place = SweepPlace("1", pairs, (1 + 1e-7, 1 - 1e-7), 1.0, (1 - 1e-7, 1 + 1e-7))
    _, ratios = draw_sweep([SweepPanel("idle", "batch", "off", "on", (place, place))]).axes
    low, high = ratios.get_ylim()
    assert high - low > 0.002


def test_the_arms_are_named_once_above_all_panels():
    figure = draw_sweep([panel(4), panel(5)])
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["off", "on"]
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        save_svg(draw_sweep([panel(2), panel(3)]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_no_panel_gives_no_figure():
    with pytest.raises(FigureError, match="at least one panel"):
        draw_sweep([])
