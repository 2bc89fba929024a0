"""The installer chooses the torch build that fits the driver, and stops where it cannot."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from tools import install

if TYPE_CHECKING:
    from pathlib import Path

OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (builder)  Tue Sep  2\n"
)
CLOSED_MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.04  Tue Feb 25 04:09:37 UTC 2025\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
BROKEN_SMI = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine without any GPU; the tests put one into it."""
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    return tmp_path


def load_driver(root: Path, banner: str, *, device: str = "nvidia0") -> None:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(banner)
    (root / "dev" / device).touch()


def plug_in(root: Path, vendor: str, kind: str) -> None:
    slot = root / "sys/bus/pci/devices/0000:01:00.0"
    slot.mkdir()
    (slot / "vendor").write_text(vendor + "\n")
    (slot / "class").write_text(kind + "\n")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program called nvidia-smi, and nothing else, on the PATH; it says what it is told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def says(text: str, status: int = 0) -> None:
        program = folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "{text}"\nexit {status}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return says


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (OPEN_MODULE, "580.159.03"),
        (CLOSED_MODULE, "570.124.04"),
        ("570.124.04\n570.124.04\n", "570.124.04"),
        ("535.86", "535.86"),
        ("", None),
        ("[N/A]", None),
    ],
)
def test_driver_version_is_read_from_what_the_driver_prints(text: str, version: str | None) -> None:
    assert install.driver_in(text) == version


@pytest.mark.parametrize(
    ("driver", "build"),
    [
        (None, "cpu"),
        ("525.60.13", "cu126"),
        ("570.124.04", "cu126"),
        ("579.99", "cu126"),
        ("580.00", "cu130"),
        ("580.159.03", "cu130"),
        ("610.10", "cu130"),
    ],
)
def test_newest_build_that_the_driver_runs_is_chosen(driver: str | None, build: str) -> None:
    assert install.choose_build(driver).name == build


@pytest.mark.parametrize("driver", ["470.256.02", "525.60.12"])
def test_driver_too_old_for_every_build_stops_with_version_need_and_remedy(driver: str) -> None:
    with pytest.raises(install.InstallError) as error:
        install.choose_build(driver)
    assert all(word in str(error.value) for word in (driver, "525.60.13", "580", "TOUCHSTONE_DEVICE=cpu"))


def test_machine_without_a_card_has_no_driver(root: Path, nvidia_smi) -> None:  # noqa: ARG001  the PATH is empty
    assert install.find_driver(root) is None


def test_loaded_driver_with_an_open_device_is_found(root: Path) -> None:
    load_driver(root, CLOSED_MODULE)
    assert install.find_driver(root) == "570.124.04"


def test_driver_of_the_host_without_a_device_here_does_not_count(root: Path, nvidia_smi) -> None:  # noqa: ARG001  the PATH is empty
    load_driver(root, CLOSED_MODULE, device="nvidiactl")
    assert install.find_driver(root) is None


def test_nvidia_smi_answers_where_the_kernel_shows_nothing(root: Path, nvidia_smi) -> None:
    nvidia_smi("580.159.03\n580.159.03")
    assert install.find_driver(root) == "580.159.03"


def test_nvidia_smi_without_devices_means_no_gpu(root: Path, nvidia_smi) -> None:
    nvidia_smi("No devices were found", 6)
    assert install.find_driver(root) is None


@pytest.mark.parametrize("said", [BROKEN_SMI, "Failed to initialize NVML: Driver/library version mismatch"])
def test_broken_driver_stops_and_quotes_what_nvidia_smi_said(root: Path, nvidia_smi, said: str) -> None:
    nvidia_smi(said, 9)
    with pytest.raises(install.InstallError, match=said.split(maxsplit=1)[0]) as error:
        install.find_driver(root)
    assert "remedy" in str(error.value)


def test_card_without_a_driver_stops_instead_of_falling_back_to_the_cpu(root: Path, nvidia_smi) -> None:  # noqa: ARG001  the PATH is empty
    plug_in(root, "0x10de", "0x030000")
    with pytest.raises(install.InstallError, match=r"0000:01:00\.0"):
        install.find_driver(root)


