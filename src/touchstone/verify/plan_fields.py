"""Names of the plan's fields that a scaling test fills."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from touchstone.experiment import Experiment


def field_names(experiment: Experiment | None) -> frozenset[str]:
    """Name the plan's fields that the scaling part fills; none for other tests."""
    if experiment is None or experiment.scaling is None:
        return frozenset()
    gpus = {arm.name: arm.num_gpus for arm in experiment.arms}
    endings = ["", *(f"_{series.id}" for series in experiment.scaling.series[1:])]
    names = {f"1gpu_throughput{ending}" for ending in endings}
    for series, ending in zip(experiment.scaling.series, endings, strict=True):
        for arm in series.arms:
            names |= {f"{gpus[arm]}gpu_throughput{ending}", f"{gpus[arm]}gpu_efficiency{ending}"}
    return frozenset(names)
