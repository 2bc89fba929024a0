"""What must hold before a speed-up is printed: the baseline's work, its KV pool, real devices, no impossible rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.analysis.plausibility import short_of_blocks
from touchstone.analysis.scaling import scaling_series
from touchstone.experiment import Bilingual, Law
from touchstone.records import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from touchstone.analysis.runs import Run, TestRuns
    from touchstone.analysis.scaling import Evidence
    from touchstone.records import MetricStatistics, ScalingSeries

MAX_EFFICIENCY = 1.05  # p devices cannot bring more than p times the rate; this much is left to the noise
MAX_POOL_DIFFERENCE = 0.01  # of the KV pool of a device: whole blocks leave a remainder
PARALLEL = ("tensor_parallel_size", "data_parallel_size")
WORK, POOL, DEVICES, IDEAL = (
    "scaling_same_work",
    "scaling_same_kv_pool",
    "scaling_devices_as_planned",
    "efficiency_within_ideal",
)


def scaling_checks(evidence: Evidence, described: Sequence[MetricStatistics]) -> tuple[Check, ...]:
    """Hold the arms' work, their KV pools and their efficiency against the baseline; none where it has no runs."""
    if evidence.test is None or evidence.baseline is None or not evidence.baseline.runs or not evidence.test.runs:
        return ()
    pairs = list(_runs_beside_baseline(evidence, evidence.test, evidence.baseline))
    pool = _same_pool(pairs)
    return (
        _same_work(evidence, pairs),
        *(() if pool is None else (pool,)),
        _devices(pairs),
        _within_ideal(
            scaling_series(evidence, described),
            short=any(short_of_blocks(one) for pair in pairs for one in pair.baseline),
        ),
    )


def refusal_of_speedups(checks: Sequence[Check]) -> Bilingual | None:
    """Say which failed check takes back the speed-ups of a test; None where all passed."""
    failed = next((check for check in checks if check.id in {WORK, POOL, DEVICES, IDEAL} and not check.passed), None)
    return None if failed is None else Bilingual(f"{failed.id}: {failed.detail}", f"{failed.id}：{failed.detail_zh}")


@dataclass(frozen=True, slots=True)
class _Pair:
    """One timed run on several devices beside the baseline's runs of the same load."""

    run: Run
    num_gpus: int
    baseline: tuple[Run, ...]


def _runs_beside_baseline(evidence: Evidence, test: TestRuns, baseline: TestRuns) -> Iterator[_Pair]:
    counts = {arm.name: arm.num_gpus for arm in test.planned.arms}
    for series in evidence.scaling.series:
        one = tuple(run for run in baseline.runs if run.arm == series.baseline_arm)
        for run in (run for run in test.runs if run.arm in series.arms and one):
            yield _Pair(run, counts[run.arm], one)


def _same_work(evidence: Evidence, pairs: Sequence[_Pair]) -> Check:
    strong = evidence.scaling.law is Law.STRONG
    wrong = sum(not (_is_same(pair) if strong else _is_in_proportion(pair)) for pair in pairs)
    rule, rule_zh = (
        ("the very prompts and lengths of the baseline", "与基线完全相同的提示与长度")
        if strong
        else ("the baseline's requests and tokens once for each device", "每个设备各一份基线的请求数与 token 数")
    )
    return Check(
        id=WORK,
        passed=wrong == 0,
        detail=f"{len(pairs)} runs on several devices, {wrong} of other work than {rule}",
        detail_zh=f"{len(pairs)} 次多设备运行，其中 {wrong} 次的工作不是{rule_zh}",
    )


def _is_same(pair: _Pair) -> bool:
    """Whether the baseline ran on the same seed, so on the same prompts, and gave tokens of the same number."""
    return any(one.seed == pair.run.seed and _lengths(one) == _lengths(pair.run) for one in pair.baseline)


def _lengths(run: Run) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, len(request.emissions)) for request in run.facts.trace.requests]


def _is_in_proportion(pair: _Pair) -> bool:
    wanted = {tuple(pair.num_gpus * count for count in _amount(one)) for one in pair.baseline}
    return wanted == {_amount(pair.run)}


