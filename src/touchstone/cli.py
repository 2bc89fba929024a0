"""The command line: list the tests, look at the machine, run, report."""

from __future__ import annotations

import sys
import traceback
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from touchstone.canonical import atomic_write, temporary_folder
from touchstone.cli_errors import FAILED, INTERRUPTED, REFUSED, tell
from touchstone.engines.options import options_by_engine
from touchstone.engines.registry import ADAPTERS
from touchstone.experiment import Experiment, Profile, is_point, load_experiments, points_of
from touchstone.ledger import LEDGER_NAME, LedgerError
from touchstone.reporting.errors import ReportError
from touchstone.run_command import RunOptions, plan_run, report_paths, run_plan, table_of, verdicts
from touchstone.running.estimate import total_s
from touchstone.running.planning import CODE_TEST, layout_of
from touchstone.suggestions import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.records import Environment, RunPlan
    from touchstone.verify.outcome import Outcome

SHOWN_FAULTS = 20

_EXIT_CODES = """
Exit codes: 0 all well; 1 something failed or is invalid; 2 bad usage or input; 3 the machine is not fit for this run;
130 interrupted (go on with --resume).
"""
_TOP = f"""
How fast is an LLM inference engine, really, and which of its ideas pay?

\b
  touchstone list                          what can be measured
  touchstone run                           measure what this machine can, in the profile that fits it
  touchstone run --only 1.1,2.1 --dry-run  look at the plan of two tests and its time first
  touchstone report                        write the report of the latest run, in Chinese and in English
  touchstone verify                        work every number of that report out again, from its ledger alone
  touchstone reproduce --against paper     hold the latest run against the paper's, claim by claim
  touchstone compare BEFORE AFTER          hold two runs of this machine against each other

{_EXIT_CODES}
"""
_RUN_EPILOG = """
Examples:

\b
  touchstone run --profile smoke                      everything that runs on two cores in minutes
  touchstone run --profile paper --out paper          for publication: refused unless the machine is idle and clean
  touchstone run --model ~/models/Qwen3-0.6B          a model of your own
  touchstone run --resume                             go on after Ctrl-C, a crash or a power cut
  touchstone run --engine nanoinfer --engine vllm --only 5.1
                                                      two engines side by side on the same requests
"""

_REPRODUCE_EPILOG = """
Exit codes: 0 all claims that could be tested hold; 1 a claim is refuted; 2 none is refuted and some are open; 3 a
ledger, an environment or the list of claims cannot be used.
"""
_COMPARE_EPILOG = """
Exit codes: 0 compared, whatever came out; 3 the runs cannot be compared.
"""

