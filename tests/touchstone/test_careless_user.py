"""Commands as a careless user gives them: one sentence with value and remedy, the right status, nothing half made."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.touchstone.reproduce.pairs_of_runs import write_run
from touchstone import cli, run_command
from touchstone.analysis.statistics import StatisticsError
from touchstone.cli import main

ONE = ("--profile", "smoke", "--device", "cpu", "--only", "1.1")


@pytest.fixture(scope="module")
def environment():
    """This machine, looked at once."""
    return run_command.capture()


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, environment):
    """Run the command line in this process, in an empty folder, and return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "capture", lambda **_: environment)
    for console in (cli._console, cli._errors):
        monkeypatch.setattr(console, "_width", 200)

    def call(*arguments, traceback=False):
        monkeypatch.setattr(sys, "argv", ["touchstone", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert ("Traceback" in captured.err) == traceback
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A small run that was measured and not reported."""
    return write_run(tmp_path_factory.mktemp("sample") / "run", processes=1)


@pytest.fixture
def places():
    """What may lie where a folder of a run is asked for; made in the current folder."""

    def make():
        Path("a file").write_text("hello", encoding="utf-8")
        Path("page.html").write_text("<html></html>", encoding="utf-8")
        Path("empty").mkdir()
        Path("empty ledger").mkdir()
        Path("empty ledger/ledger.jsonl").touch()
        Path("folder ledger/ledger.jsonl").mkdir(parents=True)
        Path("noise").mkdir()
        Path("noise/ledger.jsonl").write_bytes(b"\x93\xff\n" * 9)
        Path("circle").symlink_to("circle")

    return make


NO_RUNS = {
    "nowhere": "nowhere does not exist; name a folder that `touchstone run` has written",
    "a file": "a file is a file; name a folder",
    "page.html": "page.html is a file; name a folder",
    "empty": "empty holds no ledger.jsonl; name a folder",
    "folder ledger": "folder ledger holds no ledger.jsonl; name a folder",
    "circle": "circle does not exist; name a folder",
    "试 é [red]": "试 é [red] does not exist; name a folder",
    "empty ledger": "holds no",
    "noise": "noise/ledger.jsonl, line 1: ",
}


class TestAFolderThatIsNoRun:
    @pytest.mark.parametrize(("place", "words"), NO_RUNS.items())
    @pytest.mark.parametrize(("arguments", "status"), [(("report",), 2), (("compare", "."), 3)])
    def test_it_is_named_with_the_remedy(self, command, places, sample, arguments, status, place, words):
        places()
        arguments = [sample if argument == "." else argument for argument in arguments]
        ended, out, errors = command(*arguments, place)
        assert (ended, out) == (status, "")
        assert words in errors
        assert errors.count("\n") == 1

    @pytest.mark.parametrize("place", sorted(set(NO_RUNS) - {"noise", "empty ledger"}))
    def test_it_is_not_verified_either(self, command, places, place):
        places()
        ended, _, errors = command("verify", place)
        assert ended == 2
        assert NO_RUNS[place] in errors

    def test_a_ledger_of_noise_fails_the_verification(self, command, places):
        places()
        Path("noise/results").mkdir()
        ended, out, _ = command("verify", "noise")
        assert ended == 1
        assert "line 1: no JSON object" in out

    def test_a_file_of_a_run_leads_to_its_run(self, command, sample):
        for command_name, status in (("report", 2), ("verify", 2)):
            ended, _, errors = command(command_name, sample / "ledger.jsonl")
            assert ended == status
            assert (
                f"ledger.jsonl is a file; name a folder that `touchstone run` has written (there is {sample})" in errors
            )

    def test_the_folder_above_leads_to_the_runs_in_it(self, command, sample):
        assert f"(there is {sample})" in command("report", sample.parent)[2]

    def test_a_misspelt_run_leads_to_the_one_in_results(self, command, sample, tmp_path):
        shutil.copytree(sample, tmp_path / "results" / "smoke")
        assert "(there is results/smoke)" in command("report", "results/smok")[2]


class TestAnOutputThatCannotBe:
    @pytest.mark.parametrize(
        ("place", "status", "words"),
        [
            ("a file", 2, "a file is no folder; choose another place by --out"),
            (
                "a file/below",
                1,
                "a file/below: Not a directory; a file lies where a folder is needed: name another place",
            ),
            ("circle", 2, "circle is in a circle of links"),
            ("empty ledger", 2, "holds a run already; go on with it by --resume"),
            ("x" * 300, 1, "File name too long; give a shorter name"),
        ],
    )
    def test_a_run_is_refused_and_touches_nothing(self, command, places, tmp_path, place, status, words):
        places()
        before = sorted(tmp_path.rglob("*"))
        ended, out, errors = command("run", *ONE, "--out", place)
        assert (ended, out) == (status, "")
        assert words in errors
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("place", "status", "words"),
        [
            ("a file/table.json", 1, "a file: File exists; something else lies there: name another place"),
            ("empty", 2, "--out is empty, which is no file; name a file, or leave --out away"),
        ],
    )
    def test_a_table_is_refused(self, command, places, sample, place, status, words):
        places()
        ended, out, errors = command("report", sample, "--format", "json", "--out", place)
        assert (ended, out) == (status, "")
        assert words in errors
        assert not list(Path("empty").iterdir())

    def test_a_device_is_never_replaced_by_a_table(self, command, sample):
        ended, _, errors = command("report", sample, "--format", "csv", "--out", "/dev/null")
        assert ended == 2
        assert "--out is /dev/null, which is no file" in errors
        assert Path("/dev/null").is_char_device()

    def test_a_report_into_a_file_is_refused(self, command, places, sample):
        places()
        ended, _, errors = command("report", sample, "--out", "a file")
        assert ended == 1
        assert "a file lies where a folder is needed: name another place" in errors
        assert Path("a file").read_text(encoding="utf-8") == "hello"


class TestARunThatCannotBegin:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--only", "1.11"), "--only names 1.11; the tests are 0.1, 1.1, "),
            (("--only", "2.1@hit-5"), "did you mean 2.1@hit-75 or 2.1@hit-50"),
            (("--engine", "nanoinfr"), "did you mean nanoinfer?"),
            (("--option", "block_sze=4"), "engine nanoinfer has no option block_sze; it has "),
            (("--option", "block_sze=4"), "did you mean block_size?"),
            (("--option", "block_size=3"), "--option for nanoinfer: block_size is 3; use a power of two"),
            (("--option", "prefix_cache=no"), "--option for nanoinfer: prefix_cache is 'no'; use True or False"),
            (("--option", "max_num_seqs=null"), "max_num_seqs is None; use an integer"),
            (("--option", "vllm.block_size=16"), "--option is 'vllm.block_size=16'"),
            (("--option", "max_num_seqs=3", "--option", "max_num_seqs=4"), "nanoinfer.max_num_seqs twice, as 3 and 4"),
            (("--engine", "openai-server"), "url is None; say where the server listens"),
            (("--engine", "openai-server", "--option", "url=host:1"), "url is 'host:1'; say where the server listens"),
            (("--engine", "transformers", "--option", "max_num_seqs=0"), "max_num_seqs is 0; use an integer of at"),
            (("--engine", "transformers", "--option", "static_cache=maybe"), "static_cache is 'maybe'; use true or"),
            (("--seed", "-3"), "--seed is -3; use 0"),
            (("--only", "3.1"), "nothing can be measured here: 3.1: "),
            (("--model", "empty"), "empty holds no config.json; give the folder of a model"),
            (("--model", "./emtpy"), "model './emtpy' is no folder here, nor OWNER/NAME of a hub model"),
            (("--model", "./emtpy"), "did you mean empty?"),
            (("--model", "/empty/config.json"), "model '/empty/config.json' is no folder here"),
            (("--model", __file__), "is a file; give the folder that it lies in, or a hub id"),
            (("--resume",), "no run to resume: leave --resume away"),
        ],
    )
    def test_it_is_refused_before_anything_is_written(self, command, tmp_path, arguments, words):
        Path("empty").mkdir()
        only = () if "--only" in arguments else ("--only", "1.1")
        ended, out, errors = command("run", "--profile", "smoke", "--device", "cpu", *only, *arguments)
        assert (ended, out) == (2, "")
        assert words in errors
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]

    def test_a_finished_run_is_not_moved_away_for_a_command_that_is_wrong(self, command, sample, tmp_path):
        shutil.copytree(sample, tmp_path / "results" / "smoke")
        assert command("run", *ONE, "--option", "block_size=3")[0] == 2
        assert [path.name for path in (tmp_path / "results").iterdir()] == ["smoke"]


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (("list",), "touchstone.cli.load_experiments"),
        (("env",), "touchstone.environment.capture"),
        (("run", *ONE), "touchstone.cli.plan_run"),
        (("run", *ONE, "--dry-run"), "touchstone.cli.plan_run"),
        (("report", "run"), "touchstone.cli.report_paths"),
        (("report", "run", "--format", "json"), "touchstone.cli.table_of"),
        (("verify", "run"), "touchstone.verify.verification.verify_run"),
        (("reproduce", "run"), "touchstone.reproduce.command.reproduce_run"),
        (("compare", "run", "run"), "touchstone.reproduce.command.compare_run_folders"),
    ],
)
def test_ctrl_c_ends_each_command_with_status_130(command, monkeypatch, tmp_path, arguments, work):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, interrupt)
    assert command(*arguments)[0] == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (("reproduce", "run"), "touchstone.reproduce.command.reproduce_run"),
        (("compare", "run", "run"), "touchstone.reproduce.command.compare_run_folders"),
    ],
)
@pytest.mark.parametrize(
    "error", [StatisticsError("too few values"), PermissionError(13, "no right", "run"), TypeError("a bug")]
)
def test_no_error_of_a_comparison_looks_like_its_verdict(command, monkeypatch, arguments, work, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(work, fail)
    status, _, errors = command(*arguments, traceback=isinstance(error, TypeError))
    assert status == 3
    assert str(error.args[-1]) in errors


@pytest.mark.parametrize("name", ["run [1]", "run [bold]x[/bold] 测 é"])
def test_paths_with_blanks_brackets_and_characters_of_any_language_are_used_and_printed_as_they_are(
    command, sample, tmp_path, name
):
    folder = shutil.copytree(sample, tmp_path / name)
    status, out, _ = command("report", folder, "--format", "csv", "--out", folder / "table.csv")
    assert status == 0
    assert out == f"{folder / 'table.csv'}\n"
    assert (folder / "table.csv").is_file()
    shown = command("compare", folder, sample)
    assert "Traceback" not in shown[2]
