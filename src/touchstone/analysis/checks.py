"""Machine-decided statements about the runs of one test; each names what it was decided from, in both languages."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from touchstone.analysis import plausibility, repeats, samples
from touchstone.analysis.formulas import BYTES_PER_GB, NS_PER_S, PERCENTILES
from touchstone.analysis.metrics import DICTIONARY, SAMPLES
from touchstone.analysis.prediction import hit_upper_bound
from touchstone.analysis.quantities import Quantity
from touchstone.experiment import Bilingual
from touchstone.records import Check
from touchstone.workload import of_arm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from touchstone.analysis.runs import Ledgered, Process, Run, TestRuns
    from touchstone.records import MemoryParts, MetricStatistics, RequestTrace, Trace, WorkloadSpec

ROUNDING = 1e-9  # relative error that double precision may leave in an identity
# Of the total; more than this and the parts do not explain the memory. A process's heap also keeps pages that it has
# freed, and no counter tells them from those in use.
MAX_RESIDUAL_SHARE = 0.05
MAX_RESIDUAL_SHARE_OF_A_PROCESS = 0.10

Finding = Bilingual | None


def check_test(ledgered: Ledgered, test: TestRuns) -> tuple[Check, ...]:
    """Every check that applies to a measured test: its attempts, each of its runs, and its arms against each other."""
    runs = test.runs
    too_fast, has_roofline = plausibility.roofline_finder(ledgered)
    per_run: tuple[tuple[str, Callable[[Run], Finding], Bilingual, Callable[[Run], bool]], ...] = (
        ("all_tokens_returned", _missing_tokens, _ALL_TOKENS, lambda _: True),
        ("distinct_tokens", _one_token_finder(test), _DISTINCT, lambda _: True),
        ("window_inside_timed_region", _window_outside, _WINDOW, _is_complete),
        ("rate_times_time_is_tokens", _rate_identity, _RATE, _is_complete),
        ("latency_identity", _latency_identity, _LATENCY, _is_complete),
        ("step_time_within_total", _steps_exceed, _STEP_TIME, _has_steps),
        ("steps_account_for_tokens", _steps_miscount, _STEP_TOKENS, _has_steps),
        ("total_rate_within_parts", _rate_too_high, _PARTS, _has_steps),
        ("memory_parts_close", _memory_open, _MEMORY, _has_memory),
        ("memory_residual_bounded", _residual_too_large, _RESIDUAL, _reports_all_memory),
        ("prefix_cache_off_hits_nothing", _hits_though_off, _COLD, lambda run: _cache_is_off(test, run)),
        ("cache_hits_within_bound", _bound_finder(test), _BOUND, _reports_cached),
        ("device_time_within_wall", plausibility.device_time_outside, plausibility.DEVICE_TIME, _has_device_times),
        ("profile_within_span", plausibility.profile_outside_span, plausibility.PROFILE, _is_profiled),
        ("within_roofline", too_fast, plausibility.ROOFLINE, has_roofline),
        ("timer_not_rounded", plausibility.timer_rounded, plausibility.TIMER, lambda _: True),
        ("timer_above_resolution", plausibility.timer_too_short, plausibility.RESOLUTION, lambda _: True),
        ("memory_peak_holds_parts", plausibility.memory_peak_too_small, plausibility.MEMORY_PEAK, _has_memory),
        ("littles_law", plausibility.littles_law_broken, plausibility.LITTLE, _is_complete),
    )
    over_runs = (
        _over_runs(identifier, [run for run in runs if applies(run)], find, statement, arms_apart=test.arms_apart)
        for identifier, find, statement, applies in per_run
    )
    paired = (_same_work(test), _same_answer(test)) if len(test.arms) > 1 else ()
    over_test = (
        plausibility.timings_never_repeat(test),
        plausibility.prompts_never_repeat(test),
        plausibility.arms_interleaved(test),
        plausibility.scaling_within_ideal(test),
        plausibility.machine_steady(ledgered, test),
        plausibility.machine_undisturbed(ledgered.plan, test),
        repeats.repeated_prompts_not_faster(test),
    )
    found = (_attempts_accounted(test), _one_environment(ledgered, test), *over_runs, *paired, *over_test)
    return tuple(check for check in found if check is not None)


# --- the attempts ---------------------------------------------------------------------------------------------------


def _attempts_accounted(test: TestRuns) -> Check:
    """Require attempts 1, 2, ... of every planned unit, one of them valid and no more, and none of another unit."""
    numbers: dict[str, list[int]] = {unit.unit_id: [] for unit in test.units}
    strangers = sum(attempt.unit_id not in numbers for _, attempt in test.attempts)
    valid_units = [attempt.unit_id for _, attempt in test.attempts if attempt.valid]
    for _, attempt in test.attempts:
        numbers.setdefault(attempt.unit_id, []).append(attempt.attempt)
    gaps = sum(found != list(range(1, len(found) + 1)) for found in numbers.values())
    planned, done = len(test.units), len(test.processes)
    total, valid = len(test.attempts), test.num_valid
    repeated = len(valid_units) - len(set(valid_units))
    lost = gaps + strangers + repeated
    detail = f"{planned} processes planned, {done} done; {total} attempts, {valid} valid; {lost} unaccounted for"
    detail_zh = f"计划 {planned} 个进程，完成 {done} 个；尝试 {total} 次，有效 {valid} 次；{lost} 处对不上"
    return Check(
        id="attempts_accounted",
        passed=lost == 0 and done == planned,
        detail=detail,
        detail_zh=detail_zh,
    )


def _one_environment(ledgered: Ledgered, test: TestRuns) -> Check:
    """All attempts were made in the run's one environment, under its one plan."""
    environments = ledgered.fingerprints | {attempt.environment_fingerprint for _, attempt in test.attempts}
    plans = {ledgered.plan.plan_sha256} | {attempt.plan_sha256 for _, attempt in test.attempts}
    return Check(
        id="one_environment_one_plan",
        passed=len(environments) == 1 and len(plans) == 1,
        detail=f"{len(environments)} environment fingerprint(s) and {len(plans)} plan hash(es) in the records",
        detail_zh=f"记录中有 {len(environments)} 个环境指纹、{len(plans)} 个计划哈希",
    )


