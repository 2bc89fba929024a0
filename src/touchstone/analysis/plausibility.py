"""Physical bounds, clocks that lie, identities, and the instrument's own checks; each check names the lie it catches.

Together with `touchstone.analysis.checks` this covers `LIES`, the table of what makes numbers lie. A finding is None
where nothing is wrong, otherwise what is wrong in both languages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, cast

from touchstone.analysis import roofline, samples, statistics
from touchstone.analysis.formulas import NS_PER_S, mean_concurrency
from touchstone.analysis.quantities import Quantity
from touchstone.experiment import INSTRUMENT_TEST, Bilingual
from touchstone.records import Check
from touchstone.validity import largest_move, why_disturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from touchstone.analysis.roofline import Peaks
    from touchstone.analysis.runs import Ledgered, Run, TestRuns
    from touchstone.records import ArmSpec, Effect, MemoryParts, MetricStatistics, RunPlan, Trace

ROUNDING = 1e-9  # relative error that double precision may leave in an identity
NS_PER_MS = 1_000_000
# 10,000 ticks of the nanosecond clock: an elapsed time below them has fewer than four digits that mean something.
MIN_ELAPSED_NS = 10_000
# Device events and the host's clock are two oscillators, and an event is recorded some microseconds late.
EVENT_SHARE, EVENT_NS = 1.01, 50_000
MAX_SCALING = 1.05  # rate(2p) <= 2 rate(p) x 1.05

Finding = Bilingual | None


@dataclass(frozen=True, slots=True)
class Lie:
    """One way in which numbers lie, and what catches it: ids of checks, or names of functions of the instrument."""

    lie: Bilingual
    checks: tuple[str, ...]
    functions: tuple[str, ...] = ()


LIES: tuple[Lie, ...] = (
    Lie(Bilingual("no synchronization", "未同步设备"), ("device_time_within_wall", "within_roofline")),
    Lie(Bilingual("impossible rate", "不可能的速率"), ("within_roofline", "not_far_below_roofline")),
    Lie(
        Bilingual("clamped or rounded timer", "计时器被截断或取整"),
        ("timer_not_rounded", "timer_above_resolution", "timings_never_repeat"),
    ),
    Lie(
        Bilingual("prefill, decode and total confused", "混淆预填充、解码与总量"),
        ("total_rate_within_parts", "step_time_within_total"),
    ),
    Lie(
        Bilingual("nominal instead of real tokens", "以标称 token 数代替实际 token 数"),
        ("all_tokens_returned", "distinct_tokens", "steps_account_for_tokens"),
    ),
    Lie(
        Bilingual("broken identities", "恒等式不成立"),
        (
            "rate_times_time_is_tokens",
            "latency_identity",
            "percentiles_ordered",
            "memory_peak_holds_parts",
            "littles_law",
            "window_inside_timed_region",
            "profile_within_span",
            "cache_hits_within_bound",
            "cache_hits_as_predicted",
            "prefix_cache_off_hits_nothing",
        ),
    ),
    Lie(
        Bilingual("an arm that is not what its name says", "某一组名不副实"),
        ("graphs_as_asked", "prefix_cache_off_hits_nothing", "arrivals_as_drawn"),
    ),
    Lie(
        Bilingual("scaling too good", "扩展效率好得不真实"),
        (
            "scaling_within_ideal",
            "efficiency_within_ideal",
            "scaling_same_work",
            "scaling_same_kv_pool",
            "scaling_devices_as_planned",
        ),
    ),
    Lie(Bilingual("cached results", "返回缓存的结果"), ("repeated_prompts_not_faster", "prompts_never_repeat")),
    Lie(
        Bilingual("best of n; retry until it passes; failures dropped", "择优、反复重试或丢弃失败"),
        ("attempts_accounted", "machine_steady"),
    ),
    Lie(
        Bilingual("one arm measured long after the other", "一组远晚于另一组测量"),
        ("arms_interleaved", "same_work", "passes_agree", "placebo_equivalent", "control_detected"),
    ),
    Lie(
        Bilingual("quoted or typed-in numbers", "引用或手填的数字"),
        (),
        ("touchstone.reporting.lint.template_digit_faults", "touchstone.reporting.lint.language_number_faults"),
    ),
    Lie(Bilingual("mixed machines", "混用机器"), ("one_environment_one_plan",)),
    Lie(Bilingual("stale report", "过期的报告"), (), ("touchstone.verify",)),
    Lie(Bilingual("edited ledger", "被修改的账本"), (), ("touchstone.ledger.read_ledger",)),
)

# Which numbers a failed check takes back: those of times and rates, of memory, of profiled runs, or all of the test.
REFUSES_TIMES = frozenset(
    {
        "device_time_within_wall",
        "within_roofline",
        "timer_not_rounded",
        "timer_above_resolution",
        "timings_never_repeat",
        "total_rate_within_parts",
        "step_time_within_total",
        "rate_times_time_is_tokens",
        "latency_identity",
        "littles_law",
        "window_inside_timed_region",
        "scaling_within_ideal",
        "repeated_prompts_not_faster",
        "arms_interleaved",
        "arrivals_as_drawn",
    }
)
REFUSES_MEMORY = frozenset({"memory_parts_close", "memory_peak_holds_parts"})
REFUSES_PROFILED = frozenset({"profile_within_span"})
PROFILED_METRICS = frozenset({"device_busy_share", "communication_share"})
REFUSES_ALL = frozenset(
    {
        "all_tokens_returned",
        "distinct_tokens",
        "one_environment_one_plan",
        "cache_hits_within_bound",
        "cache_hits_as_predicted",
        "graphs_as_asked",
        "prefix_cache_off_hits_nothing",
        "prompts_never_repeat",
    }
)


# --- each run by itself ---------------------------------------------------------------------------------------------

DEVICE_TIME = Bilingual(
    "the device's own time of each step fits into the step, and of all steps into the timed region",
    "每步的设备时间不超过该步耗时，各步设备时间之和不超过计时区间",
)


def device_time_outside(run: Run) -> Finding:
    """Catch timing without synchronization: the host's clock stops while the device still works."""
    trace = run.facts.trace
    timed = [(step, step.device_ns) for step in trace.steps or () if step.device_ns is not None]
    total = sum(device for _, device in timed) / samples.num_replicas(trace)
    for index, (step, device) in enumerate(timed):
        wall = step.end_ns - step.begin_ns
        if device > wall * EVENT_SHARE + EVENT_NS:
            return Bilingual(
                f"step {index}: {device} ns on the device in {wall} ns",
                f"第 {index} 步：{wall} ns 内设备工作 {device} ns",
            )
    if total <= trace.duration_ns * EVENT_SHARE:
        return None
    return Bilingual(
        f"{total:.0f} ns on the device in {trace.duration_ns} ns",
        f"{trace.duration_ns} ns 内设备工作了 {total:.0f} ns",
    )


