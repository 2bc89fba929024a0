"""The import direction of ARCHITECTURE.md, read from the syntax trees."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nanoinfer", "touchstone")
ENGINES = {"nanoinfer", "nanovllm", "vllm", "sglang"}
DEVICE_LIBRARIES = {"torch", "triton", "transformers", "safetensors", "tokenizers"}
ENGINE_LAYERS = (
    ("fields", "config", "request"),
    ("kvcache",),
    ("scheduling",),
    ("execution",),
    ("engine",),
    ("results", "placement", "engine_process", "data_parallel"),
    ("launched", "worker"),
    ("llm",),
)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, module: str, *, is_package: bool) -> set[str]:
    """Every dotted name that the module imports, relative ones made absolute; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if is_package else module.split(".")[:-1]
            anchor = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def imports_of(root: Path, package: str) -> dict[str, set[str]]:
    """Module -> imported names, for a package under root or a folder of scripts."""
    return {
        module_name(path, root): imported_names(
            path.read_text(encoding="utf-8"), module_name(path, root), is_package=path.name == "__init__.py"
        )
        for path in sorted((root / package).rglob("*.py"))
    }


NANOINFER = imports_of(ROOT / "src", "nanoinfer")
TOUCHSTONE = imports_of(ROOT / "src", "touchstone")
BENCH = imports_of(ROOT, "bench")


def part(name: str) -> str:
    """`nanoinfer.kvcache.blocks` -> `kvcache`; the package itself is ''."""
    return name.split(".")[1] if "." in name else ""


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def violations(found: Iterable[tuple[str, set[str]]]) -> dict[str, set[str]]:
    """Module -> what it must not import; empty when the rule holds."""
    return {module: names for module, names in found if names}


def layer(name: str) -> int | None:
    return next((height for height, parts in enumerate(ENGINE_LAYERS) if part(name) in parts), None)


def test_the_walk_sees_both_packages() -> None:
    assert "nanoinfer.scheduling.plan" in NANOINFER
    assert "touchstone.records" in TOUCHSTONE
    assert "nanoinfer.request" in NANOINFER["nanoinfer.scheduling.plan"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a", "a.b"}),
        ("from . import plan", {"pkg.sub", "pkg.sub.plan"}),
        ("from ..request import Request", {"pkg.request", "pkg.request.Request"}),
        ("def f():\n    import vllm", {"vllm"}),
        ("if TYPE_CHECKING:\n    import torch", {"torch"}),
    ],
)
def test_imports_of_every_form_are_seen(source: str, expected: set[str]) -> None:
    assert imported_names(source, "pkg.sub.module", is_package=False) == expected


def test_engine_module_imports_its_own_layer_and_those_below() -> None:
    def too_high(module: str, height: int) -> set[str]:
        return {name for name in within(NANOINFER[module], "nanoinfer") if (layer(name) or 0) > height}

    layered = [(module, height) for module in NANOINFER if (height := layer(module)) is not None]
    assert len({height for _, height in layered}) >= 3
    assert violations((module, too_high(module, height)) for module, height in layered) == {}


def test_engine_never_imports_the_instrument() -> None:
    assert violations((module, within(names, "touchstone")) for module, names in NANOINFER.items()) == {}


def test_kernels_import_nothing_of_ours_but_kernels() -> None:
    ours = {module: within(NANOINFER[module], "nanoinfer") for module in NANOINFER if part(module) == "kernels"}
    assert (
        violations((module, {name for name in names if part(name) != "kernels"}) for module, names in ours.items())
        == {}
    )


def test_model_knows_neither_scheduling_nor_cache() -> None:
    above = {"scheduling", "kvcache", "execution", "engine", "llm"}
    models = [module for module in NANOINFER if part(module) == "model"]
    found = ((module, {part(name) for name in within(NANOINFER[module], "nanoinfer")} & above) for module in models)
    assert violations(found) == {}


def test_everything_up_to_scheduling_is_free_of_torch() -> None:
    early = [module for module in NANOINFER if layer(module) in (0, 1, 2)]
    assert "nanoinfer.config" in early
    assert violations((module, roots(NANOINFER[module]) & DEVICE_LIBRARIES) for module in early) == {}


def test_records_lie_at_the_bottom() -> None:
    assert within(TOUCHSTONE["touchstone.records"], "touchstone") == set()


def test_nothing_but_the_package_itself_imports_the_command_line() -> None:
    importers = {module for module, names in TOUCHSTONE.items() if within(names, "touchstone.cli")}
    assert importers <= {"touchstone.__main__", "touchstone.cli"}


def test_only_adapters_import_an_engine() -> None:
    others = [module for module in TOUCHSTONE if part(module) != "engines"]
    assert violations((module, roots(TOUCHSTONE[module]) & ENGINES) for module in others) == {}


def test_no_adapter_imports_a_second_engine() -> None:
    found = {module: roots(TOUCHSTONE[module]) & ENGINES for module in TOUCHSTONE if part(module) == "engines"}
    assert {module: engines for module, engines in found.items() if len(engines) > 1} == {}


def test_verification_shares_no_arithmetic_with_what_it_verifies() -> None:
    arithmetic = {module for module in TOUCHSTONE if module.split(".")[-1] in ("statistics", "metrics", "formulas")}
    assert len(arithmetic) == 3
    verifiers = [module for module in TOUCHSTONE if part(module) == "verify"]
    assert violations((module, TOUCHSTONE[module] & arithmetic) for module in verifiers) == {}


def test_bench_files_hold_no_timing_and_no_device_code() -> None:
    forbidden = ENGINES | DEVICE_LIBRARIES | {"time", "timeit", "statistics", "numpy"}
    assert violations((module, roots(names) & forbidden) for module, names in BENCH.items()) == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_an_import_cycle(package: str) -> None:
    graph = {"nanoinfer": NANOINFER, "touchstone": TOUCHSTONE}[package]
    edges = {module: (names & set(graph)) - {module, package} for module, names in graph.items() if module != package}
    TopologicalSorter(edges).prepare()  # raises CycleError, which names the cycle
