"""All checks of a run folder, in the order in which each relies on the ones before."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from touchstone.experiment import load_experiments
from touchstone.records import Result
from touchstone.suggestions import no_run
from touchstone.verify import custody
from touchstone.verify.custody import Evidence
from touchstone.verify.expected import result_faults
from touchstone.verify.gathered import gather
from touchstone.verify.outcome import Fault, NotARunError, Outcome
from touchstone.verify.payback import faults_of
from touchstone.verify.peers import peer_faults
from touchstone.verify.places import Report
from touchstone.verify.printed import language_faults, number_faults, root_hash_faults
from touchstone.verify.prose import prose_faults
from touchstone.verify.remaking import Remaking
from touchstone.verify.repeats import repeat_faults
from touchstone.verify.scaling import scaling_faults
from touchstone.verify.shown import Case

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from touchstone.experiment import Experiment

Json: TypeAlias = "dict[str, Any]"

RESULTS = "results"
REPORTS = {"zh": "report.zh.md", "en": "report.en.md"}
_STATEMENTS = {
    "hash_chain": "every ledger line hashes to its sha256 and names the line before",
    "schemas": "every ledger line is what its kind promises",
    "one_plan": "one plan, hashed before anything was measured, in every record",
    "one_environment": "one environment, whose fingerprint is in every record",
    "attempts_complete": "every planned process is accounted for, repeats within the rule",
    "traces": "every trace hashes to its name; none is missing, none too many",
    "results": "every number of the results, worked out again from the traces",
    "root_hash": "results and reports carry the ledger's root hash",
    "languages": "both reports carry the same numbers",
    "printed_numbers": "every number of the reports, worked out again and cut to the noise",
    "templates": "no template states a number by itself",
    "made_again": "results, reports and figures made again are the same bytes",
}


def verify_run(
    run_dir: Path, experiments: Mapping[str, Experiment] | None = None, *, remake: bool = True
) -> tuple[Outcome, ...]:
    """Check a run folder from its ledger up; NotARunError says what is missing where it is none.

    Without `remake` the last check is left out, which takes as long as making the report did.
    """
    _require(run_dir)
    if experiments is None:
        experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    found = {outcome.id: outcome for outcome in _outcomes(run_dir, experiments, remake=remake)}
    wanted = [name for name in _STATEMENTS if remake or name != "made_again"]
    return tuple(found.get(name) or Outcome(name, _STATEMENTS[name], None) for name in wanted)


def _require(run_dir: Path) -> None:
    if (fault := no_run(run_dir)) is not None:
        raise NotARunError(fault)
    if not any((run_dir / name).exists() for name in (RESULTS, *REPORTS.values())):
        raise NotARunError(f"{run_dir} holds no report; make it with `touchstone report {run_dir}` first")


def _outcome(name: str, examined: int, faults: tuple[Fault, ...]) -> Outcome:
    return Outcome(name, _STATEMENTS[name], examined, faults)


def _outcomes(run_dir: Path, experiments: Mapping[str, Experiment], *, remake: bool) -> Iterator[Outcome]:
    """Yield outcomes up to the first that the following ones cannot do without."""
    evidence = Evidence(run_dir)
    chain = custody.read_chain(evidence)
    yield _outcome("hash_chain", len(evidence.lines), chain)
    if chain:
        return
    schemas = custody.check_schemas(evidence)
    yield _outcome("schemas", len(evidence.lines), schemas)
    if schemas:
        return
    for kind in ("environment", "plan"):
        if not evidence.of_kind(kind):
            raise NotARunError(
                f"the ledger in {run_dir} holds no {kind}: the run ended before it began; start it again"
            )
    with Remaking(run_dir, experiments) if remake else nullcontext() as remaking:
        yield from _checked(evidence, experiments, remaking)


def _checked(evidence: Evidence, experiments: Mapping[str, Experiment], remaking: Remaking | None) -> Iterator[Outcome]:
    """Check a ledger whose lines can be relied on, and what was made from it."""
    yield _outcome("one_plan", len(evidence.plan["units"]), custody.check_plan(evidence))
    yield _outcome("one_environment", len(evidence.lines), custody.check_environment(evidence))
    yield _outcome("attempts_complete", len(evidence.attempts()), custody.check_attempts(evidence))
    traces = custody.read_traces(evidence)
    yield _outcome("traces", len(evidence.traces), traces)
    runs = (run for attempt in evidence.attempts() for run in custody.timed_runs(attempt))
    if all(run["trace_sha256"] in evidence.traces for run in runs):
        yield from _published(evidence, experiments)
        if remaking is not None:
            yield _outcome("made_again", *remaking.result())


def _published(evidence: Evidence, experiments: Mapping[str, Experiment]) -> Iterator[Outcome]:
    """Check what was made from the evidence: results and reports."""
    from touchstone.verify.typed_in import typed_in_numbers  # noqa: PLC0415  the reporting's own lint

    results, unreadable = _read_results(evidence)
    tests = gather(evidence)
    case = Case(evidence, tests, experiments, {told["test_id"]: told for told in results.values()})
    wrong = [
        Fault(file, detail)
        for file, told in results.items()
        for detail in (
            *result_faults(evidence, tests, experiments, told),
            *faults_of(tests, told),
            *scaling_faults(tests, experiments.get(told["test_id"]), told, case.results),
            *peer_faults(evidence, tests, experiments.get(told["test_id"]), told),
            *repeat_faults(tests, told),
            *prose_faults(case, told),
        )
    ]
    yield _outcome("results", sum(len(told["statistics"]) for told in results.values()), (*unreadable, *wrong))
    reports, missing = _read_reports(evidence)
    yield _outcome("root_hash", len(reports), (*missing, *root_hash_faults(evidence, reports, results)))
    yield _outcome("languages", len(reports), language_faults(reports))
    if not wrong and not unreadable:  # the reports are held against the results once those are found right
        examined, faults = number_faults(case, reports)
        yield _outcome("printed_numbers", examined, faults)
    yield _outcome("templates", 1, typed_in_numbers())


def _read_results(evidence: Evidence) -> tuple[dict[str, Json], tuple[Fault, ...]]:
    """Read every result file that has the right form, by its name."""
    results: dict[str, Json] = {}
    faults: list[Fault] = []
    for path in sorted((evidence.folder / RESULTS).glob("*.json")):
        name = f"{RESULTS}/{path.name}"
        try:
            text = path.read_bytes()
            Result.model_validate_json(text)
            results[name] = json.loads(text)
        except ValidationError as error:
            first = error.errors()[0]
            faults.append(Fault(name, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
    if not results and not faults:
        faults.append(Fault(RESULTS, f"missing; make it with `touchstone report {evidence.folder}`"))
    return results, tuple(faults)


def _read_reports(evidence: Evidence) -> tuple[dict[str, Report], tuple[Fault, ...]]:
    reports: dict[str, Report] = {}
    faults: list[Fault] = []
    for language, name in REPORTS.items():
        try:
            reports[language] = Report.read(evidence.folder / name, language)
        except FileNotFoundError:
            faults.append(Fault(name, f"missing; make it with `touchstone report {evidence.folder}`"))
        except UnicodeDecodeError as error:
            faults.append(Fault(name, f"no UTF-8 text: {error}"))
    return reports, tuple(faults)
