"""Bring the running environment in line with the locks, with the torch build that this machine's driver can run.

Runs before anything is installed, so it needs the standard library alone. Does nothing, quickly, when the locks, the
driver and the interpreter are those of the last time.

One version of torch is locked, in several builds: one without CUDA, and one for each CUDA version. The build that pip
finds by itself wants a driver of CUDA 13. uv knows where the others are, so no index address is written here. Without
an NVIDIA GPU the build without CUDA is preferred, because it is twenty times smaller.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("runtime.txt", "dev.txt", "gpu.txt")
STAMP = "touchstone-environment.json"
CPU_BY_CHOICE = "or set TOUCHSTONE_DEVICE=cpu to do without the GPU on purpose"


class InstallError(RuntimeError):
    """The environment cannot be made; the message says what is missing and the remedy."""


@dataclass(frozen=True, slots=True)
class Build:
    """A build of torch: the name that uv gives it, and the oldest driver that runs it (None: it needs none)."""

    name: str
    oldest_driver: tuple[int, ...] | None


# The CUDA builds of the locked torch, newest first, with the oldest Linux driver of each CUDA generation: table
# "CUDA Toolkit and Minimum Required Driver Version" of NVIDIA's CUDA release notes. A test ties them to the lock.
TORCH_OF_BUILDS = "2.13.0"
CPU_BUILD = Build("cpu", None)
CUDA_BUILDS = (Build("cu130", (580,)), Build("cu126", (525, 60, 13)))
DEFAULT_BUILD = CUDA_BUILDS[0]  # what pip finds by itself


# --- which GPU driver is there ----------------------------------------------------------------------------------------


def as_numbers(version: str) -> tuple[int, ...]:
    """`570.124.04` -> (570, 124, 4)."""
    return tuple(int(part) for part in version.split("."))


def driver_in(text: str) -> str | None:
    """Return the driver version in the kernel module's banner or in the answer to nvidia-smi's query."""
    match = re.search(r"(?<![\d.])\d{3,}\.\d+(?:\.\d+)?(?![\d.])", text)
    return match.group() if match else None


def driver_of_kernel_module(root: Path) -> str | None:
    """Version of the loaded driver; None unless a device is open to this process too (a container may lack it)."""
    banner = root / "proc/driver/nvidia/version"
    if not banner.is_file() or not any(root.glob("dev/nvidia[0-9]*")):
        return None
    return driver_in(banner.read_text(encoding="utf-8", errors="replace"))


def driver_of_nvidia_smi() -> str | None:
    """Version that nvidia-smi reports; None where there is no such program or no device for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603  found on the PATH, fixed arguments
    said = (answer.stdout + answer.stderr).strip()
    if answer.returncode == 0:
        return driver_in(said)
    if "no devices were found" in said.lower():
        return None
    raise InstallError(
        f"nvidia-smi fails: {said or f'exit status {answer.returncode}'}\n"
        f"remedy: repair or reload the NVIDIA driver (a restart helps after an update), {CPU_BY_CHOICE}"
    )


def nvidia_cards(root: Path) -> list[str]:
    """PCI addresses of NVIDIA display and compute controllers (class 0x03....), driver or not."""
    return sorted(
        device.name
        for device in root.glob("sys/bus/pci/devices/*")
        if _line(device / "vendor") == "0x10de" and _line(device / "class").startswith("0x03")
    )


def find_driver(root: Path = Path("/")) -> str | None:
    """Return the driver version of the machine's NVIDIA GPUs, None without a GPU; a card without driver is an error."""
    driver = driver_of_kernel_module(root) or driver_of_nvidia_smi()
    if driver is None and (cards := nvidia_cards(root)):
        raise InstallError(
            f"this machine has an NVIDIA card ({', '.join(cards)}) but this process reaches no driver for it\n"
            f"remedy: load the driver, open the devices to the container (docker run --gpus all), {CPU_BY_CHOICE}"
        )
    return driver


