"""Which numbers a report may quote where no rule works them out: a short list, spelled out here.

They come from the environment, from the plan, from the sentences of the test's own result (which are held against the
test's own counts), from the code metrics, and from what the text itself states: formulas, names and limits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.digits import numbers, plain, written
from touchstone.verify.observed import COMPARISONS, DISTRIBUTIONS
from touchstone.verify.places import GLOSSARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.verify.gathered import TestEvidence
    from touchstone.verify.places import Place
    from touchstone.verify.shown import Case

Json: TypeAlias = "dict[str, Any]"

# Digits of formulas and of names such as p50 and 10^9; the template lint holds that no result is among them.
STRUCTURAL = frozenset({"0", "1", "2", "9", "10", "100", "50", "90", "99", "0.5", "0.9", "0.99"})
# Limits that the text states: the band, the drift, the levels, the smallest n for an interval, the invalid share.
LIMITS = frozenset({"5", "2.5", "95.0", "95", "6", "3", "20"})


class Quotable:
    """What may be quoted, by place."""

    def __init__(self, case: Case) -> None:
        self._everywhere = STRUCTURAL | LIMITS | _quotable_everywhere(case)
        self._by_test = {test_id: _quotable(case, told) for test_id, told in case.results.items()}
        self._checklist = _checklist_numbers(case)

    def of_test(self, test_id: str | None) -> frozenset[str]:
        """Numbers of a test's own texts."""
        return self._by_test.get(test_id or "", frozenset())

    def strange(self, place: Place, own: frozenset[str]) -> Iterator[str]:
        """Yield the numbers of a line that are neither its own nor may be quoted there."""
        sources = [own, self._everywhere]
        if place.chapter == "checklist":
            sources.append(self._checklist)
        if place.test_id is not None:
            sources += [self.of_test(place.test_id), frozenset({place.test_id})]
        yield from (number for number in numbers(place.text) if not any(number in source for source in sources))


def tokens(*contents: object) -> frozenset[str]:
    """Collect every number that stands anywhere in JSON."""
    return frozenset(number for content in contents for number in numbers(json.dumps(content, ensure_ascii=False)))


def _quotable_everywhere(case: Case) -> frozenset[str]:
    """Numbers of the machine, of the plan and of the engine, as they were recorded."""
    evidence = case.evidence
    engines = [attempt["engine"] for attempt in evidence.attempts() if attempt["engine"] is not None]
    named = [each for each in engines if each["name"] == evidence.plan["engine"]] or engines[:1]
    built = [each["settings"] for each in engines if each["name"] == named[0]["name"]]
    gpus = evidence.environment["hardware"]["gpus"]
    sizes = [evidence.environment["hardware"]["memory_bytes"], *(gpu["memory_bytes"] for gpu in gpus)]
    limit = evidence.environment["hardware"]["cgroup_memory_bytes"]
    in_gigabytes = [written(size / 1e9, -1) for size in (*sizes, *([] if limit is None else [limit]))]
    plan = {name: value for name, value in evidence.plan.items() if name != "units"}
    shares = [
        written(100 * test["workload"][name], 0)
        for test in plan["tests"]
        if test["workload"] is not None
        for name in ("shared_fraction", "prefix_fraction", "load")
        if test["workload"][name] is not None
    ]
    titles = [told["test_id"] for told in case.results.values()]
    amounts = [plain(value) for value in _numbers_inside([evidence.environment, plan])]
    return tokens(evidence.environment, plan, named[:1], built, evidence.root_sha256, titles) | {
        *in_gigabytes,
        *shares,
        *amounts,
    }


