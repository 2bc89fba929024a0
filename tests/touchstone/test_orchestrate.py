import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from weakref import WeakSet

import psutil
import pytest

from touchstone.engines.base import Capabilities, EngineError
from touchstone.experiment import Axis, Measure, Point, Profile, points_of
from touchstone.ledger import LEDGER_NAME, LedgerError, read_ledger
from touchstone.records import ArmSpec, Attempt, DeviceWork, EntryKind, RunEvent
from touchstone.running import orchestrate, worker
from touchstone.running.orchestrate import (
    INTERRUPTED,
    KILLED,
    ResumeError,
    execute,
    failed_units,
    is_finished,
    resume,
    start,
)
from touchstone.running.worker import WorkerRequest, WorkerRequests, timed_seed
from touchstone.trace import load_trace
from touchstone.workload import fixed

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _helpers_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def fake():
    import fake_run  # noqa: PLC0415  it lies beside this file, which the fixture above makes importable

    return fake_run


def attempts(directory):
    return [entry.body for entry in read_ledger(directory / LEDGER_NAME) if isinstance(entry.body, Attempt)]


def events(directory):
    return [entry.body.event for entry in read_ledger(directory / LEDGER_NAME) if isinstance(entry.body, RunEvent)]


def first_unit(run):
    return replace(run, plan=run.plan.model_copy(update={"units": run.plan.units[:1]}))