# --- the arms against each other ------------------------------------------------------------------------------------


def _same_work(test: TestRuns) -> Check:
    """Compare prompt lengths and output lengths of the runs of a process that had one seed, and the arms' totals."""
    groups = [_same_workload(test, group) for process in test.processes for group in _by_seed(process)]
    unequal = sum(len({_work(run.facts.trace) for run in group}) > 1 for group in groups)
    arms = [arm.name for arm in test.planned.arms if not arm.extra_output]
    for process in test.processes:
        run_here = [arm for arm in arms if process.of_arm(arm)]
        unequal += len({_arm_total(process, arm) for arm in run_here}) > 1
    return Check(
        id="same_work",
        passed=unequal == 0,
        detail=f"{len(test.processes)} processes, {unequal} cases of unequal token counts between runs or arms",
        detail_zh=f"{len(test.processes)} 个进程，各次运行或各组之间 token 数不等的情况 {unequal} 处",
    )


def _same_answer(test: TestRuns) -> Check | None:
    """Print the share of requests whose tokens are the same in both arms; 16-bit arithmetic may make it less than all.

    It fails only where not a single request agrees: then the arms did not do the same thing.
    """
    equal, total = 0, 0
    for process in test.processes:
        for group in _by_seed(process):
            for first, second in pairwise(_same_workload(test, group)):
                if first.arm != second.arm:
                    pairs = zip(first.facts.trace.requests, second.facts.trace.requests, strict=False)
                    same = [one.output_sha256 == other.output_sha256 for one, other in pairs]
                    equal, total = equal + sum(same), total + len(same)
    if total == 0:
        return None
    share = f"{100 * equal / total:.1f} %"
    return Check(
        id="same_answer",
        passed=equal > 0,
        detail=f"{equal} of {total} compared requests ({share}) have the same tokens in both arms",
        detail_zh=f"{equal} 个请求（共比较 {total} 个，{share}）在两组中得到相同的 token",
    )


def _by_seed(process: Process) -> list[list[Run]]:
    groups: dict[int, list[Run]] = {}
    for run in process.runs:
        groups.setdefault(run.seed, []).append(run)
    return list(groups.values())


def _same_workload(test: TestRuns, group: Sequence[Run]) -> list[Run]:
    """Leave out the control, which is asked for more on purpose."""
    extended = {arm.name for arm in test.planned.arms if arm.extra_output}
    return [run for run in group if run.arm not in extended]


