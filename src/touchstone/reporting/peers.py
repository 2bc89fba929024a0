"""Engines side by side as the report shows them: each workload against the first engine, then everyone's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual, family_of, is_point
from touchstone.reporting.formatting import Notation, Scale, exact, last_place, noise_of, notation_for, percent
from touchstone.reporting.values import NOTHING, Amount, Code, Printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from touchstone.records import Lengths, MetricStatistics, PeerComparison, Result, Scalar, WorkloadSpec
    from touchstone.reporting.run_folder import Run

METRIC = "total_time"


@dataclass(frozen=True, slots=True)
class PeerWorkload:
    """One workload by the name that the rows of the comparison call it by."""

    workload: Code
    requests: Bilingual


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One engine on one workload; `verdict` is that of the time, None for an engine that was not run."""

    workload: Code
    arm: str
    time: Amount
    verdict: str | None
    indicative: bool
    ratio: Amount
    interval: Amount
    share: Amount
    cached: Printable
    remark: Bilingual | Amount


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine's version and what it said of its settings; `common` ones hold on every workload."""

    arm: str
    version: Code
    settings: Code


@dataclass(frozen=True, slots=True)
class PeersView:
    """The comparison of one test and its points; empty for every other test."""

    workloads: tuple[PeerWorkload, ...] = ()
    rows: tuple[PeerRow, ...] = ()
    engines: tuple[EngineRow, ...] = ()
    formulas: tuple[str, ...] = ()
    note: Bilingual | None = None


FORMULAS = (
    r"r = \exp\left(\overline{\ln T_{\text{engine}} - \ln T_{\text{first}}}\right)",
    r"\text{share} = \operatorname{median} \frac{\max\left(\text{bytes} / B,\ \text{FLOPs} / F\right)}{T}",
)


def peers_view(run: Run, test_id: str) -> PeersView:
    """Arrange the comparison of a test and of all its points, which stand in its chapter."""
    members = [result for result in run.results if family_of(result.test_id) == test_id and result.peers]
    if is_point(test_id) or not members:
        return PeersView()
    specs = {test.test_id: test.workload for test in run.plan.tests}
    told = ((result.test_id, specs.get(result.test_id)) for result in members)
    return PeersView(
        workloads=tuple(PeerWorkload(Code(name), requests_of(spec)) for name, spec in told if spec is not None),
        rows=tuple(row for result in members for row in _rows(result)),
        engines=tuple(_engine_rows(members)),
        formulas=FORMULAS,
        note=_note(members),
    )


def _note(members: list[Result]) -> Bilingual | None:
    """Say how the intervals were made and from how many rounds; None where there is none."""
    present = [peer for result in members for peer in result.peers if peer.interval is not None]
    if not present or present[0].interval is None:
        return None
    level = percent(present[0].interval.level)
    counts = sorted({len(peer.rounds) for peer in present})
    rounds = exact(counts[0]) if len(counts) == 1 else f"{exact(counts[0])}–{exact(counts[-1])}"
    return Bilingual(
        f"Intervals of ratios: Student's at {level}, on the logarithms of {rounds} rounds, in each of which every "
        "engine has one process. The verdict is that of the time. The share of the bound follows from the requests "
        "alone, for every engine in the same way.",
        f"比值的区间：置信水平 {level}，由 {rounds} 轮的对数比按 t 分布得出，每轮中每个引擎各有一个进程。"
        "结论针对耗时。达到极限的比例只由请求推算，对每个引擎算法一致。",
    )


def requests_of(spec: WorkloadSpec) -> Bilingual:
    """Say in a sentence what a workload asks of every engine."""
    count, given, wanted = exact(spec.num_requests), _lengths(spec.input_tokens), _lengths(spec.output_tokens)
    several = "request" if spec.num_requests == 1 else "requests"
    english = f"{count} {several}, {given} tokens in, {wanted} out"
    chinese = f"{count} 个请求，输入 {given} token，输出 {wanted} token"
    if not spec.shared_fraction:
        return Bilingual(english, chinese)
    shared, prefix = percent(spec.shared_fraction, 0), percent(spec.prefix_fraction, 0)
    return Bilingual(
        f"{english}; {shared} of them begin with the same prefix, {prefix} of their length",
        f"{chinese}；其中 {shared} 以同一前缀开头，前缀占长度的 {prefix}",
    )