PROFILE = Bilingual(
    "each device of the profiled run is busy no longer than from its first kernel to its last",
    "剖析运行中每个设备的忙碌时间不超过其首个核函数至最后一个的时间",
)


def profile_outside_span(run: Run) -> Finding:
    """Catch kernels that are counted twice where they run at the same time: a device cannot be busier than always."""
    for work in run.facts.device_work:
        if not 0 <= work.busy_ns <= work.span_ns:
            return Bilingual(
                f"{work.device}: busy for {work.busy_ns} ns in {work.span_ns} ns",
                f"{work.device}：{work.span_ns} ns 内忙碌 {work.busy_ns} ns",
            )
    return None


TIMER = Bilingual("no elapsed time is a whole number of milliseconds", "没有恰为整毫秒的耗时")


def timer_rounded(run: Run) -> Finding:
    """Catch a rounded or clamped timer: a true nanosecond reading is a whole millisecond once in a million."""
    trace = run.facts.trace
    rounded = trace.duration_ns % NS_PER_MS == 0
    all_rounded = bool(trace.emission_times_ns) and all(time % NS_PER_MS == 0 for time in trace.emission_times_ns)
    if not (rounded or all_rounded):
        return None
    shown = trace.duration_ns / NS_PER_S
    return Bilingual(
        f"the clock shows whole milliseconds ({shown:.3f} s): a clamped or rounded timer",
        f"时钟读数恰为整毫秒（{shown:.3f} s）：计时器被截断或取整",
    )


