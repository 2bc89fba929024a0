"""The tables in which several devices, or several engines, stand side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from touchstone.verify import peers, scaling_tables
from touchstone.verify.cells import compare_row
from touchstone.verify.digits import numbers
from touchstone.verify.places import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from touchstone.verify.places import Place
    from touchstone.verify.shown import Case


class SeriesRules:
    """The rules for tables of scaling and of engines. `words` and `verdicts` are those of the report's language."""

    def __init__(self, case: Case, language: str, words: Mapping[str, str], verdicts: Mapping[str, str]) -> None:
        self._case, self._language, self._words, self._verdicts = case, language, words, verdicts
        self.tables: dict[tuple[str, ...], Callable[[Place, list[str]], Iterator[str]]] = {
            scaling_tables.POINTS: self._scaling_point,
            scaling_tables.FITS: self._scaling_fit,
            peers.ROWS: self._peer,
            peers.WORKLOADS: self._workload,
            peers.VERSIONS: self._version,
            peers.SETTINGS: self._settings,
        }

    def _scaling_point(self, place: Place, row: list[str]) -> Iterator[str]:
        language, told = self._language, self._case.results.get(place.test_id or "", {"scaling": []})
        series = scaling_tables.series_named(told, row[0], language)
        arm = bare(row[1])
        wanted = None if series is None else scaling_tables.point_cells(series, arm, self._case.results, language)
        if wanted is None:
            yield f"the results hold no arm {arm} of the series {row[0]}"
            return
        yield from compare_row(row[2:-1], wanted[:-1])
        if numbers(row[-1]) != wanted[-1]:
            yield f"the numbers of the remark on {arm} are not those of the results"

    def _scaling_fit(self, place: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(place.test_id or "", {"scaling": []})
        series = scaling_tables.series_named(told, row[0], self._language)
        if series is None or series["fit"] is None:
            yield f"the results hold no fit of the series {row[0]}"
            return
        if row[1] != self._words[f"law_{series['fit']['law'].lower()}"]:
            yield f"the law is {series['fit']['law']}'s, not {row[1]}"
        yield from compare_row(row[2:], scaling_tables.fit_cells(series))

    def _peer(self, _: Place, row: list[str]) -> Iterator[str]:
        told, arm = self._case.results.get(bare(row[0]), {"peers": [], "statistics": []}), bare(row[1])
        wanted = peers.row_cells(told, arm, self._language)
        if wanted is None:
            yield f"the results hold no engine {arm} on {row[0]}"
            return
        time, verdict, *others, remark = row[2:]
        yield from compare_row([time, *others], wanted[:-1])
        given = peers.verdict_of(told, arm)
        if not verdict.startswith("—" if given is None else self._verdicts[given]):
            yield f"the verdict on {arm} is {given}, not {verdict}"
        if numbers(remark) != wanted[-1]:
            yield f"the numbers of the remark on {arm} are not those of the results"

    def _workload(self, _: Place, row: list[str]) -> Iterator[str]:
        planned = {test["test_id"]: test["workload"] for test in self._case.evidence.plan["tests"]}
        workload = planned.get(bare(row[0]))
        if workload is None or numbers(row[1]) != peers.request_numbers(workload):
            yield f"the plan asks for other requests on {row[0]}"

    def _version(self, _: Place, row: list[str]) -> Iterator[str]:
        yield from self._engine(row, 0)

    def _settings(self, _: Place, row: list[str]) -> Iterator[str]:
        yield from self._engine(row, 1)

    def _engine(self, row: list[str], index: int) -> Iterator[str]:
        wanted = peers.engine_cells(self._case.results, bare(row[0]))
        if wanted is None or bare(row[1]).replace(r"\|", "|") != wanted[index]:
            yield f"version or settings of {row[0]} are not those of the results"
