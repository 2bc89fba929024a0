"""Simulate how often the intervals cover and the verdicts err, and write the tables into docs/statistics.md.

    python tools/simulate_statistics.py                  1,000 experiments a row, printed
    python tools/simulate_statistics.py --write          the same, written between the markers of the document

The functions under simulation are those of `touchstone.analysis`, called as the results call them. Process
scores are 100 x exp(noise); "skewed" noise is exponential, shifted to median 0, so that slow outliers happen. Seeded:
the same command prints the same tables.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from touchstone.analysis import repeats as repeated
from touchstone.analysis import statistics as judged
from touchstone.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "statistics.md"
BEGIN, END = "<!-- simulation: begin -->", "<!-- simulation: end -->"
CENTRE = 100.0
SEED = 20_260_101
REPEATS = 1_000
BOOTSTRAP_REPEATS = 500  # each of these resamples 2,000 times

Generator = np.random.Generator


@dataclass(frozen=True, slots=True)
class Table:
    """A Markdown table: title, header and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Lay the table out as GitHub renders it."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scores(rng: Generator, n: int, spread: float, *, skewed: bool = False, drift: float = 0.0) -> list[float]:
    """Draw n process scores whose median is 100; `drift` is added to the logarithm from one process to the next."""
    noise = rng.exponential(1.0, n) - np.log(2) if skewed else rng.normal(0.0, 1.0, n)
    return [float(value) for value in CENTRE * np.exp(spread * noise + drift * np.arange(n))]


def share(repeats: int, event: Callable[[], bool]) -> float:
    """How often the event happens."""
    return sum(event() for _ in range(repeats)) / repeats


def covers_median(rng: Generator, n: int, *, skewed: bool) -> bool:
    """Whether the distribution-free interval holds the true median."""
    interval = judged.median_interval(scores(rng, n, 0.02, skewed=skewed))
    return interval is not None and interval.low <= CENTRE <= interval.high


def covers_log_t(rng: Generator, n: int, *, skewed: bool) -> bool:
    """Whether the t interval on logarithms holds the true median (for skewed noise it estimates something else)."""
    interval = judged.log_t_interval(scores(rng, n, 0.02, skewed=skewed))
    return interval is not None and interval.low <= CENTRE <= interval.high


