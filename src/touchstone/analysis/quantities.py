"""Numbers that know what they count, so that rates of different kinds cannot be mixed up."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from touchstone.experiment import Bilingual


class UnitError(TypeError):
    """Two quantities of different units were put into one operation; the message names both."""


class Unit(StrEnum):
    """What a value counts. Rates name their tokens: a prefill rate is no decode rate. GB is 10^9 bytes."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    PREFILL_TOKENS_PER_S = "prefill tokens/s"
    DECODE_TOKENS_PER_S = "decode tokens/s"
    OUTPUT_TOKENS_PER_S = "output tokens/s"
    TOTAL_TOKENS_PER_S = "prompt + output tokens/s"
    UNCACHED_TOKENS_PER_S = "uncached prompt + output tokens/s"
    TOKENS = "tokens"
    TOKENS_PER_STEP = "tokens/step"
    REQUESTS = "requests"
    PREEMPTIONS = "preemptions"
    GRAPHS = "graphs"
    GIGABYTES = "GB"
    PERCENT = "%"
    ENERGY_A_TOKEN = "J/token"  # noqa: S105  a token of text, not of access
    TIMES = "×"
    LINES = "lines"
    FUNCTIONS = "functions"
    CLASSES = "classes"
    LINES_PER_FUNCTION = "lines/function"
    PATHS_PER_FUNCTION = "paths/function"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One value of one timed run.

    `sample_size` is the number of requests or gaps behind a percentile or mean, None for other values. `terms` are the
    numbers that went into the formula, by their LaTeX symbol.
    """

    value: float
    unit: Unit
    sample_size: int | None = None
    terms: Mapping[str, float] = field(default_factory=dict)

    def ratio_to(self, baseline: Quantity) -> float:
        """Divide by a quantity of the same unit; UnitError for another one, ZeroDivisionError for zero."""
        if self.unit is not baseline.unit:
            raise UnitError(f"a ratio of {self.unit!r} to {baseline.unit!r} has no meaning; compare the same metric")
        return self.value / baseline.value


@dataclass(frozen=True, slots=True)
class NotAvailable:
    """A value that cannot be had from this run, and why; never written as 0 or NaN."""

    reason: Bilingual


Measured = Quantity | NotAvailable