RESOLUTION = Bilingual(
    f"every timed region is at least {MIN_ELAPSED_NS} ticks of the clock long",
    f"每个计时区间至少 {MIN_ELAPSED_NS} 个时钟刻度",
)


def timer_too_short(run: Run) -> Finding:
    """Catch times below what the clock resolves."""
    elapsed = run.facts.trace.duration_ns
    if elapsed >= MIN_ELAPSED_NS:
        return None
    return Bilingual(f"{elapsed} ns were timed", f"计时区间只有 {elapsed} ns")


MEMORY_PEAK = Bilingual(
    "the peak holds at least the weights and the KV cache in use", "峰值不低于权重与已用 KV 缓存之和"
)


def memory_peak_too_small(run: Run) -> Finding:
    """Catch a peak that was read at the wrong moment or of the wrong device."""
    parts = cast("MemoryParts", run.facts.memory)
    least = parts.weights_bytes + parts.kv_used_peak_bytes
    if parts.device_total_peak_bytes >= least:
        return None
    return Bilingual(
        f"a peak of {parts.device_total_peak_bytes} bytes holds {least} bytes of weights and KV in use",
        f"峰值 {parts.device_total_peak_bytes} 字节，而权重与已用 KV 共 {least} 字节",
    )


LITTLE = Bilingual(
    "mean requests in flight, counted moment by moment, are the summed latencies over the time, and never more than "
    "there are",
    "逐时刻统计的平均在途请求数等于延迟之和除以时间，且不超过请求总数",
)


def littles_law_broken(run: Run) -> Finding:
    """Catch latencies and total time that are not of the same run (Little 1961)."""
    trace = run.facts.trace
    told = mean_concurrency(run.facts)
    if not isinstance(told, Quantity):
        return None
    counted = _mean_in_flight(trace)
    if abs(told.value - counted) <= ROUNDING * counted and counted <= len(trace.requests) * (1 + ROUNDING):
        return None
    return Bilingual(
        f"{told.value:.6g} by the latencies, {counted:.6g} counted, {len(trace.requests)} requests",
        f"按延迟为 {told.value:.6g}，逐时刻统计为 {counted:.6g}，请求共 {len(trace.requests)} 个",
    )


def _mean_in_flight(trace: Trace) -> float:
    """Walk through arrivals and departures and weigh each number in flight by how long it lasted."""
    ends = (samples.last_token_ns(trace, request) for request in trace.requests)
    events = sorted([(request.arrival_ns, 1) for request in trace.requests] + [(end, -1) for end in ends])
    in_flight, weighted = 0, 0
    for (time, change), (later, _) in pairwise(events):
        in_flight += change
        weighted += in_flight * (later - time)
    return weighted / samples.window_ns(trace)


ROOFLINE = Bilingual(
    "prefill, decode and the whole run take no less time than the machine needs at its fastest canary readings",
    "预填充、解码与整个运行的耗时均不低于本机按最快金丝雀读数所需的时间",
)


def roofline_finder(ledgered: Ledgered) -> tuple[Callable[[Run], Finding], Callable[[Run], bool]]:
    """Catch impossible rates in every run: the finder, and whether it applies (steps, model facts and canary known)."""
    peaks, device = roofline.fastest(ledgered.readings), ledgered.plan.device

    def find(run: Run) -> Finding:
        for metric in ("prefill_throughput", "decode_throughput", "total_time"):
            found = roofline.roofline_of(metric, run.facts, 1.0, cast("Peaks", peaks), device, alone=False)
            if found is not None and (wrong := roofline.too_fast(found)) is not None:
                return Bilingual(f"{metric}: {wrong.en}", f"{metric}：{wrong.zh}")
        return None

    def applies(run: Run) -> bool:
        return peaks is not None and bool(run.facts.trace.steps) and roofline.model_work(run.facts.engine) is not None

    return find, applies