def _lengths(lengths: Lengths) -> str:
    same = lengths.low == lengths.high
    return exact(lengths.low) if same else f"{exact(lengths.low)}–{exact(lengths.high)}"


def _rows(result: Result) -> Iterator[PeerRow]:
    items = {item.arm: item for item in result.statistics if item.metric == METRIC}
    first = result.peers[0].arm
    for peer in result.peers:
        yield _row(result.test_id, peer, items.get(peer.arm), is_first=peer.arm == first)


def _row(test_id: str, peer: PeerComparison, item: MetricStatistics | None, *, is_first: bool) -> PeerRow:
    return PeerRow(
        workload=Code(test_id),
        arm=peer.arm,
        time=_time(peer, item),
        verdict=None if item is None else item.verdict.value,
        indicative=item is not None and item.indicative and peer.seconds is not None,
        ratio=NOTHING if peer.ratio is None else Amount(_notation(peer, peer.ratio).write(peer.ratio), "×"),
        interval=_interval(peer),
        share=NOTHING if peer.share is None else Amount(percent(peer.share)),
        cached=NOTHING if peer.cached_tokens is None else peer.cached_tokens,
        remark=_remark(peer, is_first=is_first),
    )


def _time(peer: PeerComparison, item: MetricStatistics | None) -> Amount:
    if peer.seconds is None or item is None:
        return NOTHING
    notation = notation_for(item)
    return Amount(notation.write(peer.seconds), notation.scale.symbol)


def _notation(peer: PeerComparison, ratio: float) -> Notation:
    """Cut a ratio to the half-width of its interval."""
    return Notation(Scale(1, ""), last_place(ratio, noise_of([ratio], peer.interval)))


def _interval(peer: PeerComparison) -> Amount:
    if peer.ratio is None or peer.interval is None:
        return NOTHING
    notation = _notation(peer, peer.ratio)
    return Amount(f"[{notation.write(peer.interval.low)}, {notation.write(peer.interval.high)}]", "×")


def _remark(peer: PeerComparison, *, is_first: bool) -> Bilingual | Amount:
    if peer.reason is not None:
        return Bilingual(f"not measured: {peer.reason}", f"未测量：{peer.reason_zh}")
    remarks = ([_BASELINE] if is_first else []) + (
        [_CLIENT_SIDE] if peer.settings.get("timing") == "client side" else []
    )
    if not remarks:
        return NOTHING
    return Bilingual("; ".join(text.en for text in remarks), "；".join(text.zh for text in remarks))


_BASELINE = Bilingual("baseline", "基线")
_CLIENT_SIDE = Bilingual(
    "times of the client: network, the server's buffering and the client's own loop are in them",
    "客户端时间：包含网络、服务端缓冲与客户端自身的开销",
)


# --- settings -------------------------------------------------------------------------------------------------------


def _engine_rows(members: list[Result]) -> Iterator[EngineRow]:
    """Name each engine once, in the order of the plan; a setting that differs between workloads has all its values."""
    told: dict[str, list[PeerComparison]] = {peer.arm: [] for result in members for peer in result.peers}
    for peer in (peer for result in members for peer in result.peers if peer.version is not None):
        told[peer.arm].append(peer)
    for arm, peers in told.items():
        if not peers:
            continue
        yield EngineRow(arm, Code(peers[0].version or ""), Code(settings_text([peer.settings for peer in peers])))


def settings_text(told: list[dict[str, Scalar]]) -> str:
    """Write settings as `name = value`, in the order of their names; values that differ stand side by side."""
    names = sorted({name for settings in told for name in settings})
    return "; ".join(f"{name} = {' / '.join(_values(name, told))}" for name in names)


def _values(name: str, told: list[dict[str, Scalar]]) -> list[str]:
    return list(dict.fromkeys(str(settings.get(name)) for settings in told))