def measure(fake, directory, *experiments, choose=lambda run: run):
    run, progress = choose(fake.make_run(directory, list(experiments))), fake.Silent()
    with start(run) as ledger:
        execute(run, ledger, progress)
        failed = failed_units(run.plan, ledger)
    return run, failed, progress


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of a repeated and a paired test, which several tests look at."""
    sys.path.insert(0, str(HERE))
    try:
        import fake_run  # noqa: PLC0415  as above

        directory = tmp_path_factory.mktemp("run")
        tests = (fake_run.experiment("1.1"), fake_run.experiment("2.1", paired=True))
        yield measure(fake_run, directory, *tests), directory
    finally:
        sys.path.remove(str(HERE))


class TestAWholeRun:
    def test_the_ledger_tells_environment_plan_start_every_attempt_and_end(self, done):
        (run, failed, _), directory = done
        kinds = [entry.kind for entry in read_ledger(directory / LEDGER_NAME)]
        units = len(run.plan.units)
        assert kinds == [
            EntryKind.ENVIRONMENT,
            EntryKind.PLAN,
            EntryKind.EVENT,
            *[EntryKind.ATTEMPT] * units,
            EntryKind.EVENT,
        ]
        assert units == 6
        assert failed == ()
        assert events(directory) == ["started", "finished"]
        assert is_finished(directory)

    def test_units_run_in_the_planned_order_each_valid_at_once(self, done):
        (run, _, progress), directory = done
        told = attempts(directory)
        assert [attempt.unit_id for attempt in told] == [unit.unit_id for unit in run.plan.units]
        assert all(attempt.valid and attempt.attempt == 1 and attempt.reason is None for attempt in told)
        assert {attempt.environment_fingerprint for attempt in told} == {run.environment.fingerprint}
        assert {attempt.plan_sha256 for attempt in told} == {run.plan.plan_sha256}
        assert len(progress.heard) == 2 * len(told)

    def test_runs_of_a_block_follow_its_coin_and_pairs_share_their_prompts(self, done):
        (run, _, _), directory = done
        units = {unit.unit_id: unit for unit in run.plan.units}
        for attempt in attempts(directory):
            if attempt.test_id == "2.1":
                rows = attempt.measurements
                assert tuple(row.arm for row in rows) == units[attempt.unit_id].arm_order
                assert [row.repetition for row in rows] == [0, 0, 1, 1]
                assert rows[0].seed == rows[1].seed != rows[2].seed == rows[3].seed
                hashes = [load_trace(directory, row.trace_sha256).output_sha256 for row in rows]
                assert hashes[0] == hashes[1] != hashes[2] == hashes[3]

    def test_every_process_has_prompts_of_its_own(self, done):
        _, directory = done
        rows = [row for attempt in attempts(directory) for row in attempt.measurements if row.test_id == "1.1"]
        assert len({row.seed for row in rows}) == len(rows) == 3

    def test_settings_in_which_the_arms_differ_carry_the_arms_names(self, done):
        _, directory = done
        paired = next(attempt for attempt in attempts(directory) if attempt.test_id == "2.1")
        assert paired.engine.settings == {"red.color": "red", "blue.color": "blue"}

    def test_nothing_but_the_record_is_left(self, done):
        _, directory = done
        names = {path.name for path in directory.iterdir()}
        assert names == {"ledger.jsonl", "logs", "model", "traces"}

    def test_a_finished_run_has_nothing_to_resume_and_gains_no_line(self, done, fake):
        (run, _, _), directory = done
        before = (directory / LEDGER_NAME).read_bytes()
        with resume(run) as ledger:
            execute(run, ledger, fake.Silent())
        assert (directory / LEDGER_NAME).read_bytes() == before

    def test_another_plan_is_refused_and_the_difference_named(self, done, fake):
        _, directory = done
        other = fake.make_run(directory, [fake.experiment("1.1"), fake.experiment("2.1", paired=True)], seed=1)
        with pytest.raises(ResumeError, match=r"seed: 0 -> 1"):
            resume(other)

    def test_another_environment_is_refused_and_the_difference_named(self, done, fake):
        _, directory = done
        tests = [fake.experiment("1.1"), fake.experiment("2.1", paired=True)]
        with pytest.raises(ResumeError, match=r"hardware\.cpu_model: 'a processor' -> 'another'"):
            resume(fake.make_run(directory, tests, cpu_model="another"))

    def test_another_host_of_the_same_kind_is_refused_so_that_no_ledger_mixes_hosts(self, done, fake):
        _, directory = done
        tests = [fake.experiment("1.1"), fake.experiment("2.1", paired=True)]
        before = (directory / LEDGER_NAME).read_bytes()
        with pytest.raises(ResumeError, match=r"hardware\.host_id: '0{12}' -> '1{12}'\); start anew"):
            resume(fake.make_run(directory, tests, host_id="1" * 12))
        assert (directory / LEDGER_NAME).read_bytes() == before

    def test_a_second_run_cannot_take_the_folder(self, done):
        (run, _, _), _ = done
        with pytest.raises(LedgerError, match="exists already"):
            start(run)


class TestFaults:
    def test_too_few_tokens_are_invalid_and_repeated_only_once(self, fake, tmp_path):
        run, failed, _ = measure(fake, tmp_path, fake.experiment("1.1", fault="short"), choose=first_unit)
        told = attempts(tmp_path)
        assert [(attempt.unit_id, attempt.attempt, attempt.valid) for attempt in told] == [
            (unit.unit_id, number, False) for unit in run.plan.units for number in (1, 2)
        ]
        assert "request 0 returned 3 tokens instead of 4" in told[0].reason
        assert failed == tuple(unit.unit_id for unit in run.plan.units)
        assert len(told[0].measurements) == 1

    def test_a_fault_that_comes_once_costs_one_attempt(self, fake, tmp_path):
        once = fake.experiment("1.1", fault="once", marker=str(tmp_path / "marker"))
        _, failed, _ = measure(fake, tmp_path, once, choose=first_unit)
        assert [attempt.valid for attempt in attempts(tmp_path)] == [False, True]
        assert attempts(tmp_path)[0].reason == "RuntimeError: a fault that comes once"
        assert failed == ()

    def test_a_refusal_of_the_engine_is_the_reason_word_for_word(self, fake, tmp_path):
        measure(fake, tmp_path, fake.experiment("1.1", fault="refuse"), choose=first_unit)
        assert attempts(tmp_path)[0].reason == "the fake engine refuses option fault=refuse; leave it away"

    def test_a_crash_is_told_with_its_status_and_the_log_is_kept(self, fake, tmp_path):
        measure(fake, tmp_path, fake.experiment("1.1", fault="crash"), choose=first_unit)
        first = attempts(tmp_path)[0]
        assert first.reason == f"the process ended with status 7 and no result; see logs/{first.unit_id}-1.log"
        assert (tmp_path / "logs" / f"{first.unit_id}-1.log").exists()

    def test_a_hanging_process_is_killed_with_its_children(self, fake, tmp_path, monkeypatch):
        monkeypatch.setattr(orchestrate, "MAX_ATTEMPTS", 1)
        monkeypatch.setattr(orchestrate, "unit_timeout_s", lambda _: 3.0)
        marker = tmp_path / "marker"
        run = first_unit(fake.make_run(tmp_path, [fake.experiment("1.1", fault="hang", marker=str(marker))]))
        with start(run) as ledger:
            execute(run, ledger, fake.Silent())
        assert "did not end within 3 s and was killed" in attempts(tmp_path)[0].reason
        assert gone(marker.read_text().split())


def gone(pids, within_s=10):
    """Wait until none of the processes runs; a zombie that nobody has reaped yet does not run."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def wait_for(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


