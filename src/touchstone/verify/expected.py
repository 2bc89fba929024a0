"""Every number of every result, worked out again from the traces, held against the result files field by field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.experiment import INSTRUMENT_TEST, Design
from touchstone.verify import arithmetic as own
from touchstone.verify.comparing import RELATIVE, differences, same
from touchstone.verify.custody import CODE_TEST, LEDGER, Evidence
from touchstone.verify.machine import machine_faults
from touchstone.verify.observed import COMPARISONS, METRICS, Value
from touchstone.verify.plan_fields import field_names
from touchstone.verify.rooflines import roofline_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from touchstone.experiment import Experiment
    from touchstone.verify.gathered import TestEvidence

Json: TypeAlias = "dict[str, Any]"

TOLERANCE, DRIFT_LIMIT, ALPHA = 0.05, 0.025, 0.05
MIN_FOR_VERDICT, MIN_FOR_INTERVAL, MAX_FOR_FLIPS = 3, 6, 20
LEVEL = 0.95
TIMED = frozenset({"HIGHER", "LOWER", "EQUIVALENT", "INCONCLUSIVE"})  # verdicts that rest on timing


# --- one result -----------------------------------------------------------------------------------------------------


def result_faults(
    evidence: Evidence, tests: Mapping[str, TestEvidence], experiments: Mapping[str, Experiment], told: Json
) -> Iterator[str]:
    """Say where a result is not what its evidence gives."""
    test, experiment = tests.get(told["test_id"]), experiments.get(told["test_id"])
    test_id = told["test_id"]
    if test_id == CODE_TEST and evidence.of_kind("quality"):
        yield from _code_faults(evidence, told)
    elif test is None or experiment is None or not test.processes:
        if told["status"] != "not measured" or told["statistics"] or any(_values(_own_fields(experiment, told))):
            yield "gives numbers, and the ledger holds no valid process of this test"
    else:
        void = test_id != INSTRUMENT_TEST and is_void(tests)
        effects = family_effects(tests, experiments, told["test_id"])
        yield from _measured_faults(evidence, test, experiment, effects, told, void=void)
        yield from machine_faults(evidence, test, told)
    if told["evidence"] is not None:
        yield from _evidence_faults(evidence, test, told["evidence"])


def _own_fields(experiment: Experiment | None, told: Json) -> Json:
    """Leave out the fields that `touchstone.verify.scaling` answers for."""
    return {name: value for name, value in told["results"].items() if name not in field_names(experiment)}


def _values(results: Json) -> list[bool]:
    return [value is not None for value in results.values()]


def _measured_faults(
    evidence: Evidence, test: TestEvidence, experiment: Experiment, effects: Sequence[Json], told: Json, *, void: bool
) -> Iterator[str]:
    if told["status"] != "measured":
        yield f"says {told['status']!r}, and the ledger holds {len(test.processes)} valid processes"
        return
    names = dict.fromkeys(compared_metric(measure.metric) for measure in experiment.measures)
    unknown = sorted(names.keys() - METRICS.keys())
    if unknown:
        yield f"metric {unknown[0]} is one that verify cannot work out; add it to touchstone.verify.observed"
        return
    wanted = [(name, arm) for name in names for arm in test.arms]
    if [(item["metric"], item["arm"]) for item in told["statistics"]] != wanted:
        yield f"the statistics are not those of {', '.join(f'{name} ({arm})' for name, arm in wanted)}"
        return
    described = [_described(test, name, arm, key=_is_key(experiment, name)) for name, arm in wanted]
    yield from _refusal_faults(described, told)
    yield from _statistics_faults(evidence, test, described, told["statistics"])
    described = [_as_told(mine, item) for mine, item in zip(described, told["statistics"], strict=True)]
    effects = _standing(effects, described, void=void)
    yield from _effect_faults(effects, told["effects"])
    yield from differences(_fields(test, experiment, described, effects), _own_fields(experiment, told), "results")


def _is_key(experiment: Experiment, name: str) -> bool:
    return any(measure.key and compared_metric(measure.metric) == name for measure in experiment.measures)


def _is_taken_back(mine: Json, item: Json) -> bool:
    """Whether a result refuses a number that the record gives: a check of it must have failed."""
    return bool(mine["verdict"] != "INVALID" == item["verdict"])


def _as_told(mine: Json, item: Json) -> Json:
    return _refused(mine) if _is_taken_back(mine, item) else mine


def _refusal_faults(described: Sequence[Json], told: Json) -> Iterator[str]:
    failed = [check["failed_arms"] for check in told["checks"] if not check["passed"]]
    for mine, item in zip(described, told["statistics"], strict=True):
        if _is_taken_back(mine, item) and not any(not arms or item["arm"] in arms for arms in failed):
            yield f"{item['metric']} ({item['arm']}) is refused although no check of that arm failed"
            return


def _statistics_faults(
    evidence: Evidence, test: TestEvidence, described: Sequence[Json], told: Sequence[Json]
) -> Iterator[str]:
    for mine, item in zip(described, told, strict=True):
        yield from roofline_faults(evidence, test, mine, item)
        yield from differences(_as_told(mine, item), item, f"{item['metric']} ({item['arm']})")
        yield from _example_faults(test, item)


def _standing(effects: Sequence[Json], described: Sequence[Json], *, void: bool) -> list[Json]:
    """Keep the effects on numbers that stand; without placebo and control their verdicts on times are void."""
    valid = {item["metric"] for item in described if item["verdict"] != "INVALID"}
    standing = [effect for effect in effects if effect["metric"] in valid]
    return [effect | {"verdict": "VOID"} if void and effect["verdict"] in TIMED else effect for effect in standing]


def _effect_faults(effects: Sequence[Json], told: Sequence[Json]) -> Iterator[str]:
    pairs = [[(effect["metric"], effect["treatment"]) for effect in found] for found in (told, effects)]
    if pairs[0] != pairs[1]:
        yield f"the effects are not those of {', '.join(effect['metric'] for effect in effects) or 'no metric'}"
        return
    for mine, item in zip(effects, told, strict=True):
        yield from differences(mine, item, f"effect on {item['metric']}")


def compared_metric(name: str) -> str:
    """Name the metric of single runs behind a measure."""
    return COMPARISONS[name][0] if name in COMPARISONS else name


# --- one metric of one arm ------------------------------------------------------------------------------------------


def _described(test: TestEvidence, name: str, arm: str, *, key: bool) -> Json:
    head: Json = {"metric": name, "arm": arm, "unit": METRICS[name].unit, "key": key}
    cells = [[run.value(name) for run in row] for row in test.of_arm(arm)]
    missing = any(cell is None for row in cells for cell in row)
    published = test.published_for(arm)
    if not published or missing:
        return head | {
            "repetitions": [],
            "values": [],
            "n": 0,
            "k": 0,
            "median": None,
            "interval": None,
            "log_t_interval": None,
            "verdict": "INSUFFICIENT" if published else "INVALID",
        }
    rows = [[cell for cell in row if cell is not None] for row in cells if row]
    sizes = [cell.size for row in rows for cell in row if cell.size is not None]
    repetitions = [[cell.value for cell in row] for row in rows]
    return (
        head
        | {"repetitions": repetitions, "k": min(map(len, rows), default=0), "sample_size": min(sizes, default=None)}
        | summary([own.median(row) for row in repetitions], test.units_of_arms[arm], counted=METRICS[name].counted)
    )


def summary(scores: Sequence[float], planned: int, *, counted: bool) -> Json:
    """Centre, intervals, spread, trend and verdict of process scores."""
    n, enough = len(scores), len(scores) >= MIN_FOR_VERDICT
    centre = own.median(scores) if scores else None
    spread = _relative(scores, centre, max((abs(score - (centre or 0)) for score in scores), default=0.0))
    trend = _relative(scores, centre, own.theil_sen(scores) * (n - 1)) if enough else None
    return {
        "values": list(scores),
        "n": n,
        "median": centre,
        "interval": _median_interval(scores),
        "log_t_interval": _log_interval(scores),
        "max_deviation": spread,
        "drift": trend,
        "drift_p": own.kendall_p(scores) if enough and len(set(scores)) > 1 else None,
        "verdict": _verdict(scores, planned, spread, trend, counted=counted),
        "indicative": n < MIN_FOR_INTERVAL,
        "withheld": None,
    }


def _relative(scores: Sequence[float], centre: float | None, amount: float) -> float | None:
    if centre is None:
        return None
    if len(set(scores)) == 1:
        return 0.0
    return amount / abs(centre) if centre else None


def _median_interval(scores: Sequence[float]) -> Json | None:
    if (ranks := own.median_ranks(len(scores), LEVEL)) is None:
        return None
    low, high, coverage = ranks
    ordered = sorted(scores)
    method = f"order statistics {low} and {high} of {len(scores)}"
    return {"low": ordered[low - 1], "high": ordered[high - 1], "level": coverage, "method": method}


def _log_interval(scores: Sequence[float]) -> Json | None:
    if len(scores) < 2 or min(scores) <= 0:  # noqa: PLR2004  a spread needs two values
        return None
    low, high = own.mean_interval([math.log(score) for score in scores], LEVEL)
    return {"low": math.exp(low), "high": math.exp(high), "level": LEVEL, "method": "t on logarithms"}


def _verdict(scores: Sequence[float], planned: int, spread: float | None, trend: float | None, *, counted: bool) -> str:
    if not scores or len(scores) < planned:
        return "INSUFFICIENT"
    if counted and len(set(scores)) == 1:
        return "EXACT"
    if len(scores) < MIN_FOR_VERDICT:
        return "INSUFFICIENT"
    if spread is None or spread > TOLERANCE:
        return "UNSTABLE"
    return "STABLE" if trend is not None and abs(trend) <= DRIFT_LIMIT else "DRIFTING"


def _example_faults(test: TestEvidence, told: Json) -> Iterator[str]:
    """Hold the worked example to be a run of this arm, as near to the median as any, with its own numbers in it."""
    example, where = told["example"], f"{told['metric']} ({told['arm']})"
    runs = [run for row in test.of_arm(told["arm"]) for run in row]
    if example is None:
        if told["median"] is not None:
            yield f"{where}: the worked example is missing"
        return
    values = {(run.unit_id, run.position): run.value(told["metric"]) for run in runs}
    chosen = values.get((example["unit_id"], example["position"]))
    if chosen is None:
        yield f"{where}: the worked example is run {example['position']} of {example['unit_id']}, which gives no value"
        return
    yield from differences({"value": chosen.value, "terms": chosen.terms}, example, f"{where}, worked example")
    distances = [abs(value.value - told["median"]) for value in values.values() if value is not None]
    if abs(chosen.value - told["median"]) > min(distances) + RELATIVE * abs(told["median"]):
        yield f"{where}: the worked example is not the run nearest to the median"


# --- paired effects -------------------------------------------------------------------------------------------------


def is_void(tests: Mapping[str, TestEvidence]) -> bool:
    """Whether verdicts on timed effects are void: unless the placebo is equivalent and the control is slower."""
    test = tests.get(INSTRUMENT_TEST)
    effects = [] if test is None or not test.processes else paired_effects({INSTRUMENT_TEST: (test, ["total_time"])})
    seen = {effect["treatment"]: effect for effect in effects}
    if test is None or seen.keys() != {"placebo", "control"}:
        return True
    blocks = seen["placebo"]["blocks"]
    equivalent = len(blocks) >= MIN_FOR_INTERVAL and _equivalent(blocks, test.planned.get("margin") or TOLERANCE)
    return not equivalent or seen["control"]["verdict"] != "HIGHER"


def family_effects(
    tests: Mapping[str, TestEvidence], experiments: Mapping[str, Experiment], test_id: str
) -> list[Json]:
    """Effects of one test, adjusted over the whole family: its test of the plan and all points of its sweeps."""
    family = test_id.split("@", maxsplit=1)[0]
    members = {
        name: (test, list(dict.fromkeys(compared_metric(measure.metric) for measure in experiments[name].measures)))
        for name, test in tests.items()
        if name.split("@", maxsplit=1)[0] == family and name in experiments and test.processes and test.published
        if experiments[name].design is Design.PAIRED_BLOCKS
    }
    return paired_effects(members, test_id) if test_id in members else []


def paired_effects(
    members: Mapping[str, tuple[TestEvidence, Sequence[str]]], only: str = INSTRUMENT_TEST
) -> list[Json]:
    """Every treatment against the baseline, metric by metric, of one member; Holm runs over all members."""
    test, _ = members[only]
    return [effect for treatment in test.arms[1:] for effect in _effects(members, only, treatment)]


def _effects(members: Mapping[str, tuple[TestEvidence, Sequence[str]]], only: str, treatment: str) -> list[Json]:
    test, _ = members[only]
    margin, baseline = test.planned.get("margin") or TOLERANCE, test.arms[0]
    blocks = {
        (name, metric): found
        for name, (member, metrics) in members.items()
        for metric in metrics
        if metric in METRICS and (found := _blocks(member, metric, member.arms[0], treatment)) is not None
    }
    exact = {key for key, ratios in blocks.items() if METRICS[key[1]].counted and _constant(ratios)}
    several = [key for key in blocks if key not in exact and len(blocks[key]) > 1]
    adjusted = dict(zip(several, own.holm([_t_p(blocks[key]) for key in several]), strict=True))
    return [
        {"metric": key[1], "baseline": baseline, "treatment": treatment, "blocks": ratios}
        | (_exact(ratios) if key in exact else _tested(ratios, adjusted.get(key), margin))
        for key, ratios in blocks.items()
        if key[0] == only
    ]


def _constant(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= 1e-12  # noqa: PLR2004  logarithms of equal counts by two routes


def _blocks(test: TestEvidence, name: str, baseline: str, treatment: str) -> list[float] | None:
    """One log-ratio a process: mean logarithm of the treatment's runs less that of the baseline's."""
    ratios = []
    for above, below in zip(test.of_arm(treatment), test.of_arm(baseline), strict=True):
        logs = [_mean_log([run.value(name) for run in runs]) for runs in (above, below)]
        if logs[0] is None or logs[1] is None:
            return None
        ratios.append(logs[0] - logs[1])
    return ratios


def _mean_log(values: Sequence[Value | None]) -> float | None:
    if not values or any(value is None or value.value <= 0 for value in values):
        return None
    return own.mean([math.log(value.value) for value in values if value is not None])


def _t_p(ratios: Sequence[float]) -> float:
    if len(set(ratios)) == 1:
        return 1.0 if ratios[0] == 0 else 0.0
    return own.t_two_sided_p(own.t_of_mean(ratios)[0], len(ratios) - 1)


def _exact(ratios: Sequence[float]) -> Json:
    untested = dict.fromkeys(("interval", "p_sign_flip", "p_holm"))
    return {"ratio": math.exp(ratios[0]), "verdict": "EXACT", **untested}


def _tested(ratios: Sequence[float], p_holm: float | None, margin: float) -> Json:
    flips = own.sign_flip_p(ratios) if MIN_FOR_INTERVAL <= len(ratios) <= MAX_FOR_FLIPS else None
    return {
        "ratio": math.exp(own.mean(ratios)),
        "interval": None if p_holm is None else _log_interval([math.exp(ratio) for ratio in ratios]),
        "p_sign_flip": flips,
        "p_holm": p_holm,
        "verdict": _effect_verdict(ratios, p_holm, flips, margin),
    }


def _effect_verdict(ratios: Sequence[float], p_holm: float | None, flips: float | None, margin: float) -> str:
    if p_holm is None or flips is None:
        return "INSUFFICIENT"
    if max(p_holm, flips) <= ALPHA:
        return "HIGHER" if own.mean(ratios) > 0 else "LOWER"
    return "EQUIVALENT" if _equivalent(ratios, margin) else "INCONCLUSIVE"


def _equivalent(ratios: Sequence[float], margin: float) -> bool:
    """Two one-sided tests at 5 % are the 90 % interval within the margin."""
    low, high = own.mean_interval(ratios, 1 - 2 * ALPHA)
    bound = math.log1p(margin)
    return -bound <= low and high <= bound


def _refused(mine: Json) -> Json:
    """Take a number back that a check refuses."""
    empty: Json = {"repetitions": [], "values": [], "n": 0, "k": 0, "median": None, "interval": None}
    return {name: mine[name] for name in ("metric", "arm", "unit", "key")} | empty | {"verdict": "INVALID"}


def _fields(test: TestEvidence, experiment: Experiment, described: Sequence[Json], effects: Sequence[Json]) -> Json:
    """Fill the plan's result fields."""
    medians = {(item["metric"], item["arm"]): item["median"] for item in described}
    ratios = {effect["metric"]: effect["ratio"] for effect in effects}
    fields: Json = {}
    paired = experiment.design is Design.PAIRED_BLOCKS
    for measure in experiment.measures:
        name = measure.result
        if name is None:
            continue
        if measure.metric in COMPARISONS:
            compared, _, made = COMPARISONS[measure.metric]
            fields[name] = made(ratios[compared]) if compared in ratios else None
            continue
        for index, arm in enumerate(test.arms):
            plain = len(test.arms) == 1 or (index > 0) == paired
            key = name if plain else f"{name}_{arm}"
            fields[key] = medians[measure.metric, arm]
    return fields


