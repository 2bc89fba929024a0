"""A run of the fake engine as a program of its own: `python fake_run.py FOLDER [--resume]`, to be killed by tests."""

import json
import sys
from pathlib import Path

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.engines.registry import load_adapter
from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.records import Environment, Hardware, ModelSpec, Software, Source
from touchstone.running import orchestrate
from touchstone.running.models import TINY_CONFIG, ChosenModel
from touchstone.running.planning import RunRequest, make_plan
from touchstone.workload import fixed

TEXT = Bilingual("text", "文字")


def environment(**hardware):
    fields = {
        "host_id": "0" * 12,
        "cpu_model": "a processor",
        "cpu_physical_cores": 2,
        "cpu_logical_cores": 2,
        "cpu_usable_cores": 2,
        "cgroup_cpu_cores": None,
        "cgroup_memory_bytes": None,
        "memory_bytes": 8 << 30,
        "gpus": (),
    }
    parts = {
        "hardware": Hardware(**(fields | hardware)),
        "software": Software(os="os", kernel="1", python="3", driver=None, cuda=None, packages={}),
        "source": Source(commit=None, dirty=None, diff_sha256=None, lock_sha256=None),
    }
    plain = {name: part.model_dump(mode="json") for name, part in parts.items()}
    return Environment(**parts, fingerprint=sha256_hex(canonical_json(plain)))


def experiment(plan_id, *, paired=False, repeat_last=False, **options):
    arms = (Arm("red", {"color": "red"}), Arm("blue", {"color": "blue"})) if paired else (Arm("default"),)
    return Experiment(
        plan_id=plan_id,
        title=TEXT,
        question=TEXT,
        method=TEXT,
        workload=dict.fromkeys(Profile, fixed(3, 8, 4)),
        measures=(Measure("total_time"),),
        arms=arms,
        design=Design.PAIRED_BLOCKS if paired else Design.REPEATED,
        engine_options={Profile.SMOKE: options, Profile.QUICK: options, Profile.PAPER: options},
        repeat_last=repeat_last,
    )


def make_run(directory, experiments, *, seed=0, profile=Profile.QUICK, only=None, canary_limit=None, **hardware):
    folder = directory / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    model = ChosenModel(ModelSpec(source="made on the spot", weights="synthetic", note=None), folder, None)
    ids = tuple(test.plan_id for test in experiments) if only is None else only
    request = RunRequest(profile=profile, engine="fake_engine", device="cpu", dtype="float32", seed=seed, only=ids)
    here = environment(**hardware)
    plan = make_plan(request, experiments, here, model, load_adapter("fake_engine").capabilities())
    plan = plan.model_copy(update={"canary_limit": canary_limit})  # None: loading torch takes longer than the test
    return orchestrate.Run(plan, here, model, directory, memory_tests=frozenset())


class Silent:
    def __init__(self):
        self.heard = []

    def begin(self, unit, attempt):
        self.heard.append((unit.unit_id, attempt))

    def end(self, unit, reason, seconds, *, final):
        self.heard.append((unit.unit_id, reason, seconds >= 0, final))


def main():
    run = make_run(Path(sys.argv[1]), [experiment("1.1", pace_s=0.4)])
    ledger = orchestrate.resume(run) if "--resume" in sys.argv else orchestrate.start(run)
    with ledger:
        orchestrate.execute(run, ledger, Silent())


if __name__ == "__main__":
    main()
