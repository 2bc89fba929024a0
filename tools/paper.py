"""Make the paper: render every run in `paper/` again, and renew what the documents quote of it.

`make paper` does only that; the same ledgers give the same bytes. `make paper ARGS="--from RUN"` first takes over a
finished run of the paper profile, `--folder paper/peers` as a further one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from touchstone.cli_errors import tell
from touchstone.experiment import load_experiments
from touchstone.reporting.paper import MAX_BYTES, PAPER, REPOSITORY, PaperError, make_paper, size_of, take_over


def main() -> int:
    """Take over a run where one is named, make the paper, and say what is there; 2 where that cannot be done."""
    options = _options()
    experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    try:
        if options.source is not None:
            size = take_over(options.source, _inside_paper(options.folder), experiments)
            print(f"took over {options.source}: {size / 1e6:.1f} MB of ledger and traces")
        made = make_paper(experiments)
    except Exception as error:
        if (told := tell(error)) is None:
            raise
        print(f"paper: {told.message}", file=sys.stderr)
        return 2
    for run in made.runs:
        print(f"rendered {run.relative_to(REPOSITORY)}")
    for path in made.changed:
        print(f"renewed the quotations of {path.relative_to(REPOSITORY)}")
    if not made.runs:
        print('no run is committed in paper/ yet: the documents say so; `make paper ARGS="--from RUN"` takes one over')
    size = size_of(REPOSITORY / PAPER)
    print(f"paper/ holds {size / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB")
    return 0 if size <= MAX_BYTES else 2


def _inside_paper(folder: Path) -> Path:
    """Return where a run is kept; what lies there is replaced, so it must be inside paper/."""
    kept, paper = (REPOSITORY / folder).resolve(), REPOSITORY / PAPER
    if not kept.is_relative_to(paper):
        raise PaperError(f"--folder is {folder}, which is not inside {PAPER}/; name a folder such as {PAPER}/peers")
    return kept


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="RUN", help="folder of a finished paper run")
    parser.add_argument("--folder", type=Path, default=Path(PAPER), help="where it is kept, inside paper/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