def _work(trace: Trace) -> tuple[tuple[int, int, int], ...]:
    return tuple((request.request_id, request.prompt_tokens, len(request.emissions)) for request in trace.requests)


def _arm_total(process: Process, arm: str) -> int:
    requests = (request for run in process.of_arm(arm) for request in run.facts.trace.requests)
    return sum(request.prompt_tokens + len(request.emissions) for request in requests)


# --- the numbers that are given -------------------------------------------------------------------------------------


def percentiles_ordered(described: Sequence[MetricStatistics]) -> Check | None:
    """Catch percentiles of different samples, or by a wrong formula: p50 <= p90 <= p99 <= max in every single run."""
    pairs = [pair for sample in SAMPLES for pair in _neighbours(sample, described)]
    if not pairs:
        return None
    wrong = [(low, high) for low, high in pairs if any(_exceeds(*runs) for runs in _run_by_run(low, high))]
    if wrong:
        low, high = wrong[0]
        first = Bilingual(
            f"; first: {low.metric} ({low.arm}) exceeds {high.metric}",
            f"；首个：{low.metric}（{low.arm}）大于 {high.metric}",
        )
    else:
        first = Bilingual("", "")
    return Check(
        id="percentiles_ordered",
        passed=not wrong,
        detail=f"{len(pairs)} pairs of percentiles of one sample, {len(wrong)} out of order{first.en}",
        detail_zh=f"同一样本的百分位数相邻对 {len(pairs)} 个，其中 {len(wrong)} 个次序不对{first.zh}",
    )


def _neighbours(
    sample: str, described: Sequence[MetricStatistics]
) -> Iterator[tuple[MetricStatistics, MetricStatistics]]:
    for arm in dict.fromkeys(item.arm for item in described):
        of_arm = {item.metric: item for item in described if item.arm == arm}
        names = (f"{sample}_{name}" for name in (*PERCENTILES, "max"))
        yield from pairwise(of_arm[name] for name in names if name in of_arm)


def _run_by_run(low: MetricStatistics, high: MetricStatistics) -> Iterator[tuple[float, float]]:
    """Pair the values of each timed run; a metric that is withheld has none."""
    rows = zip(low.repetitions, high.repetitions, strict=False)
    return (pair for row in rows for pair in zip(*row, strict=True))


def _exceeds(low: float, high: float) -> bool:
    return low > high * (1 + ROUNDING)


# --- each run by itself ---------------------------------------------------------------------------------------------


def _over_runs(
    identifier: str, runs: Sequence[Run], find: Callable[[Run], Finding], statement: Bilingual, *, arms_apart: bool
) -> Check | None:
    """Apply a check to every run it concerns; None where it concerns none. Arms that are apart fail each by itself."""
    if not runs:
        return None
    found = [(run, finding) for run in runs if (finding := find(run)) is not None]
    if not found:
        detail, detail_zh = f"{len(runs)} runs: {statement.en}", f"{len(runs)} 次运行：{statement.zh}"
    else:
        run, finding = found[0]
        where, where_zh = f"{run.unit_id}, run {run.position}", f"{run.unit_id} 第 {run.position} 次运行"
        detail = f"{len(runs)} runs, {len(found)} fail; first {where}: {finding.en}"
        detail_zh = f"{len(runs)} 次运行中 {len(found)} 次不通过；首个为 {where_zh}：{finding.zh}"
    arms = tuple(dict.fromkeys(run.arm for run, _ in found)) if arms_apart else ()
    return Check(id=identifier, passed=not found, detail=detail, detail_zh=detail_zh, failed_arms=arms)


def _is_complete(run: Run) -> bool:
    return samples.unfinished(run.facts.trace) is None


def _has_steps(run: Run) -> bool:
    return run.facts.trace.steps is not None and _is_complete(run)


def _has_memory(run: Run) -> bool:
    return run.facts.memory is not None


def _has_device_times(run: Run) -> bool:
    return any(step.device_ns is not None for step in run.facts.trace.steps or ())


def _is_profiled(run: Run) -> bool:
    return bool(run.facts.device_work)


def _reports_cached(run: Run) -> bool:
    return all(request.cached_tokens is not None for request in run.facts.trace.requests)