# --- all runs of a test ---------------------------------------------------------------------------------------------


def timings_never_repeat(test: TestRuns) -> Check | None:
    """Catch a timer with too few digits, or a run that was copied: two times equal to the nanosecond."""
    times = [run.facts.trace.duration_ns for run in test.runs]
    if len(times) < 2:  # noqa: PLR2004  one time cannot repeat
        return None
    repeated = len(times) - len(set(times))
    return Check(
        id="timings_never_repeat",
        passed=repeated == 0,
        detail=f"{len(times)} timed regions, {repeated} equal to another to the nanosecond",
        detail_zh=f"{len(times)} 个计时区间，其中 {repeated} 个与另一个在纳秒级完全相同",
    )


def prompts_never_repeat(test: TestRuns) -> Check | None:
    """Catch cached results: an engine is timed on prompts that it has seen before."""
    if not test.runs:
        return None
    seen = [(process.unit.unit_id, run.arm, run.seed) for process in test.processes for run in process.runs]
    repeated = len(seen) - len(set(seen))
    return Check(
        id="prompts_never_repeat",
        passed=repeated == 0,
        detail=f"{len(seen)} timed runs, {repeated} on prompts that their engine had answered before",
        detail_zh=f"{len(seen)} 次计时运行，其中 {repeated} 次使用了该引擎已回答过的提示",
    )


def arms_interleaved(test: TestRuns) -> Check | None:
    """Catch one arm measured long after the other: equal counts, equal mean position in each block, rising times.

    Engines have processes of their own: there it is rounds, each with one process of every engine, that must not mix.
    """
    if test.arms_apart and all(arm.engine is not None for arm in test.planned.arms):
        return _engines_in_turns(test)
    faults = 0
    for _, attempt in test.attempts:
        if not attempt.valid or len(test.arms) < 2 or len({row.arm for row in attempt.measurements}) < 2:  # noqa: PLR2004  pairs
            continue
        rows = sorted(attempt.measurements, key=lambda row: row.position)
        counts = {arm: [row.position for row in rows if row.arm == arm] for arm in test.arms}
        means = {sum(places) / len(places) if places else None for places in counts.values()}
        moments = [row.started_at for row in rows]
        faults += len(means) > 1 or len({len(places) for places in counts.values()}) > 1 or moments != sorted(moments)
    if len(test.arms) < 2:  # noqa: PLR2004  pairs
        return None
    return Check(
        id="arms_interleaved",
        passed=faults == 0,
        detail=f"{len(test.processes)} processes, {faults} in which the arms do not alternate in time",
        detail_zh=f"{len(test.processes)} 个进程，其中 {faults} 个进程内各组在时间上未交替",
    )


def _engines_in_turns(test: TestRuns) -> Check:
    """Require every round to end before the next one begins; the ledger's order is the order of the processes."""
    round_of = {unit.unit_id: unit.process for unit in test.units}
    rounds = [round_of[a.unit_id] for _, a in test.attempts if a.valid and a.unit_id in round_of]
    late = sum(earlier > later for earlier, later in pairwise(rounds))
    counts = (len(test.processes), len(test.arms), len(set(rounds)), late)
    return Check(
        id="arms_interleaved",
        passed=late == 0,
        detail="{} processes of {} engines that take turns in {} rounds, {} out of their round".format(*counts),
        detail_zh="{} 个进程，{} 个引擎按轮次交替，共 {} 轮，其中 {} 个进程不在其轮次之内".format(*counts),
    )


