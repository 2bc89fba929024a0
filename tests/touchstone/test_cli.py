import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from touchstone import cli, run_command
from touchstone.cli import main
from touchstone.environment import EnvironmentRefusedError
from touchstone.experiment import Profile
from touchstone.ledger import LEDGER_NAME, read_ledger
from touchstone.records import Attempt, Environment
from touchstone.workload import fixed

HERE = Path(__file__).parent


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in an empty folder, and return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for console in (cli._console, cli._errors):
        monkeypatch.setattr(console, "_width", 200)
    monkeypatch.syspath_prepend(str(HERE))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["touchstone", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


class TestHelp:
    def test_it_teaches_with_examples_and_exit_codes(self, command):
        status, text, _ = command("--help")
        assert status == 0
        for expected in (
            "touchstone run --only 1.1,2.1 --dry-run",
            "3 the machine is not fit",
            "list",
            "env",
            "report",
        ):
            assert expected in text

    def test_every_command_that_its_examples_name_exists(self, command):
        _, text, _ = command("--help")
        promised = set(re.findall(r"^ +touchstone (\w+)(?: {2,}| --)", text, re.MULTILINE))
        assert "verify" in promised
        assert promised <= {known.name or known.callback.__name__ for known in cli.app.registered_commands}

    def test_run_has_examples_of_its_own(self, command):
        status, text, _ = command("run", "--help")
        assert status == 0
        assert "touchstone run --resume" in text


def test_list_shows_every_test_in_both_languages(command):
    status, text, _ = command("list")
    assert status == 0
    for expected in ("1.1", "4.1", "Throughput", "吞吐量测试", "several GPUs"):
        assert expected in text


def test_env_prints_the_record(command):
    status, text, _ = command("env", "--json")
    assert status == 0
    assert Environment.model_validate_json(text).fingerprint
    assert "hardware.cpu_model" in command("env")[1]


def test_a_dry_run_shows_plan_order_and_time_and_writes_nothing(command, tmp_path):
    status, text, _ = command("run", "--profile", "smoke", "--device", "cpu", "--only", "1.1,4.1", "--dry-run")
    assert status == 0
    for expected in ("6 x 3", "order:", "1.1-p0", "estimated time", "left out of this run by --only"):
        assert expected in text
    assert list(tmp_path.iterdir()) == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run", "--only", "7.7", "--device", "cpu", "--dry-run"], "--only names 7.7; the tests are 0.1, 1.1"),
            (
                ["run", "--engine", "no_such_engine", "--device", "cpu", "--dry-run"],
                "engine 'no_such_engine' cannot be",
            ),
            (["run", "--engine", "json", "--device", "cpu", "--dry-run"], "offers no capabilities"),
            (["run", "--profile", "huge"], "huge"),
            (["run", "--seed", "-1", "--device", "cpu", "--dry-run"], "--seed is -1; use 0"),
            (["run", "--resume", "--device", "cpu", "--profile", "smoke"], "no run to resume"),
            (["report"], "holds no run; measure with `touchstone run` first"),
            (["report", "nowhere"], "nowhere does not exist; name a folder"),
            (["frobnicate"], "frobnicate"),
        ],
    )
    def test_it_is_a_sentence_with_the_value_and_status_2(self, command, arguments, message):
        status, _, errors = command(*arguments)
        assert status == 2
        assert message in errors
        assert "Traceback" not in errors

    def test_a_folder_that_is_no_model_is_named(self, command, tmp_path):
        status, _, errors = command("run", "--model", tmp_path, "--device", "cpu", "--dry-run")
        assert status == 2
        assert "holds no config.json" in errors


def test_a_gpu_that_is_not_there_is_an_environment_refusal(command, monkeypatch):
    here = run_command.capture()
    bare = here.model_copy(update={"hardware": here.hardware.model_copy(update={"gpus": ()})})
    monkeypatch.setattr(run_command, "capture", lambda **_: bare)
    status, _, errors = command("run", "--device", "cuda", "--dry-run")
    assert status == 3
    assert "no NVIDIA driver answers; use --device cpu" in errors


