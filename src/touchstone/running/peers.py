"""Tests whose arms are engines: which of them this run can compare, and with which options each one runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from touchstone.experiment import Arm, Bilingual

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.engines.base import Capabilities
    from touchstone.experiment import Experiment
    from touchstone.records import Scalar

NUM_COMPARED = 2


def with_engines(experiment: Experiment, engines: Sequence[str]) -> Experiment:
    """Make the engines of the run the arms, in the order in which they were asked for; the first is the baseline.

    An engine that no arm is declared for gets one without options of its own.
    """
    if not experiment.compares_engines:
        return experiment
    declared = {arm.engine: arm for arm in experiment.arms}
    asked = (declared.get(engine) or Arm(_arm_name(engine), engine=engine) for engine in engines)
    return replace(experiment, arms=tuple(asked))


def why_no_peer(arm: Arm, experiment: Experiment, engines: Mapping[str, Capabilities], device: str) -> Bilingual | None:
    """Say why an engine is not compared, None when it is: left out here, or in need of a GPU."""
    name = arm.engine or ""
    return experiment.without.get(name) or why_no_device(engines[name], device)


def why_no_device(capabilities: Capabilities, device: str) -> Bilingual | None:
    """Say why an engine does not run on a device; None when it does."""
    if capabilities.needs_gpu and not device.startswith("cuda"):
        return Bilingual("this engine needs an NVIDIA GPU", "该引擎需要 NVIDIA GPU")
    return None


def why_too_few(num_present: int) -> Bilingual | None:
    """Say why nothing is compared; None with two engines or more."""
    if num_present >= NUM_COMPARED:
        return None
    return Bilingual(
        "one engine alone has no peer; name several, as in `--engine nanoinfer --engine vllm`",
        "只有一个引擎，无从比较；请指定多个引擎，例如 `--engine nanoinfer --engine vllm`",
    )


def options_of(
    arm: Arm, capabilities: Capabilities, shared: Mapping[str, Scalar], asked: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Complete an engine's options: those that all share, as far as it has them, its own, and the user's for it.

    An engine that has an option in one position only is compared in that one; its settings say so.
    """
    free = capabilities.options - capabilities.fixed.keys()
    taken = {name: value for name, value in shared.items() if name in free}
    return taken | dict(arm.options) | dict(asked)


def _arm_name(engine: str) -> str:
    """Name an adapter of the user's own by the end of its import path."""
    return engine.rpartition(".")[2]
