"""No check without a lie that makes it fire: a test whose name ends in `caught_by_<the check's id>`."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from touchstone.analysis.plausibility import LIES

ANALYSIS = Path(__file__).parents[3] / "src" / "touchstone" / "analysis"
TESTS = Path(__file__).parents[1]
# These are made by a helper that takes the id as its argument: name of the helper -> position of the id.
HELPERS = {"_check": 0}


def check_ids():
    """Every id that the analysis gives to a check, read from its syntax trees."""
    return sorted({name for path in sorted(ANALYSIS.glob("*.py")) for name in ids_in(path)})


def ids_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = dict(constants_of(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given = [word.value for word in node.keywords if node.func.id == "Check" and word.arg == "id"]
            given += node.args[:1] if node.func.id in HELPERS else []
            for value in given:
                if isinstance(value, ast.Constant):
                    yield value.value
                elif value.id in constants:
                    yield constants[value.id]
        elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "per_run":
            yield from (row.elts[0].value for row in node.value.elts)


def constants_of(tree):
    """Strings that a module gives names to, also several in one line."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield name.id, value.value


@lru_cache(maxsize=1)
def names_of_tests():
    """Name every test function that tells a lie."""
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    nodes = (node for text in texts if "caught_by" in text for node in ast.walk(ast.parse(text)))
    return tuple(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


CHECKS = check_ids()


def test_the_checks_are_found_in_the_code():
    assert {"within_roofline", "scaling_within_ideal", "timings_never_repeat", "same_answer"} <= set(CHECKS)
    named = {check for lie in LIES for check in lie.checks}
    assert named <= set(CHECKS), "the table of lies names checks that no code makes"


@pytest.mark.parametrize("check", CHECKS)
def test_a_lie_is_told_that_this_check_catches(check):
    telling = [name for name in names_of_tests() if f"caught_by_{check}" in name]
    assert telling, f"tell a good run the lie that {check} is made for, in a test named test_..._caught_by_{check}"
