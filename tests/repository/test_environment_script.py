"""tools/environment.sh finds a fitting Python, says what is missing, and is content with what is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose installer only says that it ran."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "tools/environment.sh", tmp_path / "tools")
    (tmp_path / "tools/install.py").write_text("print('installer ran')\n")
    for name in ("dirname", "mkdir", "ln"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def put_python(checkout: Path, name: str, script: str) -> None:
    program = checkout / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def make_environment(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    shell = shutil.which("sh") or "/bin/sh"
    environment = {"PATH": str(checkout / "bin"), **variables}
    command = [shell, "tools/environment.sh"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_shim_without_an_interpreter_behind_it_is_passed_over(checkout: Path) -> None:
    put_python(checkout, "python3", "echo 'command not found' >&2; exit 127")
    venv = f'mkdir -p .venv/bin && ln -s "{sys.executable}" .venv/bin/python'  # the real one takes ten seconds
    put_python(checkout, "python3.11", f'case "$*" in "-m venv"*) {venv};; *) exec "{sys.executable}" "$@";; esac')
    made = make_environment(checkout)
    assert made.stdout.startswith("Making .venv with Python 3."), made.stderr
    assert made.stdout.endswith("installer ran\n")
    again = make_environment(checkout)
    assert again.stdout == "installer ran\n"


def test_old_python_is_refused_with_its_version_and_the_remedy(checkout: Path) -> None:
    put_python(checkout, "python3", "case $1 in --version) echo Python 3.9.2;; *) exit 1;; esac")
    refused = make_environment(checkout)
    assert refused.returncode == 1
    assert "Python 3.11 to 3.14 is needed; python3 says: Python 3.9.2" in refused.stderr
    assert "apt-get install python3.12 python3.12-venv" in refused.stderr


def test_machine_without_any_python_is_refused(checkout: Path) -> None:
    refused = make_environment(checkout)
    assert refused.returncode == 1
    assert "Python 3.11 to 3.14 is needed" in refused.stderr


def test_missing_venv_module_names_the_debian_package(checkout: Path) -> None:
    put_python(checkout, "python3", "case $2 in *ensurepip*) exit 1;; *print*) echo 3.12;; esac")
    refused = make_environment(checkout)
    assert refused.returncode == 1
    assert "python3 has no venv and ensurepip modules" in refused.stderr
    assert "apt-get install python3.12-venv" in refused.stderr


def test_named_python_is_the_only_one_tried(checkout: Path) -> None:
    put_python(checkout, "python3", f'exec "{sys.executable}" "$@"')
    refused = make_environment(checkout, PYTHON="python3.99")
    assert refused.returncode == 1
    assert "python3.99 says" in refused.stderr
