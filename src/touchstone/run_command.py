"""What `touchstone run` and `touchstone report` do, between the command line and the instrument."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from shutil import rmtree
from typing import TYPE_CHECKING, Literal, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from touchstone.engines.registry import capabilities_of
from touchstone.environment import EnvironmentRefusedError, capture, gate
from touchstone.experiment import Profile, load_experiments
from touchstone.ledger import LEDGER_NAME, LedgerError
from touchstone.reporting.errors import ReportError
from touchstone.running import orchestrate
from touchstone.running.models import choose_model, with_checkpoint
from touchstone.running.planning import PlanError, RunRequest, check_request, make_plan
from touchstone.suggestions import no_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

    from touchstone.experiment import Experiment
    from touchstone.ledger import Ledger
    from touchstone.records import Environment, RunPlan, Scalar, UnitPlan


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `touchstone run`; None leaves the choice to the hardware.

    `peers` are the engines named after the first; `engine_options` holds options by engine.
    """

    profile: Profile | None = None
    only: tuple[str, ...] = ()
    engine: str = "nanoinfer"
    model: str | None = None
    out: Path | None = None
    resume: bool = False
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    peers: tuple[str, ...] = ()
    engine_options: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)


def plan_run(
    options: RunOptions, experiments: Sequence[Experiment], results: Path, *, workshop: Path | None = None
) -> orchestrate.Run:
    """Fill in every default from the machine and plan the run; nothing is measured.

    A model that is made on the spot is written to `workshop`, by default inside the run's folder.
    """
    device = options.device or _default_device()
    profile = options.profile or (Profile.PAPER if device.startswith("cuda") else Profile.SMOKE)
    capabilities = {name: capabilities_of(name) for name in (options.engine, *options.peers)}
    directory = _absolute(options.out or results / profile.value)
    environment = capture(output=directory)
    _check_device(device, environment, chosen=options.device is not None)
    request = _request(options, profile, device)
    check_request(request, experiments, capabilities)
    named = None if options.model is None else choose_model(options.model, device, directory)
    if workshop is None:  # nothing is touched before the command is known to be good
        _make_room(directory, options)
    model = named or choose_model(None, device, workshop or directory / "model")
    own, peers = capabilities[options.engine], {name: capabilities[name] for name in options.peers}
    try:
        plan = make_plan(request, experiments, environment, model, own, peers)
    except PlanError:
        if workshop is None:
            _leave_no_trace(directory, results)
        raise
    if workshop is None and any(each.needs_checkpoint for each in capabilities.values()):
        model = with_checkpoint(model, request.dtype, directory / "model")
    return orchestrate.Run(
        plan=plan,
        environment=environment,
        model=model,
        directory=directory,
        memory_tests=frozenset(experiment.plan_id for experiment in experiments if experiment.measure_memory),
    )


def _request(options: RunOptions, profile: Profile, device: str) -> RunRequest:
    return RunRequest(
        profile=profile,
        engine=options.engine,
        device=device,
        dtype=options.dtype or ("float16" if device.startswith("cuda") else "float32"),
        seed=options.seed,
        only=options.only,
        peers=options.peers,
        engine_options=options.engine_options,
    )