def scaling_within_ideal(test: TestRuns) -> Check | None:
    """Catch scaling that is too good: twice the GPUs cannot bring more than twice the rate.

    Unless the smaller arm was short of KV blocks, so that requests waited or were computed again: then more memory
    brings more than more devices do. Against one device the test's efficiency is held (`efficiency_within_ideal`).
    """
    steps = [step for arms in _series_of(test) for step in pairwise(arms)]
    gains = [gain for few, more in steps if (gain := _gain(test, few, more)) is not None]
    if not gains:
        return None
    held = [gain for gain in gains if not gain.short] or gains
    worst = max(held, key=lambda gain: gain.factor)
    return Check(
        id="scaling_within_ideal",
        passed=worst.factor <= MAX_SCALING or worst.short,
        detail=f"{len(gains)} steps to more GPUs, {sum(gain.short for gain in gains)} from an arm short of KV blocks; "
        f"at most, {worst.few} to {worst.more}, the rate grows {worst.factor:.3f} times as much as the GPUs; "
        f"{MAX_SCALING} is allowed",
        detail_zh=f"增加 GPU 共 {len(gains)} 步，其中 {sum(gain.short for gain in gains)} 步的较小一组缺少 KV 缓存块；"
        f"速率增幅最大的一步（{worst.few} 至 {worst.more}）为卡数增幅的 {worst.factor:.3f} 倍，上限 {MAX_SCALING}",
    )


@dataclass(frozen=True, slots=True)
class _Gain:
    """How many times as much as its GPUs the rate of an arm grows against a smaller one's; `short` excuses it."""

    few: str
    more: str
    factor: float
    short: bool


def _series_of(test: TestRuns) -> list[list[ArmSpec]]:
    """Group the arms that differ in their number of GPUs alone, each from the fewest to the most."""
    groups: dict[frozenset[str], list[ArmSpec]] = {}
    for arm in test.planned.arms:
        if kind := _PARALLEL & arm.options.keys():
            groups.setdefault(frozenset(kind), []).append(arm)
    return [sorted(arms, key=_num_gpus) for arms in groups.values()]


_PARALLEL = frozenset({"tensor_parallel_size", "data_parallel_size"})


def _num_gpus(arm: ArmSpec) -> int:
    return max(arm.num_gpus, math.prod(int(arm.options[name] or 1) for name in _PARALLEL & arm.options.keys()))


def _gain(test: TestRuns, few: ArmSpec, more: ArmSpec) -> _Gain | None:
    rates = [_rate_of(test, arm) for arm in (few, more)]
    if rates[0] is None or rates[1] is None or _num_gpus(few) == _num_gpus(more):
        return None
    factor = rates[1] / rates[0] * _num_gpus(few) / _num_gpus(more)
    return _Gain(few.name, more.name, factor, short=any(short_of_blocks(run) for run in _runs_of(test, few)))


def _runs_of(test: TestRuns, arm: ArmSpec) -> list[Run]:
    return [run for run in test.runs if run.arm == arm.name and samples.unfinished(run.facts.trace) is None]


def _rate_of(test: TestRuns, arm: ArmSpec) -> float | None:
    """Output tokens per nanosecond, the median over the runs of an arm; None for an arm that was not run."""
    traces = [run.facts.trace for run in _runs_of(test, arm)]
    rates = [sum(len(request.emissions) for request in trace.requests) / samples.window_ns(trace) for trace in traces]
    return median(rates) if rates else None


def short_of_blocks(run: Run) -> bool:
    """Whether requests were preempted, or waited though the engine's own limit on sequences let more of them run."""
    trace, engine = run.facts.trace, run.facts.engine
    if any(request.preemptions for request in trace.requests):
        return True
    settings = engine.settings if engine is not None else {}
    limit, replicas = settings.get("max_num_seqs"), samples.num_replicas(trace)
    most = min(len(trace.requests), limit * replicas if isinstance(limit, int) and limit > 0 else len(trace.requests))
    return trace.peak_concurrency is not None and trace.peak_concurrency < most


# --- the machine ----------------------------------------------------------------------------------------------------


def machine_steady(ledgered: Ledgered, test: TestRuns) -> Check | None:
    """Catch a neighbour, and attempts that were kept or dropped by their time: the canary alone decides."""
    measured = [row for _, attempt in test.attempts if attempt.valid for row in attempt.measurements]
    moves = [move for row in measured if (move := largest_move(row, ledgered.readings_by_device)) is not None]
    limit = ledgered.plan.canary_limit
    if not moves or limit is None:
        return None
    outside = sum(move > limit for move in moves)
    return Check(
        id="machine_steady",
        passed=outside == 0,
        detail=f"canaries around {len(moves)} valid runs moved by at most {max(moves):.1%}, allowed are {limit:.0%}",
        detail_zh=f"{len(moves)} 次有效运行前后的金丝雀读数最大变动 {max(moves):.1%}，允许 {limit:.0%}",
    )