def covers_bootstrap(rng: Generator, n: int, *, skewed: bool) -> bool:
    """Whether scipy's BCa bootstrap interval of the median, which this project does not use, holds the true median."""
    sample = scores(rng, n, 0.02, skewed=skewed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate resamples at small n are the point of the comparison
        result = stats.bootstrap((sample,), np.median, n_resamples=2_000, rng=rng, vectorized=True)
    return bool(result.confidence_interval.low <= CENTRE <= result.confidence_interval.high)


def covers_next(rng: Generator, n: int) -> bool:
    """Whether the prediction interval from n scores holds one more."""
    *paper, rerun = scores(rng, n + 1, 0.02)
    return judged.compare_single_rerun(paper, rerun) is judged.Reproduction.COMPATIBLE


def is_stable(rng: Generator, n: int, spread: float, *, drift: float = 0.0, attempts: int = 1) -> bool:
    """Whether one of the attempts is judged STABLE."""
    return any(judged.judge(scores(rng, n, spread, drift=drift), planned=n) is Verdict.STABLE for _ in range(attempts))


ABBA, SEPARATE = "ABBA", "all A, then all B"


def block_log_ratios(
    rng: Generator, blocks: int, *, effect: float, noise: float, drift: float, order: str
) -> list[float]:
    """Log-ratios B / A of paired blocks of two A and two B runs each, with a linear drift per run."""
    total = 4 * blocks
    logs = rng.normal(0.0, noise, total) + drift * np.arange(total)
    if order == SEPARATE:
        first, second = logs[: total // 2].reshape(blocks, 2), logs[total // 2 :].reshape(blocks, 2)
        return [float(value) for value in effect + second.mean(axis=1) - first.mean(axis=1)]
    rows = logs.reshape(blocks, 4)
    mirrored = rng.random(blocks) < 0.5  # noqa: PLR2004  a fair coin chooses ABBA or BAAB
    outer, inner = (rows[:, 0] + rows[:, 3]) / 2, (rows[:, 1] + rows[:, 2]) / 2
    return [float(value) for value in effect + np.where(mirrored, outer - inner, inner - outer)]


def effect_verdict(
    rng: Generator, *, effect: float = 0.0, noise: float = 0.01, drift: float = 0.0, order: str = ABBA, blocks: int = 6
) -> judged.EffectVerdict:
    """Judge one simulated ablation."""
    ratios = block_log_ratios(rng, blocks, effect=effect, noise=noise, drift=drift, order=order)
    return judged.ablation_effects([ratios])[0].verdict


def reproduction(rng: Generator, *, ratio: float, spread: float, reviewer: int = 6) -> judged.Reproduction:
    """Judge one simulated reviewer's run against a paper of six processes."""
    paper = scores(rng, 6, spread)
    return judged.compare_with_paper(paper, [ratio * value for value in scores(rng, reviewer, spread)]).verdict


def is_shown_cached(
    rng: Generator, *, processes: int, runs: int, spread: float, saved: float = 0.0, skewed: bool = False
) -> bool:
    """Whether repeats that truly save this share of the time are said to come from a cache."""
    noise = rng.exponential(1.0, (processes, runs + 1)) if skewed else rng.normal(0.0, 1.0, (processes, runs + 1))
    fresh, again = spread * noise[:, :runs], spread * noise[:, runs] + np.log1p(-saved)
    return repeated.saved_time([float(value) for value in fresh.mean(axis=1) - again]).shown_cached


# --- the tables -----------------------------------------------------------------------------------------------------


def per_cent(value: float) -> str:
    """Write a share with one decimal."""
    return f"{100 * value:.1f} %"


def coverage_table(rng: Generator, repeats: int) -> Table:
    """Coverage of each interval that claims 95 %."""
    bootstraps = min(repeats, BOOTSTRAP_REPEATS)

    def row(n: int, *, skewed: bool) -> tuple[str, ...]:
        return (
            str(n),
            "skewed" if skewed else "normal",
            per_cent(share(repeats, lambda: covers_median(rng, n, skewed=skewed))),
            per_cent(share(repeats, lambda: covers_log_t(rng, n, skewed=skewed))),
            per_cent(share(bootstraps, lambda: covers_bootstrap(rng, n, skewed=skewed))),
            "" if skewed else per_cent(share(repeats, lambda: covers_next(rng, n))),
        )

    rows = tuple(row(n, skewed=skewed) for n in (6, 9, 12) for skewed in (False, True))
    header = ("n", "noise", "order statistics", "t on logarithms", "BCa bootstrap (not used)", "prediction of one more")
    return Table("Coverage of 95 % intervals of the median", header, rows)


def stability_table(rng: Generator, repeats: int) -> Table:
    """How often process scores of a given true spread or trend are called STABLE."""

    def stable(n: int, attempts: int, spread: float, drift: float) -> str:
        return per_cent(share(repeats, lambda: is_stable(rng, n, spread, drift=drift, attempts=attempts)))

    cases = [(spread, 0.0) for spread in (0.005, 0.01, 0.02, 0.03, 0.05)] + [(0.005, 0.005), (0.005, 0.01)]
    sizes = ((3, 1), (3, 5), (6, 1), (12, 1))
    rows = tuple(
        (per_cent(spread), per_cent(drift), *(stable(n, attempts, spread, drift) for n, attempts in sizes))
        for spread, drift in cases
    )
    header = ("true spread", "true drift a process", "n = 3", "n = 3, best of five tries", "n = 6", "n = 12")
    return Table("Share judged STABLE", header, rows)


def ablation_table(rng: Generator, repeats: int) -> Table:
    """Verdicts on simulated ablations of six blocks."""
    cases: tuple[tuple[float, float, float, str], ...] = (
        (0.0, 0.01, 0.0, ABBA),
        (0.0, 0.01, 0.002, ABBA),
        (0.0, 0.01, 0.002, SEPARATE),
        (0.0, 0.03, 0.0, ABBA),
        (0.01, 0.01, 0.0, ABBA),
        (0.02, 0.01, 0.0, ABBA),
        (0.05, 0.03, 0.0, ABBA),
        (float(np.log(1.1)), 0.03, 0.0, ABBA),
    )
    rows = []
    for effect, noise, drift, order in cases:
        verdicts = [effect_verdict(rng, effect=effect, noise=noise, drift=drift, order=order) for _ in range(repeats)]
        shares = _shares(verdicts, ("HIGHER", "LOWER", "EQUIVALENT", "INCONCLUSIVE"))
        rows.append((per_cent(float(np.expm1(effect))), per_cent(noise), per_cent(drift), order, *shares))
    header = ("true effect", "noise a run", "drift a run", "order", "HIGHER", "LOWER", "EQUIVALENT", "INCONCLUSIVE")
    return Table("Verdicts on an ablation of six blocks", header, tuple(rows))


def reviewer_table(rng: Generator, repeats: int) -> Table:
    """Verdicts on a reviewer's six processes against the paper's six."""
    rows = []
    for spread in (0.01, 0.03):
        for ratio in (1.0, 1.02, 1.05, 1.08, 1.12):
            verdicts = [reproduction(rng, ratio=ratio, spread=spread) for _ in range(repeats)]
            shares = _shares(verdicts, ("REPRODUCED", "INCONCLUSIVE", "NOT REPRODUCED"))
            rows.append((per_cent(spread), f"{ratio:.2f}", *shares))
    header = ("true spread", "true ratio", "REPRODUCED", "INCONCLUSIVE", "NOT REPRODUCED")
    return Table("Verdicts on a reviewer's run, margin ±5 %", header, tuple(rows))


def repeats_table(rng: Generator, repeats: int) -> Table:
    """How often repeated prompts are said to be answered from a cache, at the sizes of smoke, paper and quick."""

    def shown(processes: int, runs: int, spread: float, saved: float, *, skewed: bool) -> str:
        case = partial(is_shown_cached, rng, processes=processes, runs=runs, spread=spread, saved=saved, skewed=skewed)
        return per_cent(share(repeats, case))

    rows = tuple(
        (
            f"{processes} x {runs}",
            per_cent(spread),
            "skewed" if skewed else "normal",
            *(shown(processes, runs, spread, saved, skewed=skewed) for saved in (0.0, 0.1, 0.2, 0.5, 0.9)),
        )
        for processes, runs in ((6, 12), (6, 2), (3, 2))
        for spread, skewed in ((0.02, False), (0.2, False), (0.2, True))
    )
    header = ("processes x runs", "spread of a run", "noise", *(f"{saved} % saved" for saved in (0, 10, 20, 50, 90)))
    return Table("Share in which repeated prompts are said to be cached", header, rows)


def _shares(verdicts: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(per_cent(sum(verdict == name for verdict in verdicts) / len(verdicts)) for name in names)


TABLES = (coverage_table, stability_table, ablation_table, reviewer_table, repeats_table)


def simulate(repeats: int) -> str:
    """Run every table on one seeded stream."""
    rng = np.random.default_rng(SEED)
    tables = (make(rng, repeats) for make in TABLES)
    return "\n\n".join(table.markdown() for table in tables)


def write(text: str) -> None:
    """Put the tables between the markers of the document."""
    document = DOCUMENT.read_text(encoding="utf-8")
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        sys.exit(f"{DOCUMENT} must hold {BEGIN} and {END} once each")
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Simulate, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="simulated experiments a row")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/statistics.md")
    arguments = parser.parse_args()
    text = f"{arguments.repeats} simulated experiments a row (bootstrap: at most {BOOTSTRAP_REPEATS}), seed {SEED}."
    text += "\n\n" + simulate(arguments.repeats)
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
