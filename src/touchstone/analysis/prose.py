"""The plan's text fields of a result, composed in both languages from what was planned and done; none is typed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.analysis.statistics import TOLERANCE
from touchstone.experiment import Bilingual, Design
from touchstone.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from touchstone.analysis.metrics import ComparisonDefinition, MetricDefinition
    from touchstone.analysis.runs import TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import Check, Environment, MetricStatistics

BYTES_PER_GB = 1e9


def describe_hardware(environment: Environment, device: str) -> str:
    """Name the device that was measured: the GPUs, or the processor where none was used."""
    hardware = environment.hardware
    if device.startswith("cuda") and hardware.gpus:
        names: dict[str, int] = {}
        for gpu in hardware.gpus:
            name = f"{gpu.name} ({gpu.memory_bytes / BYTES_PER_GB:.1f} GB)"
            names[name] = names.get(name, 0) + 1
        return ", ".join(f"{count} x {name}" for name, count in names.items())
    memory = f"{hardware.memory_bytes / BYTES_PER_GB:.1f} GB"
    return f"{hardware.cpu_model} ({hardware.cpu_usable_cores} cores usable, {memory}); no GPU used"


def how_obtained(test: TestRuns, experiment: Experiment) -> Bilingual:
    """Say how the numbers of a measured test came about."""
    planned, design = test.planned, _PAIRED if experiment.design is Design.PAIRED_BLOCKS else _REPEATED
    engine = _engine_name(test)
    processes, warmups, runs = len(test.processes), planned.num_warmups, len(test.runs)
    short = _short_warm_up(planned.warmup_output_tokens)
    count = f"{warmups} {'warm-up' if warmups == 1 else 'warm-ups'}"
    named = [
        (measure.result, DICTIONARY.get(measure.metric) or COMPARISONS[measure.metric])
        for measure in experiment.measures
        if measure.result is not None
    ]
    return Bilingual(
        f"{engine}, {processes} fresh processes, {runs} timed runs, {count} in each process with other "
        f"prompts{short.en}. Host clock time.perf_counter_ns, device synchronized on both sides of every timed run. "
        f"{design.en} " + _list_sources((field, definition.how.en, definition) for field, definition in named),
        f"{engine}，{processes} 个全新进程，共 {runs} 次计时运行；每个进程先用其他提示词预热 {warmups} 次{short.zh}。"
        f"主机时钟 time.perf_counter_ns，每次计时运行两端都同步设备。{design.zh}"
        + _list_sources_zh((field, definition.how.zh, definition) for field, definition in named),
    )


def _short_warm_up(tokens: int | None) -> Bilingual:
    if tokens is None:
        return Bilingual("", "")
    return Bilingual(f" and at most {tokens} output tokens a request", f"，每个请求至多输出 {tokens} 个 token")


_REPEATED = Bilingual(
    "A process counts with the median of its runs, a result is the median of the processes.",
    "每个进程取其各次运行的中位数，结果取各进程的中位数。",
)
_PAIRED = Bilingual(
    "Both arms ran in every process, in mirrored order; a comparison is the geometric mean of one ratio a process.",
    "两组在每个进程中按镜像顺序交替运行；对比值为每个进程一个比值的几何平均。",
)


def verification(test: TestRuns, described: Sequence[MetricStatistics], checks: Sequence[Check]) -> Bilingual:
    """Say what speaks for or against the numbers: spread of the key metrics, attempts, checks."""
    attempts, valid = len(test.attempts), test.num_valid
    passed = sum(check.passed for check in checks)
    spread = [item for item in described if item.key and item.withheld is None]
    failed = [check.id for check in checks if not check.passed]
    return Bilingual(
        " ".join(_spread(item) for item in spread)
        + f" Attempts: {attempts}, valid: {valid}. Checks passed: {passed} of {len(checks)}"
        + (f"; failed: {', '.join(failed)}." if failed else "."),
        "".join(_spread_zh(item) for item in spread)
        + f"尝试 {attempts} 次，有效 {valid} 次。检查通过 {passed} 项，共 {len(checks)} 项"
        + (f"；未通过：{'、'.join(failed)}。" if failed else "。"),
    )


def _spread(item: MetricStatistics) -> str:
    name = f"{DICTIONARY[item.metric].name.en} ({item.arm})"
    if item.max_deviation is None or item.verdict is Verdict.EXACT:
        return f"{name}: n = {item.n}, {item.verdict}."
    note = ", indicative" if item.indicative else ""
    bound = f"(±{TOLERANCE:.0%} required)"
    return f"{name}: n = {item.n}, at most {item.max_deviation:.1%} from the median {bound}, {item.verdict}{note}."


# The words of the report's glossary; a test holds them to it.
_VERDICTS_ZH = {
    Verdict.STABLE: "稳定",
    Verdict.UNSTABLE: "不稳定",
    Verdict.DRIFTING: "漂移",
    Verdict.INSUFFICIENT: "样本不足",
    Verdict.INVALID: "无效",
    Verdict.EXACT: "精确",
}


def _spread_zh(item: MetricStatistics) -> str:
    name = f"{DICTIONARY[item.metric].name.zh}（{item.arm}）"
    word = _VERDICTS_ZH[item.verdict]
    if item.max_deviation is None or item.verdict is Verdict.EXACT:
        return f"{name}：n = {item.n}，{word}。"
    note = "，仅供参考" if item.indicative else ""
    bound = f"（要求 ±{TOLERANCE:.0%}）"
    return f"{name}：n = {item.n}，偏离中位数至多 {item.max_deviation:.1%}{bound}，{word}{note}。"


def _list_sources(named: Iterable[tuple[str | None, str, MetricDefinition | ComparisonDefinition]]) -> str:
    return " ".join(f"{field} [{definition.unit}]: {how}." for field, how, definition in named)


def _list_sources_zh(named: Iterable[tuple[str | None, str, MetricDefinition | ComparisonDefinition]]) -> str:
    return "".join(f"{field} [{definition.unit}]：{how}。" for field, how, definition in named)


def _engine_name(test: TestRuns) -> str:
    """Name the engine as it named itself; where engines are compared, each of those that ran."""
    told = (run.facts.engine for run in test.runs)
    names = dict.fromkeys(f"{facts.name} {facts.version}" for facts in told if facts is not None)
    return ", ".join(names) or str(test.planned.engine)
