"""Why a claim has its verdict, as a sentence: what was held against what, where the interval lies, what would decide.

The values themselves stand beside the sentence, in columns of their own.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from touchstone.analysis import statistics
from touchstone.analysis.statistics import Reproduction
from touchstone.experiment import Bilingual
from touchstone.records import Verdict
from touchstone.reporting.formatting import number, percent
from touchstone.reproduce.claims import EVERY_CHECK, Direction
from touchstone.reproduce.outcomes import ClaimVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from touchstone.analysis.statistics import Comparison
    from touchstone.records import Check, Effect, Interval, MetricStatistics
    from touchstone.reproduce.claims import Claim, Point

_MARGIN, _LEVEL, _ALPHA = (
    percent(share, 0) for share in (statistics.MARGIN, 1 - 2 * statistics.ALPHA, statistics.ALPHA)
)
_ENOUGH = statistics.MIN_FOR_INTERVAL
_DIRECTIONS = {
    Direction.HIGHER: Bilingual("a ratio above 1", "比值大于 1"),
    Direction.LOWER: Bilingual("a ratio below 1", "比值小于 1"),
    Direction.EQUIVALENT: Bilingual(f"a ratio within ±{_MARGIN} of 1", f"比值在 1 的 ±{_MARGIN} 之内"),
}


def sentences(*parts: Bilingual) -> Bilingual:
    """Join sentences that have no full stop of their own."""
    return Bilingual("; ".join(part.en for part in parts), "；".join(part.zh for part in parts))


# --- counts, identities, tokens -------------------------------------------------------------------------------------


def of_count(paper: MetricStatistics, here: MetricStatistics) -> Bilingual:
    """Say which counts the processes of both runs gave."""
    ours, theirs = _counts(paper), _counts(here)
    sizes = len(paper.values), len(here.values)
    if ours == theirs and len(ours) == 1:
        return Bilingual(
            f"a count, the same in all {sizes[0]} processes of the paper's run and all {sizes[1]} of this one",
            f"计数在论文运行的全部 {sizes[0]} 个进程与本次运行的全部 {sizes[1]} 个进程中相同",
        )
    return Bilingual(
        f"a count must be one and the same in every process: the paper's {sizes[0]} give {', '.join(ours)}, the "
        f"{sizes[1]} here give {', '.join(theirs)}",
        f"计数在每个进程中都须相同：论文的 {sizes[0]} 个进程得到 {'、'.join(ours)}，"
        f"本次的 {sizes[1]} 个进程得到 {'、'.join(theirs)}",
    )


def _counts(numbers: MetricStatistics) -> list[str]:
    return [f"{value:g}" for value in sorted(set(numbers.values))]


def of_checks(claim: Claim, paper: Sequence[Check], here: Sequence[Check]) -> Bilingual:
    """Say which checks pass in both runs."""
    if claim.metric == EVERY_CHECK:
        return Bilingual(
            f"all {len(paper)} checks pass in the paper's run, and all {len(here)} in this one",
            f"论文运行的全部 {len(paper)} 项检查与本次运行的全部 {len(here)} 项检查均通过",
        )
    return Bilingual(f"`{claim.metric}` passes in both runs", f"`{claim.metric}` 在两次运行中均通过")


def of_tokens(equal: int, total: int, *, same_hardware: bool) -> Bilingual:
    """Say how many requests returned the same tokens, and what it means on other hardware if not all did."""
    told = Bilingual(
        f"{equal} of {total} requests returned the same tokens", f"{equal} 个请求的 token 相同，共 {total} 个"
    )
    if equal == total or same_hardware:
        return told
    rounding = Bilingual(
        "another machine rounds differently and may choose others", "不同机器的舍入不同，可能选出不同的 token"
    )
    return sentences(told, rounding)


# --- speeds and ratios on the same hardware --------------------------------------------------------------------------


def of_comparison(compared: Comparison, paper: int, here: int) -> Bilingual:
    """Say where the interval of this / paper lies, from how many processes, and how many would decide."""
    interval = compared.interval
    noise = (interval.high - interval.low) / 2
    low, high = (number(end, noise) for end in (interval.low, interval.high))
    place = {
        Reproduction.REPRODUCED: Bilingual("lies within", "落在"),
        Reproduction.NOT_REPRODUCED: Bilingual("lies wholly outside of", "整体落在"),
    }.get(compared.verdict, Bilingual("crosses the end of", "跨越"))
    after = {
        Reproduction.REPRODUCED: "界限之内",
        Reproduction.NOT_REPRODUCED: "界限之外",
    }.get(compared.verdict, "界限")
    told = Bilingual(
        f"the {_LEVEL} interval of this run / paper, {low} to {high}, {place.en} the margin of ±{_MARGIN}, by {paper} "
        f"processes in the paper's run and {here} here",
        f"本次与论文之比的 {_LEVEL} 区间为 {low} 至 {high}，{place.zh} ±{_MARGIN} 的{after}，"
        f"论文运行 {paper} 个进程，本次 {here} 个进程",
    )
    return told if compared.verdict is not Reproduction.INCONCLUSIVE else sentences(told, _what_decides(compared, here))


def _what_decides(compared: Comparison, here: int) -> Bilingual:
    if compared.needed is None:
        return Bilingual(
            "the paper's own spread is too wide for any number of reruns to decide",
            "论文自身的离散程度过大，重测再多次也无法定论",
        )
    likely = percent(statistics.POWER, 0)
    if compared.needed <= here:
        return Bilingual(
            f"so many would have decided it with a probability of {likely} if nothing had changed: the ratio seems to "
            "lie near the end of the margin, where only many more processes decide",
            f"若实际并无变化，现有进程数本有 {likely} 的概率得出定论：比值似乎就在界限附近，须大幅增加进程数方可定论",
        )
    return Bilingual(
        f"if nothing has changed, {compared.needed} processes here would decide it with a probability of {likely}",
        f"若实际并无变化，本次需 {compared.needed} 个进程，方有 {likely} 的概率得出定论",
    )


def of_single_rerun(rerun: float, expected: Interval, processes: int, verdict: Reproduction) -> Bilingual:
    """Say where one process lies in the interval in which one more of the paper's is expected, as parts of it."""
    centre = (expected.low * expected.high) ** 0.5
    noise = (expected.high - expected.low) / 2 / centre
    ratio, low, high = (number(value / centre, noise) for value in (rerun, expected.low, expected.high))
    inside = verdict is Reproduction.COMPATIBLE
    level = percent(expected.level, 0)
    return Bilingual(
        f"a single process here, {ratio} of the paper's centre, lies {'inside' if inside else 'outside'} {low} to "
        f"{high}, where one more process is expected ({level}, by {processes} processes of the paper's run)",
        f"本次只有一个进程，为论文中心值的 {ratio} 倍，落在对新增一个进程的预测区间 {low} 至 {high} "
        f"{'之内' if inside else '之外'}（{level}，依据论文运行的 {processes} 个进程）",
    )


