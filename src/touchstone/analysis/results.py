"""One JSON file a test of the plan, derived from the ledger and the traces alone; nothing flows back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from touchstone.analysis.arm_checks import arm_checks
from touchstone.analysis.checks import check_test, percentiles_ordered
from touchstone.analysis.code_quality import (
    METHOD,
    quality_checks,
    quality_how,
    quality_results,
    quality_statistics,
    quality_verification,
)
from touchstone.analysis.machine import canary_summary, telemetry_summary
from touchstone.analysis.metrics import DICTIONARY
from touchstone.analysis.payback import METRIC as DECODE_RATE
from touchstone.analysis.payback import payback_of
from touchstone.analysis.peers import peer_comparisons
from touchstone.analysis.plausibility import (
    instrument_checks,
    not_far_below_roofline,
    refusal_of,
    void_effects,
    why_void,
)
from touchstone.analysis.prose import describe_hardware, how_obtained, verification
from touchstone.analysis.roofline import fastest
from touchstone.analysis.scaling import Evidence as ScalingEvidence
from touchstone.analysis.scaling import declared_fields, scaling_fields, scaling_series
from touchstone.analysis.scaling import gather as scaling_evidence
from touchstone.analysis.scaling_checks import refusal_of_speedups, scaling_checks
from touchstone.analysis.summaries import check_experiment, metric_statistics, paired_effects, plan_results, withhold
from touchstone.canonical import atomic_write
from touchstone.experiment import INSTRUMENT_TEST, Bilingual, family_of, is_point
from touchstone.ledger import LEDGER_NAME
from touchstone.records import SCHEMA_VERSION, Evidence, Prose, Result, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from touchstone.analysis.runs import Ledgered, TestRuns
    from touchstone.experiment import Experiment
    from touchstone.records import Check, Effect, Lengths, MetricStatistics, PlannedTest, QualityAttempt


@dataclass(frozen=True, slots=True)
class PlannedResult:
    """A test of the user's plan: the end of its file name, and its title where no experiment gives one."""

    slug: str
    title: Bilingual


PLAN: dict[str, PlannedResult] = {
    INSTRUMENT_TEST: PlannedResult("instrument", Bilingual("The instrument's own checks", "仪器自检")),
    "1.1": PlannedResult("throughput", Bilingual("Throughput", "吞吐量测试")),
    "1.2": PlannedResult("latency", Bilingual("Latency", "延迟测试")),
    "1.3": PlannedResult("memory", Bilingual("Memory", "内存使用测试")),
    "2.1": PlannedResult("prefix_cache", Bilingual("Prefix cache", "前缀缓存收益测试")),
    "2.2": PlannedResult("scheduler", Bilingual("Scheduler", "调度器效率测试")),
    "2.3": PlannedResult("cuda_graph", Bilingual("CUDA graphs", "CUDA 图捕获效益测试")),
    "3.1": PlannedResult("single_gpu", Bilingual("Single GPU", "单卡基准")),
    "3.2": PlannedResult("strong_scaling", Bilingual("Strong scaling", "多卡强缩放")),
    "3.3": PlannedResult("weak_scaling", Bilingual("Weak scaling", "多卡弱缩放")),
    "4.1": PlannedResult("code_metrics", Bilingual("Code metrics", "代码质量统计")),
    "5.1": PlannedResult("peers", Bilingual("Engines side by side", "引擎对比")),
}
CODE_TEST = "4.1"


def results_of(ledgered: Ledgered, experiments: Mapping[str, Experiment]) -> tuple[Result, ...]:
    """Derive one result for every test of the plan, in the plan's order, from a run that has been read.

    `experiments` maps plan ids to what the bench files declare. A test that was not measured, whole or for lack of a
    valid process, has a result that says why. After each test come the points of its sweep that the run planned.
    """
    effects = _effects(ledgered, experiments)
    derived: dict[str, Result] = {}
    for test_id in _ids(ledgered):  # a scaling test takes its denominator from a result before it
        experiment = experiments.get(test_id)
        scaling = scaling_evidence(ledgered, experiment, derived)
        derived[test_id] = _derive(ledgered, test_id, experiment, effects.get(test_id, ()), scaling)
    results = tuple(derived.values())
    return tuple(_voided(result, void_reason(results)) for result in results)


