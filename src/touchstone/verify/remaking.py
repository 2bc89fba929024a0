"""Results, reports and figures made once more in a process of their own, while this one works the numbers out.

On two cores the whole takes no longer than the longer of the two. It is a fresh process, not a fork, so that what
checks the numbers has loaded nothing of what made them.
"""

from __future__ import annotations

import gc
import multiprocessing
from typing import TYPE_CHECKING, Self, TypeAlias

from touchstone.verify.outcome import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path

    from touchstone.experiment import Experiment

Remade: TypeAlias = "tuple[int, tuple[Fault, ...]]"

_FRESH = multiprocessing.get_context("spawn")


class Remaking:
    """A report in the making. It ends with the `with` block, wanted or not."""

    def __init__(self, run_dir: Path, experiments: Mapping[str, Experiment]) -> None:
        self._receiver, sender = _FRESH.Pipe(duplex=False)
        arguments = (sender, run_dir, dict(experiments))
        self._process = _FRESH.Process(target=_make_again, args=arguments, name="report made again", daemon=True)
        self._process.start()
        sender.close()  # the end of the other process is seen here only if nobody else holds its side

    def result(self) -> Remade:
        """Wait for how many files were compared and what differs; a fault where the process ended without saying."""
        try:
            remade: Remade = self._receiver.recv()
        except EOFError:
            self._process.join()
            return 0, (Fault("report", f"making it again ended without a result (status {self._process.exitcode})"),)
        return remade

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._receiver.close()


def _make_again(sender: Connection, run_dir: Path, experiments: Mapping[str, Experiment]) -> None:
    from touchstone.verify import again  # noqa: PLC0415  only this process may load what made the report

    gc.disable()  # it goes through millions of numbers over and over, and nothing is freed before the process ends
    sender.send(again.made_again(run_dir, experiments))