app = typer.Typer(
    help=_TOP, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
_console = Console()
_errors = Console(stderr=True)

_INTERRUPTED_RUN = "interrupted; the ledger is whole: the same command with --resume goes on"
_INTERRUPTED_BEFORE = "interrupted before anything was measured; give the same command again"


class ProfileChoice(StrEnum):
    """A profile, or the one that fits the hardware."""

    AUTO = "auto"
    SMOKE = "smoke"
    QUICK = "quick"
    PAPER = "paper"


class ReportFormat(StrEnum):
    """How `report` writes."""

    MD = "md"
    JSON = "json"
    CSV = "csv"


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    """Type of weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def main() -> None:
    """Run the command line; an error is told in a sentence, and only what nobody foresaw shows a traceback."""
    try:
        app()
    except Exception as error:
        if (told := tell(error)) is None:
            raise
        _fail(*told)


def _fail(message: str, status: int) -> NoReturn:
    _errors.print("[red]touchstone:[/red]", Text(message), highlight=False, soft_wrap=True)
    sys.exit(status)


def _say(line: object) -> None:
    """Print a line as it is, whatever brackets a path holds, and let the terminal wrap it."""
    _console.print(line, highlight=False, soft_wrap=True, markup=False)


# --- list and env ---------------------------------------------------------------------------------------------------


@app.command("list")
def list_tests() -> None:
    """Show the tests, what they ask and what they need; the points of a sweep are named behind their test."""
    table = Table("test", "title", "question", "needs", "n x k (paper)")
    for experiment in (each for each in load_experiments() if not is_point(each.plan_id)):
        layout = layout_of(experiment, Profile.PAPER)
        needs = ", ".join(sorted(experiment.requires)) or "-"
        points = "".join(f"\n{point.plan_id}" for point in points_of(experiment))
        name = f"{experiment.title.en}\n{experiment.title.zh}"
        size = f"{layout.processes} x {layout.repetitions}"
        table.add_row(f"{experiment.plan_id}{points}", name, experiment.question.en, needs, size)
    table.add_row(CODE_TEST, "Code quality\n代码质量", "How large and how complex is the code?", "-", "1 x 1")
    _console.print(table)


@app.command("env")
def show_environment(
    *, json: Annotated[bool, typer.Option("--json", help="Print the record as it goes into a ledger.")] = False
) -> None:
    """Show what will be recorded of this machine, its software and the code; captured, never typed."""
    from touchstone.environment import capture  # noqa: PLC0415  it loads torch, which `--help` need not wait for

    environment = capture()
    if json:
        typer.echo(environment.model_dump_json(indent=2))
    else:
        _console.print(_environment_table(environment))


def _environment_table(environment: Environment) -> Table:
    table = Table("fact", "value")
    for part in ("hardware", "software", "source"):
        for name, value in getattr(environment, part).model_dump(mode="json").items():
            shown = value if isinstance(value, dict) else {"": value}
            for key, inner in shown.items():
                table.add_row(".".join(filter(None, (part, name, key))), escape(str(inner)))
    table.add_row("fingerprint", environment.fingerprint)
    return table


# --- run ------------------------------------------------------------------------------------------------------------


@app.command(epilog=_RUN_EPILOG)
def run(
    *,
    profile: Annotated[
        ProfileChoice, typer.Option(help="smoke: minutes, any machine. quick: a first look. paper: for publication.")
    ] = ProfileChoice.AUTO,
    only: Annotated[str, typer.Option(help="Tests to run, separated by commas, such as 1.1,2.1; empty for all.")] = "",
    engine: Annotated[
        list[str],
        typer.Option(
            help=f"{', '.join(sorted(ADAPTERS))}, or the import path of your own adapter module. Give it several times "
            "to compare engines; the first one is measured by every test."
        ),
    ] = ["nanoinfer"],  # noqa: B006  typer reads the default and never changes it
    option: Annotated[
        list[str],
        typer.Option(help="ENGINE.NAME=VALUE, or NAME=VALUE for the first engine; docs/engines.md lists them."),
    ] = [],  # noqa: B006  likewise
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id. Without it Qwen3-0.6B on a GPU, a tiny Qwen3 made on the spot without one."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; results/<profile> by default.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan, order and estimated time; run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the same run after Ctrl-C or a crash.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, order and coins.")] = 0,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one.")] = Device.AUTO,
    dtype: Annotated[DType, typer.Option(help="auto: float16 on a GPU, float32 on a CPU.")] = DType.AUTO,
) -> None:
    """Measure: fresh processes in a seeded order, every attempt in the ledger, a verdict for every number."""
    options = RunOptions(
        profile=None if profile is ProfileChoice.AUTO else Profile(profile.value),
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
        engine=engine[0],
        peers=tuple(engine[1:]),
        engine_options=options_by_engine(option, engine),
        model=model,
        out=out,
        resume=resume,
        seed=seed,
        device=None if device is Device.AUTO else device.value,
        dtype=None if dtype is DType.AUTO else dtype.value,
    )
    experiments = load_experiments()
    if dry_run:
        with temporary_folder() as workshop:
            _show_plan(plan_run(options, experiments, RESULTS, workshop=workshop).plan, experiments)
        return
    planned = None
    try:
        planned = plan_run(options, experiments, RESULTS)
        failed = run_plan(planned, options, _console)
    except KeyboardInterrupt:
        begun = planned is not None and (planned.directory / LEDGER_NAME).is_file()
        _fail(_INTERRUPTED_RUN if begun else _INTERRUPTED_BEFORE, INTERRUPTED)
    _finish(planned.directory, failed)


def _show_plan(plan: RunPlan, experiments: tuple[Experiment, ...]) -> None:
    titles = {experiment.plan_id: experiment.title.en for experiment in experiments} | {CODE_TEST: "Code quality"}
    table = Table("test", "title", "arms", "n x k", "warm-ups", "about", title=f"{plan.profile}, seed {plan.seed}")
    for test in plan.tests:
        arms = ", ".join(arm.name for arm in test.arms) or "-"
        size = f"{test.num_processes} x {test.num_repetitions}"
        about = f"{test.estimated_s:.0f} s"
        table.add_row(test.test_id, titles[test.test_id], arms, size, str(test.num_warmups), about)
    for missing in plan.not_measured:
        table.add_row(missing.test_id, titles[missing.test_id], f"not measured: {missing.reason}", "", "", "")
    _console.print(table)
    model = f"{plan.model.source} ({plan.model.weights})"
    engines = ", ".join((plan.engine, *plan.peers))
    _console.print(f"engine {engines} on {plan.device}, {plan.dtype}, model {escape(model)}")
    if plan.model.note:
        _console.print(escape(plan.model.note))
    _console.print("order: " + " ".join(unit.unit_id for unit in plan.units), highlight=False)
    minutes = total_s(plan.tests, plan.device) / 60
    _console.print(f"estimated time: {minutes:.1f} min; plan {plan.plan_sha256[:12]}")


def _finish(directory: Path, failed: tuple[str, ...]) -> None:
    """Show the verdicts and where things are; exit with 1 if a process never became valid."""
    _console.print(verdicts(directory))
    _say(f"ledger  {directory / LEDGER_NAME}")
    _say(f"next    touchstone report {quote(str(directory))}")
    if failed:
        _fail(f"without a valid attempt: {', '.join(failed)}; see {directory / 'logs'}", FAILED)


# --- report ---------------------------------------------------------------------------------------------------------


@app.command()
def report(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of a run; the latest one in results/ by default.")
    ] = None,
    *,
    format: Annotated[  # noqa: A002  the option's name
        ReportFormat, typer.Option(help="md: reports in Chinese and English with figures. json, csv: one table.")
    ] = ReportFormat.MD,
    out: Annotated[
        Path | None, typer.Option(help="Folder for md (the run's own by default), file for json and csv (the screen).")
    ] = None,
) -> None:
    """Write the report of a run: every number from its ledger, with formula, spread and verdict."""
    run_dir = directory or _latest_run()
    if format is ReportFormat.MD:
        for path in report_paths(run_dir, out or run_dir):
            _say(path)
        return
    text = table_of(run_dir, "json" if format is ReportFormat.JSON else "csv")
    if out is None:
        typer.echo(text, nl=False)
    else:
        if out.exists() and not out.is_file():
            raise ReportError(f"--out is {out}, which is no file; name a file, or leave --out away to print the table")
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, text.encode())
        _say(out)


# --- verify ---------------------------------------------------------------------------------------------------------


@app.command()
def verify(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of a run with its report; the latest one in results/ by default.")
    ] = None,
    *,
    numbers_only: Annotated[
        bool, typer.Option("--numbers-only", help="Leave out making the report once more, which takes the longest.")
    ] = False,
) -> None:
    """Work every printed number out again from the ledger alone, with code of its own; no GPU is needed."""
    from touchstone.verify.verification import verify_run  # noqa: PLC0415  no other command needs it

    outcomes = verify_run(directory or _latest_run(), remake=not numbers_only)
    _console.print(_outcome_table(outcomes))
    faults = [str(fault) for outcome in outcomes for fault in outcome.faults]
    for fault in faults[:SHOWN_FAULTS]:
        _console.print(f"[red]-[/red] {escape(fault)}", highlight=False, soft_wrap=True)
    if len(faults) > SHOWN_FAULTS:
        _console.print(f"and {len(faults) - SHOWN_FAULTS} more")
    if not all(outcome.passed for outcome in outcomes):
        sys.exit(FAILED)


def _outcome_table(outcomes: tuple[Outcome, ...]) -> Table:
    table = Table("check", "what", "looked at", "outcome")
    table.columns[2].justify = "right"
    for outcome in outcomes:
        word = (
            "[green]passed" if outcome.passed else "[yellow]not reached" if outcome.examined is None else "[red]failed"
        )
        count = "" if outcome.examined is None else f"{outcome.examined:,}"
        table.add_row(outcome.id, outcome.statement, count, word)
    return table


def _latest_run() -> Path:
    ledgers = sorted(RESULTS.glob(f"*/{LEDGER_NAME}"), key=lambda path: path.stat().st_mtime)
    if not ledgers:
        raise LedgerError(f"{RESULTS}/ holds no run; measure with `touchstone run` first, or name the folder of a run")
    return ledgers[-1].parent


# --- one run against another ----------------------------------------------------------------------------------------


class ComparisonFormat(StrEnum):
    """How `compare` shows what it found."""

    TABLE = "table"
    MD = "md"
    JSON = "json"


@app.command(epilog=_REPRODUCE_EPILOG)
def reproduce(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of your run; the latest one in results/ by default.")
    ] = None,
    *,
    against: Annotated[Path, typer.Option(help="Folder of the paper's run, with its ledger and claims.yaml.")] = Path(
        "paper"
    ),
) -> None:
    """Hold a run against the paper's, claim by claim; writes reproduction.{en,zh}.md into the folder of your run."""
    from touchstone.reproduce.command import reproduce_run  # noqa: PLC0415  scipy is slow to load

    with _never_a_verdict():
        status = reproduce_run(directory or _latest_run(), against, _console)
    raise typer.Exit(status)


@app.command(epilog=_COMPARE_EPILOG)
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of the run before.")],
    second: Annotated[Path, typer.Argument(help="Folder of the run after, on the same machine.")],
    *,
    format: Annotated[  # noqa: A002  the option's name
        ComparisonFormat, typer.Option(help="table: for the terminal. md, json: to keep.")
    ] = ComparisonFormat.TABLE,
) -> None:
    """Hold two runs of one machine against each other: ratio B / A with interval and verdict for every metric."""
    from touchstone.reproduce.command import compare_run_folders  # noqa: PLC0415  scipy is slow to load

    with _never_a_verdict():
        compare_run_folders(first, second, format.value, _console)


@contextmanager
def _never_a_verdict() -> Iterator[None]:
    """Let every error end with the status of what cannot be compared; 1 and 2 are what the claims have come to."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  a crash must not look like a claim that is refuted
        if (told := tell(error)) is None:
            traceback.print_exc()
        _fail(told.message if told else f"{type(error).__name__}: {error}", REFUSED)