# --- evidence and code ----------------------------------------------------------------------------------------------


def _evidence_faults(evidence: Evidence, test: TestEvidence | None, told: Json) -> Iterator[str]:
    heads = [evidence.of_kind(kind)[0].line for kind in ("environment", "plan")]
    if test is not None and test.attempts:
        lines, attempts, valid = test.lines, len(test.attempts), test.num_valid
        reasons = [attempt["reason"] for attempt in test.attempts if not attempt["valid"]]
    elif evidence.of_kind("quality"):
        lines, attempts, valid, reasons = (evidence.of_kind("quality")[-1].line,), 1, 1, []
    else:
        yield "names evidence, and the ledger holds none of this test"
        return
    mine = {
        "ledger": LEDGER,
        "ledger_root_sha256": evidence.root_sha256,
        "entries": [line - 1 for line in (*heads, *lines)],
        "attempts": attempts,
        "valid_attempts": valid,
        "invalid_reasons": reasons,
        "environment_fingerprint": evidence.environment["fingerprint"],
        "plan_sha256": evidence.plan["plan_sha256"],
    }
    yield from differences(mine, told, "evidence")


def code_counts(code: Json) -> Json:
    """Fill the plan's fields of test 4.1."""
    files, functions = code["files"], code["functions"]

    def total(name: str) -> int | None:
        known = [file[name] for file in files if file[name] is not None]
        return sum(known) if known else None

    def average(name: str) -> float | None:
        known = [function[name] for function in functions if function[name] is not None]
        return own.mean(known) if known else None

    return {
        "total_loc": total("physical_lines") or 0,
        "source_loc": total("source_lines"),
        "function_count": total("functions"),
        "class_count": total("classes"),
        "avg_complexity": average("complexity_radon"),
        "avg_complexity_lizard": average("complexity_lizard"),
        "avg_lines_per_function": average("num_lines"),
        "naive_total_lines": total("naive_lines") or 0,
        "naive_function_count": total("naive_functions") or 0,
        "naive_class_count": total("naive_classes") or 0,
    }


def _code_faults(evidence: Evidence, told: Json) -> Iterator[str]:
    counts = code_counts(evidence.of_kind("quality")[-1].body["code"])
    yield from differences(counts, told["results"], "results")
    for item in told["statistics"]:
        value = counts.get(item["metric"])
        counted = [item["median"], item["values"], item["repetitions"]]
        if not same([value, [value], [[value]]], counted):
            yield f"{item['metric']} is {item['median']}, counted again it is {value}"