@pytest.mark.parametrize(("vendor", "kind"), [("0x10de", "0x040300"), ("0x8086", "0x030000")])
def test_sound_device_or_foreign_card_is_no_nvidia_gpu(root: Path, nvidia_smi, vendor: str, kind: str) -> None:  # noqa: ARG001  the PATH is empty
    plug_in(root, vendor, kind)
    assert install.find_driver(root) is None


@pytest.mark.parametrize(("version", "build"), [("2.13.0+cpu", "cpu"), ("2.13.0+cu126", "cu126"), ("2.13.0", "cu130")])
def test_build_in_place_is_read_from_its_local_version(
    monkeypatch: pytest.MonkeyPatch, version: str, build: str
) -> None:
    monkeypatch.setattr(install.importlib.metadata, "version", lambda _: version)
    assert install.installed_build() == build


class Machine:
    """Records the commands that the installer would run; `reachable` says whether uv finds the builds of torch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, there: str | None, reachable: bool) -> None:
        self.commands: list[str] = []
        monkeypatch.setattr(install, "installed_build", lambda: there)
        monkeypatch.setattr(install, "uv_reaches", lambda _: reachable)
        monkeypatch.setattr(install, "run", lambda command: self.commands.append(" ".join(command[2:])))


def test_uv_is_asked_for_the_chosen_build(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, there=None, reachable=True)
    install.install_torch(install.choose_build("570.124.04"))
    assert len(machine.commands) == 1
    assert machine.commands[0].startswith("uv pip install")
    assert "--torch-backend=cu126" in machine.commands[0]


def test_build_that_does_not_fit_is_taken_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, there="cpu", reachable=True)
    install.install_torch(install.choose_build("580.159.03"))
    assert machine.commands[0].startswith("pip uninstall")
    assert "--torch-backend=cu130" in machine.commands[1]


@pytest.mark.parametrize(("there", "driver"), [("cu126", "570.124.04"), ("cpu", None), ("cu130", None)])
def test_fitting_torch_stays(monkeypatch: pytest.MonkeyPatch, there: str, driver: str | None) -> None:
    machine = Machine(monkeypatch, there=there, reachable=True)
    install.install_torch(install.choose_build(driver))
    assert machine.commands == []


@pytest.mark.parametrize("driver", [None, "580.159.03"])
def test_pip_stands_in_where_its_own_build_will_do(monkeypatch: pytest.MonkeyPatch, driver: str | None) -> None:
    machine = Machine(monkeypatch, there=None, reachable=False)
    install.install_torch(install.choose_build(driver))
    assert len(machine.commands) == 1
    assert machine.commands[0].startswith("pip install")


def test_unreachable_build_stops_with_the_exact_command(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, there=None, reachable=False)
    with pytest.raises(install.InstallError, match=r"uv pip install .*--torch-backend=cu126 .*torch==2\.13\.0"):
        install.install_torch(install.choose_build("570.124.04"))
    assert machine.commands == []


def test_torch_that_cannot_use_the_gpu_stops_with_driver_and_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(install.InstallError) as error:
        install.check_gpu("570.124.04")
    said = str(error.value)
    assert "is_available() is False" in said
    assert "570.124.04" in said
    assert "CUDA_VISIBLE_DEVICES is ''" in said


@pytest.mark.parametrize(("lock", "cuda"), [("requirements/gpu.txt", True), ("requirements/dev.txt", False)])
def test_gpu_lock_is_for_cuda_machines_only(lock: str, cuda: bool) -> None:
    assert lock in install.locks_for(install.choose_build("580.159.03"))
    assert (lock not in install.locks_for(install.CPU_BUILD)) == cuda


def test_new_driver_or_lock_makes_the_environment_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = install.fingerprint("570.124.04", install.choose_build("570.124.04"))
    assert install.fingerprint("580.159.03", install.choose_build("580.159.03")) != known
    (tmp_path / "requirements").mkdir()
    for name in install.LOCKS:
        (tmp_path / "requirements" / name).write_text("new==1\n")
    (tmp_path / "pyproject.toml").write_text((install.ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(install, "ROOT", tmp_path)
    changed = install.fingerprint("570.124.04", install.choose_build("570.124.04"))
    assert {key for key in known if known[key] != changed[key]} == {"locks", "root"}


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.missing_for_triton({}) == "a C compiler"
    assert install.missing_for_triton({"CC": "/opt/cc"}) != "a C compiler"