class TestInterruption:
    """The orchestrator as a program, stopped while its second process is under way."""

    def begin(self, directory, *arguments):
        paths = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        command = [sys.executable, str(HERE / "fake_run.py"), str(directory), *arguments]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)

    def stop_in_the_middle(self, directory, number):
        process = self.begin(directory)
        ledger = directory / LEDGER_NAME
        wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b'"kind":"attempt"') >= 1)
        wait_for(lambda: (directory / "pending.json").exists() and psutil.Process(process.pid).children())
        workers = [child.pid for child in psutil.Process(process.pid).children()]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        return workers, errors

    def resume(self, directory):
        process = self.begin(directory, "--resume")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def test_after_a_kill_no_worker_goes_on_and_resume_finishes_the_same_plan(self, tmp_path):
        workers, _ = self.stop_in_the_middle(tmp_path, signal.SIGKILL)
        assert gone(workers)
        assert events(tmp_path) == ["started"]
        self.resume(tmp_path)
        assert events(tmp_path) == ["started", "resumed", "finished"]
        told = attempts(tmp_path)
        assert [attempt.reason for attempt in told if not attempt.valid] == [KILLED]
        assert len({attempt.unit_id for attempt in told if attempt.valid}) == 3
        assert len(told) == 4

    def test_sigterm_is_written_down_like_ctrl_c(self, tmp_path):
        workers, _ = self.stop_in_the_middle(tmp_path, signal.SIGTERM)
        assert gone(workers)
        assert events(tmp_path) == ["started", "interrupted"]

    def test_ctrl_c_is_written_down_and_resume_finishes_the_same_plan(self, tmp_path):
        workers, errors = self.stop_in_the_middle(tmp_path, signal.SIGINT)
        assert "KeyboardInterrupt" in errors
        assert gone(workers)
        assert events(tmp_path) == ["started", "interrupted"]
        assert not is_finished(tmp_path)
        self.resume(tmp_path)
        assert events(tmp_path) == ["started", "interrupted", "resumed", "finished"]
        assert [attempt.reason for attempt in attempts(tmp_path) if not attempt.valid] == [INTERRUPTED]
        assert len({attempt.unit_id for attempt in attempts(tmp_path) if attempt.valid}) == 3


def test_a_worker_without_its_orchestrator_ends_at_once(fake, tmp_path):
    run = fake.make_run(tmp_path, [fake.experiment("1.1")])
    request = WorkerRequest(
        unit=run.plan.units[0],
        engine="fake_engine",
        model_folder="nowhere",
        synthetic_seed=None,
        device="cpu",
        dtype="float32",
        options={},
        arms=run.plan.tests[0].arms,
        workload=run.plan.tests[0].workload,
        measure_memory=False,
        run_dir=str(tmp_path),
        result_file=str(tmp_path / "result.json"),
        parent_pid=1,
    )
    command = [sys.executable, "-m", "touchstone.running.worker"]
    requests = WorkerRequests(requests=(request,))
    ended = subprocess.run(command, input=requests.model_dump_json(), text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert not (tmp_path / "result.json").exists()


class EngineThatRefersToItself:
    capabilities = Capabilities(
        frozenset(), reports_steps=False, reports_cached_tokens=False, reports_memory_parts=False, forgets_prompts=True
    )

    def __init__(self, living):
        self.itself, self.closed = self, False
        living.add(self)

    def forget_prompts(self):
        return True

    def close(self):
        self.closed = True


def test_engines_are_gone_before_the_next_ones_are_built_and_kept_for_a_unit_that_wants_the_same(
    fake, tmp_path, monkeypatch
):
    """A KV pool is sized by the memory that is free when its engine is built."""
    living, alive_when_built, closed = WeakSet(), [], []

    def build(_spec):
        alive_when_built.append(len(living))
        closed.extend(engine.closed for engine in living)
        return EngineThatRefersToItself(living)

    monkeypatch.setattr(worker, "build_engine", build)
    request = worker_request(fake, tmp_path, "one", "two")
    with worker.Engines() as engines:
        first, seconds = engines.of(request)
        gc.freeze()  # as the worker does before it times
        second, none = engines.of(worker_request(fake, tmp_path, "red", "blue"))
        assert list(first.values()) == list(second.values())
        assert seconds is not None
        assert none is None
        del first, second
        engines.of(request.model_copy(update={"options": {"size": 2}}))
        assert alive_when_built == [0, 1, 0, 1]
    gc.collect()
    assert len(living) == 0
    assert closed == [False, False]


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("forgets", "agrees", "same_prompts", "num_built"),
    [
        pytest.param(True, True, True, 1, id="forgets them"),
        pytest.param(True, False, True, 2, id="refuses to forget them"),
        pytest.param(False, False, True, 2, id="cannot forget them"),
        pytest.param(False, False, False, 1, id="never saw them"),
    ],
)
def test_a_unit_never_finds_its_prompts_in_the_cache_of_an_engine_that_answered_them_for_another(
    fake, tmp_path, monkeypatch, forgets, agrees, same_prompts, num_built
):
    from fake_engine import FakeEngine  # noqa: PLC0415  as above

    built, forgotten = [], []

    class Remembering(FakeEngine):
        def __init__(self, spec):
            super().__init__(spec)
            self.capabilities = replace(self.capabilities, forgets_prompts=forgets)
            built.append(self)

        def forget_prompts(self):
            forgotten.append(self)
            return agrees

    monkeypatch.setattr(worker, "build_engine", Remembering)
    request = worker_request(fake, tmp_path, "one")
    other = request.unit.model_copy(update={"seed": request.unit.seed + (not same_prompts)})
    with worker.Engines() as engines:
        engines.of(request)
        assert list(engines.that_measured(request).values()) == built  # to be profiled, which needs no forgetting
        assert forgotten == []
        engines.of(request.model_copy(update={"unit": other}))
        assert len(built) == num_built
        assert len(forgotten) == (1 if forgets else 0)


