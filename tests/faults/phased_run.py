"""A run of the phased engine, also as a program of its own: `python phased_run.py FOLDER [--resume]`."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from tests.touchstone.fake_run import Silent, environment, experiment
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.registry import load_adapter
from touchstone.experiment import Measure, Profile
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.records import Attempt, ModelSpec, RunEvent, RunPlan
from touchstone.running import orchestrate
from touchstone.running.models import TINY_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.verify import custody

HERE = Path(__file__).parent
EXPERIMENTS = {"2.1": replace(experiment("2.1", paired=True), measures=(Measure("total_time", key=True),))}


def make_run(directory, *, processes=1, cpu_model="a processor", **changes):
    """Plan a few processes of two arms, without a canary: loading torch takes longer than the test."""
    folder = directory / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(canonical_json(TINY_CONFIG))
    model = ChosenModel(ModelSpec(source="made on the spot", weights="synthetic", note=None), folder, None)
    request = RunRequest(Profile.QUICK, engine="phased_engine", device="cpu", dtype="float32", seed=0, only=("2.1",))
    here = environment(cpu_model=cpu_model)
    made = make_plan(request, list(EXPERIMENTS.values()), here, model, load_adapter("phased_engine").capabilities())
    content = made.model_dump(mode="json", exclude={"plan_sha256"}) | {"canary_limit": None} | changes
    content["units"] = content["units"][:processes]
    plan = RunPlan.model_validate(content | {"plan_sha256": sha256_hex(canonical_json(content))})
    return orchestrate.Run(plan, here, model, directory, memory_tests=frozenset())


def measure(run, *, resume=False):
    """Measure what is left of the plan."""
    with orchestrate.resume(run) if resume else orchestrate.start(run) as ledger:
        orchestrate.execute(run, ledger, Silent())


def begin(directory, *arguments):
    """Start this file as a program."""
    command = [sys.executable, str(HERE / "phased_run.py"), str(directory), *arguments]
    wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def attempts(directory):
    return [entry.body for entry in read_ledger(directory / LEDGER_NAME) if isinstance(entry.body, Attempt)]


def events(directory):
    return [entry.body.event for entry in read_ledger(directory / LEDGER_NAME) if isinstance(entry.body, RunEvent)]


def custody_faults(directory):
    """Ask the independent checks of `touchstone verify` about the ledger and its traces."""
    evidence = custody.Evidence(directory)
    return [
        str(fault)
        for check in (
            custody.read_chain,
            custody.check_schemas,
            custody.check_plan,
            custody.check_environment,
            custody.check_attempts,
            custody.read_traces,
        )
        for fault in check(evidence)
    ]


def report(directory):
    """Write results and report into the run's folder; what the lints say of a report of one test is left out."""
    from touchstone.verify import again  # noqa: PLC0415  the figures' library is slow to load; most tests need it not

    again.make(directory, directory, EXPERIMENTS)


def checks(directory):
    """Return the checks that the results of the run carry."""
    from touchstone.analysis.results import results_of  # noqa: PLC0415  likewise
    from touchstone.analysis.runs import read_runs  # noqa: PLC0415  likewise

    return [check for result in results_of(read_runs(directory), EXPERIMENTS) for check in result.checks]


def faults(directory):
    """Ask `touchstone verify` about a run with its report; making it once more is left out."""
    from touchstone.verify.verification import verify_run  # noqa: PLC0415  likewise

    outcomes = verify_run(directory, EXPERIMENTS, remake=False)
    assert all(outcome.examined for outcome in outcomes)
    return [str(fault) for outcome in outcomes for fault in outcome.faults]


def gone(pids, within_s=20):
    """Wait until none of the processes runs; a zombie that nobody has reaped yet does not run."""
    deadline = time.monotonic() + within_s
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} one still runs"
        time.sleep(0.02)
    return True


def wait_for(path, within_s=60):
    """Wait until a file is there and return what stands in it."""
    deadline = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def names_in(directory):
    """Name what lies in a run's folder, one level deep."""
    return {path.name for path in directory.iterdir()}


if __name__ == "__main__":
    measure(make_run(Path(sys.argv[1])), resume="--resume" in sys.argv)
