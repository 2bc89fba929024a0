"""The paper: a finished run kept in the repository, everything made from it, and the documents that quote it.

`paper/` holds the run itself: ledger, traces, results, figures and reports. A folder inside it with a ledger of its own
is a further run, such as the peers' or a second machine's. What a run leaves for itself (logs, the model) stays behind.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from touchstone.analysis.results import write_results
from touchstone.canonical import atomic_write, make_folder
from touchstone.environment import has_commit
from touchstone.ledger import LEDGER_NAME
from touchstone.records import RunEvent
from touchstone.reporting.errors import ReportError
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary
from touchstone.reporting.quotation import fill
from touchstone.reporting.report import render_report
from touchstone.reporting.run_folder import load_run
from touchstone.trace import pack_trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from touchstone.experiment import Experiment
    from touchstone.reporting.markdown import Language
    from touchstone.reporting.run_folder import Run

REPOSITORY = Path(__file__).resolve().parents[3]
PAPER = "paper"
PROFILE = "paper"
# Documents that quote the paper's reports: path, language, and the way from the document to the paper's folder.
DOCUMENTS: tuple[tuple[str, Language, str], ...] = (
    ("README.md", "en", f"{PAPER}/"),
    ("README.zh.md", "zh", f"{PAPER}/"),
    (f"{PAPER}/methods.en.md", "en", ""),
    (f"{PAPER}/methods.zh.md", "zh", ""),
)
MADE = ("results", "figures", "report.zh.md", "report.en.md", "report.html")
MAX_BYTES = 15_000_000  # what a repository can carry for good


class PaperError(ReportError):
    """A run that cannot become the paper, or a paper that cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class MadePaper:
    """What was made: the runs that were rendered, and the documents whose quotations changed."""

    runs: tuple[Path, ...]
    changed: tuple[Path, ...]


def committed_runs(repository: Path = REPOSITORY) -> tuple[Path, ...]:
    """Folders of the runs in the paper, the main one first; empty while none is committed."""
    paper = repository / PAPER
    inner = sorted(path.parent for path in paper.glob(f"*/{LEDGER_NAME}"))
    return (*((paper,) if (paper / LEDGER_NAME).is_file() else ()), *inner)


def make_paper(experiments: Mapping[str, Experiment], repository: Path = REPOSITORY) -> MadePaper:
    """Render every committed run again from its ledger, and renew all quotations; the same ledgers give the same bytes.

    PaperError if a lint finds fault; nothing that was there before is kept beside what is made.
    """
    runs = committed_runs(repository)
    for folder in reversed(runs):  # the main run last: its first page quotes the others
        _render(load_run(folder, experiments), folder)
    return MadePaper(runs, tuple(write_quotations(repository)))


def _render(run: Run, folder: Path) -> None:
    for name in MADE:
        _remove(folder / name)
    write_results(run.results, folder / "results")
    if faults := render_report(run, folder).faults:
        raise PaperError(f"{folder} has faults and must not be published:\n  - " + "\n  - ".join(faults))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_quotations(repository: Path = REPOSITORY) -> Iterator[Path]:
    """Renew the quotations of every document, and yield those that changed."""
    for path, text in renewed_documents(repository):
        if text != path.read_text(encoding="utf-8"):
            atomic_write(path, text.encode())
            yield path


def renewed_documents(repository: Path = REPOSITORY) -> Iterator[tuple[Path, str]]:
    """Yield every document with its text as the paper's report makes it."""
    glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
    for name, language, folder in DOCUMENTS:
        path = repository / name
        report_of = partial(_report_of, repository / PAPER, language)
        yield path, fill(path.read_text(encoding="utf-8"), language, report_of, glossary, folder)


def _report_of(paper: Path, language: Language, folder: str) -> str | None:
    report = paper / folder / f"report.{language}.md"
    return report.read_text(encoding="utf-8") if report.is_file() else None


# --- taking over a run ----------------------------------------------------------------------------------------------


def take_over(run_dir: Path, folder: Path, experiments: Mapping[str, Experiment]) -> int:
    """Copy the ledger of a finished run of the paper's profile, pack its traces, and return their size in bytes.

    PaperError if the run is another one; a run that was there before is replaced, other files of the folder stay.
    """
    run = load_run(run_dir, experiments)
    _check(run, run_dir)
    if folder.resolve() == run_dir.resolve():
        raise PaperError(f"{run_dir} is the paper's folder itself; `make paper` renders it again")
    make_folder(folder)
    for name in (*MADE, "traces", LEDGER_NAME):
        _remove(folder / name)
    size = sum(pack_trace(run_dir, name, folder) for name in sorted(set(_traces(run))))
    return size + _copy(run_dir / LEDGER_NAME, folder / LEDGER_NAME)


def _check(run: Run, run_dir: Path) -> None:
    last = run.entries[-1].body
    if not isinstance(last, RunEvent) or last.event != "finished":
        raise PaperError(f"{run_dir} has not come to its end; go on with `touchstone run --resume --out {run_dir}`")
    if run.plan.profile != PROFILE:
        raise PaperError(
            f"{run_dir} is a {run.plan.profile} run; the paper is made from `touchstone run --profile {PROFILE}`"
        )
    source = run.environment.source
    if source.dirty is not False or source.commit is None:
        raise PaperError(f"{run_dir} was measured with uncommitted changes, so that no commit says what ran")
    if not has_commit(source.commit):
        raise PaperError(
            f"{run_dir} was measured at commit {source.commit}, which is not in this repository's history; "
            "check out a branch that holds it"
        )


def _traces(run: Run) -> Iterable[str]:
    for attempt in run.attempts:
        repeated = () if attempt.repeated is None else (attempt.repeated,)
        yield from (measurement.trace_sha256 for measurement in (*attempt.measurements, *repeated))


def _copy(source: Path, target: Path) -> int:
    return shutil.copyfile(source, target).stat().st_size


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