_ALL_TOKENS = Bilingual("every request returned the number of tokens asked for", "每个请求都返回了要求的 token 数")


def _missing_tokens(run: Run) -> Finding:
    for request in run.facts.trace.requests:
        got, asked, name = len(request.emissions), request.requested_tokens, request.request_id
        if got != asked:
            return Bilingual(
                f"request {name} returned {got} tokens, {asked} were asked for",
                f"请求 {name} 返回 {got} 个 token，要求 {asked} 个",
            )
    return None if run.facts.trace.requests else samples.NO_REQUESTS.reason


_DISTINCT = Bilingual("the output holds more than one distinct token", "输出中不止一种 token")


def _one_token_finder(test: TestRuns) -> Callable[[Run], Finding]:
    """Catch one and the same token over and over: what zeroed weights or NaN logits look like.

    Requests of different prompts must not all give it. A model may well continue a single prompt so, one with random
    weights often does: runs of one prompt are looked at together, and all of an arm's must not give the same.
    """
    workload = test.planned.workload
    alone = [arm.name for arm in test.planned.arms if workload and _has_one_prompt(of_arm(workload, arm))]
    together = {
        arm: _is_one_token([request for run in test.runs if run.arm == arm for request in run.facts.trace.requests])
        for arm in alone
    }

    def find(run: Run) -> Finding:
        if not together.get(run.arm, True) or not _is_one_token(run.facts.trace.requests):
            return None
        return Bilingual("all output tokens are the same", "所有输出 token 都相同")

    return find


def _has_one_prompt(workload: WorkloadSpec) -> bool:
    lengths, everything = workload.input_tokens, (workload.shared_fraction, workload.prefix_fraction) == (1.0, 1.0)
    return workload.num_requests == 1 or (everything and lengths.low == lengths.high)


def _is_one_token(requests: Sequence[RequestTrace]) -> bool:
    outputs = {(len(request.emissions), request.output_sha256) for request in requests}
    differ = len(outputs) > len({length for length, _ in outputs})
    too_few = sum(len(request.emissions) for request in requests) < 2  # noqa: PLR2004  one token cannot differ
    return not (differ or too_few or any(request.distinct_tokens > 1 for request in requests))


_WINDOW = Bilingual(
    "the last token lies within the timed region, whose ends synchronize the device",
    "最后一个 token 落在两端同步设备的计时区间内",
)


def _window_outside(run: Run) -> Finding:
    trace = run.facts.trace
    last = max(trace.emission_times_ns)
    first = min(request.arrival_ns for request in trace.requests)
    if first >= 0 and last <= trace.duration_ns and samples.window_ns(trace) > 0:
        return None
    return Bilingual(
        f"{first} ns to {last} ns does not lie within 0 to {trace.duration_ns} ns",
        f"{first} ns 至 {last} ns 不在 0 至 {trace.duration_ns} ns 之内",
    )


_RATE = Bilingual("end-to-end rate times total time gives the tokens counted", "端到端速率乘以总耗时等于 token 计数")


def _rate_identity(run: Run) -> Finding:
    requests = run.facts.trace.requests
    tokens = sum(request.prompt_tokens + len(request.emissions) for request in requests)
    rate, time = (DICTIONARY[name].compute(run.facts) for name in ("e2e_throughput", "total_time"))
    product = rate.value * time.value if isinstance(rate, Quantity) and isinstance(time, Quantity) else math.nan
    if math.isclose(product, tokens, rel_tol=ROUNDING):
        return None
    return Bilingual(f"{product:.6g} tokens by the rate, {tokens} counted", f"按速率为 {product:.6g}，计数为 {tokens}")


_LATENCY = Bilingual(
    "total latency is TTFT + TPOT x (n - 1) and no token comes before its predecessor or its request",
    "总延迟等于 TTFT + TPOT × (n - 1)，且没有 token 早于前一个 token 或早于请求到达",
)


