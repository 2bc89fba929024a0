import ast
from pathlib import Path

import pytest

import touchstone
from touchstone.clock import timed_region

PACKAGE = Path(touchstone.__file__).parent
READERS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time_ns", "process_time", "synchronize"}
READERS |= {"now", "utcnow", "today", "sleep"}


def time_readings(path):
    """Names that read a clock or wait for a device, and imports of the modules that offer them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in READERS:
            yield f"{path.name}:{node.lineno} .{node.attr}"
        if isinstance(node, ast.Import) and any(name.name in {"time", "timeit"} for name in node.names):
            yield f"{path.name}:{node.lineno} import"
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "timeit"}:
            yield f"{path.name}:{node.lineno} import"


def test_only_the_clock_module_reads_time_or_synchronizes():
    found = [hit for path in sorted(PACKAGE.rglob("*.py")) if path.name != "clock.py" for hit in time_readings(path)]
    assert found == []


def test_the_search_finds_what_it_looks_for():
    assert len(list(time_readings(PACKAGE / "clock.py"))) >= 4


def test_a_region_has_a_duration_only_after_its_end():
    with timed_region("cpu") as region, pytest.raises(RuntimeError, match="not ended"):
        _ = region.duration_ns
    assert region.duration_ns >= 0
