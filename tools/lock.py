"""Remake the pinned locks and environment.yml from pyproject.toml: `nox -s lock`, `nox -s lock -- --upgrade`.

runtime.txt is what measuring needs, dev.txt what developing adds, gpu.txt what a CUDA machine adds. The CUDA libraries
of torch are left out on purpose: torch pins them itself, differently in each build, and a machine without a GPU must
not download them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
HEADER = "# Made from pyproject.toml by tools/lock.py; remake with `nox -s lock`, do not edit.\n"
CUDA_LIBRARY = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton==)")
OPTIONS = ("--quiet", "--strip-extras", "--allow-unsafe", "--no-header", "--annotation-style=line")
SILENT = ("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options")


def resolve(requirements: list[str], lock: Path, constraints: list[Path], upgrade: list[str]) -> list[str]:
    """Pin the requirements and everything that they need: one `name==version  # via ...` a line."""
    held = [f"--constraint={path.relative_to(ROOT)}" for path in constraints]
    command = [sys.executable, "-m", "piptools", "compile", "-", *OPTIONS, *SILENT, *held, *upgrade]
    subprocess.run(  # noqa: S603  our own interpreter and arguments
        [*command, f"--output-file={lock.relative_to(ROOT)}"],
        cwd=ROOT,
        input="\n".join(requirements),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [line for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]


def tidy(line: str) -> str:
    """Drop the local version (`+cpu` names a build, not a release) and the traces of how the resolver was called."""
    pin, _, origin = line.partition("#")
    sources = [source for source in origin.strip().removeprefix("via ").split(", ") if not source.startswith("-")]
    return f"{pin.strip().partition('+')[0]}" + (f"  # via {', '.join(sources)}" if any(sources) else "")


def name_of(pin: str) -> str:
    """`name==version  # via ...` -> `name`."""
    return pin.partition("==")[0]


def make_lock(name: str, requirements: list[str], base: Path | None, upgrade: list[str]) -> list[str]:
    """Write one lock; with a base, only what it adds to the base, at versions that fit the base."""
    lock = REQUIREMENTS / name
    constraints = [REQUIREMENTS / "constraints.txt", *([base] if base else [])]
    in_base = {name_of(line) for line in base.read_text(encoding="utf-8").splitlines()} if base else set()
    pins = [
        tidy(line)
        for line in resolve(requirements, lock, constraints, upgrade)
        if name_of(line) not in in_base and (name != "runtime.txt" or not CUDA_LIBRARY.match(line))
    ]
    lock.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    return pins


def environment(pins: list[str]) -> str:
    """Write the same pins for conda users; tools/install.py then picks the torch build that fits the driver."""
    head = ["name: touchstone", "channels:", "  - conda-forge", "dependencies:"]
    conda = ["  - python=3.12", "  - make", "  - pip", "  - pip:"]
    packages = [f"      - {pin.split()[0]}" for pin in sorted(pins)]
    return HEADER + "\n".join([*head, *conda, *packages]) + "\n"


def main(upgrade: list[str]) -> None:
    """Remake every lock; arguments such as --upgrade go to pip-compile."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = pyproject["project"], pyproject["dependency-groups"]
    runtime = REQUIREMENTS / "runtime.txt"
    pins = make_lock("runtime.txt", project["dependencies"], None, upgrade)
    pins += make_lock("dev.txt", groups["dev"], runtime, upgrade)
    make_lock("gpu.txt", project["optional-dependencies"]["gpu"], runtime, upgrade)
    (ROOT / "environment.yml").write_text(environment(pins), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:  # pip-compile has said why
        sys.exit(f"error: pip-compile ended with {error.returncode}; correct the arguments or pyproject.toml")