def _line(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


# --- which build of torch ---------------------------------------------------------------------------------------------


def choose_build(driver: str | None) -> Build:
    """Return the newest build that the driver runs; the build without CUDA where there is no driver."""
    if driver is None:
        return CPU_BUILD
    for build in CUDA_BUILDS:
        if build.oldest_driver is not None and as_numbers(driver) >= build.oldest_driver:
            return build
    raise InstallError(f"driver {driver} is too old for torch {TORCH_OF_BUILDS}\n{remedy(driver)}")


def remedy(driver: str) -> str:
    """Say which driver each build needs, and what to do."""
    needs = "; ".join(f"{build.name} needs {'.'.join(map(str, build.oldest_driver or ()))}" for build in CUDA_BUILDS)
    return (
        f"driver found: {driver}; oldest driver of each build of torch {TORCH_OF_BUILDS}: {needs}\n"
        f"remedy: install a newer NVIDIA driver, {CPU_BY_CHOICE}"
    )


def installed_build() -> str | None:
    """Name of the torch build in this environment; None without torch."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    return version.partition("+")[2] or DEFAULT_BUILD.name


def pinned(name: str) -> str:
    """`name==version` from the locks."""
    for lock in LOCKS:
        for line in (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}=="):
                return line.split()[0]
    raise InstallError(f"{name} is in none of the locks {', '.join(LOCKS)}; remake them with: nox -s lock")


# --- installing -------------------------------------------------------------------------------------------------------


def locks_for(build: Build) -> list[str]:
    """Arguments that name the locks to install."""
    names = LOCKS if build.oldest_driver else LOCKS[:2]
    return [argument for name in names for argument in ("-r", f"requirements/{name}")]


def uv_install(*arguments: str) -> list[str]:
    """Command that installs with uv: fast, and it knows where the builds of torch are."""
    return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *arguments]


def pip_install(*arguments: str) -> list[str]:
    """Command that installs with pip: slower, but it obeys this machine's own configuration of indexes and mirrors."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    options = ["--disable-pip-version-check", "--no-compile", *quiet]  # modules compile when first imported
    return [sys.executable, "-m", "pip", "install", *options, *arguments]


def uv_reaches(command: Sequence[str]) -> bool:
    """Whether uv finds every package of the command; one attempt, so that a closed network costs a moment."""
    environment = {**os.environ, "UV_HTTP_RETRIES": "0"}
    ended = subprocess.run(  # noqa: S603  commands are made here, from the locks
        [*command, "--dry-run"], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    return ended.returncode == 0


def run(command: Sequence[str]) -> None:
    """Run from the repository's root with its output shown; a failure is an error that names the command."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603  commands are made here, from the locks
        raise InstallError(
            f"this failed: {' '.join(command)}\nremedy: see the output above; without a way to the package index, "
            "set PIP_INDEX_URL to a mirror"
        )


def install_torch(build: Build) -> None:
    """Install the locked torch in the given build, unless it is there; what pip finds by itself does for two builds."""
    there = installed_build()
    if there == build.name or (there and build is CPU_BUILD):  # without a GPU every build computes on the CPU
        return
    with_uv = uv_install(f"--torch-backend={build.name}", "--constraint", "requirements/runtime.txt", pinned("torch"))
    if there:
        run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "torch"])
    if uv_reaches(with_uv):
        run(with_uv)
    elif build in (CPU_BUILD, DEFAULT_BUILD):
        run(pip_install("--constraint", "requirements/runtime.txt", pinned("torch")))
    else:
        raise InstallError(
            f"torch must be the build {build.name}, which uv cannot reach from here\n"
            f"remedy: open the way to it and run: {' '.join(with_uv)}\n"
            "        or install an NVIDIA driver of version "
            f"{'.'.join(map(str, DEFAULT_BUILD.oldest_driver or ()))} or newer, {CPU_BY_CHOICE}"
        )


def install_packages(build: Build) -> None:
    """Install torch, then the locks, then the checkout itself, so that it and its command can be imported."""
    run(pip_install(pinned("uv")))
    install_torch(build)
    with_uv = uv_install(*locks_for(build))
    run(with_uv if uv_reaches(with_uv) else pip_install(*locks_for(build)))
    run(pip_install("--no-deps", "--no-build-isolation", "--editable", "."))


# --- proving that the GPU works ---------------------------------------------------------------------------------------

PROBE = """
import torch
assert torch.cuda.is_available(), "torch.cuda.is_available() is False"
torch.ones(1, device="cuda").add(1).cpu()
"""


def check_gpu(driver: str) -> None:
    """Stop unless torch computes on the GPU and Triton finds a C compiler; never fall back to the CPU in silence."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)  # noqa: S603  fixed program
    if probe.returncode:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        note = "" if hidden is None else f"\nCUDA_VISIBLE_DEVICES is {hidden!r}; unset it if that hides the GPU"
        raise InstallError(f"torch ({installed_build()}) does not work on the GPU: {reason}{note}\n{remedy(driver)}")
    if missing := missing_for_triton(os.environ):
        raise InstallError(
            f"Triton compiles its launcher on first use and misses {missing}\n"
            f"remedy: on Debian and Ubuntu, apt-get install gcc python{sys.version_info[0]}.{sys.version_info[1]}-dev; "
            f"{CPU_BY_CHOICE}"
        )


def missing_for_triton(environment: Mapping[str, str]) -> str | None:
    """Name what Triton's runtime build lacks here; None when it has everything."""
    if not environment.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        return "a C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header file Python.h"
    return None


# --- once, and again only when something changed ----------------------------------------------------------------------


def fingerprint(driver: str | None, build: Build) -> dict[str, str | None]:
    """Everything that the environment follows from."""
    locks = b"".join((ROOT / "requirements" / name).read_bytes() for name in LOCKS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "root": str(ROOT),
        "python": sys.version,
        "driver": driver,
        "build": build.name,
        "locks": hashlib.sha256(locks).hexdigest(),
        "project": hashlib.sha256(json.dumps(project, sort_keys=True).encode()).hexdigest(),
    }


def main() -> None:
    """Install what is missing; see the module's docstring."""
    driver = None if os.environ.get("TOUCHSTONE_DEVICE") == "cpu" else find_driver()
    build = choose_build(driver)
    stamp = Path(sys.prefix, STAMP)
    wanted = fingerprint(driver, build)
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return
    stamp.unlink(missing_ok=True)
    reason = f"driver {driver}" if driver else "no NVIDIA GPU in use"
    print(f"Installing the locked packages; torch {TORCH_OF_BUILDS}, build {build.name} ({reason})", flush=True)
    install_packages(build)
    if driver:
        check_gpu(driver)
    stamp.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


if __name__ == "__main__":
    # It takes no arguments; one that is given, `--help` above all, must not install anything.
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        main()
    except InstallError as error:
        sys.exit(f"error: {error}")