def of_too_few(paper: int, here: int) -> Bilingual:
    """Say that values are too few, or not positive, for any test."""
    return Bilingual(
        f"{paper} values in the paper and {here} here; positive values and a spread are needed, as {_ENOUGH} processes "
        "give",
        f"论文有 {paper} 个数值，本次有 {here} 个；需要正值及可估计的离散程度，{_ENOUGH} 个进程即可",
    )


# --- ratios ---------------------------------------------------------------------------------------------------------


def of_the_papers_lack(direction: Direction, paper: Effect) -> Bilingual:
    """Say that the paper's own run does not show the claimed direction."""
    claimed = _DIRECTIONS[direction]
    return Bilingual(
        f"the claim says {claimed.en}, and the paper's own run does not show it (`{paper.verdict}`)",
        f"论断称{claimed.zh}，而论文自身的运行未显示（`{paper.verdict}`）",
    )


def of_counted_ratio(*, same: bool) -> Bilingual:
    """Say that ratios of counts are equal or not."""
    if same:
        return Bilingual(
            "a ratio of counts, the same in every block of both runs", "计数之比，在两次运行的每个区组中都相同"
        )
    return Bilingual(
        "a ratio of counts must be the same in both runs, and is another here", "计数之比在两次运行中须相同，本次不同"
    )