def test_an_engine_that_refuses_to_start_is_asked_once_for_all_units_of_a_process(fake, tmp_path, monkeypatch):
    asked = []

    def build(spec):
        asked.append(spec.options)
        raise EngineError("a library is missing")

    monkeypatch.setattr(worker, "build_engine", build)
    request = worker_request(fake, tmp_path, "one")
    with worker.Engines() as engines:
        for _ in range(2):
            with pytest.raises(EngineError, match="a library is missing"):
                engines.of(request)
        assert len(asked) == 1
        with pytest.raises(EngineError):
            engines.of(request.model_copy(update={"options": {"size": 2}}))
        assert len(asked) == 2


@pytest.mark.no_cover
def test_units_are_profiled_once_nothing_more_is_timed_on_their_engines(fake, tmp_path, monkeypatch):
    """A profiler leaves memory and hooks behind, which would be measured with the next unit."""
    from fake_engine import ProfilingFake  # noqa: PLC0415  as above

    told = []

    class Profiling(ProfilingFake):
        def generate(self, requests, *, concurrency=None):
            told.append(("timed", self.options.get("size")))
            return super().generate(requests, concurrency=concurrency)

        def profile(self, requests, *, concurrency=None):
            told.append(("profiled", self.options.get("size")))
            return (DeviceWork(device="d", span_ns=len(requests), busy_ns=1, communication_ns=concurrency or 0),)

    monkeypatch.setattr(worker, "build_engine", Profiling)
    one, two, other = (
        worker_request(fake, tmp_path, name).model_copy(
            update={"profile_devices": True, "read_canary": False, "options": {"size": size}}
            | {"result_file": str(tmp_path / f"{name}.json")}
        )
        for name, size in (("one", 1), ("two", 1), ("other", 2))
    )
    worker._work_off([one, two, other])
    assert list(dict.fromkeys(told)) == [("timed", 1), ("profiled", 1), ("timed", 2), ("profiled", 2)]
    assert told.count(("profiled", 1)) == 2
    first_profile = told.index(("profiled", 1))
    assert ("timed", 1) not in told[first_profile:]
    for request in (one, two, other):
        result = worker.WorkerResult.model_validate_json(Path(request.result_file).read_bytes())
        assert result.reason is None
        assert [work.arm for work in result.device_work or ()] == [request.arms[0].name]
        assert result.measurements


