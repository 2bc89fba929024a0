"""What a check of a run folder found."""

from __future__ import annotations

from dataclasses import dataclass


class NotARunError(ValueError):
    """The folder is not a run with its report; the message says what is missing and how to make it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: in which file, relative to the run folder, and what."""

    file: str
    detail: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: what it looked at, how many things of it, and its faults. `examined` None says "not reached"."""

    id: str
    statement: str
    examined: int | None
    faults: tuple[Fault, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the check was made and found nothing wrong."""
        return self.examined is not None and not self.faults