def _numbers_inside(content: object) -> Iterator[float]:
    if isinstance(content, dict):
        for value in content.values():
            yield from _numbers_inside(value)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers_inside(value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield abs(content)


def _quotable(case: Case, told: Json) -> frozenset[str]:
    """Numbers of the texts of a test's result, of its evidence, and of its figures' captions."""
    texts = ("test_id", "test_date", "test_name", "method", "how_obtained", "verification", "reason", "reason_zh", "zh")
    test = case.tests.get(told["test_id"])
    experiment = case.experiments.get(told["test_id"])
    declared = () if experiment is None else (experiment.question.en, experiment.question.zh)
    own = tokens(*(told[name] for name in texts), told["parameters"], told["checks"], *declared)
    own |= tokens(*(effect["void"] for effect in told["effects"]), *(item["withheld"] for item in told["statistics"]))
    evidence = told["evidence"]
    if evidence is not None:
        own |= tokens(evidence["attempts"], evidence["valid_attempts"], evidence["invalid_reasons"])
        own |= tokens(*(entry + 1 for entry in evidence["entries"]))
    if told["test_id"] == "4.1" and case.evidence.of_kind("quality"):
        own |= _code_numbers(case.evidence.of_kind("quality")[-1].body["code"])
    return own | _pooled_sizes(test)


def _checklist_numbers(case: Case) -> frozenset[str]:
    """Count again what the checklist is decided from: records, metrics, traces, tests, files, key numbers."""
    evidence, results = case.evidence, case.results.values()
    measured = [told for told in results if told["status"] == "measured"]
    statistics = [item for told in measured for item in told["statistics"]]
    keys = [item for item in statistics if item["key"]]
    chapters = [told for told in measured if "@" not in told["test_id"]]
    counts = (
        len(evidence.attempts()) + len(evidence.of_kind("quality")),
        len(evidence.lines),
        sum(len({item["metric"] for item in told["statistics"]}) + _num_compared(case, told) for told in chapters),
        sum(len(attempt["measurements"]) for attempt in evidence.attempts() if attempt["valid"]),
        len(measured),
        len(list(GLOSSARY.parent.glob("*.j2"))),
        *_searched(evidence.environment["source"].get("clock")),
        sum(item["verdict"] in {"STABLE", "EXACT"} for item in keys),
        len(keys),
        min((item["n"] for item in keys if item["n"] and item["verdict"] != "EXACT"), default=0),
    )
    return frozenset(map(str, counts))


def _num_compared(case: Case, told: Json) -> int:
    """Count the fields of a test that compare its arms: they are no metric of one arm."""
    experiment = case.experiments.get(told["test_id"])
    measures = () if experiment is None else experiment.measures
    return sum(measure.result is not None and measure.metric in COMPARISONS for measure in measures)


def _searched(clock: Json | None) -> tuple[int, ...]:
    """Count what was searched for clocks before the run: files, readers beside the clock's module, unreadable files."""
    if clock is None:
        return ()
    return (clock["num_files"], sum(file != "clock.py" for file in clock["readers"]), len(clock["unreadable"]))


def _pooled_sizes(test: TestEvidence | None) -> frozenset[str]:
    """How many samples a figure of pooled latencies shows, by arm."""
    if test is None:
        return frozenset()
    return frozenset(
        str(
            sum(
                0 if drawn is None else len(drawn)
                for drawn in (draw(run.facts) for row in test.of_arm(arm) for run in row)
            )
        )
        for draw in (DISTRIBUTIONS["ttft"], DISTRIBUTIONS["itl"])
        for arm in test.arms
    )


def _code_numbers(code: Json) -> frozenset[str]:
    """Count the code by package and by tool: sums, means to two decimals, maxima, and the worst functions."""
    groups: dict[str | None, list[Json]] = {None: list(code["files"])}
    for file in code["files"]:
        groups.setdefault(file["package"], []).append(file)
    found = set(tokens(code["functions"], code["tree"], code["differences"], code["unexplained"]))
    found |= tokens(code["radon_version"], code["lizard_version"], code["python_version"], code["tree_sha256"])
    for files in groups.values():
        names = {file["file"] for file in files}
        functions = [function for function in code["functions"] if function["file"] in names]
        found |= {str(len(files)), *_sums(files), *_averages(functions)}
    return frozenset(found)


def _sums(files: list[Json]) -> Iterator[str]:
    counted = [name for name in files[0] if name not in {"file", "package", "error"}]
    totals = {name: sum(file[name] or 0 for file in files) for name in counted}
    yield from (str(total) for total in totals.values())
    whole = [file for file in files if file["functions"] is not None]
    for naive, true in (("lines", "physical_lines"), ("functions", "functions"), ("classes", "classes")):
        told, real = (sum(file[name] or 0 for file in whole) for name in (f"naive_{naive}", true))
        yield from (str(told), str(real), str(abs(told - real)))


def _averages(functions: list[Json]) -> Iterator[str]:
    for name in ("complexity_radon", "complexity_lizard", "num_lines"):
        known = [function[name] for function in functions if function[name] is not None]
        if known:
            mean = sum(known) / len(known)
            yield from (str(len(known)), str(sum(known)), str(max(known)), written(mean, -2), plain(mean))