def _ids(ledgered: Ledgered) -> tuple[str, ...]:
    """List every test of the plan, each followed by its points, in the order in which the run planned them."""
    planned = [*ledgered.tests, *(missing.test_id for missing in ledgered.plan.not_measured)]
    return tuple(
        each
        for test_id in PLAN
        for each in (test_id, *(other for other in planned if is_point(other) and family_of(other) == test_id))
    )


def _effects(ledgered: Ledgered, experiments: Mapping[str, Experiment]) -> dict[str, tuple[Effect, ...]]:
    """Compare the arms of every measured test, each together with the points of its sweep."""
    families: dict[str, list[tuple[TestRuns, Experiment]]] = {}
    for test_id, test in ledgered.tests.items():
        experiment = experiments.get(test_id)
        if experiment is not None and test.processes:
            check_experiment(experiment)
            families.setdefault(family_of(test_id), []).append((test, experiment))
    return {test_id: effects for members in families.values() for test_id, effects in paired_effects(members).items()}


def void_reason(results: Iterable[Result]) -> Bilingual | None:
    """Say why no paired effect of these results may be trusted; None where placebo and control passed."""
    own = next((result for result in results if result.test_id == INSTRUMENT_TEST), None)
    judged = own is not None and own.status == "measured"
    return why_void(own.checks, own.effects) if own is not None and judged else why_void(None, ())


def _voided(result: Result, reason: Bilingual | None) -> Result:
    """Void the verdicts of a test's effects; placebo and control themselves keep theirs, being the reason."""
    if reason is None or result.test_id == INSTRUMENT_TEST:
        return result
    return result.model_copy(update={"effects": void_effects(result.effects, reason), "payback": None})