def machine_undisturbed(plan: RunPlan, test: TestRuns) -> Check | None:
    """Catch neighbours, quotas and slowdowns that the canary's moments did not see."""
    measured = [row for _, attempt in test.attempts if attempt.valid for row in attempt.measurements]
    told = [row.telemetry for row in measured if row.telemetry is not None]
    if not told:
        return None
    reasons = [reason for telemetry in told if (reason := why_disturbed(telemetry)) is not None]
    rule = (
        ("and none may be", "不允许")
        if plan.telemetry_enforced
        else ("which this profile only reports", "本档位仅作报告")
    )
    first = Bilingual(f"; first: {reasons[0].en}", f"；首个：{reasons[0].zh}") if reasons else Bilingual("", "")
    return Check(
        id="machine_undisturbed",
        passed=not (reasons and plan.telemetry_enforced),
        detail=f"{len(told)} runs watched, {len(reasons)} disturbed, {rule[0]}{first.en}",
        detail_zh=f"监测 {len(told)} 次运行，{len(reasons)} 次受到干扰（{rule[1]}）{first.zh}",
    )


# --- the instrument -------------------------------------------------------------------------------------------------


def instrument_checks(test: TestRuns, effects: Sequence[Effect]) -> tuple[Check, ...]:
    """Judge placebo and control of the instrument's own test by their total times.

    Neither is judged where too few blocks were planned for any data to pass: that is no failure (`why_void` says it).
    """
    if test.planned.test_id != INSTRUMENT_TEST or _too_few_planned(test):
        return ()
    by_arm = {effect.treatment: effect for effect in effects if effect.metric == "total_time"}
    margin = test.planned.margin or statistics.MARGIN
    return _placebo_check(by_arm.get("placebo"), margin), _control_check(by_arm.get("control"))


def _too_few_planned(test: TestRuns) -> bool:
    return test.planned.num_processes < statistics.MIN_FOR_INTERVAL


def _placebo_check(effect: Effect | None, margin: float) -> Check:
    enough = effect is not None and len(effect.blocks) >= statistics.MIN_FOR_INTERVAL
    passed = effect is not None and enough and statistics.is_equivalent(effect.blocks, margin)
    value, value_zh = _effect_text(effect)
    return Check(
        id="placebo_equivalent",
        passed=passed,
        detail=f"equal settings against each other: {value}; to be shown within ±{margin:.0%}",
        detail_zh=f"相同设置相互比较：{value_zh}；须证明在 ±{margin:.0%} 之内",
    )


def _control_check(effect: Effect | None) -> Check:
    value, value_zh = _effect_text(effect)
    return Check(
        id="control_detected",
        passed=effect is not None and effect.verdict == statistics.EffectVerdict.HIGHER,
        detail=f"a tenth more output tokens: {value}; must be found to take longer",
        detail_zh=f"多要求十分之一的输出 token：{value_zh}；必须检出耗时更长",
    )


def _effect_text(effect: Effect | None) -> tuple[str, str]:
    if effect is None:
        return "no pairs were measured", "没有得到配对数据"
    interval = effect.interval
    shown = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    blocks = len(effect.blocks)
    return f"ratio {effect.ratio:.3f}{shown} in {blocks} blocks", f"{blocks} 个区组的比值 {effect.ratio:.3f}{shown}"


