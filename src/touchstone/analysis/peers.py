"""Engines side by side: how long each takes for the same requests, against the first and against what is possible.

    ratio = exp(mean over rounds of ln(T_engine / T_first))

A round holds one process of every engine on the same prompts, so its log-ratio is free of what drifts between rounds;
the interval is Student's on the log-ratios. The share is the median over the processes of

    floor / T,   floor = max(bytes / B, FLOPs / F) / ranks
    bytes = (P + V H) max n_i + KV cache read          weights of layers and head once for each token of the longest
    FLOPs = 2 P (sum (L_i - c_i) + sum (n_i - 1)) + 2 V H sum n_i + attention

which needs nothing but the requests, so that engines that do not tell their steps have it too. It is below the floor of
a metric whose steps are told (`touchstone.analysis.roofline`, whose symbols these are).
"""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import TYPE_CHECKING

from touchstone.analysis import statistics
from touchstone.analysis.metrics import DICTIONARY
from touchstone.analysis.quantities import Quantity
from touchstone.analysis.roofline import fastest, model_work
from touchstone.experiment import Bilingual
from touchstone.records import PeerComparison

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.analysis.roofline import ModelWork, Peaks
    from touchstone.analysis.runs import Ledgered, Process, Run, TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import ArmSpec, MetricStatistics, RequestTrace

METRIC = "total_time"
_NO_VALID_PROCESS = Bilingual("no process of this engine was valid", "该引擎没有有效进程")


def peer_comparisons(
    ledgered: Ledgered, test: TestRuns, experiment: Experiment, described: Sequence[MetricStatistics]
) -> tuple[PeerComparison, ...]:
    """Compare the engines of a test with its first one, absent engines included; nothing for any other test."""
    if not experiment.compares_engines:
        return ()
    peaks = fastest(ledgered.readings)
    items = {item.arm: item for item in described if item.metric == METRIC}
    first = test.arms[0]
    given = items[first].median is not None  # no ratio is made to a time that was taken back
    present = [
        _compared(test, arm, items[arm.name], peaks, with_ratio=given and arm.name != first)
        for arm in test.planned.arms
    ]
    absent = [_absent(row.arm, Bilingual(row.reason, row.reason_zh)) for row in test.planned.absent_arms]
    return (*present, *absent)


def _compared(
    test: TestRuns, arm: ArmSpec, item: MetricStatistics, peaks: Peaks | None, *, with_ratio: bool
) -> PeerComparison:
    runs = [run for run in test.runs if run.arm == arm.name]
    facts = next((run.facts.engine for run in runs if run.facts.engine is not None), None)
    if item.median is None or facts is None:
        withheld = Bilingual(item.withheld or _NO_VALID_PROCESS.en, item.withheld_zh or _NO_VALID_PROCESS.zh)
        return _absent(arm, withheld if runs else _why_never_valid(test, arm.name, withheld))
    rounds = _rounds(test, arm.name) if with_ratio else ()
    ratios = [math.exp(value) for value in rounds]
    return PeerComparison(
        arm=arm.name,
        engine=arm.engine or facts.name,
        version=facts.version,
        settings=facts.settings,
        seconds=item.median,
        rounds=rounds,
        ratio=math.exp(fmean(rounds)) if rounds else None,
        interval=statistics.log_t_interval(ratios) if len(ratios) > 1 else None,
        share=_share(test, arm.name, peaks),
        cached_tokens=_cached(runs),
        reason=None,
        reason_zh=None,
    )


def _why_never_valid(test: TestRuns, arm: str, otherwise: Bilingual) -> Bilingual:
    """Quote what the last attempt said, such as that the engine cannot be started; it stands between backticks."""
    attempts = test.attempts_of(arm)
    if not attempts or attempts[-1].reason is None:
        return otherwise
    last = attempts[-1].reason.replace("`", "'")
    return Bilingual(
        f"none of {len(attempts)} attempts was valid; the last: `{last}`",
        f"{len(attempts)} 次尝试均无效；最后一次：`{last}`",
    )


def _absent(arm: ArmSpec, reason: Bilingual) -> PeerComparison:
    return PeerComparison(
        arm=arm.name,
        engine=arm.engine or arm.name,
        version=None,
        settings={},
        seconds=None,
        rounds=(),
        ratio=None,
        interval=None,
        share=None,
        cached_tokens=None,
        reason=reason.en,
        reason_zh=reason.zh,
    )


def _rounds(test: TestRuns, arm: str) -> tuple[float, ...]:
    """Take one log-ratio of times for each round in which the engine and the first one have a valid process."""
    mine, first = (_scores(test.processes, name) for name in (arm, test.arms[0]))
    return tuple(math.log(mine[index] / first[index]) for index in sorted(mine.keys() & first.keys()))


def _scores(processes: Sequence[Process], arm: str) -> Mapping[int, float]:
    """Score each process of an engine by the median of its times, by the number of its round."""
    scores = {}
    for process in processes:
        values = [DICTIONARY[METRIC].compute(run.facts) for run in process.of_arm(arm)]
        known = [value.value for value in values if isinstance(value, Quantity)]
        if known:
            scores[process.unit.process] = median(known)
    return scores


def _cached(runs: Sequence[Run]) -> int | None:
    """Count the prompt tokens that came from a cache in all runs; None where the engine does not tell."""
    told = [request.cached_tokens for run in runs for request in run.facts.trace.requests]
    known = [tokens for tokens in told if tokens is not None]
    return sum(known) if len(known) == len(told) else None


# --- what the machine could do at best ------------------------------------------------------------------------------


def _share(test: TestRuns, arm: str, peaks: Peaks | None) -> float | None:
    """Median share of the bound over the processes; None without a canary, model facts or counts of cached tokens."""
    shares = []
    for process in test.processes:
        found = [_share_of_run(run, peaks) for run in process.of_arm(arm)]
        known = [share for share in found if share is not None]
        if len(known) < len(found):
            return None
        shares += [median(known)] if known else []
    return median(shares) if shares else None


def _share_of_run(run: Run, peaks: Peaks | None) -> float | None:
    model, requests = model_work(run.facts.engine), run.facts.trace.requests
    time = DICTIONARY[METRIC].compute(run.facts)
    if peaks is None or model is None or not isinstance(time, Quantity):
        return None
    if any(request.cached_tokens is None for request in requests):
        return None
    return least_s(requests, model, peaks) / time.value


def least_s(requests: Sequence[RequestTrace], model: ModelWork, peaks: Peaks) -> float:
    """Bound the time that these requests take on this machine, however they are scheduled."""
    passes = max(len(request.emissions) for request in requests)
    num_bytes = (model.layer_parameters + model.head_parameters) * model.element_bytes * passes
    tokens = pairs = kv_tokens = outputs = 0
    for request in requests:
        prompt, cached, later = request.prompt_tokens, request.cached_tokens or 0, len(request.emissions) - 1
        context = later * prompt + later * (later + 1) // 2  # of the decoded tokens, each with all before it
        tokens += prompt - cached + later
        pairs += prompt * (prompt + 1) // 2 - cached * (cached + 1) // 2 + context
        kv_tokens += cached + context
        outputs += later + 1
    num_bytes += kv_tokens * model.kv_bytes_per_token
    linear = 2 * (model.layer_parameters * tokens + model.head_parameters * outputs)
    num_flops = linear + pairs * model.flops_per_pair
    return max(num_bytes / peaks.bytes_per_s, num_flops / peaks.flops_per_s) / model.ranks
