"""The tools tell bad input in a sentence, as the command line does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import paper, soak

TOOLS = Path(paper.__file__).parent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "nowhere"), "nowhere/ledger.jsonl does not exist; name a folder that `touchstone run` has written"),
        (
            ("--from", "nowhere", "--folder", "../x"),
            "--folder is ../x, which is not inside paper/; name a folder",
        ),
        (("--from", "nowhere", "--folder", "src"), "--folder is src, which is not inside paper/"),
    ],
)
def test_a_run_that_cannot_be_taken_over_is_told_with_status_2(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["paper.py", *arguments])
    assert paper.main() == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--minutes", "-1"), "-1 is no number of minutes above 0"),
        (("--minutes", "nan"), "nan is no number of minutes above 0"),
        (("--minutes", "1", "--device", "cuda:77"), "device 'cuda:77' is not there"),
        (("--minutes", "1", "--dtype", "int8"), "dtype is 'int8'; use one of float32"),
    ],
)
def test_a_soak_that_cannot_begin_is_told_with_status_2(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["install.py", "export_schemas.py"])
def test_a_tool_without_arguments_does_nothing_when_it_is_given_one(tool):
    for argument, status in (("--help", 0), ("--bogus", 2)):
        done = subprocess.run([sys.executable, TOOLS / tool, argument], capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert "usage: " in done.stdout + done.stderr
        assert "Installing" not in done.stdout
        assert "schema.json" not in done.stdout
