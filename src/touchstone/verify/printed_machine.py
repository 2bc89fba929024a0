"""What a report says of the machine: rooflines, canary readings and telemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from touchstone.verify.cells import compare_row
from touchstone.verify.digits import numbers, share, significant
from touchstone.verify.places import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from touchstone.verify.places import Place
    from touchstone.verify.shown import Case

Json: TypeAlias = "dict[str, Any]"

_TELEMETRY = (
    "load_average_max",
    "throttled_s",
    "involuntary_switches",
    "other_busy_cores_max",
    "sm_clock_min_mhz",
    "temperature_max_c",
    "power_mean_w",
    "other_gpu_processes",
)


class MachineRules:
    """The rules for tables about the machine, in a report of one language."""

    def __init__(self, case: Case, language: str) -> None:
        self._case, self._language = case, language
        self.tables: dict[tuple[str, ...], Callable[[Place, list[str]], Iterator[str]]] = {
            (
                *("test", "metric", "arm", "physical_bound", "share_of_bound"),
                *("physical_floor", "limited_by", "explanation"),
            ): self._roofline,
            (
                *("test", "canary_readings", "canary_product", "canary_copy"),
                *("canary_operation", "canary_move", "canary_limit"),
            ): self._canary,
            (
                *("test", "load_average", "throttled", "involuntary_switches", "other_cores"),
                *("lowest_clock", "highest_temperature", "mean_power", "other_processes"),
            ): self._telemetry,
        }

    def _roofline(self, _: Place, row: list[str]) -> Iterator[str]:
        roof = roofline_in(self._case, row[0], bare(row[1]), bare(row[2]))
        if roof is None:
            yield f"the results hold no roofline of {row[1]} in test {row[0]}"
            return
        wanted = (significant(roof["bound"], 3), share(roof["share"]), significant(roof["floor_s"] * 1e3, 3))
        yield from compare_row(row[3:6], wanted)
        explanation = roof["explanation_zh" if self._language == "zh" else "explanation"]
        if numbers(row[7]) != numbers(explanation or ""):
            yield "the numbers of the explanation are not those of the results"

    def _canary(self, _: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(row[0], {"canary": None})["canary"]
        wanted: list[list[str]] = [[]] * 6
        if told is not None:
            wanted = [
                [str(told["num_readings"])],
                significant(told["flops_per_s"] / 1e9, 3),
                significant(told["bytes_per_s"] / 1e9, 3),
                significant(told["operation_s"] * 1e6, 3),
                share(told["largest_move"]),
                share(told["limit"], 0),
            ]
        yield from compare_row(row[1:], wanted)

    def _telemetry(self, _: Place, row: list[str]) -> Iterator[str]:
        told = self._case.results.get(row[0], {"telemetry": None})["telemetry"] or {}
        yield from compare_row(row[1:], [significant(told.get(name), 3) for name in _TELEMETRY])


def roofline_in(case: Case, test_id: str | None, metric: str | None, arm: str) -> Json | None:
    """Look up the roofline of a metric of an arm, or of the first arm that has one."""
    statistics = case.results.get(test_id or "", {"statistics": []})["statistics"]
    items = (item for item in statistics if item["metric"] == metric and arm in {"", item["arm"]})
    return next((item["roofline"] for item in items if item["roofline"] is not None), None)
