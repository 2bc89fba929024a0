"""The one context that both languages of the report are rendered from."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from touchstone.analysis.statistics import DRIFT_LIMIT, MIN_FOR_INTERVAL, TOLERANCE
from touchstone.experiment import INSTRUMENT_TEST, Bilingual, is_point
from touchstone.reporting.chapter import CheckView, EvidenceView, TestView
from touchstone.reporting.checklist import checklist
from touchstone.reporting.code_tables import CODE_DEFINITIONS, PLAN_FIELDS_OF_CODE, code_view, formula_terms
from touchstone.reporting.formatting import percent
from touchstone.reporting.headline import front_page
from touchstone.reporting.machine import machine_views, roofline_views
from touchstone.reporting.numbers import NumberView, effect_views, line_ranges, number_views
from touchstone.reporting.peers import peers_view
from touchstone.reporting.scaling import scaling_view
from touchstone.reporting.setting import (
    WorkloadRow,
    hardware_rows,
    model_note,
    model_rows,
    run_rows,
    scalar,
    software_rows,
    workload_rows,
)
from touchstone.reporting.sweeps import payback_rows, sweep_views
from touchstone.reporting.values import Amount, Code, FigureView, Row
from touchstone.reporting.wording import wording_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jinja2 import Environment as JinjaEnvironment

    from touchstone.records import Evidence, Result
    from touchstone.reporting.markdown import Glossary
    from touchstone.reporting.run_folder import Run

# Commands that the report tells the reader to use where this version of the instrument has them.
OPTIONAL_COMMANDS = ("verify", "reproduce")
INSTRUMENT_CHECKS = frozenset({"placebo_equivalent", "control_detected", "repeated_prompts_not_faster"})
SHARED_PARAMETERS = frozenset({"engine", "engine_settings", "model", "device", "dtype", "profile", "seed", "workload"})


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the plan: its number in the glossary key, and its tests."""

    key: str
    tests: tuple[TestView, ...]


def report_context(
    run: Run, figures: Mapping[str, tuple[FigureView, ...]], templates: JinjaEnvironment, glossary: Glossary
) -> dict[str, object]:
    """Arrange everything that the templates may print; nothing in it depends on the language or on the clock."""
    tests = views_of_tests(run, figures)
    numbers = {test.test_id: (*test.headline, *test.supporting) for test in tests}
    return {
        "tests": tests,
        "front": front_page(run, tests),
        "compares_only": all(test.peers.rows for test in tests if test.measured) and any(t.measured for t in tests),
        "parts": _parts(tests),
        "measured": tuple(test for test in tests if test.measured),
        "not_measured": tuple(test for test in tests if not test.measured),
        "num_points": sum(is_point(result.test_id) and result.status == "measured" for result in run.results),
        "definitions": _supporting_definitions(tests),
        "machine": machine_views(run.results),
        "instrument": _instrument_checks(tests),
        "checklist": checklist(run, numbers, templates),
        "verdicts": _words(glossary.verdicts),
        "effect_verdicts": _words(glossary.effects),
        **_environment(run),
        **_provenance(run),
        **_limits(),
    }


def views_of_tests(run: Run, figures: Mapping[str, tuple[FigureView, ...]]) -> tuple[TestView, ...]:
    """Arrange every test of the plan, in its order; the points of a sweep stand in the chapter of their test."""
    return tuple(_test_view(run, result, figures) for result in run.results if not is_point(result.test_id))


def _environment(run: Run) -> dict[str, object]:
    workloads: tuple[WorkloadRow, ...] = workload_rows(run.plan.tests)
    return {
        "hardware": hardware_rows(run.environment.hardware),
        "software": software_rows(run.environment.software, run.environment.source),
        "model": model_rows(run.plan, run.engine),
        "settings": run_rows(run.plan, run.engine, run.attempts),
        "workloads": workloads,
        "engine_name": run.engine.name if run.engine is not None else run.plan.engine,
        "profile": Code(run.plan.profile),
        "synthetic": run.plan.model.weights == "synthetic",
        "model_note": model_note(run.plan),
    }


def _provenance(run: Run) -> dict[str, object]:
    source = run.environment.source
    return {
        "ledger_root": Code(run.root_sha256),
        "plan_hash": Code(run.plan.plan_sha256),
        "fingerprint": Code(run.environment.fingerprint),
        "lock_hash": Code(source.lock_sha256 or ""),
        "wording_hash": Code(wording_sha256()),
        "schema_version": Code(run.plan.schema_version),
        "num_entries": len(run.entries),
        "num_attempts": len(run.attempts),
        "num_valid_attempts": sum(attempt.valid for attempt in run.attempts),
    }


def _limits() -> dict[str, object]:
    return {
        "tolerance": Amount(percent(TOLERANCE, 0)),
        "drift_limit": Amount(percent(DRIFT_LIMIT)),
        "min_for_interval": MIN_FOR_INTERVAL,
        "commands": frozenset(name for name in OPTIONAL_COMMANDS if find_spec(f"touchstone.{name}") is not None),
    }


