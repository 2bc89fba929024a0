"""Whether two runs did the same work; numbers of different work are not compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from touchstone.reproduce.claims import CODE_TEST, ClaimClass
from touchstone.reproduce.machines import Difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from touchstone.records import Scalar
    from touchstone.reproduce.measured import MeasuredRun

# Options that the planner sizes by the machine: they bound the work, they do not define it.
SIZED_BY_MACHINE = "kv_cache_bytes"
# What the engine says of its model beside the architecture: it follows from the precision and the layout.
NOT_ARCHITECTURE = frozenset({"dtype", "weights_bytes"})


def work_differences(
    claim_class: ClaimClass, test_id: str, paper: MeasuredRun, reviewer: MeasuredRun, *, same_hardware: bool
) -> tuple[Difference, ...]:
    """List what was done differently, as far as a claim of this class depends on it; empty for the same work.

    Every number needs the same requests, model, engine and options. All but a ratio on other hardware also need the
    same precision and cache size, which follow the hardware; a count or a token also needs the same seed. An identity
    holds for any work, and so does an order.
    """
    if claim_class in {ClaimClass.IDENTITY, ClaimClass.SHAPE}:
        return ()
    if test_id == CODE_TEST:
        trees = [{"tree_sha256": run.results[test_id].parameters.get("tree_sha256")} for run in (paper, reviewer)]
        return _different(*trees)
    settings = claim_class is not ClaimClass.RATIO or same_hardware
    seed = claim_class in {ClaimClass.EXACT, ClaimClass.TOKEN_HASH}
    one, other = (dict(_work(run, test_id, settings=settings, seed=seed)) for run in (paper, reviewer))
    return (*_different(one, other), *model_differences(test_id, paper, reviewer))


def model_differences(test_id: str, first: MeasuredRun, second: MeasuredRun) -> tuple[Difference, ...]:
    """List where the models differ, by what the engines say of them; by their names where an engine says nothing."""
    one, other = (_model(run, test_id) for run in (first, second))
    shared = one.keys() & other.keys()
    told: list[dict[str, Scalar]] = [{f"model.{name}": side[name] for name in shared} for side in (one, other)]
    for facts, run in zip(told, (first, second), strict=True):
        facts["model.weights"] = run.plan.model.weights
        if not shared:
            facts["model.source"] = run.plan.model.source
    return _different(*told)


def _different(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[Difference, ...]:
    names = sorted(one.keys() | other.keys())
    return tuple(Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name))


def _work(run: MeasuredRun, test_id: str, *, settings: bool, seed: bool) -> Iterator[tuple[str, object]]:
    test = run.test(test_id)
    if test is None:
        return
    workload: dict[str, Any] = {} if test.planned.workload is None else test.planned.workload.model_dump(mode="json")
    yield from ((f"workload.{name}", value) for name, value in workload.items())
    yield from (
        (f"arm.{arm.name}", dict(arm.options) | {"extra_output": arm.extra_output}) for arm in test.planned.arms
    )
    yield "engine", test.planned.engine or run.plan.engine
    options = run.plan.engine_options | test.planned.engine_options
    yield from ((f"option.{name}", value) for name, value in options.items() if settings or name != SIZED_BY_MACHINE)
    if settings:
        yield "dtype", run.plan.dtype
    if seed:
        yield "seed", run.plan.seed


def _model(run: MeasuredRun, test_id: str) -> Mapping[str, Scalar]:
    test = run.test(test_id)
    facts = next((one.facts.engine for one in test.runs if one.facts.engine is not None), None) if test else None
    return {} if facts is None else {key: value for key, value in facts.model.items() if key not in NOT_ARCHITECTURE}
