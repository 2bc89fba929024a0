"""What holds for all tests of the instrument, and the sample run with its reports, which many of them read."""

import fcntl
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from tests.touchstone.compiled_templates import CompilingOnce
from tests.touchstone.report_sample import write_sample_run
from touchstone.experiment import load_experiments
from touchstone.reporting import markdown
from touchstone.verify import again


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """No test here cuts the power: a run is written to be read at once (tests/faults keep the disk as it is)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _templates_compiled_once():
    """A template that is filled again and again is compiled for the first time only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown, "Environment", CompilingOnce)
        yield


@pytest.fixture(scope="session")
def published(request, tmp_path_factory, _no_waiting_for_the_disk, _templates_compiled_once):
    """The sample run with results, reports and figures, and what the lints found; made once for all processes.

    Who changes a file of it takes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if hasattr(request.config, "workerinput") else base) / "published"
    home.mkdir(exist_ok=True)
    folder, found = home / "run", home / "faults.json"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            shutil.rmtree(folder, ignore_errors=True)
            faults = again.make(folder, folder, write_sample_run(folder))
            found.write_text(json.dumps(faults), encoding="utf-8")
    experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    return SimpleNamespace(folder=folder, experiments=experiments, faults=tuple(json.loads(found.read_text())))
