"""Where a planned test lies on the axes of sweeps: one number, read from the plan and never typed beside it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from touchstone.records import PlannedTest, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One quantity that a sweep varies; `of` is None for a test that has no place on the axis, which then ends it.

    `unit` is a key of the glossary's units, `one` the unit of the number 1 where that has another word. `beyond` says
    what a test without a place did instead.
    """

    name: Bilingual
    unit: str
    of: Callable[[PlannedTest], float | None]
    beyond: Bilingual | None = None
    one: str | None = None


def _of_workload(read: Callable[[WorkloadSpec], float | None]) -> Callable[[PlannedTest], float | None]:
    return lambda test: None if test.workload is None else read(test.workload)


def _token_budget(test: PlannedTest) -> float | None:
    budget = test.engine_options.get("max_num_batched_tokens")
    return None if budget is None else float(budget)


COORDINATES: Mapping[str, Coordinate] = MappingProxyType(
    {
        "shared": Coordinate(
            Bilingual(
                "prompt tokens that requests have in common, of all", "各请求共有的提示 token 占全部提示 token 的比例"
            ),
            "%",
            _of_workload(lambda spec: 100 * spec.shared_fraction * spec.prefix_fraction),
        ),
        "input_length": Coordinate(
            Bilingual("prompt length", "提示长度"), "tokens", _of_workload(lambda spec: spec.input_tokens.high)
        ),
        "load": Coordinate(
            Bilingual("arrival rate, of the rate served all at once", "到达率占全部同时提交时服务速率的比例"),
            "%",
            _of_workload(lambda spec: None if spec.load is None else 100 * spec.load),
            Bilingual("all at once", "全部同时提交"),
        ),
        "token_budget": Coordinate(Bilingual("token budget of a step", "每步 token 预算"), "tokens", _token_budget),
        "batch": Coordinate(
            Bilingual("requests in the batch", "批内请求数"),
            "requests",
            _of_workload(lambda spec: spec.num_requests),
            one="request",
        ),
    }
)
