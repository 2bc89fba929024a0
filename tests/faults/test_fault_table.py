"""The table of faults names every test of a fault, and no test that does not exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "faults.md"


def names_below(folder):
    return {
        node.name
        for path in folder.rglob("test_*.py")
        if path != Path(__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows():
    """The rows of all tables as their cells, without heads and rules."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [cells for line in lines if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] != "fault"]


def named():
    return [name for _, _, cell in rows() for name in re.findall(r"`(test_\w+)`", cell)]


def test_every_row_says_what_happens_and_names_a_test():
    assert len(rows()) > 60
    assert all(len(cells) == 3 and all(cells) and "`test_" in cells[2] for cells in rows())


def test_every_test_that_is_named_exists():
    assert set(named()) <= names_below(TESTS)


def test_every_fault_that_is_tried_is_in_the_table_once():
    assert sorted(named()) == sorted(set(named()))
    assert names_below(TESTS / "faults") | names_below(TESTS / "fuzz") <= set(named())