def of_opposite(direction: Direction, here: Effect) -> Bilingual:
    """Say that this run shows the opposite of the claimed direction."""
    claimed = _DIRECTIONS[direction]
    return Bilingual(
        f"the claim says {claimed.en}, and this run shows the opposite direction (`{here.verdict}`)",
        f"论断称{claimed.zh}，而本次运行显示相反的方向（`{here.verdict}`）",
    )


SIZE_OPEN = Bilingual(
    "both runs show the claimed direction; only the size of the ratio is open",
    "两次运行均显示所述方向，仅比值大小未有定论",
)


def of_direction_elsewhere(verdict: ClaimVerdict, paper: Effect, here: Effect) -> Bilingual:
    """Say on which sides of 1 the two ratios lie; on other hardware their sizes are not compared."""
    if Verdict.EXACT in {paper.verdict, here.verdict} or None in {paper.interval, here.interval}:
        return _by_verdict(paper, here)
    word = {
        ClaimVerdict.CONSISTENT: Bilingual("lie on the same side of 1", "位于 1 的同一侧"),
        ClaimVerdict.REFUTED_HERE: Bilingual("lie on opposite sides of 1", "位于 1 的两侧"),
    }.get(verdict, Bilingual("do not both exclude 1", "并非都不含 1"))
    return Bilingual(
        f"on other hardware the direction counts: the intervals of the two ratios {word.en}",
        f"硬件不同时只看方向：两个比值的区间{word.zh}",
    )


def _by_verdict(paper: Effect, here: Effect) -> Bilingual:
    return Bilingual(
        f"on other hardware the direction counts: `{paper.verdict}` in the paper, `{here.verdict}` here",
        f"硬件不同时只看方向：论文为 `{paper.verdict}`，本次为 `{here.verdict}`",
    )


def of_equivalence_elsewhere(verdict: ClaimVerdict) -> Bilingual:
    """Say where this run's own ratio lies, of which the paper's run shows that it is about 1."""
    word = {
        ClaimVerdict.CONSISTENT: Bilingual("is shown to lie within", "经检验在"),
        ClaimVerdict.REFUTED_HERE: Bilingual("lies wholly outside of", "的区间整体不在"),
    }.get(verdict, Bilingual("cannot be placed inside or outside of", "无法判断是否在"))
    return Bilingual(
        f"the claim says that the switch makes no difference: the ratio here {word.en} ±{_MARGIN} of 1",
        f"论断称该开关不产生差异：本次的比值{word.zh} 1 的 ±{_MARGIN} 之内",
    )


# --- orders ---------------------------------------------------------------------------------------------------------


def of_order(
    points: Sequence[Point], runs: Sequence[tuple[Bilingual, Sequence[bool | None]]], first: bool | None
) -> Bilingual:
    """Say that every step up is shown in both runs, or name the first that is turned round or cannot be told."""
    if first:
        steps = len(points) - 1
        return Bilingual(
            f"one-sided tests at {_ALPHA} show every step ({steps}) of the order, in both runs",
            f"两次运行中，单侧检验（{_ALPHA}）均显示次序的每一步（共 {steps} 步）",
        )
    name, index = next((name, found.index(first)) for name, found in runs if first in found)
    low, high = (f"`{_named(point)}`" for point in list(pairwise(points))[index])
    if first is False:
        return Bilingual(
            f"in {name.en} {high} is smaller than {low}, by a one-sided test at {_ALPHA}",
            f"{name.zh}中，{high} 小于 {low}（单侧检验，{_ALPHA}）",
        )
    return Bilingual(
        f"in {name.en} {low} and {high} cannot be told apart at {_ALPHA}; more processes would narrow both",
        f"{name.zh}中，{low} 与 {high} 在 {_ALPHA} 水平上无法区分；增加进程数可缩小两者的区间",
    )


def _named(point: Point) -> str:
    return point.metric if point.arm is None else f"{point.metric} {point.arm}"