def _words(section: Mapping[str, Mapping[str, str]]) -> tuple[Row, ...]:
    """Each verdict by its code, and what it means."""
    return tuple(
        Row(Code(key), Bilingual(f"{word['en']}: {word['meaning_en']}", f"{word['zh']}：{word['meaning_zh']}"))
        for key, word in section.items()
    )


def _parts(tests: Sequence[TestView]) -> tuple[Part, ...]:
    numbers = sorted({test.test_id.partition(".")[0] for test in tests})
    return tuple(
        Part(f"part_{number}", tuple(test for test in tests if test.test_id.partition(".")[0] == number))
        for number in numbers
    )


def _supporting_definitions(tests: Sequence[TestView]) -> tuple[NumberView, ...]:
    """Each supporting metric once, in the order of its first use; headline metrics are defined where they stand."""
    seen = {number.metric for test in tests for number in test.headline}
    chosen: dict[str, NumberView] = {}
    for test in tests:
        for number in test.supporting:
            if number.metric not in seen:
                chosen.setdefault(number.metric, number)
    return tuple(chosen.values())


def _test_view(run: Run, result: Result, figures: Mapping[str, tuple[FigureView, ...]]) -> TestView:
    experiment = run.experiment(result.test_id)
    code = run.quality.code if run.quality is not None and run.quality.test_id == result.test_id else None
    counts = {} if code is None else formula_terms(code)
    numbers = number_views(result, _plan_fields(run, result), CODE_DEFINITIONS, counts)
    return TestView(
        test_id=result.test_id,
        title=Bilingual(result.test_name, result.zh.test_name),
        measured=result.status == "measured",
        reason=Bilingual(result.reason or "", result.reason_zh or ""),
        question=experiment.question if experiment is not None else None,
        method=Bilingual(result.method, result.zh.method),
        how_obtained=Bilingual(result.how_obtained, result.zh.how_obtained),
        verification=Bilingual(result.verification, result.zh.verification),
        date=Code(result.test_date),
        parameters=_parameters(result),
        headline=tuple(number for number in numbers if number.key or number.fields),
        supporting=tuple(number for number in numbers if not (number.key or number.fields)),
        effects=effect_views(result, CODE_DEFINITIONS),
        checks=tuple(CheckView(c.id, c.passed, Bilingual(c.detail, c.detail_zh)) for c in result.checks),
        evidence=None if result.evidence is None else _evidence_view(result.evidence),
        figures=figures.get(result.test_id, ()),
        code=None if code is None else code_view(code),
        scaling=scaling_view(result, {other.test_id: other for other in run.results}),
        rooflines=roofline_views(result),
        void=_void(result),
        sweeps=sweep_views(run, result.test_id, figures),
        payback=payback_rows(run, result.test_id),
        peers=peers_view(run, result.test_id),
    )


def _instrument_checks(tests: Sequence[TestView]) -> tuple[CheckView, ...]:
    """Pick placebo, control and repeated prompts from the instrument's own test; empty where it was not measured."""
    own = (check for test in tests if test.test_id == INSTRUMENT_TEST for check in test.checks)
    return tuple(check for check in own if check.id in INSTRUMENT_CHECKS)


def _void(result: Result) -> Bilingual | None:
    """Say why a test's paired effects are void, once for all of them."""
    effect = next((effect for effect in result.effects if effect.void is not None), None)
    return None if effect is None else Bilingual(effect.void or "", effect.void_zh or "")


def _parameters(result: Result) -> tuple[Row, ...]:
    """Show a test's own parameters; what all tests share stands in the environment chapter."""
    own = {name: value for name, value in result.parameters.items() if name not in SHARED_PARAMETERS}
    return tuple(Row(Code(name), scalar(value)) for name, value in flatten(own))


def _plan_fields(run: Run, result: Result) -> dict[str, tuple[str, ...]]:
    experiment = run.experiment(result.test_id)
    if run.quality is not None and result.test_id == run.quality.test_id:
        return {field: (field,) for field in PLAN_FIELDS_OF_CODE}
    fields_of: dict[str, tuple[str, ...]] = {}
    for measure in experiment.measures if experiment is not None else ():
        if measure.result is not None:
            fields_of[measure.metric] = (*fields_of.get(measure.metric, ()), measure.result)
    return fields_of


def _evidence_view(evidence: Evidence) -> EvidenceView:
    return EvidenceView(
        ledger=Code(evidence.ledger),
        lines=Amount(line_ranges(evidence.entries)),
        attempts=evidence.attempts,
        valid_attempts=evidence.valid_attempts,
        invalid_reasons=tuple(Code(reason) for reason in evidence.invalid_reasons),
    )


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested parameters as dotted names with scalar values; lists become texts."""
    for name, value in parameters.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(str(item) for item in value)
        else:
            yield f"{prefix}{name}", value


def texts_of(value: object) -> Iterator[str]:
    """Yield every text and number of a context, in all languages: what a rendering may have its numbers from."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from texts_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str | int):
        yield str(value)
