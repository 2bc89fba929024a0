"""Scaling in the report: absent arms have rows with reasons, and a projection is drawn apart and is nowhere else."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.touchstone.scaling_sample import write_scaling_run
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.reporting.figures import FigureError, save_svg
from touchstone.reporting.scaling import scaling_caption, scaling_panels, scaling_view
from touchstone.reporting.scaling_figures import ScalingPanel, draw_scaling

FIT = ScalingPanel(
    label="TP",
    law="Amdahl",
    measured=((1, 1.0, None), (2, 1.6, (1.5, 1.7)), (4, 2.2, (2.1, 2.3))),
    absent=(8,),
    curve=((1.0, 1.0), (4.0, 2.25)),
    projection=((4.0, 2.25), (8.0, 2.8)),
    projected=((8, 2.8),),
    residuals=((2, 0.01), (4, -0.02)),
)
ALONE = ScalingPanel("DP", None, ((1, 1.0, None),), (2, 4, 8), (), (), (), ())


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    experiments = write_scaling_run(folder, 4, only=("3.1", "3.2"))
    results = {result.test_id: result for result in results_of(read_runs(folder), experiments)}
    return SimpleNamespace(results=results, strong=results["3.2"])


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


@pytest.mark.no_cover
def test_the_figure_is_the_same_byte_for_byte(tmp_path):
    for run in ("first", "second"):
        save_svg(draw_scaling([FIT, ALONE]), tmp_path / run / "figure.svg")
    svg = (tmp_path / "first/figure.svg").read_text()
    assert svg == (tmp_path / "second/figure.svg").read_text()
    assert "<text" not in svg


def test_a_figure_without_series_is_refused():
    with pytest.raises(FigureError, match="at least one series"):
        draw_scaling([])


def test_a_projection_has_a_dashed_line_a_marker_of_its_own_and_the_word():
    axes = draw_scaling([FIT]).axes[0]
    (projected,) = lines(axes, "projection")
    (measured,) = lines(axes, "measured")
    assert list(projected.get_xdata()) == [8]
    assert list(measured.get_xdata()) == [1, 2, 4]
    assert projected.get_marker() != measured.get_marker()
    assert projected.get_color() != measured.get_color()
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[-1] for line in dashed] == [8.0]
    assert "projection" in {text.get_text() for text in axes.get_legend().get_texts()}


def test_what_was_not_measured_is_marked_and_without_a_fit_nothing_is_projected():
    axes = draw_scaling([ALONE]).axes[0]
    (absent,) = lines(axes, "no value")
    assert list(absent.get_xdata()) == [2, 4, 8]
    assert lines(axes, "projection") == []
    assert "projection" not in {text.get_text() for text in axes.get_legend().get_texts()}


def test_an_interval_that_reaches_far_down_stays_within_the_axes():
    slow = ScalingPanel("TP", None, ((1, 1.0, None), (2, 0.3, (0.1, 0.9))), (4,), (), (), (), ())
    axes = draw_scaling([slow]).axes[0]
    assert axes.get_ylim()[0] < 0.1


def test_residuals_are_drawn_in_per_cent_at_the_fitted_counts():
    residuals = draw_scaling([FIT]).axes[1]
    points = next(line for line in residuals.lines if line.get_marker() == "o")
    assert dict(zip(points.get_xdata(), points.get_ydata(), strict=True)) == pytest.approx({2: 1.0, 4: -2.0})


def test_every_declared_arm_has_a_row_and_the_absent_ones_dashes_and_a_reason(four):
    view = scaling_view(four.strong, four.results)
    assert [row.arm for row in view.points] == ["full", "TP 2", "TP 4", "TP 8", "full", "DP 2", "DP 4", "DP 8"]
    for row in view.points:
        absent = row.num_gpus == 8
        cells = (row.rate, row.speedup, row.speedup_interval, row.efficiency, row.serial_fraction)
        assert ({cell.text for cell in cells} == {"—"}) == absent
        if absent:
            assert row.remark.en == "not measured: 8 GPUs are needed, this machine has 4"
            assert row.remark.zh.startswith("未测量：")


def test_the_baseline_is_one_and_a_hundred_per_cent_of_itself(four):
    one = scaling_view(four.strong, four.results).points[0]
    assert (one.speedup.text, one.efficiency.text, one.speedup_interval.text) == ("1", "100", "—")
    assert one.remark.en == "baseline, from test 3.1"


def test_what_a_law_projects_is_in_no_result_and_in_no_table(four):
    panel = scaling_panels(four.strong)[0]
    ((count, projected),) = panel.projected
    assert count == 8
    assert 2.2 < projected < 8
    assert "projection" in scaling_caption(four.strong).en
    point = four.strong.scaling[0].points[-1]
    assert (point.speedup, point.throughput) == (None, None)
    rate = projected * four.strong.scaling[0].points[0].throughput
    told = numbers_in(json.loads(four.strong.model_dump_json()))
    for number in (projected, projected / count, 100 * projected / count, rate):
        assert not any(value == pytest.approx(number, rel=1e-6) for value in told)


def numbers_in(content):
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers_in(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers_in(value)]
    return [content] if isinstance(content, int | float) and not isinstance(content, bool) else []


def test_one_gpu_alone_has_a_figure_of_its_baseline(tmp_path):
    experiments = write_scaling_run(tmp_path, 1, only=("3.1", "3.2"))
    results = {result.test_id: result for result in results_of(read_runs(tmp_path), experiments)}
    panels = scaling_panels(results["3.2"])
    assert [panel.absent for panel in panels] == [(2, 4, 8), (2, 4, 8)]
    assert {panel.projected for panel in panels} == {()}
    assert "projection" not in scaling_caption(results["3.2"]).en