def test_the_gate_of_a_paper_run_lists_its_reasons_and_measures_nothing(command, monkeypatch, tmp_path):
    monkeypatch.setattr(run_command, "gate", lambda *_: ("the tree is dirty", "the machine is busy"))
    status, _, errors = command("run", "--profile", "paper", "--device", "cpu", "--only", "1.1", "--out", "paper")
    assert status == 3
    assert "the tree is dirty\n  - the machine is busy" in errors
    assert not (tmp_path / "paper" / LEDGER_NAME).exists()


def interrupted(*_args, **_options):
    raise KeyboardInterrupt


def test_an_interrupt_before_the_ledger_ends_with_130_and_does_not_speak_of_resuming(command, monkeypatch):
    monkeypatch.setattr(cli, "plan_run", interrupted)
    status, _, errors = command("run")
    assert status == 130
    assert "before anything was measured; give the same command again" in errors


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(command, monkeypatch, tmp_path):
    (tmp_path / LEDGER_NAME).touch()
    monkeypatch.setattr(cli, "plan_run", lambda *_args, **_options: SimpleNamespace(directory=tmp_path))
    monkeypatch.setattr(cli, "run_plan", interrupted)
    status, _, errors = command("run")
    assert status == 130
    assert "the same command with --resume goes on" in errors


def test_a_refusal_is_printed_as_it_is_even_with_brackets(command, monkeypatch):
    def refuse(*_args, **_options):
        raise EnvironmentRefusedError("value [red] is odd")

    monkeypatch.setattr(cli, "plan_run", refuse)
    assert "value [red] is odd" in command("run")[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One small run of nanoinfer by the command line, from the tiny model to the ledger."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ["run", "--profile", "quick", "--device", "cpu", "--only", "1.1", "--seed", "5"]
        patch.setattr(sys, "argv", ["touchstone", *arguments])
        experiments = tuple(small(test) for test in cli.load_experiments())
        patch.setattr(cli, "load_experiments", lambda: experiments)
        patch.setattr(run_command, "load_experiments", lambda: experiments)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder / "results" / "quick"


def small(experiment):
    return replace(experiment, workload=dict.fromkeys(Profile, fixed(4, 16, 4)))


class TestARunOfTheRealEngine:
    def test_every_process_is_valid_and_says_what_ran(self, measured):
        attempts = [entry.body for entry in read_ledger(measured / LEDGER_NAME) if isinstance(entry.body, Attempt)]
        assert [attempt.reason for attempt in attempts] == [None] * 3
        settings = attempts[0].engine.settings
        assert settings["torch_threads"] == 1
        assert settings["device"] == "cpu"
        assert attempts[0].engine.model["num_layers"] == 2
        assert str(measured) not in (measured / LEDGER_NAME).read_text()

    def test_its_numbers_can_be_had_as_json_and_csv(self, measured, command):
        status, text, _ = command("report", measured, "--format", "json")
        assert status == 0
        rows = json.loads(text)
        throughput = [row for row in rows if row["metric"] == "e2e_throughput"]
        assert len(throughput) == 1
        assert throughput[0]["num_processes"] == 3
        assert throughput[0]["indicative"] is True
        status, _, _ = command("report", measured, "--format", "csv", "--out", "table.csv")
        assert status == 0
        assert len(list(csv.DictReader(io.StringIO(Path("table.csv").read_text())))) == len(rows)

    def test_running_again_without_resume_keeps_the_finished_run_under_another_name(self, measured):
        options = run_command.RunOptions(profile=Profile.QUICK, only=("1.1",), seed=5)
        kept = measured.with_name("quick.1")
        run_command._make_room(measured, options)
        assert (kept / LEDGER_NAME).exists()
        assert list(measured.iterdir()) == []
        measured.rmdir()
        kept.rename(measured)

    def test_a_named_folder_with_a_run_is_never_touched(self, measured, command):
        status, _, errors = command("run", "--profile", "quick", "--device", "cpu", "--only", "1.1", "--out", measured)
        assert status == 2
        assert "holds a run already; go on with it by --resume" in errors
