"""Results, report and figures made once more by the code that made them, and the bytes compared.

It catches what numbers cannot tell: a changed word, a verdict, a line left out, a figure. That the arithmetic is right
is not shown here but by `expected` and `printed`, which share none of it.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

from touchstone.analysis.results import write_results
from touchstone.canonical import temporary_folder
from touchstone.ledger import LEDGER_NAME
from touchstone.reporting.markdown import GLOSSARY_FILE, LANGUAGES, TEMPLATES, Glossary
from touchstone.reporting.report import render_report
from touchstone.reporting.run_folder import load_run
from touchstone.reporting.wording import wording_sha256
from touchstone.verify.outcome import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from touchstone.experiment import Experiment

FOLDERS = ("results", "figures")
_EXCERPT = 60


def made_again(run_dir: Path, experiments: Mapping[str, Experiment]) -> tuple[int, tuple[Fault, ...]]:
    """Make everything again in a folder of its own; return how many files were compared, and what differs.

    A report that was made by other templates or bench files is not compared: it says itself which ones made it.
    """
    if stale := tuple(other_wording(run_dir)):
        return 0, stale
    with temporary_folder() as folder:
        try:
            lints = make(run_dir, folder, experiments)
        except (ValueError, KeyError) as error:
            return 0, (Fault(LEDGER_NAME, f"no report can be made from it: {error}"),)
        compared, faults = differences(run_dir, folder)
    return compared, (*faults, *(Fault("report", lint) for lint in lints))


def other_wording(run_dir: Path) -> Iterator[Fault]:
    """Name the reports that were made by other templates or bench files than these; a report that names none is not."""
    glossary, current = Glossary.load(TEMPLATES / GLOSSARY_FILE), wording_sha256()
    for language in LANGUAGES:
        report = run_dir / f"report.{language}.md"
        label = re.escape(glossary.term("wording_hash", language))
        row = re.compile(rf"^\| {label} \| `([0-9a-f]{{64}})` \|$", re.MULTILINE)
        found = row.search(report.read_text(encoding="utf-8", errors="replace")) if report.is_file() else None
        if found is not None and found.group(1) != current:
            yield Fault(
                report.name,
                f"made by other templates or bench files ({found.group(1)[:12]}, these are {current[:12]}): "
                "`touchstone report` makes it anew from the same ledger",
            )


def make(run_dir: Path, out_dir: Path, experiments: Mapping[str, Experiment]) -> tuple[str, ...]:
    """Write results, reports and figures of a run, and return what the lints of the report found."""
    run = load_run(run_dir, experiments)
    write_results(run.results, out_dir / "results")
    return render_report(run, out_dir).faults


def differences(run_dir: Path, made: Path) -> tuple[int, tuple[Fault, ...]]:
    """Compare what a run folder holds with what was made again, byte by byte, and both ways."""
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    faults = [fault for file in files for fault in _differences(run_dir / file, made / file, file)]
    left = (str(path.relative_to(run_dir)) for name in FOLDERS for path in sorted((run_dir / name).glob("*")))
    faults.extend(Fault(path, "is no part of this report") for path in left if path not in files)
    return len(files), tuple(faults)


def _differences(told: Path, made: Path, name: str) -> Iterator[Fault]:
    if not told.is_file():
        yield Fault(name, "missing")
        return
    ours, theirs = made.read_bytes(), told.read_bytes()
    if ours == theirs:
        return
    if made.suffix == ".svg":
        yield Fault(name, "is not the figure that these numbers give")
        return
    pairs = zip_longest(ours.split(b"\n"), theirs.split(b"\n"))
    number, (mine, found) = next(item for item in enumerate(pairs, start=1) if item[1][0] != item[1][1])
    if mine is None or found is None:
        yield Fault(name, "has more lines than what is made again" if mine is None else "ends too early", number)
        return
    yield Fault(name, f"says {_around(found, mine)}, made again it says {_around(mine, found)}", number)


def _around(line: bytes, other: bytes) -> str:
    """Show a line around the first byte in which it differs from another."""
    place = next((i for i, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))
    start = max(place - _EXCERPT // 2, 0)
    return repr(line[start : start + _EXCERPT].decode(errors="replace"))
