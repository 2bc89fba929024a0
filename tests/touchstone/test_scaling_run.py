"""Scaling from plan to report on a machine whose GPUs are made up, in fresh processes: a fake engine, and nanoinfer."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.registry import load_adapter
from touchstone.experiment import Arm, Bilingual, Experiment, Law, Measure, Profile, Scaling, Series, load_experiments
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.records import Attempt, Gpu, ModelSpec
from touchstone.running import orchestrate
from touchstone.running.models import ChosenModel, make_tiny_model
from touchstone.running.planning import RunRequest, make_plan
from touchstone.verify import again
from touchstone.verify.verification import verify_run
from touchstone.workload import fixed

HERE = Path(__file__).parent
TEXT = Bilingual("text", "文字")


@pytest.fixture(autouse=True)
def _helpers_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def fake():
    import fake_run  # noqa: PLC0415  it lies beside this file, which the fixture above makes importable

    return fake_run


def gpus(count):
    return tuple(
        Gpu(index=index, name="Made-up GPU", memory_bytes=80 << 30, compute_capability=None, power_limit_w=None)
        for index in range(count)
    )


def experiment(plan_id, arms, scaling=None):
    return Experiment(
        plan_id=plan_id,
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload=dict.fromkeys(Profile, fixed(4, 8, 4)),
        measures=(Measure("e2e_throughput", key=True),),
        arms=arms,
        scaling=scaling,
        profile_devices=True,
    )


def hashed(plan):
    fields = plan.model_dump(mode="json", exclude={"plan_sha256"})
    return plan.model_copy(update={"plan_sha256": sha256_hex(canonical_json(fields))})


def series(law, *names):
    return Scaling(law, (Series("wide", Bilingual("wide", "宽"), names, "one"),))


def test_made_up_gpus_give_speedups_and_missing_ones_their_reason(fake, tmp_path):
    """The fake engine's pace stands for a speed; weak scaling asks it for more requests."""
    weak = dict.fromkeys(Profile, 4)
    experiments = [
        experiment("3.1", (Arm("one", {"pace_s": 0.09}),)),
        experiment(
            "3.3",
            (
                Arm("wide 2", {"pace_s": 0.1}, num_gpus=2, requests_per_gpu=weak),
                Arm("wide 4", {"pace_s": 0.1}, num_gpus=4, requests_per_gpu=weak),
            ),
            series(Law.WEAK, "wide 2", "wide 4"),
        ),
    ]
    run = fake.make_run(tmp_path / "run", experiments, gpus=gpus(2))
    with orchestrate.start(run) as ledger:
        orchestrate.execute(run, ledger, fake.Silent())
    by_id = {each.plan_id: each for each in experiments}
    results = {result.test_id: result for result in results_of(read_runs(run.directory), by_id)}
    one, two, four = results["3.3"].scaling[0].points
    scores = {item.arm: item.values for result in results.values() for item in result.statistics}
    logs = {arm: sum(map(math.log, values)) / len(values) for arm, values in scores.items()}
    assert two.speedup == pytest.approx(math.exp(logs["wide 2"] - logs["one"]))
    assert (one.num_requests, two.num_requests, four.num_requests) == (4, 8, 16)
    assert four.reason == "4 GPUs are needed, this machine has 2"
    assert "scaling_same_work" in {check.id for check in results["3.3"].checks if check.passed}
    attempts = [entry.body for entry in read_ledger(run.directory / LEDGER_NAME) if isinstance(entry.body, Attempt)]
    assert {attempt.device_work for attempt in attempts} == {None}, "this engine has no profiler"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nanoinfer_over_gloo_goes_from_plan_to_a_verified_report(tmp_path):
    """The plan's own strong scaling, on as many processes as there would be GPUs, with the plan's own bench files."""
    make_tiny_model(tmp_path / "model")
    model = ChosenModel(ModelSpec(source="made on the spot", weights="loaded", note=None), tmp_path / "model", None)
    sys.path.insert(0, str(HERE))
    from fake_run import Silent, environment  # noqa: PLC0415  it lies beside this file

    here = environment(gpus=gpus(2))
    small = dict.fromkeys(Profile, fixed(8, 16, 8))
    experiments = {each.plan_id: each for each in load_experiments()}
    one, strong = (replace(experiments[name], workload=small, requires=frozenset()) for name in ("3.1", "3.2"))
    experiments |= {"3.1": replace(one, arms=one.arms[:1]), "3.2": strong}
    request = RunRequest(Profile.QUICK, "nanoinfer", "cpu", "float32", 0, ("3.1", "3.2"))
    plan = make_plan(request, tuple(experiments.values()), here, model, load_adapter("nanoinfer").capabilities())
    plan = hashed(plan.model_copy(update={"canary_limit": None}))  # a neighbour of the tests must not end this one
    run = orchestrate.Run(plan, here, model, tmp_path / "run", memory_tests=frozenset({"3.1", "3.2"}))
    run.directory.mkdir()
    with orchestrate.start(run) as ledger:
        orchestrate.execute(run, ledger, Silent())
        assert orchestrate.failed_units(plan, ledger) == ()
    assert again.make(run.directory, run.directory, experiments) == ()
    faults = [
        str(fault) for outcome in verify_run(run.directory, experiments, remake=False) for fault in outcome.faults
    ]
    assert faults == []
    told = json.loads((run.directory / "results" / "3.2_strong_scaling.json").read_text(encoding="utf-8"))
    for row in told["scaling"]:
        one, two, *absent = row["points"]
        assert one["test_id"] == "3.1"
        assert two["num_gpus"] == 2
        assert two["throughput"] > 0
        assert [point["reason"] for point in absent] == [
            f"{count} GPUs are needed, this machine has 2" for count in (4, 8)
        ]
    passed = {check["id"] for check in told["checks"] if check["passed"]}
    assert {"scaling_same_work", "scaling_same_kv_pool", "scaling_devices_as_planned"} <= passed
