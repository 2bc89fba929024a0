"""Every exception of the project is told on the command line in a sentence, with a status that is not zero."""

import ast
import errno
import sys
from importlib import import_module
from pathlib import Path

import pytest

from touchstone import cli, cli_errors
from touchstone.cli import main
from touchstone.cli_errors import BAD_INPUT, FAILED, REFUSED, USER_ERRORS
from touchstone.environment import EnvironmentRefusedError

SOURCE = Path(__file__).resolve().parents[2]


def classes_of(path):
    """Names of the classes in a file that inherit, directly, from an exception."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            if any(base.endswith(("Error", "Exception", "Exit", "Interrupt")) for base in bases):
                yield node.name


def exceptions():
    for package, root in (("nanoinfer", SOURCE / "src"), ("touchstone", SOURCE / "src"), ("quality", SOURCE)):
        for path in sorted((root / package).rglob("*.py")):
            for name in classes_of(path):
                yield ".".join(path.relative_to(root).with_suffix("").parts), name


EXCEPTIONS = sorted(exceptions())


@pytest.fixture
def told(monkeypatch, capsys):
    """Let a command fail with an error, and return (status, what was told)."""
    monkeypatch.setattr(cli._errors, "_width", 200)

    def fail_with(error):
        def fail():
            raise error

        monkeypatch.setattr(cli, "load_experiments", fail)
        monkeypatch.setattr(sys, "argv", ["touchstone", "list"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return fail_with


def test_the_walk_finds_the_exceptions_of_all_three_packages():
    names = {name for _, name in EXCEPTIONS}
    assert {"ConfigError", "InvariantError", "MeasureError", "StatisticsError", "WorkloadError", "InputError"} <= names
    assert {error.__name__ for error in USER_ERRORS} <= names
    assert len(EXCEPTIONS) > 30


@pytest.mark.parametrize(("module", "name"), EXCEPTIONS)
def test_each_exception_is_told_in_one_line_without_a_traceback(told, module, name):
    exception = getattr(import_module(module), name)
    assert issubclass(exception, Exception)
    message = "the value [7] is wrong; use 8"
    is_of_a_file = issubclass(exception, OSError) and not issubclass(exception, ConnectionError)
    error = exception(errno.ENOSPC, message, "a file") if is_of_a_file else exception(message)
    status, text = told(error)
    assert status in {FAILED, BAD_INPUT, REFUSED}
    assert message in text
    assert "Traceback" not in text
    assert text.startswith("touchstone: ")
    assert text.count("\n") == 1


def test_what_a_user_can_put_right_is_told_as_it_is(told):
    for kind in USER_ERRORS:
        assert told(kind("do that")) == (BAD_INPUT, "touchstone: do that\n")
    assert told(EnvironmentRefusedError("busy")) == (REFUSED, "touchstone: busy\n")


def test_a_fault_of_our_own_names_its_place_and_asks_for_a_report(told):
    unknown = import_module("touchstone.reporting.numbers").UnknownMetricError("metric 'x' is in no dictionary")
    status, text = told(unknown)
    assert status == FAILED
    assert "metric 'x' is in no dictionary; UnknownMetricError at " in text
    assert "test_cli_errors.py, line " in text
    assert "please report it" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "/root/x: Permission denied; see to",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the place that the output goes to: No space",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(told, error, words):
    status, text = told(error)
    assert status == FAILED
    assert words in text
    assert "--resume" in text


@pytest.mark.parametrize("error", [TypeError("a bug"), OSError("nobody knows"), ConnectionRefusedError(111, "refused")])
def test_what_nobody_foresaw_keeps_its_traceback(error):
    assert cli_errors.tell(error) is None
