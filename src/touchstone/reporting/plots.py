"""Which figures a run gives, what each shows, and what it says to who cannot see it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from touchstone.analysis.formulas import sample_ms
from touchstone.analysis.metrics import SAMPLES
from touchstone.analysis.quantities import NotAvailable
from touchstone.analysis.statistics import TOLERANCE
from touchstone.coordinates import COORDINATES
from touchstone.experiment import Bilingual, is_point
from touchstone.reporting import figures, sweep_figures
from touchstone.reporting.code_tables import complexities
from touchstone.reporting.formatting import exact, percent
from touchstone.reporting.scaling import scaling_caption, scaling_panels
from touchstone.reporting.scaling_figures import draw_scaling
from touchstone.reporting.sweeps import places_on
from touchstone.reporting.values import FigureView

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from touchstone.experiment import Axis
    from touchstone.records import Effect, MemoryParts, MetricStatistics, Result, Trace
    from touchstone.reporting.run_folder import Run
    from touchstone.reporting.sweeps import Place

FOLDER = "figures"
_LATENCY_SAMPLES = {"ttft": "TTFT", "itl": "ITL"}
_PERCENTILES = ("p50", "p90", "p99")
_BYTES_SCALES = ((1e9, "GB"), (1e6, "MB"), (1.0, "B"))
_MAX_PAIR_PANELS = 3
_MAX_SWEEP_PANELS = 9


@dataclass(frozen=True, slots=True)
class _Drawing:
    name: str
    figure: Figure
    caption: Bilingual


def write_figures(run: Run, out_dir: Path) -> dict[str, tuple[FigureView, ...]]:
    """Draw and write every figure that the results allow, by test id; paths are relative to `out_dir`."""
    views: dict[str, tuple[FigureView, ...]] = {}
    for result in run.results:
        if is_point(result.test_id):
            continue  # the figure of its axis shows it, in the chapter of its test
        drawn = tuple(_drawings(run, result)) if result.status == "measured" else tuple(_scaling(result))
        for drawing in drawn:
            figures.save_svg(drawing.figure, out_dir / FOLDER / f"{drawing.name}.svg")
        views[result.test_id] = tuple(
            FigureView(f"{FOLDER}/{d.name}.svg", d.caption, scaling=d.name.startswith("scaling-")) for d in drawn
        )
        views |= _write_sweeps(run, result.test_id, out_dir)
    return views


def _write_sweeps(run: Run, test_id: str, out_dir: Path) -> dict[str, tuple[FigureView, ...]]:
    """Draw every axis of a test that has a measured point; keyed by test and axis."""
    experiment = run.experiment(test_id)
    views: dict[str, tuple[FigureView, ...]] = {}
    for axis in () if experiment is None else experiment.sweep:
        panels = sweep_panels(run, test_id, axis)
        if panels:
            path = f"{FOLDER}/sweep-{test_id}-{axis.id}.svg"
            figures.save_svg(sweep_figures.draw_sweep(panels), out_dir / path)
            views[f"{test_id}/{axis.id}"] = (FigureView(path, _sweep_caption(test_id, axis)),)
    return views


def _sweep_caption(test_id: str, axis: Axis) -> Bilingual:
    name = COORDINATES[axis.id].name
    return Bilingual(
        f"Test {test_id} along one axis ({name.en}). Above: the score of both arms in every block, and a line through "
        "the medians. Below: the ratio of every block (dots) and its mean with the interval (bar); dashed: no effect",
        f"测试 {test_id} 沿“{name.zh}”变化。上：每个区组中两组的得分，折线连接中位数；"
        "下：每个区组的比值（圆点）与均值及其区间（竖条）；虚线表示无差异",
    )


def _drawings(run: Run, result: Result) -> Iterator[_Drawing]:
    yield from _repetitions(result)
    yield from _distributions(run, result)
    yield from _memory(run, result)
    yield from _pairs(result)
    yield from _scaling(result)
    if run.quality is not None and result.test_id == run.quality.test_id:
        yield from _complexity(run)


def _repetitions(result: Result) -> Iterator[_Drawing]:
    panels = [
        figures.RepetitionPanel(_label(result, s), s.repetitions, s.values, s.median)
        for s in result.statistics
        if s.key and s.median and s.withheld is None
    ]
    if panels:
        band = percent(TOLERANCE, 0)
        yield _Drawing(
            f"repetitions-{result.test_id}",
            figures.draw_repetitions(panels, TOLERANCE),
            Bilingual(
                f"Key metrics of test {result.test_id}: score of each process (dot; diamond outside the band) and its "
                f"timed repetitions (dash) as deviation from the median; the grey band is ±{band}",
                f"测试 {result.test_id} 的关键指标：各进程得分（圆点，超出容差带者为菱形）及其各次重复（短横）"
                f"相对中位数的偏差；灰色区域为 ±{band}",
            ),
        )


def _label(result: Result, statistics: MetricStatistics) -> str:
    arms = {other.arm for other in result.statistics if other.metric == statistics.metric}
    return f"{statistics.metric} ({statistics.arm})" if len(arms) > 1 else statistics.metric


def _distributions(run: Run, result: Result) -> Iterator[_Drawing]:
    metrics = {statistics.metric for statistics in result.statistics}
    wanted = [sample for sample in _LATENCY_SAMPLES if f"{sample}_p50" in metrics]
    if not wanted:
        return
    traces = _traces_by_arm(run, result.test_id)
    panels = [
        panel
        for sample in wanted
        for arm in traces
        if (panel := _distribution(result, sample, arm, traces)) is not None
    ]
    if panels:
        sizes = ", ".join(f"{panel.label}: {exact(len(panel.samples))}" for panel in panels)
        yield _Drawing(
            f"latency-{result.test_id}",
            figures.draw_distributions(panels, "ms"),
            Bilingual(
                f"Empirical distribution of latencies in test {result.test_id}, all valid repetitions pooled "
                f"(samples: {sizes}); dashed lines: medians of the percentiles of single runs",
                f"测试 {result.test_id} 的延迟经验分布，合并全部有效重复（样本数：{sizes}）；"
                f"虚线为各次运行百分位数的中位数",
            ),
        )


def _traces_by_arm(run: Run, test_id: str) -> dict[str, list[Trace]]:
    traces: dict[str, list[Trace]] = {}
    for one in run.tests[test_id].runs:
        traces.setdefault(one.arm, []).append(one.facts.trace)
    return traces


def _distribution(
    result: Result, sample: str, arm: str, traces: Mapping[str, Sequence[Trace]]
) -> figures.Distribution | None:
    drawn = [sample_ms(SAMPLES[sample].draw, trace) for trace in traces[arm]]
    told = [values for values in drawn if not isinstance(values, NotAvailable)]
    pooled = tuple(np.concatenate(told).tolist()) if told else ()
    marks = {
        name: statistics.median
        for name in _PERCENTILES
        for statistics in result.statistics
        if (statistics.metric, statistics.arm) == (f"{sample}_{name}", arm) and statistics.median is not None
    }
    label = _LATENCY_SAMPLES[sample] + (f" ({arm})" if len(traces) > 1 else "")
    return figures.Distribution(label, pooled, marks) if pooled else None


def _memory(run: Run, result: Result) -> Iterator[_Drawing]:
    measured = [m for m in run.measurements(result.test_id) if m.memory is not None]
    if not measured or measured[0].memory is None:
        return
    memory = measured[0].memory
    scale, unit = next((s, u) for s, u in _BYTES_SCALES if memory.device_total_peak_bytes >= s)
    parts = {name: size / scale for name, size in _parts(memory).items()}
    yield _Drawing(
        f"memory-{result.test_id}",
        figures.draw_memory(parts, memory.device_total_peak_bytes / scale, unit),
        Bilingual(
            f"Memory at the peak in unit {measured[0].unit_id}: the parts end on the total (dashed); "
            "the hatched part is not explained",
            f"运行单元 {measured[0].unit_id} 的内存峰值构成：各部分之和止于总量（虚线）；斜线部分未能解释",
        ),
    )


def _parts(memory: MemoryParts) -> dict[str, int]:
    return {
        "weights": memory.weights_bytes,
        "KV pool": memory.kv_pool_bytes,
        "activations": memory.activations_peak_bytes or 0,
        "CUDA graphs": memory.cuda_graphs_bytes or 0,
        "context, other": memory.context_and_other_bytes - (memory.instrument_bytes or 0),
        "instrument": memory.instrument_bytes or 0,
        figures.RESIDUAL: memory.residual_bytes or 0,
    }


def _pairs(result: Result) -> Iterator[_Drawing]:
    effects = sorted(result.effects, key=lambda effect: not _is_key(result, effect))
    panels = [panel for effect in effects if (panel := _pair_panel(result, effect)) is not None][:_MAX_PAIR_PANELS]
    if panels:
        yield _Drawing(
            f"pairs-{result.test_id}",
            figures.draw_pairs(panels),
            Bilingual(
                f"Paired blocks of test {result.test_id}: both arms of each block (left) and their ratio "
                "with the interval of the effect (right); dashed: no effect",
                f"测试 {result.test_id} 的配对区组：左为每个区组的两组取值，右为其比值及效应区间；虚线表示无差异",
            ),
        )


def _scaling(result: Result) -> Iterator[_Drawing]:
    """Draw the speed-ups of a scaling test, also where none but its baseline was measured."""
    if panels := scaling_panels(result):
        yield _Drawing(f"scaling-{result.test_id}", draw_scaling(panels), scaling_caption(result))


def _is_key(result: Result, effect: Effect) -> bool:
    return any(s.key for s in result.statistics if s.metric == effect.metric)


def _pair_panel(result: Result, effect: Effect) -> figures.PairPanel | None:
    arms = {s.arm: s for s in result.statistics if s.metric == effect.metric}
    baseline, treatment = arms.get(effect.baseline), arms.get(effect.treatment)
    if baseline is None or treatment is None or len(baseline.values) != len(treatment.values):
        return None
    if not baseline.values or min(baseline.values) <= 0:
        return None
    return figures.PairPanel(
        label=f"{effect.metric} ({baseline.unit})",
        baseline=effect.baseline,
        treatment=effect.treatment,
        pairs=tuple(zip(baseline.values, treatment.values, strict=True)),
        ratio=effect.ratio,
        interval=None if effect.interval is None else (effect.interval.low, effect.interval.high),
    )


def sweep_panels(run: Run, test_id: str, axis: Axis) -> list[sweep_figures.SweepPanel]:
    """Make one panel of each metric that has a tested ratio at two places of an axis, as many as a page holds."""
    places = places_on(run, test_id, axis)
    if not any(is_point(place.test.test_id) for place in places):
        return []
    metrics = dict.fromkeys(measure.metric for measure in axis.measures)
    panels = (panel for metric in metrics if (panel := _sweep_panel(places, metric, axis)) is not None)
    return list(islice(panels, _MAX_SWEEP_PANELS))


def _sweep_panel(places: Sequence[Place], metric: str, axis: Axis) -> sweep_figures.SweepPanel | None:
    shown = [
        (place, effect, panel)
        for place in places
        for effect in place.result.effects
        if effect.metric == metric and effect.interval is not None
        if (panel := _pair_panel(place.result, effect)) is not None
    ]
    if len(shown) < 2:  # noqa: PLR2004  an axis has two places
        return None
    first = shown[0][2]
    return sweep_figures.SweepPanel(
        label=first.label.replace(" (", "\n(", 1),
        axis=f"{axis.id} ({COORDINATES[axis.id].unit})",
        baseline=first.baseline,
        treatment=first.treatment,
        places=tuple(
            sweep_figures.SweepPlace(
                label="∞" if place.coordinate is None else exact(place.coordinate),
                pairs=panel.pairs,
                ratios=tuple(math.exp(block) for block in effect.blocks),
                ratio=panel.ratio,
                interval=panel.interval,
            )
            for place, effect, panel in shown
        ),
    )


def _complexity(run: Run) -> Iterator[_Drawing]:
    if run.quality is None or not run.quality.code.functions:
        return
    columns = complexities(run.quality.code.functions)
    yield _Drawing(
        f"complexity-{run.quality.test_id}",
        figures.draw_complexity(columns),
        Bilingual(
            f"Functions by cyclomatic complexity: radon ({exact(len(columns['radon']))} functions) and lizard "
            f"({exact(len(columns['lizard']))} functions); the vertical axis is logarithmic",
            f"函数圈复杂度分布：radon（{exact(len(columns['radon']))} 个函数）与 lizard"
            f"（{exact(len(columns['lizard']))} 个函数）；纵轴为对数坐标",
        ),
    )