def _amount(run: Run) -> tuple[int, int, int]:
    lengths = _lengths(run)
    return len(lengths), sum(prompt for prompt, _ in lengths), sum(output for _, output in lengths)


def _same_pool(pairs: Sequence[_Pair]) -> Check | None:
    """Require the KV pool of each device to be the baseline's; None where the engine does not tell."""
    told = [(_pools(pair.run), [pool for one in pair.baseline for pool in _pools(one)]) for pair in pairs]
    known = [(mine, theirs) for mine, theirs in told if mine and theirs]
    if not known:
        return None
    shares = [abs(pool / min(theirs) - 1) for mine, theirs in known for pool in mine]
    return Check(
        id=POOL,
        passed=max(shares) <= MAX_POOL_DIFFERENCE,
        detail=f"{len(known)} runs on several devices: the KV pool of a device differs from the baseline's by at most "
        f"{max(shares):.1%}, allowed is {MAX_POOL_DIFFERENCE:.0%}",
        detail_zh=f"{len(known)} 次多设备运行：每个设备的 KV 缓存池与基线相差至多 {max(shares):.1%}，"
        f"允许 {MAX_POOL_DIFFERENCE:.0%}",
    )


def _pools(run: Run) -> list[int]:
    memory = run.facts.memory
    if memory is None:
        return []
    return [device.kv_pool_bytes for device in memory.devices] or [memory.kv_pool_bytes]


def _devices(pairs: Sequence[_Pair]) -> Check:
    """Catch an efficiency over a nominal number: each run's memory, telemetry and engine must tell as many devices."""
    runs = [(pair.run, pair.num_gpus) for pair in pairs] + [(one, 1) for pair in pairs for one in pair.baseline]
    distinct = {(run.unit_id, run.position): (run, count) for run, count in runs}.values()
    wrong = sum(not _told_devices(run) <= {count} for run, count in distinct)
    return Check(
        id=DEVICES,
        passed=wrong == 0,
        detail=f"{len(distinct)} runs, {wrong} of which memory, telemetry or engine tell another number of devices",
        detail_zh=f"{len(distinct)} 次运行，其中 {wrong} 次的内存、遥测或引擎给出的设备数与计划不符",
    )


def _told_devices(run: Run) -> set[int]:
    """Numbers of devices that a run's facts tell; what is not told is not held against it."""
    memory, telemetry, engine = run.facts.memory, run.facts.telemetry, run.facts.engine
    told = set() if memory is None else {len(memory.devices) or 1}
    told |= {len(telemetry.gpus)} if telemetry is not None and telemetry.gpus else set()
    settings = {} if engine is None else engine.settings
    sizes = [size for name in PARALLEL if isinstance(size := settings.get(name), int)]
    return told | ({math.prod(sizes)} if sizes else set())


def _within_ideal(series: Sequence[ScalingSeries], *, short: bool) -> Check:
    """Catch a denominator that is too small.

    Where the baseline was short of KV blocks, more memory brings more than more devices do, and the ideal is no bound.
    """
    told = [(point.efficiency, point) for row in series for point in row.points[1:] if point.efficiency is not None]
    worst = max(told, key=lambda item: item[0], default=None)
    best = "none is known" if worst is None else f"the largest is {worst[0]:.1%} ({worst[1].arm})"
    best_zh = "均未知" if worst is None else f"最大为 {worst[0]:.1%}（{worst[1].arm}）"
    return Check(
        id=IDEAL,
        passed=short or worst is None or worst[0] <= MAX_EFFICIENCY,
        detail=f"{len(told)} efficiencies against one device, {best}; at most {MAX_EFFICIENCY:.0%} is possible"
        + ("; the baseline was short of KV blocks, which excuses more" if short else ""),
        detail_zh=f"相对单个设备的效率共 {len(told)} 个，{best_zh}；不可能超过 {MAX_EFFICIENCY:.0%}"
        + ("；基线的 KV 缓存块不足，故不作此要求" if short else ""),
    )