def why_void(checks: Sequence[Check] | None, effects: Sequence[Effect]) -> Bilingual | None:
    """Say why the verdicts on paired effects of this run are void; None where placebo and control passed.

    `checks` and `effects` are those of the instrument's own test; None where it has no result.
    """
    if checks is None:
        return Bilingual(
            "this run has no placebo and no control, so nothing shows what it can tell apart",
            "本次运行没有安慰剂组与阳性对照，无从得知它能分辨多大的差异",
        )
    if not any(check.id in {"placebo_equivalent", "control_detected"} for check in checks):
        blocks, needed = max((len(effect.blocks) for effect in effects), default=0), statistics.MIN_FOR_INTERVAL
        return Bilingual(
            f"{blocks} blocks cannot show what this run is able to tell apart; {needed} are needed, as the profile for "
            "publication plans them",
            f"{blocks} 个区组不足以说明本次运行能分辨多大的差异；至少需要 {needed} 个，正式发表所用的档位即按此安排",
        )
    failed = {check.id: check for check in checks if not check.passed}
    if "control_detected" in failed:
        return Bilingual(
            "the positive control was not detected: this run would have missed a tenth of the work",
            "阳性对照未被检出：本次运行看不见十分之一的工作量差异",
        )
    if "placebo_equivalent" not in failed:
        return None
    seen = {effect.verdict for effect in effects if effect.treatment == "placebo"}
    if seen & {"HIGHER", "LOWER"}:
        return Bilingual("the placebo shows a difference between equal settings", "安慰剂组在相同设置之间显示出差异")
    return Bilingual(
        "lack of resolution: the placebo could not be shown equivalent on this machine, which was too unsteady",
        "分辨力不足：本机波动过大，无法证明安慰剂组等效",
    )


def void_effects(effects: Sequence[Effect], reason: Bilingual | None) -> tuple[Effect, ...]:
    """Take back verdicts that rest on timing; counts and verdicts that claim nothing stay."""
    if reason is None:
        return tuple(effects)
    kept = {"EXACT", statistics.EffectVerdict.INSUFFICIENT.value}
    change = {"verdict": statistics.EffectVerdict.VOID.value, "void": reason.en, "void_zh": reason.zh}
    return tuple(effect if effect.verdict in kept else effect.model_copy(update=change) for effect in effects)


# --- what is refused ------------------------------------------------------------------------------------------------


def not_far_below_roofline(described: Sequence[MetricStatistics]) -> Check | None:
    """Catch a wrong code path: a number below a tenth of its bound that the launch rule does not explain."""
    roofed = [(item, item.roofline) for item in described if item.roofline is not None]
    if not roofed:
        return None
    found = [(item, wrong) for item, roof in roofed if (wrong := roofline.too_slow(roof)) is not None]
    lowest = min(roof.share for _, roof in roofed)
    explained = sum(roof.explanation is not None for _, roof in roofed)
    if not found:
        text = (
            f"{len(roofed)} numbers, the lowest at {lowest:.1%} of its bound; {explained} explained by the launch rule"
        )
        text_zh = f"{len(roofed)} 个数值，最低为其上限的 {lowest:.1%}；{explained} 个可用操作的启动耗时解释"
    else:
        item, wrong = found[0]
        text = f"{len(found)} of {len(roofed)} numbers; first {item.metric} (`{item.arm}`): {wrong.en}"
        text_zh = f"{len(roofed)} 个数值中有 {len(found)} 个；首个 {item.metric}（`{item.arm}`）：{wrong.zh}"
    return Check(id="not_far_below_roofline", passed=not found, detail=text, detail_zh=text_zh)


def refusal_of(item: MetricStatistics, checks: Sequence[Check], *, counted: bool) -> Bilingual | None:
    """Say why a number is refused: the first failed check that takes its kind back, or its own roofline."""
    if item.roofline is not None and (wrong := roofline.too_slow(item.roofline)) is not None:
        return Bilingual(f"not_far_below_roofline: {wrong.en}", f"not_far_below_roofline：{wrong.zh}")
    memory = item.unit == "GB"
    refusing = REFUSES_ALL | (REFUSES_MEMORY if memory else frozenset() if counted else REFUSES_TIMES)
    refusing |= REFUSES_PROFILED if item.metric in PROFILED_METRICS else frozenset()
    concerned = (check for check in checks if not check.failed_arms or item.arm in check.failed_arms)
    failed = next((check for check in concerned if not check.passed and check.id in refusing), None)
    return None if failed is None else Bilingual(f"{failed.id}: {failed.detail}", f"{failed.id}：{failed.detail_zh}")
