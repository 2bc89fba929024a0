"""The locks pin what pyproject.toml asks for, and environment.yml says the same."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import install, lock

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED = {
    "runtime.txt": PYPROJECT["project"]["dependencies"],
    "dev.txt": PYPROJECT["dependency-groups"]["dev"],
    "gpu.txt": PYPROJECT["project"]["optional-dependencies"]["gpu"],
}


def pins(lock_name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / lock_name).read_text(encoding="utf-8").splitlines()
    found = [line.split("#")[0].strip() for line in lines]
    return {name_of(pin): Version(pin.partition("==")[2]) for pin in found if pin}


def name_of(pin: str) -> str:
    assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin), f"{pin!r} is not an exact pin"
    return canonicalize_name(pin.partition("==")[0])


@pytest.mark.parametrize("lock_name", sorted(DECLARED))
def test_every_declared_dependency_is_pinned_within_its_range(lock_name: str) -> None:
    known = pins("runtime.txt") | pins(lock_name)
    for requirement in map(Requirement, DECLARED[lock_name]):
        pinned = known.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is in no lock; run nox -s lock"
        assert pinned in requirement.specifier, f"{requirement} excludes the locked {pinned}; run nox -s lock"


def test_no_package_has_two_versions() -> None:
    everything = {(name, version) for lock_name in DECLARED for name, version in pins(lock_name).items()}
    assert len(everything) == len({name for name, _ in everything})


@pytest.mark.parametrize("lock_name", sorted(DECLARED))
def test_lock_names_no_index_no_path_and_no_build(lock_name: str) -> None:
    text = (ROOT / "requirements" / lock_name).read_text(encoding="utf-8")
    assert not re.search(r"://|--|file:|\+|(^|\s)/", text)


def test_runtime_lock_holds_no_cuda_library() -> None:
    assert not [name for name in pins("runtime.txt") if lock.CUDA_LIBRARY.match(f"{name}==")]


def test_conda_environment_equals_the_locks() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    by_pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert {name_of(pin): Version(pin.partition("==")[2]) for pin in by_pip} == pins("runtime.txt") | pins("dev.txt")


def test_conda_environment_takes_a_supported_python() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert (
        Version(python.removeprefix("python=")) in Requirement(f"x{PYPROJECT['project']['requires-python']}").specifier
    )


def test_installer_knows_the_builds_of_the_locked_torch() -> None:
    assert str(pins("runtime.txt")["torch"]) == install.TORCH_OF_BUILDS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch==2.13.0+cpu         # via -r -, transformers", "torch==2.13.0  # via transformers"),
        ("scipy==1.17.1             # via -r -", "scipy==1.17.1"),
        ("mando==0.7.1              # via radon", "mando==0.7.1  # via radon"),
        ("six==1.17.0", "six==1.17.0"),
    ],
)
def test_lock_line_is_a_release_and_who_needs_it(line: str, expected: str) -> None:
    assert lock.tidy(line) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "requirements" / "hosts").glob("*.txt")), ids=lambda path: path.name)
def test_versions_of_a_host_are_exact_and_within_the_declared_ranges(path: Path) -> None:
    known = pins(f"hosts/{path.name}")
    declared = {canonicalize_name(one.name): one for one in map(Requirement, chain.from_iterable(DECLARED.values()))}
    assert "torch" in known
    for name, version in known.items():
        assert name not in declared or version in declared[name].specifier, f"{name} {version} is not what is asked for"