def test_each_arm_of_a_process_is_profiled_on_its_own_engine_with_the_same_prompts(fake, tmp_path, monkeypatch):
    from fake_engine import FakeEngine  # noqa: PLC0415  as above

    profiled = []

    class Profiling(FakeEngine):
        def __init__(self, spec):
            super().__init__(spec)
            self.capabilities = replace(self.capabilities, profiles_devices=self.options["color"] != "green")

        def profile(self, requests, *, concurrency=None):
            assert concurrency is None
            color = self.options["color"]
            profiled.append((color, [request.prompt_token_ids for request in requests]))
            return (DeviceWork(device=f"of {color}", span_ns=2, busy_ns=1, communication_ns=0),)

    monkeypatch.setattr(worker, "build_engine", Profiling)
    arms = tuple(
        ArmSpec(name=name, options={"color": color})
        for name, color in (("off", "red"), ("on", "blue"), ("other", "green"))
    )
    request = worker_request(fake, tmp_path, "off", "on", "other").model_copy(
        update={"arms": arms, "profile_devices": True, "read_canary": False}
    )
    worker._work_off([request])
    result = worker.WorkerResult.model_validate_json(Path(request.result_file).read_bytes())
    assert result.reason is None
    assert [(work.arm, work.device) for work in result.device_work or ()] == [("off", "of red"), ("on", "of blue")]
    assert [color for color, _ in profiled] == ["red", "blue"]
    assert profiled[0][1] == profiled[1][1], "the same work in every arm"


def test_units_of_one_seed_are_profiled_on_prompts_of_their_own(fake, tmp_path, monkeypatch):
    """An engine that serves both would find the first one's prompts in its prefix cache."""
    from fake_engine import ProfilingFake  # noqa: PLC0415  as above

    prompts = []

    class Profiling(ProfilingFake):
        def profile(self, requests, *, concurrency=None):
            assert concurrency is None
            prompts.extend(request.prompt_token_ids for request in requests)

    monkeypatch.setattr(worker, "build_engine", Profiling)
    one = worker_request(fake, tmp_path, "one").model_copy(update={"profile_devices": True, "read_canary": False})
    other = one.unit.model_copy(update={"unit_id": "other", "seed": one.unit.seed})
    worker._work_off([one, one.model_copy(update={"unit": other})])
    assert len(prompts) == 2
    assert prompts[0] != prompts[1]
    result = worker.WorkerResult.model_validate_json(Path(one.result_file).read_bytes())
    assert (result.reason, result.device_work) == (None, None), "a processor has no kernels to tell of"


def worker_request(fake, directory, *arms):
    """Ask for engines by these names, of a colour each; one alone for a unit that compares nothing."""
    unit = fake.make_run(directory / arms[0], [fake.experiment("2.1", paired=True)]).plan.units[0]
    unit = unit.model_copy(update={"arm_order": arms})
    colours = zip(arms, ("red", "blue"), strict=False)
    return WorkerRequest(
        unit=unit,
        engine="fake_engine",
        model_folder="nowhere",
        synthetic_seed=None,
        device="cpu",
        dtype="float32",
        options={},
        arms=tuple(ArmSpec(name=name, options={"color": colour}) for name, colour in colours),
        workload=fixed(1, 4, 2),
        measure_memory=False,
        run_dir=str(directory),
        result_file=str(directory / "result.json"),
        parent_pid=os.getpid(),
    )


def test_timed_seeds_differ_between_pairs(fake, tmp_path):
    unit = fake.make_run(tmp_path, [fake.experiment("1.1")]).plan.units[0]
    assert len({timed_seed(unit, pair) for pair in range(10)}) == 10


