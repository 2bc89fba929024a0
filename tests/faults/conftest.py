"""What every fault test may use: the phased run, and the promise that nothing is left on the machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from touchstone.running.models import make_tiny_model

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    """No test of this folder may leave a process or a piece of shared memory."""
    before, processes = shared_memory(), children()
    yield
    assert children() - processes == set()
    deadline = time.monotonic() + 30  # other tests that run at the same time need theirs for a moment
    while left := shared_memory() - before:
        assert time.monotonic() < deadline, f"shared memory is left: {left}"
        time.sleep(0.1)


def children():
    return set(psutil.Process().children(recursive=True))


def shared_memory():
    return set(Path("/dev/shm").iterdir())  # noqa: S108  where the kernel keeps it


@pytest.fixture(autouse=True)
def _one_thread():
    """A tiny model's matrices are not worth dividing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny model that is whole."""
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size) mounts a file system of so many bytes; skipped where that is not allowed."""
    mounted = []

    def mount(size, option="rw"):
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{option}", "none", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def phased(monkeypatch):
    """The phased run, and its engine where workers can import it."""
    monkeypatch.syspath_prepend(str(HERE))
    import phased_run  # noqa: PLC0415  it lies beside this file, which the line above makes importable

    yield phased_run
    sys.modules.pop("phased_engine", None)


@pytest.fixture
def fault_at(monkeypatch, tmp_path):
    """fault_at(phase, fault) asks the first worker that reaches the phase for a fault; returns its marker file."""

    def ask(phase, fault):
        marker = tmp_path / "reached"
        for name, value in {"PHASE": phase, "FAULT": fault, "MARKER": str(marker)}.items():
            monkeypatch.setenv(name, value)
        return marker

    return ask
