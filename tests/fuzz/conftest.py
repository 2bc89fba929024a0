"""Print how often each fuzzed thing was tried, also where several processes share the tests."""

from collections import Counter

import pytest

from tests.fuzz.tally import TRIED

_of_workers = Counter()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzz"] = dict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _of_workers.update(getattr(node, "workeroutput", {}).get("fuzz", {}))


def pytest_terminal_summary(terminalreporter):
    if tried := TRIED + _of_workers:
        terminalreporter.section("fuzzing: inputs tried")
        for name, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:>9,}  {name}")
