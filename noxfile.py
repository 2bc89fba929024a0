"""The only task list: `nox -l` shows it, `nox -s NAME -- ARGUMENTS` runs one.

All sessions share the one environment `.venv`, because installing torch once for each would take minutes.
`nox --no-venv` takes the environment that nox itself runs in, and installs nothing.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Sequence

# Each measured unit is a fresh process; without cached bytecode each would compile torch's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.needs_version = ">=2026.4"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "none"  # see python_of


def python_of(session: nox.Session) -> str:
    """Interpreter for a session: .venv's, brought in line with the locks; with --no-venv the one that runs nox."""
    if session._runner.global_config.force_venv_backend == "none":  # noqa: SLF001  nox offers no public way to see the switch
        session.env["PYTHONPATH"] = str(Path("src").resolve())
        return sys.executable
    session.run("sh", "tools/environment.sh", external=True, log=False)
    return str(Path(".venv/bin/python").absolute())  # not resolved: the link is what makes it the environment's


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Values that an option is given in the arguments, as `--option value` or `--option=value`."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]
    return joined + [value for name, value in pairwise(arguments) if name == option]


def measure(session: nox.Session, python: str) -> None:
    """`touchstone run` with the session's arguments; TOUCHSTONE_DEVICE stands in where they name no device."""
    device = os.environ.get("TOUCHSTONE_DEVICE")
    chosen = ["--device", device] if device and not values_of("--device", session.posargs) else []
    session.run(python, "-m", "touchstone", "run", *chosen, *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Measure what this machine can measure, then write both reports; arguments go to `touchstone run`."""
    python = python_of(session)
    measure(session, python)
    session.run(python, "-m", "touchstone", "report", *values_of("--out", session.posargs))


@nox.session
def reproduce(session: nox.Session) -> None:
    """Measure this machine, then hold the run against the paper's, claim by claim; arguments go to `touchstone run`."""
    if not Path("paper/ledger.jsonl").is_file():  # said before anything is measured, which takes minutes
        session.error("paper/ holds no run yet; hold one run against another with `touchstone reproduce A --against B`")
    python = python_of(session)
    measure(session, python)
    session.run(python, "-m", "touchstone", "reproduce", *values_of("--out", session.posargs), success_codes=[0, 2])


@nox.session
def bench(session: nox.Session) -> None:
    """Measure only; arguments go to `touchstone run`, such as --only 1.1,1.2 --model FOLDER --resume."""
    measure(session, python_of(session))


@nox.session
def quality(session: nox.Session) -> None:
    """Print the code metrics of test 4.1 for this project, or for any tree: -- PATH."""
    session.run(python_of(session), "quality/code_metrics.py", *session.posargs)


@nox.session
def verify(session: nox.Session) -> None:
    """Work every number of a report out again from its ledger alone: -- FOLDER; the latest run, else the paper's."""
    python = python_of(session)
    if session.posargs or any(Path("results").glob("*/ledger.jsonl")):
        session.run(python, "-m", "touchstone", "verify", *session.posargs)
        return
    ledgers = sorted((*Path("paper").glob("ledger.jsonl"), *Path("paper").glob("*/ledger.jsonl")))
    if not ledgers:
        session.skip("no run in results/ and none committed in paper/ yet: measure first with `make report`")
    for ledger in ledgers:
        session.run(python, "-m", "touchstone", "verify", str(ledger.parent))


@nox.session
def paper(session: nox.Session) -> None:
    """Render the committed runs in paper/ again, and the numbers that documents quote: -- --from RUN takes one over."""
    session.run(python_of(session), "tools/paper.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the CPU tests in parallel with coverage, or pytest with exactly the arguments given: -- -m gpu."""
    parallel = ("--numprocesses=logical", "--maxprocesses=8", "--dist=worksteal")
    arguments = session.posargs or [*parallel, "--cov", "--cov-report=term:skip-covered"]
    one_thread = {"OMP_NUM_THREADS": "1"}  # several processes share the cores, and the models under test are tiny
    session.run(python_of(session), "-m", "pytest", *arguments, env=one_thread)


@nox.session
def lint(session: nox.Session) -> None:
    """Check with ruff: all rules, and the format."""
    python = python_of(session)
    session.run(python, "-m", "ruff", "check", *(session.posargs or ["."]))
    session.run(python, "-m", "ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly."""
    session.run(python_of(session), "-m", "mypy", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Remake requirements/*.txt and environment.yml from pyproject.toml: -- --upgrade takes newer versions."""
    session.run(python_of(session), "tools/lock.py", *session.posargs)