def _latency_identity(run: Run) -> Finding:
    trace = run.facts.trace
    several = [index for index, request in enumerate(trace.requests) if len(request.emissions) > 1]
    tpot = dict(zip(several, samples.tpot(trace), strict=True))
    for index, (first, total) in enumerate(zip(samples.ttft(trace), samples.total_latency(trace), strict=True)):
        rebuilt = first + tpot.get(index, 0.0) * (len(trace.requests[index].emissions) - 1)
        if first < 0 or not math.isclose(rebuilt, total, rel_tol=ROUNDING):
            name = trace.requests[index].request_id
            return Bilingual(
                f"request {name}: {rebuilt:.0f} ns against {total} ns",
                f"请求 {name}：{rebuilt:.0f} ns，实测 {total} ns",
            )
    if (samples.itl(trace) < 0).any():
        return Bilingual("a token came before the one before it", "有 token 早于其前一个 token")
    return None


_STEP_TIME = Bilingual(
    "prefill, decode and mixed time together do not exceed the timed region",
    "预填充、解码与混合步时间之和不超过计时区间",
)


def _steps_exceed(run: Run) -> Finding:
    trace = run.facts.trace
    total = samples.elapsed_ns(trace, samples.attribute_time(trace.steps or ()))
    if total <= trace.duration_ns:
        return None
    return Bilingual(
        f"{total:.0f} ns of steps in {trace.duration_ns} ns", f"{trace.duration_ns} ns 内有 {total:.0f} ns 的步"
    )


_STEP_TOKENS = Bilingual(
    "the steps' tokens are the requests' uncached prompt tokens and output tokens after the first",
    "各步 token 数之和等于各请求未命中缓存的提示 token 数与首个之后的输出 token 数",
)


def _steps_miscount(run: Run) -> Finding:
    """Hold the steps' counts against the requests': equal, or more in the steps where work was done again."""
    trace = run.facts.trace
    steps = trace.steps or ()
    prefill, decode = sum(step.prefill_tokens for step in steps), sum(step.decode_tokens for step in steps)
    uncached = sum(request.prompt_tokens - (request.cached_tokens or 0) for request in trace.requests)
    later = sum(len(request.emissions) - 1 for request in trace.requests)
    again = any(request.preemptions != 0 for request in trace.requests)
    unknown = not _reports_cached(run)
    if again or unknown:
        fits = (prefill >= uncached or unknown) and prefill + decode >= later
    else:
        fits = (prefill, decode) == (uncached, later)
    if fits:
        return None
    return Bilingual(
        f"prefill {prefill} in steps, {uncached} in requests; decode {decode} in steps, {later} in requests",
        f"预填充：各步合计 {prefill}，各请求合计 {uncached}；解码：各步合计 {decode}，各请求合计 {later}",
    )


_PARTS = Bilingual(
    "tokens computed per second of the whole run do not exceed the fastest kind of step",
    "整个运行每秒计算的 token 数不超过最快一类步的速率",
)


def _rate_too_high(run: Run) -> Finding:
    """Hold the requests' total rate against the steps' rates, of which it is a weighted mean with the idle time."""
    trace = run.facts.trace
    if not _reports_cached(run):
        return None
    uncached = sum(request.prompt_tokens - (request.cached_tokens or 0) for request in trace.requests)
    later = sum(len(request.emissions) - 1 for request in trace.requests)
    total = (uncached + later) / samples.window_ns(trace) * NS_PER_S
    fastest = max(_rates_by_kind(trace).values(), default=0.0)
    if total <= fastest * (1 + ROUNDING) and fastest < math.inf:
        return None
    return Bilingual(f"{total:.6g} tokens/s against {fastest:.6g}", f"{total:.6g} token/s，最快一类步 {fastest:.6g}")


def _rates_by_kind(trace: Trace) -> dict[str, float]:
    """Tokens per second of attributed time for each kind of step; infinite where the steps took no time."""
    replicas = samples.num_replicas(trace)
    totals: dict[str, tuple[int, int]] = {}
    for timed in samples.attribute_time(trace.steps or ()):
        tokens, time = totals.get(timed.step.kind, (0, 0))
        computed = timed.step.prefill_tokens + timed.step.decode_tokens
        totals[timed.step.kind] = (tokens + computed, time + timed.attributed_ns)
    return {kind: replicas * tokens / time * NS_PER_S if time else math.inf for kind, (tokens, time) in totals.items()}


_MEMORY = Bilingual(
    "the parts and the residual add up to the total, and no more of the KV pool is used than there is",
    "各部分与余量之和等于总量，且 KV 缓存池的已用部分不超过其大小",
)


