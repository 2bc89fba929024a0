"""What was perhaps meant by a name or a folder that is none."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from touchstone.ledger import LEDGER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

RESULTS = Path("results")
NAME_A_RUN = "name a folder that `touchstone run` has written"
_MAX_SHOWN = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the known names most like this one, or nothing where none is like it."""
    near = get_close_matches(name, list(known), _MAX_SHOWN)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def no_run(directory: Path, *, remedy: str = NAME_A_RUN) -> str | None:
    """Say why a path is no folder of a run, what to do, and which runs lie near; None where a ledger is."""
    if (directory / LEDGER_NAME).is_file():
        return None
    if directory.is_file():
        fault = f"{directory} is a file"
    elif directory.exists():
        fault = f"{directory} holds no {LEDGER_NAME}"
    else:
        fault = f"{directory} does not exist"
    near = _runs_near(directory)[:_MAX_SHOWN]
    return f"{fault}; {remedy}" + (f" (there is {' or '.join(map(str, near))})" if near else "")


def _runs_near(directory: Path) -> list[Path]:
    """Find the run that a path lies in, else those below it, else those of a like name beside it and in `results`."""
    around = [folder for folder in directory.parents if (folder / LEDGER_NAME).is_file()]
    if around or (below := _runs_in(directory)):
        return around[:1] or below
    beside = {str(folder): folder for folder in (*_runs_in(directory.parent), *_runs_in(RESULTS))}
    return [beside[name] for name in get_close_matches(str(directory), beside, _MAX_SHOWN)]


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{LEDGER_NAME}") if path.is_file())
