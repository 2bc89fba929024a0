"""How an error is told on the command line: in a sentence, and never by a traceback where the exception is ours."""

from __future__ import annotations

import errno
import traceback
from typing import NamedTuple

from touchstone.analysis.runs import RunsError
from touchstone.engines.base import EngineError
from touchstone.environment import EnvironmentRefusedError
from touchstone.experiment import ExperimentError
from touchstone.ledger import LedgerError
from touchstone.reporting.errors import ReportError
from touchstone.reproduce.errors import ClaimsError, ComparisonError
from touchstone.running.models import ModelError
from touchstone.running.orchestrate import ResumeError
from touchstone.running.planning import PlanError
from touchstone.trace import TraceError
from touchstone.verify.outcome import NotARunError
from touchstone.workload import WorkloadError

FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 1, 2, 3, 130

USER_ERRORS = (
    ClaimsError,
    ComparisonError,
    EngineError,
    ExperimentError,
    LedgerError,
    ModelError,
    NotARunError,
    PlanError,
    ReportError,
    ResumeError,
    RunsError,
    TraceError,
    WorkloadError,
)
_OUR_PACKAGES = frozenset({"bench", "nanoinfer", "quality", "touchstone"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
_REMEDIES = {
    errno.EEXIST: "something else lies there: name another place",
    errno.ENOTDIR: "a file lies where a folder is needed: name another place",
    errno.EISDIR: "a folder lies where a file is needed: name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "the links there lead round in a circle: name another place",
}
_AGAIN = "then give the same command again (a run that had begun goes on with --resume)"


class Told(NamedTuple):
    """What is printed of an error, and the exit code."""

    message: str
    status: int


def tell(error: Exception) -> Told | None:
    """Say in a sentence what went wrong and what to do; None for an error that is none of ours and of no file.

    An exception of ours that no input of the user explains is a fault of Touchstone: its place is named, so that it can
    be reported.
    """
    if isinstance(error, EnvironmentRefusedError):
        return Told(str(error), REFUSED)
    if isinstance(error, USER_ERRORS):
        return Told(str(error), BAD_INPUT)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        place = "the place that the output goes to" if error.filename is None else error.filename
        remedy = _REMEDIES.get(error.errno or 0, "see to its rights and to the room on its disk")
        return Told(f"{place}: {error.strerror}; {remedy}, {_AGAIN}", FAILED)
    if type(error).__module__.partition(".")[0] in _OUR_PACKAGES:
        return Told(f"{_sentence(error)}; {_own_fault(error)}", FAILED)
    return None


def _sentence(error: Exception) -> str:
    """Return the message; a KeyError would put it in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _own_fault(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return (
        f"{type(error).__name__}{place}: a fault of Touchstone or of a bench file, not of your command; the ledger is "
        "untouched: please report it with this line"
    )