def _memory_open(run: Run) -> Finding:
    parts = cast("MemoryParts", run.facts.memory)
    unexplained = _unexplained_bytes(parts)
    if parts.residual_bytes in (None, unexplained) and parts.kv_used_peak_bytes <= parts.kv_pool_bytes:
        return None
    texts = (f"{value / BYTES_PER_GB:.3f} GB" for value in (unexplained, parts.residual_bytes or 0))
    left, residual = texts
    return Bilingual(
        f"{left} remain without a part, {residual} are given as residual; KV used {parts.kv_used_peak_bytes} "
        f"of {parts.kv_pool_bytes} bytes",
        f"未归入任何部分的有 {left}，记录的余量为 {residual}；KV 已用 {parts.kv_used_peak_bytes} 字节，"
        f"池大小 {parts.kv_pool_bytes} 字节",
    )


_RESIDUAL = Bilingual(
    f"what the parts leave unexplained is within {MAX_RESIDUAL_SHARE:.0%} of a GPU's total, or "
    f"{MAX_RESIDUAL_SHARE_OF_A_PROCESS:.0%} of a process's",
    f"各部分未能解释的余量，在 GPU 上不超过总量的 {MAX_RESIDUAL_SHARE:.0%}，"
    f"在 CPU 进程中不超过 {MAX_RESIDUAL_SHARE_OF_A_PROCESS:.0%}",
)


def _reports_all_memory(run: Run) -> bool:
    """Whether the residual can be bounded: a part that the engine cannot tell is inside it otherwise."""
    return run.facts.memory is not None and run.facts.memory.activations_peak_bytes is not None


def _residual_too_large(run: Run) -> Finding:
    parts = cast("MemoryParts", run.facts.memory)
    share = _unexplained_bytes(parts) / parts.device_total_peak_bytes
    limit = MAX_RESIDUAL_SHARE if parts.device.startswith("cuda") else MAX_RESIDUAL_SHARE_OF_A_PROCESS
    if abs(share) <= limit:
        return None
    return Bilingual(f"{share:.1%} of the total are unexplained", f"总量的 {share:.1%} 未能解释")


def _unexplained_bytes(parts: MemoryParts) -> int:
    known = parts.weights_bytes + parts.kv_pool_bytes + parts.context_and_other_bytes
    return parts.device_total_peak_bytes - known - (parts.activations_peak_bytes or 0) - (parts.cuda_graphs_bytes or 0)


_COLD = Bilingual("no prompt token came from the cache that is off", "关闭缓存的一组没有任何提示 token 来自缓存")


def _cache_is_off(test: TestRuns, run: Run) -> bool:
    options = next((arm.options for arm in test.planned.arms if arm.name == run.arm), {})
    settings = run.facts.engine.settings if run.facts.engine is not None else {}
    return {**settings, **options}.get("prefix_cache") is False and _reports_cached(run)


def _hits_though_off(run: Run) -> Finding:
    cached = _cached(run.facts.trace.requests)
    if cached == 0:
        return None
    return Bilingual(f"{cached} cached prompt tokens", f"有 {cached} 个提示 token 命中缓存")


_BOUND = Bilingual(
    "cached prompt tokens do not exceed what whole blocks of the shared prefix can give from a cold start",
    "命中缓存的提示 token 数不超过冷启动时共享前缀整块所能提供的上限",
)


def _bound_finder(test: TestRuns) -> Callable[[Run], Finding]:
    spec = test.planned.workload

    def find(run: Run) -> Finding:
        requests = run.facts.trace.requests
        cached = _cached(requests)
        lengths = [request.prompt_tokens for request in requests]
        bound = hit_upper_bound(spec, lengths, _block_size(run)) if spec is not None else sum(lengths)
        if cached <= bound:
            return None
        return Bilingual(f"{cached} cached tokens, at most {bound} possible", f"命中 {cached} 个，上限为 {bound} 个")

    return find


def _block_size(run: Run) -> int:
    """Read the engine's block size; 1, which bounds least, where it does not tell."""
    size = run.facts.engine.settings.get("block_size") if run.facts.engine is not None else None
    return size if isinstance(size, int) and size > 0 else 1


def _cached(requests: Iterable[RequestTrace]) -> int:
    return sum(request.cached_tokens or 0 for request in requests)