def write_results(results: Iterable[Result], out_dir: Path) -> list[Path]:
    """Write each result to `<id>_<name>.json` in `out_dir`, validated as it will be read, whole or not at all."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        text = json.dumps(result.model_dump(mode="json"), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        Result.model_validate_json(text)
        path = out_dir / f"{result.test_id}_{PLAN[family_of(result.test_id)].slug}.json"
        atomic_write(path, text.encode())
        paths.append(path)
    return paths


def _derive(
    ledgered: Ledgered,
    test_id: str,
    experiment: Experiment | None,
    effects: tuple[Effect, ...],
    scaling: ScalingEvidence | None,
) -> Result:
    if test_id == CODE_TEST and ledgered.quality is not None:
        return _quality(ledgered, *ledgered.quality)
    test = ledgered.tests.get(test_id)
    if test is not None and experiment is not None and test.processes:
        return _measured(ledgered, test, experiment, effects, scaling)
    return _not_measured(ledgered, test_id, test, experiment, scaling)


# --- the three kinds of result --------------------------------------------------------------------------------------


def _measured(
    ledgered: Ledgered,
    test: TestRuns,
    experiment: Experiment,
    effects: tuple[Effect, ...],
    scaling: ScalingEvidence | None,
) -> Result:
    raw = metric_statistics(test, experiment, fastest(ledgered.readings), ledgered.plan.device)
    # Where engines are compared, a slow one is what was found, and some tell no steps to hold it against.
    far_below = None if experiment.compares_engines else not_far_below_roofline(raw)
    of_numbers = (percentiles_ordered(raw), far_below)
    checks = (
        *check_test(ledgered, test),
        *arm_checks(test),
        *(check for check in of_numbers if check is not None),
        *instrument_checks(test, effects),
        *(() if scaling is None else scaling_checks(scaling, raw)),
    )
    described = tuple(_refused(item, checks) for item in raw)
    shown = {item.metric for item in described if item.verdict is not Verdict.INVALID}
    effects = tuple(effect for effect in effects if effect.metric in shown)
    how, verified = how_obtained(test, experiment), verification(test, described, checks)
    series = () if scaling is None else scaling_series(scaling, described, refusal=refusal_of_speedups(checks))
    return Result(
        test_id=experiment.plan_id,
        schema_version=SCHEMA_VERSION,
        status="measured",
        reason=None,
        reason_zh=None,
        test_name=experiment.title.en,
        test_date=_date(test.attempts[0][1].started_at),
        hardware=describe_hardware(ledgered.environment, ledgered.plan.device),
        method=experiment.method.en,
        parameters=_parameters(ledgered, test),
        results=plan_results(experiment, described, effects) | scaling_fields(experiment, series),
        how_obtained=how.en,
        verification=verified.en,
        zh=Prose(
            test_name=experiment.title.zh, method=experiment.method.zh, how_obtained=how.zh, verification=verified.zh
        ),
        statistics=described,
        peers=peer_comparisons(ledgered, test, experiment, described),
        effects=effects,
        scaling=series,
        checks=checks,
        evidence=_evidence(ledgered, test),
        canary=canary_summary(ledgered, test),
        telemetry=telemetry_summary(test),
        payback=payback_of(test) if DECODE_RATE in shown else None,
    )


def _refused(item: MetricStatistics, checks: tuple[Check, ...]) -> MetricStatistics:
    """Take a number back where a check that concerns its kind has failed."""
    if item.withheld is not None:
        return item
    reason = refusal_of(item, checks, counted=DICTIONARY[item.metric].counted)
    return item if reason is None else withhold(item, reason)


def _quality(ledgered: Ledgered, seq: int, attempt: QualityAttempt) -> Result:
    code, title = attempt.code, PLAN[CODE_TEST].title
    checks = quality_checks(code)
    how, verified = quality_how(code), quality_verification(checks)
    return Result(
        test_id=CODE_TEST,
        schema_version=SCHEMA_VERSION,
        status="measured",
        reason=None,
        reason_zh=None,
        test_name=title.en,
        test_date=_date(attempt.measured_at),
        hardware=describe_hardware(ledgered.environment, "cpu"),
        method=METHOD.en,
        parameters={"tree": code.tree, "tree_sha256": code.tree_sha256, "files": len(code.files)},
        results=quality_results(code),
        how_obtained=how.en,
        verification=verified.en,
        zh=Prose(test_name=title.zh, method=METHOD.zh, how_obtained=how.zh, verification=verified.zh),
        statistics=quality_statistics(code),
        effects=(),
        checks=checks,
        evidence=Evidence(
            ledger=LEDGER_NAME,
            ledger_root_sha256=ledgered.root_sha256,
            entries=(ledgered.environment_seq, ledgered.plan_seq, seq),
            attempts=1,
            valid_attempts=1,
            invalid_reasons=(),
            environment_fingerprint=attempt.environment_fingerprint,
            plan_sha256=attempt.plan_sha256,
        ),
    )


def _not_measured(
    ledgered: Ledgered,
    test_id: str,
    test: TestRuns | None,
    experiment: Experiment | None,
    scaling: ScalingEvidence | None,
) -> Result:
    """Say why a test has no numbers; a scaling test still shows its baseline, and why each arm is absent."""
    reason = _why_not_measured(ledgered, test_id, test)
    title = experiment.title if experiment is not None else PLAN[family_of(test_id)].title
    method = experiment.method if experiment is not None else METHOD if test_id == CODE_TEST else reason
    fields = {measure.result for measure in experiment.measures if measure.result} if experiment is not None else ()
    series = () if scaling is None else scaling_series(scaling, (), absence=reason)
    filled = {} if experiment is None else dict.fromkeys(declared_fields(experiment))
    filled |= {} if experiment is None else scaling_fields(experiment, series)
    return Result(
        test_id=test_id,
        schema_version=SCHEMA_VERSION,
        status="not measured",
        reason=reason.en,
        reason_zh=reason.zh,
        test_name=title.en,
        test_date=_date(ledgered.planned_at),
        hardware=describe_hardware(ledgered.environment, ledgered.plan.device),
        method=method.en,
        parameters=_parameters(ledgered, test) if test is not None else {},
        results=dict.fromkeys(sorted(fields)) | filled,
        how_obtained=reason.en,
        verification=reason.en,
        zh=Prose(test_name=title.zh, method=method.zh, how_obtained=reason.zh, verification=reason.zh),
        statistics=(),
        effects=(),
        scaling=series,
        checks=(),
        evidence=_evidence(ledgered, test) if test is not None and test.attempts else None,
    )


def _why_not_measured(ledgered: Ledgered, test_id: str, test: TestRuns | None) -> Bilingual:
    for declared in ledgered.plan.not_measured:
        if declared.test_id == test_id:
            return Bilingual(declared.reason, declared.reason_zh)
    if test is not None and test.processes:
        return Bilingual("no bench file declares this test now", "当前没有声明该测试的基准文件")
    if test is not None and test.attempts:
        # A program's message stands between backticks: it is quoted, not translated.
        count, last = len(test.attempts), test.invalid_reasons[-1].replace("`", "'")
        return Bilingual(
            f"none of {count} attempts was valid; the last: `{last}`", f"{count} 次尝试均无效；最后一次：`{last}`"
        )
    if test is not None:
        return Bilingual("the run ended before this test began", "运行在该测试开始之前已结束")
    return Bilingual("not part of this run's plan", "不在本次运行的计划之内")


# --- fields ---------------------------------------------------------------------------------------------------------


def _date(moment: str) -> str:
    """Day of an ISO 8601 moment."""
    return moment.split("T", maxsplit=1)[0]


def _parameters(ledgered: Ledgered, test: TestRuns) -> dict[str, Any]:
    """Say what was run, in the plan's words where it has them; lengths that vary are [low, high]."""
    plan, planned = ledgered.plan, test.planned
    facts = next((run.facts.engine for run in test.runs if run.facts.engine is not None), None)
    parameters: dict[str, Any] = {}
    if planned.workload is not None:
        workload = planned.workload
        parameters |= {
            "batch_size": workload.concurrency or workload.num_requests,
            "input_length": _length(workload.input_tokens),
            "output_length": _length(workload.output_tokens),
            "workload": workload.model_dump(mode="json"),
        }
    return parameters | {
        "engine": planned.engine or plan.engine,
        "engine_settings": dict(facts.settings) if facts is not None else dict(plan.engine_options),
        "model": plan.model.model_dump(mode="json"),
        "device": plan.device,
        "dtype": plan.dtype,
        "profile": plan.profile,
        "seed": plan.seed,
        "arms": {arm.name: dict(arm.options) for arm in planned.arms},
        **_own_requests(planned),
        "processes": planned.num_processes,
        "repetitions": planned.num_repetitions,
        "warmups": planned.num_warmups,
    }


def _own_requests(planned: PlannedTest) -> dict[str, Any]:
    """Say how many requests each arm gets that does not get the workload's number; nothing where none does."""
    own = {arm.name: arm.num_requests for arm in planned.arms if arm.num_requests is not None}
    return {"requests": own} if own else {}


def _length(lengths: Lengths) -> int | list[int]:
    return lengths.low if lengths.low == lengths.high else [lengths.low, lengths.high]


def _evidence(ledgered: Ledgered, test: TestRuns) -> Evidence:
    return Evidence(
        ledger=LEDGER_NAME,
        ledger_root_sha256=ledgered.root_sha256,
        entries=(ledgered.environment_seq, ledgered.plan_seq, *(seq for seq, _ in test.attempts)),
        attempts=len(test.attempts),
        valid_attempts=test.num_valid,
        invalid_reasons=test.invalid_reasons,
        environment_fingerprint=test.attempts[0][1].environment_fingerprint,
        plan_sha256=ledgered.plan.plan_sha256,
    )
