"""What `touchstone reproduce` and `touchstone compare` do, between the command line and the comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from touchstone.experiment import load_experiments
from touchstone.reproduce.comparison import compare_runs
from touchstone.reproduce.comparison_tables import comparison_json, comparison_markdown, comparison_table, remarks
from touchstone.reproduce.outcomes import ExitCode
from touchstone.reproduce.rendering import claim_remarks, claim_table, environment_table, write_reproduction
from touchstone.reproduce.reproduction import reproduce

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from touchstone.experiment import Experiment

_OVERALL = {
    ExitCode.ALL_HOLD: "[green]all claims that could be tested hold",
    ExitCode.REFUTED: "[red]at least one claim is refuted",
    ExitCode.INCONCLUSIVE: "[yellow]no claim is refuted, and not all could be decided",
}


def reproduce_run(run_dir: Path, against: Path, console: Console) -> int:
    """Judge every claim, print the tables, write the Markdown into `run_dir`, and return the exit status."""
    reproduction = reproduce(run_dir, against, _experiments())
    console.print(claim_table(reproduction))
    for remark in claim_remarks(reproduction):
        console.print(remark, highlight=False, markup=False)
    if reproduction.decisive or reproduction.other:
        console.print(environment_table(reproduction))
    console.print("hardware: " + ("the same" if reproduction.same_hardware else "another; speeds are not compared"))
    console.print(_OVERALL[reproduction.status])
    for path in write_reproduction(reproduction, run_dir):
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    return int(reproduction.status)


def compare_run_folders(first: Path, second: Path, form: Literal["table", "md", "json"], console: Console) -> None:
    """Compare two runs of one machine and print what was found."""
    comparison = compare_runs(first, second, _experiments())
    if form == "json":
        print(comparison_json(comparison), end="")  # noqa: T201  a document for a pipe, not for the terminal's eye
    elif form == "md":
        print(comparison_markdown(comparison), end="")  # noqa: T201  likewise
    else:
        console.print(comparison_table(comparison))
        for line in remarks(comparison):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _experiments() -> dict[str, Experiment]:
    return {experiment.plan_id: experiment for experiment in load_experiments()}
