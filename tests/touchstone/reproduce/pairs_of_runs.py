"""Synthetic runs for the comparison: a few tests, speeds that can be scaled, and the claims about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import yaml

from tests.touchstone.factories import FakeRun, make_environment, make_trace, make_workload
from touchstone.experiment import load_experiments
from touchstone.reproduce.claims import CLAIMS_NAME, load_claims
from touchstone.reproduce.measured import load_measured
from touchstone.reproduce.reproduction import judge_claims

if TYPE_CHECKING:
    from pathlib import Path

    from touchstone.records import WorkloadSpec

EXPERIMENTS = {experiment.plan_id: experiment for experiment in load_experiments()}
SHARED = {"shared_fraction": 1.0, "prefix_fraction": 0.8}  # of 100 tokens 80, which are five whole blocks
OFFSETS = (-1.0, 0.6, -0.2, 0.9, -0.7, 0.4)


@dataclass
class Speeds:
    """How fast a synthetic run is. `scale` multiplies all times, `switch` those with the cache on.

    `unsteady` lets the effect of the switch scatter from process to process.
    """

    scale: float = 1.0
    spread: float = 0.004
    switch: float = 0.8
    unsteady: float = 0.0
    processes: int = 6
    hardware: dict[str, object] = field(default_factory=dict)
    outputs: int = 5
    answer: str = "answer"
    seed: int = 1
    workload: WorkloadSpec = field(default_factory=make_workload)
    cached: int = 80
    invalid: str | None = None
    placebo: float = 1.0


def write_run(path: Path, **changes) -> Path:
    """Write a run of two tests without a switch; no time in it is a round number."""
    return _write(path, Speeds(**changes), ("1.1", "1.2"))


def write_switched(path: Path, **changes) -> Path:
    """Write a run of the test 2.1, and of the instrument's own, without which a switch shows nothing."""
    return _write(path, Speeds(**changes), ("0.1", "2.1"))


def write_whole(path: Path, **changes) -> Path:
    """Write a run of all these tests."""
    return _write(path, Speeds(**changes), ("0.1", "1.1", "1.2", "2.1"))


def _write(path: Path, speeds: Speeds, tests: tuple[str, ...]) -> Path:
    run = FakeRun(path, environment=make_environment(**speeds.hardware), seed=speeds.seed)
    if "0.1" in tests:
        run.add_instrument(placebo=speeds.placebo)
    if "1.1" in tests:
        for unit in run.plan_test("1.1", processes=speeds.processes, workload=speeds.workload):
            run.attempt(unit, [_trace(speeds, unit.process)], invalid=speeds.invalid)
    if "1.2" in tests:
        for unit in run.plan_test("1.2", processes=speeds.processes):
            run.attempt(unit, [_trace(speeds, unit.process)])
    if "2.1" in tests:
        _record_switch(run, speeds)
    return run.write()


def _record_switch(run: FakeRun, speeds: Speeds) -> None:
    arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
    order = ("off", "on", "on", "off")
    workload = make_workload(**SHARED)
    for unit in run.plan_test("2.1", processes=speeds.processes, order=order, arms=arms, workload=workload):
        run.attempt(unit, [_trace(speeds, unit.process + index / 7, arm=arm) for index, arm in enumerate(order)])


def _trace(speeds: Speeds, process: float, *, arm: str = "off"):
    whole = int(process)
    noise = 1 + speeds.spread * (OFFSETS[whole % len(OFFSETS)] + (process - whole) / 10)
    switch = speeds.switch * (1 + speeds.unsteady * OFFSETS[whole % len(OFFSETS)])
    factor = speeds.scale * noise * (switch if arm == "on" else 1.0)
    cached = [0, speeds.cached] if arm == "on" else None
    return make_trace(
        outputs=speeds.outputs,
        prefill_ms=100.123457 * factor,
        decode_ms=10.234567 * factor,
        cached=cached,
        answer=speeds.answer,
    )


def claim(claim_class: str, test_id: str = "1.1", **fields: object) -> dict[str, object]:
    """One entry of `claims.yaml`; its id says what it is."""
    name = f"{test_id}-{claim_class.replace(' ', '-')}"
    return {
        "id": name,
        "class": claim_class,
        "test_id": test_id,
        "text": {"en": "A sentence.", "zh": "一句话。"},
    } | fields


def write_claims(folder: Path, *claims: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"claims": list(claims)}, allow_unicode=True)
    (folder / CLAIMS_NAME).write_text(text, encoding="utf-8")


def outcomes(paper: Path, here: Path, *claims: dict[str, object]):
    """Judge claims on two run folders; the verdicts by name."""
    write_claims(paper, *claims)
    return judge_claims(load_claims(paper / CLAIMS_NAME), load(paper), load(here))


@lru_cache(maxsize=1)  # the paper is read once for a row of tests
def _load_paper(folder: Path):
    return load_measured(folder, EXPERIMENTS, remedy="")


def load(folder: Path):
    """Read a run; the paper of a row of tests is kept."""
    shared = folder.parent.name.startswith("paper")
    return _load_paper(folder) if shared else load_measured(folder, EXPERIMENTS, remedy="")


def only(paper: Path, here: Path, one: dict[str, object]):
    """Judge one claim."""
    return outcomes(paper, here, one).outcomes[0]
