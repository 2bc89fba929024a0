"""The plan's checklist: every tick is decided here from the ledger, the results and the templates, never by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.clock_use import CLOCK_MODULE
from touchstone.experiment import INSTRUMENT_TEST, Bilingual
from touchstone.records import Verdict
from touchstone.reporting.lint import template_digit_faults
from touchstone.trace import trace_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jinja2 import Environment as JinjaEnvironment

    from touchstone.records import Attempt, ClockUse, Measurement, Result
    from touchstone.reporting.numbers import NumberView
    from touchstone.reporting.run_folder import Run

SETTLED = frozenset({Verdict.STABLE, Verdict.EXACT})


@dataclass(frozen=True, slots=True)
class Tick:
    """One item of the checklist, by its glossary key, and what its tick was decided from."""

    key: str
    ticked: bool
    detail: Bilingual


def checklist(run: Run, numbers: Mapping[str, Sequence[NumberView]], templates: JinjaEnvironment) -> tuple[Tick, ...]:
    """Decide all items, in the plan's order. `numbers` holds what the report shows, by test id."""
    return (
        _same_hardware(run),
        _method_recorded(numbers),
        _verifiable(run),
        _no_external_data(templates),
        _paired(run),
        _synchronized(run.environment.source.clock),
        _repeated(run.results),
    )


def _same_hardware(run: Run) -> Tick:
    seen = {attempt.environment_fingerprint for attempt in run.attempts}
    seen |= {run.quality.environment_fingerprint} if run.quality is not None else set()
    records = len(run.attempts) + (run.quality is not None)
    ticked = records > 0 and seen == {run.environment.fingerprint}
    return Tick(
        "same_hardware",
        ticked,
        Bilingual(
            f"{_machine(run)}; {records} records, {len(seen)} environment fingerprint(s)",
            f"{_machine(run)}；{records} 条记录，{len(seen)} 种环境指纹",
        ),
    )


def _machine(run: Run) -> str:
    """Name the devices of the machine, or its processor where it has none."""
    hardware = run.environment.hardware
    return ", ".join(gpu.name for gpu in hardware.gpus) or hardware.cpu_model


def _method_recorded(numbers: Mapping[str, Sequence[NumberView]]) -> Tick:
    shown = [number for views in numbers.values() for number in views]
    complete = [
        number
        for number in shown
        if number.definition.formula and number.definition.how.en and number.definition.how.zh
    ]
    return Tick(
        "method_recorded",
        bool(shown) and len(complete) == len(shown),
        Bilingual(
            f"{len(complete)} of {len(shown)} metrics carry formula and method",
            f"{len(complete)} / {len(shown)} 个指标同时给出公式与方法",
        ),
    )


def _verifiable(run: Run) -> Tick:
    traces = [measurement.trace_sha256 for measurement in _measurements(run.attempts)]
    present = sum(trace_path(run.directory, trace).exists() for trace in traces)
    known = {entry.seq for entry in run.entries}
    measured = [result for result in run.results if result.status == "measured"]
    cited = [result for result in measured if result.evidence is not None and set(result.evidence.entries) <= known]
    return Tick(
        "verifiable",
        bool(measured) and present == len(traces) and len(cited) == len(measured),
        Bilingual(
            f"hash chain of {len(run.entries)} ledger lines intact; {present} of {len(traces)} traces present; "
            f"{len(cited)} of {len(measured)} tests name their ledger lines",
            f"账本共 {len(run.entries)} 行，哈希链完整；原始记录 {present} / {len(traces)} 份齐备；"
            f"{len(cited)} / {len(measured)} 项测试给出账本行号",
        ),
    )


def _no_external_data(templates: JinjaEnvironment) -> Tick:
    names = templates.list_templates(extensions=["j2"])
    faults = [fault for name in names for fault in template_digit_faults(templates, _source(templates, name))]
    return Tick(
        "no_external_data",
        bool(names) and not faults,
        Bilingual(
            f"{len(names)} templates searched, {len(faults)} typed-in numbers",
            f"检查 {len(names)} 个模板，发现 {len(faults)} 处手写数字",
        ),
    )


def _source(templates: JinjaEnvironment, name: str) -> str:
    assert templates.loader is not None  # noqa: S101  markdown_environment always sets one
    return templates.loader.get_source(templates, name)[0]


def _paired(run: Run) -> Tick:
    """Count the tests in paired blocks; placebo and control are no comparison of a feature off and on."""
    comparisons = [test for test in run.plan.tests if test.margin is not None and test.test_id != INSTRUMENT_TEST]
    paired: list[str] = []
    unpaired: list[str] = []
    for test in comparisons:
        counts = _runs_of_arms(run.attempts, test.test_id, [arm.name for arm in test.arms])
        if any(counts.values()):
            (paired if len(set(counts.values())) == 1 else unpaired).append(test.test_id)
    return Tick(
        "paired",
        bool(paired) and not unpaired,
        Bilingual(
            f"equal numbers of runs in every arm: {_listed(paired)}; unequal: {_listed(unpaired)}",
            f"各组运行次数相等：{_listed(paired)}；不相等：{_listed(unpaired)}",
        ),
    )


def _runs_of_arms(attempts: Iterable[Attempt], test_id: str, arms: Iterable[str]) -> dict[str, int]:
    counts = dict.fromkeys(arms, 0)
    for measurement in _measurements(attempts):
        if measurement.test_id == test_id:
            counts[measurement.arm] += 1
    return counts


def _synchronized(clock: ClockUse | None) -> Tick:
    """Decide from what was recorded of the code that measured; nothing is known of a run that recorded nothing."""
    if clock is None:
        detail = Bilingual("not recorded when this run was measured", "本次运行测量时没有记录")
        return Tick("synchronized", ticked=False, detail=detail)
    others = [file for file in clock.readers if file != CLOCK_MODULE]
    unread = [*others, *clock.unreadable]
    places = ", ".join(f"`{file}`" for file in unread)
    return Tick(
        "synchronized",
        CLOCK_MODULE in clock.readers and not unread,
        Bilingual(
            f"{clock.num_files} source files searched, as they were when this run was measured; outside "
            f"`{CLOCK_MODULE}` {len(others)} read the clock or synchronize; {len(clock.unreadable)} were no Python"
            + (f": {places}" if places else ""),
            f"检查测量时的 {clock.num_files} 个源文件；`{CLOCK_MODULE}` 之外有 {len(others)} 个读取时钟或同步设备，"
            f"{len(clock.unreadable)} 个无法检查" + (f"：{places}" if places else ""),
        ),
    )


def _repeated(results: Sequence[Result]) -> Tick:
    keys = [statistics for result in results for statistics in result.statistics if statistics.key]
    settled = [statistics for statistics in keys if statistics.verdict in SETTLED]
    fewest = min((one.n for one in keys if one.n and one.verdict is not Verdict.EXACT), default=0)
    return Tick(
        "repeated",
        bool(keys) and len(settled) == len(keys),
        Bilingual(
            f"{len(settled)} of {len(keys)} key numbers are stable or exact; "
            f"behind each that is given and no count, at least {fewest} processes",
            f"{len(settled)} / {len(keys)} 个关键数据稳定或精确；凡给出且非计数的数据，至少来自 {fewest} 个进程",
        ),
    )


def _measurements(attempts: Iterable[Attempt]) -> Iterator[Measurement]:
    """Every timed run of a valid attempt."""
    return (measurement for attempt in attempts if attempt.valid for measurement in attempt.measurements)


def _listed(test_ids: Sequence[str]) -> str:
    return ", ".join(test_ids) if test_ids else "—"