class TestSharedProcesses:
    """A paired test and the points of its sweep: one process a round, an attempt of its own for each unit."""

    @staticmethod
    def family(fake, *points, **options):
        axis = Axis("batch", (Measure("total_time"),), points)
        test = replace(fake.experiment("2.1", paired=True, **options), sweep=(axis,))
        return (test, *points_of(test))

    @staticmethod
    def point(name, requests, load=None, **options):
        workload = fixed(requests, 8, 4).model_copy(update={"load": load})
        return Point(name, {Profile.QUICK: workload}, {Profile.QUICK: options})

    def test_every_unit_of_a_round_is_valid_in_one_process_that_builds_its_engines_once(self, fake, tmp_path):
        tests = self.family(fake, self.point("few", 2), self.point("many", 5))
        run, failed, progress = measure(fake, tmp_path, *tests)
        told = attempts(tmp_path)
        assert failed == ()
        assert [attempt.unit_id for attempt in told] == [unit.unit_id for unit in run.plan.units]
        assert len(list((tmp_path / "logs").iterdir())) == 3
        assert sum(attempt.startup_s is not None for attempt in told) == 3
        sizes = {
            attempt.test_id: len(load_trace(tmp_path, attempt.measurements[0].trace_sha256).requests)
            for attempt in told
        }
        assert sizes == {"2.1": 3, "2.1@few": 2, "2.1@many": 5}
        assert len(progress.heard) == 2 * 9

    def test_other_options_get_other_engines_in_the_same_process(self, fake, tmp_path):
        measure(fake, tmp_path, *self.family(fake, self.point("large", 3, size=7)))
        told = attempts(tmp_path)
        assert all(attempt.startup_s is not None for attempt in told)
        assert {attempt.engine.settings.get("size") for attempt in told if attempt.test_id == "2.1@large"} == {7}
        assert len(list((tmp_path / "logs").iterdir())) == 3

    def test_a_fault_in_one_unit_leaves_the_others_of_its_process_valid(self, fake, tmp_path):
        _, failed, _ = measure(fake, tmp_path, *self.family(fake, self.point("bad", 3, fault="refuse")))
        told = attempts(tmp_path)
        assert set(failed) == {f"2.1@bad-b{number}" for number in range(3)}
        assert all(attempt.valid == (attempt.test_id == "2.1") for attempt in told)
        bad = [attempt for attempt in told if attempt.test_id == "2.1@bad"]
        assert [attempt.attempt for attempt in bad].count(2) == 3
        assert "refuses option fault" in bad[0].reason
        assert len([attempt for attempt in told if attempt.valid]) == 3, "what was valid is not measured again"

    def test_a_crash_takes_every_unit_of_the_process_with_it_and_each_is_tried_once_more(self, fake, tmp_path):
        _, failed, _ = measure(fake, tmp_path, *self.family(fake, self.point("bad", 3, fault="crash")))
        reasons = [attempt.reason for attempt in attempts(tmp_path) if not attempt.valid]
        assert all("status 7" in reason for reason in reasons)
        assert {unit for unit in failed if "@bad" in unit} == {f"2.1@bad-b{number}" for number in range(3)}

    def test_a_load_becomes_a_rate_that_every_run_of_the_process_shares(self, fake, tmp_path):
        measure(fake, tmp_path, *self.family(fake, self.point("load-50", 4, load=0.5)))
        for attempt in attempts(tmp_path):
            rates = {row.request_rate_per_s for row in attempt.measurements}
            assert len(rates) == 1
            assert (rates != {None}) == (attempt.test_id == "2.1@load-50")
            assert all(rate is None or rate > 0 for rate in rates)

    def test_what_was_measured_before_an_interrupt_is_kept_and_resume_measures_the_rest(self, fake, tmp_path):
        run = fake.make_run(tmp_path, list(self.family(fake, self.point("few", 2), pace_s=0.1)))
        run = replace(run, plan=run.plan.model_copy(update={"units": run.plan.units[:2]}))
        pressed = Thread(target=self.press_ctrl_c_after_a_result, args=(tmp_path,))
        with start(run) as ledger:
            pressed.start()
            with pytest.raises(KeyboardInterrupt):
                execute(run, ledger, fake.Silent())
        pressed.join()
        first, second = run.plan.units
        assert [(one.unit_id, one.reason) for one in attempts(tmp_path)] == [
            (first.unit_id, None),
            (second.unit_id, INTERRUPTED),
        ]
        with resume(run) as ledger:
            execute(run, ledger, fake.Silent())
            assert failed_units(run.plan, ledger) == ()
        assert [one.unit_id for one in attempts(tmp_path)] == [first.unit_id, second.unit_id, second.unit_id]
        assert list(tmp_path.glob(".result-*")) == []

    @staticmethod
    def press_ctrl_c_after_a_result(directory):
        wait_for(lambda: any(directory.glob(".result-*")))
        os.kill(os.getpid(), signal.SIGINT)

    def test_every_unit_under_way_is_remembered_when_the_run_is_killed(self, fake, tmp_path):
        run = fake.make_run(tmp_path, list(self.family(fake, self.point("few", 2))))
        with start(run):
            pass
        under_way = [
            orchestrate.Pending(
                unit_id=unit.unit_id, test_id=unit.test_id, attempt=1, started_at="2026-01-01T00:00:00Z"
            )
            for unit in run.plan.units[:2]
        ]
        (tmp_path / "pending.json").write_text(orchestrate.UnderWay(units=tuple(under_way)).model_dump_json())
        with resume(run):
            pass
        told = attempts(tmp_path)
        assert [(attempt.unit_id, attempt.reason) for attempt in told] == [(one.unit_id, KILLED) for one in under_way]