def _absolute(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:  # the latter before Python 3.13
        raise LedgerError(f"{folder} is in a circle of links ({error}); choose another folder by --out") from None


def run_plan(run: orchestrate.Run, options: RunOptions, console: Console) -> tuple[str, ...]:
    """Measure what is left of the plan and return the units that never became valid."""
    if run.plan.profile == Profile.PAPER.value:
        orchestrate.refuse(gate(run.environment, run.plan.device))
    ledger = orchestrate.resume(run) if options.resume else orchestrate.start(run)
    with ledger, _Bar(run.plan, ledger, console) as bar:
        orchestrate.execute(run, ledger, bar)
        failed = orchestrate.failed_units(run.plan, ledger)
    changed = capture(output=run.directory).source != run.environment.source
    if changed:
        console.print("[yellow]the source tree was changed while the run was under way; its commit does not say how")
    return failed


def verdicts(directory: Path) -> Table:
    """Return the table of verdicts of a run."""
    from touchstone.reporting.report import verdict_table  # noqa: PLC0415  the figures' library is slow to load

    return verdict_table(directory, _by_id())


def report_paths(run_dir: Path, out_dir: Path) -> tuple[Path, ...]:
    """Write results and report of a run and return the paths of the reports; ReportError if a lint finds fault."""
    from touchstone.analysis.results import write_results  # noqa: PLC0415  likewise
    from touchstone.reporting.report import render_report  # noqa: PLC0415  the figures' library is slow to load
    from touchstone.reporting.run_folder import load_run  # noqa: PLC0415  likewise

    _check_run_dir(run_dir)
    run = load_run(run_dir, _by_id())
    write_results(run.results, out_dir / "results")
    paths = render_report(run, out_dir)
    if paths.faults:
        raise ReportError("the report has faults and must not be published:\n  - " + "\n  - ".join(paths.faults))
    return (paths.zh, paths.en, paths.html)


def table_of(run_dir: Path, form: Literal["json", "csv"]) -> str:
    """Return the numbers of a run as one table."""
    from touchstone.reporting.report import export_table  # noqa: PLC0415  the figures' library is slow to load

    _check_run_dir(run_dir)
    return export_table(run_dir, form, _by_id())


def _by_id() -> dict[str, Experiment]:
    return {experiment.plan_id: experiment for experiment in load_experiments()}


def _check_run_dir(run_dir: Path) -> None:
    if (fault := no_run(run_dir)) is not None:
        raise LedgerError(fault)


# --- the machine ----------------------------------------------------------------------------------------------------


def _default_device() -> str:
    import torch  # noqa: PLC0415  the command line must not load torch to print its help

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_device(device: str, environment: Environment, *, chosen: bool) -> None:
    """Never fall back to the processor in silence, and never take a GPU for granted."""
    gpus, software = environment.hardware.gpus, environment.software
    if device.startswith("cuda") and not gpus:
        raise EnvironmentRefusedError("--device cuda was asked for, but no NVIDIA driver answers; use --device cpu")
    if gpus and not device.startswith("cuda") and not chosen:
        built = f"built for CUDA {software.cuda}" if software.cuda else "built without CUDA"
        raise EnvironmentRefusedError(
            f"this machine has {gpus[0].name} with driver {software.driver}, but torch "
            f"{software.packages.get('torch')} ({built}) cannot use it; install a torch build that fits the driver "
            "(see README.md), or say --device cpu"
        )


def _make_room(directory: Path, options: RunOptions) -> None:
    """Keep a finished run of the default folder under another name; anything else in the way is an error."""
    if directory.exists() and not directory.is_dir():
        raise LedgerError(f"{directory} is no folder; choose another place by --out")
    if options.resume and (fault := no_run(directory, remedy="there is no run to resume: leave --resume away")):
        raise LedgerError(fault)
    if options.resume or not (directory / LEDGER_NAME).exists():
        directory.mkdir(parents=True, exist_ok=True)
        return
    if options.out is not None or not orchestrate.is_finished(directory):
        raise LedgerError(
            f"{directory} holds a run already; go on with it by --resume, or choose another folder by --out"
        )
    number = 1
    while (kept := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(kept)
    Console(stderr=True).print(f"the finished run before was kept as {escape(str(kept))}", highlight=False)
    directory.mkdir()


def _leave_no_trace(directory: Path, results: Path) -> None:
    """Remove what was made for a run that cannot be planned; folders that hold anything else stay."""
    if not (directory / LEDGER_NAME).exists():
        rmtree(directory / "model", ignore_errors=True)
        with suppress(OSError):
            directory.rmdir()
            results.rmdir()


# --- progress -------------------------------------------------------------------------------------------------------


class _Bar:
    """One line that says what runs and how long it may take: measured pace times the estimates left."""

    def __init__(self, plan: RunPlan, ledger: Ledger, console: Console) -> None:
        units_of = {test.test_id: sum(unit.test_id == test.test_id for unit in plan.units) for test in plan.tests}
        self._estimate = {test.test_id: test.estimated_s / units_of[test.test_id] for test in plan.tests}
        self._left = {unit.unit_id: self._estimate[unit.test_id] for unit in orchestrate.remaining(plan, ledger)}
        self._pace_s, self._pace_estimate_s = 0.0, 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console)
        done = len(plan.units) - len(self._left)
        self._task = self._progress.add_task("measuring", total=len(plan.units), completed=done, left=self._left_text())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, unit: UnitPlan, attempt: int) -> None:
        """Say what runs now."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._progress.update(self._task, description=f"{unit.unit_id}{again}", left=self._left_text())

    def end(self, unit: UnitPlan, reason: str | None, seconds: float, *, final: bool) -> None:
        """Learn the pace, and show why an attempt is not valid."""
        self._pace_s += seconds
        self._pace_estimate_s += self._estimate[unit.test_id]
        if final:
            self._left.pop(unit.unit_id, None)
            self._progress.update(self._task, advance=1)
        if reason is not None:
            self._progress.console.print(f"[yellow]{unit.unit_id} is not valid:[/yellow] {escape(reason)}")
        self._progress.update(self._task, left=self._left_text())

    def _left_text(self) -> str:
        pace = self._pace_s / self._pace_estimate_s if self._pace_estimate_s else 1.0
        seconds = round(sum(self._left.values()) * pace)
        return f"about {seconds // 60}:{seconds % 60:02d} left"
