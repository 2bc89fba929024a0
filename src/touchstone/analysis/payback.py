"""After how many decode tokens the capture of CUDA graphs is earned back, with an interval, or never."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from touchstone.analysis.metrics import DICTIONARY
from touchstone.analysis.quantities import Quantity
from touchstone.analysis.statistics import LEVEL
from touchstone.records import Payback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.analysis.runs import Process, Run, TestRuns

METRIC = "decode_throughput"


@dataclass(frozen=True, slots=True)
class Crossing:
    """The multiple b at which b times one mean equals another, and its interval; None where it is infinite."""

    value: float | None
    low: float | None
    high: float | None
    verdict: Literal["EARNED BACK", "NEVER", "UNDECIDED"]


def payback_of(test: TestRuns) -> Payback | None:
    """Work it out from one pair of costs a process; None unless the last arm, and it alone, decoded by graphs.

    A process's saving is the mean time of a decode token over its baseline runs less that over its treatment runs.
    """
    if len(test.arms) != 2 or test.too_many_invalid:  # noqa: PLR2004  off against on
        return None
    off, on = test.arms
    graphs = [process.of_arm(on)[0].facts.graphs for process in test.processes if process.of_arm(on)]
    known = [captured for captured in graphs if captured is not None]
    if any(run.facts.graphs is not None for process in test.processes for run in process.of_arm(off)):
        return None  # graphs are not what the arms differ in
    saved = [one for process in test.processes if (one := _saved_s(process, off, on)) is not None]
    if len(known) < len(test.processes) or len(saved) < len(test.processes) or len(saved) < 2:  # noqa: PLR2004  a spread
        return None
    captures = [captured.capture_s for captured in known]
    crossing = fieller(captures, saved)
    return Payback(
        captures_s=tuple(captures),
        saved_s=tuple(saved),
        capture_bytes=round(median(captured.capture_bytes for captured in known)),
        num_graphs=known[0].num_graphs,
        tokens=crossing.value,
        low=crossing.low,
        high=crossing.high,
        level=LEVEL,
        verdict=crossing.verdict,
    )


def fieller(costs: Sequence[float], savings: Sequence[float], level: float = LEVEL) -> Crossing:
    """Solve mean(cost) = b x mean(saving) for paired values, with Fieller's interval (Fieller 1954).

    The interval holds every b > 0 at which a t test does not tell the mean of cost - b x saving from zero. It is
    bounded where the saving is told from zero: EARNED BACK, or NEVER where it is negative. Otherwise it has no upper
    end.
    """
    cost, saving = fmean(costs), fmean(savings)
    size = len(costs)
    spread = np.cov(np.asarray(costs), np.asarray(savings), ddof=1)
    factor = float(stats.t.ppf((1 + level) / 2, size - 1)) ** 2 / size
    # cost - b x saving lies within t standard errors of zero where a b^2 - 2 h b + c <= 0
    a = saving**2 - factor * float(spread[1, 1])
    h = cost * saving - factor * float(spread[0, 1])
    c = cost**2 - factor * float(spread[0, 0])
    value = cost / saving if saving > 0 else None
    if a > 0 and saving < 0:
        return Crossing(None, None, None, "NEVER")
    root = math.sqrt(max(h * h - a * c, 0.0))
    if a > 0:
        return Crossing(value, max((h - root) / a, 0.0), (h + root) / a, "EARNED BACK")
    low = 0.0 if c <= 0 else (h - root) / a if a < 0 else c / (2 * h) if h > 0 else None
    return Crossing(value, low, None, "UNDECIDED")


def _saved_s(process: Process, off: str, on: str) -> float | None:
    means = [_token_s(process.of_arm(arm)) for arm in (off, on)]
    return None if means[0] is None or means[1] is None else means[0] - means[1]


def _token_s(runs: Sequence[Run]) -> float | None:
    """Mean seconds of a decode token."""
    measured = [DICTIONARY[METRIC].compute(run.facts) for run in runs]
    rates = [rate.value for rate in measured if isinstance(rate, Quantity)]
    return fmean(1 / rate for rate in rates) if rates and len(rates) == len(runs) else None
