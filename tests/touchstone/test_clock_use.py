"""Which source files read a clock: found by their statements, recorded with the environment."""

from __future__ import annotations

import pytest

from touchstone.clock_use import CLOCK_MODULE, clock_use
from touchstone.environment import capture


@pytest.mark.parametrize(
    "line",
    [
        "import time\nt = time.perf_counter()",
        "from time import perf_counter_ns",
        "import torch\ntorch.cuda.synchronize()",
    ],
)
def test_a_file_that_reads_a_clock_or_waits_for_a_device_is_named(tmp_path, line):
    (tmp_path / "quiet.py").write_text("import time\ntime.sleep(1)\n")
    assert clock_use(tmp_path).readers == ()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "other.py").write_text(line)
    found = clock_use(tmp_path)
    assert (found.num_files, found.readers, found.unreadable) == (2, ("part/other.py",), ())


@pytest.mark.parametrize("text", ["# not perf_counter", "perf_counter = 1", "import clock\nclock.perf_counter()"])
def test_a_file_that_only_has_such_a_name_is_not_named(tmp_path, text):
    (tmp_path / "other.py").write_text(text)
    assert clock_use(tmp_path).readers == ()


def test_a_file_that_is_no_python_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def (:\n")
    assert clock_use(tmp_path).unreadable == ("broken.py",)


def test_the_instrument_reads_the_clock_in_one_module_and_every_run_records_it():
    assert clock_use().readers == (CLOCK_MODULE,)
    assert capture().source.clock == clock_use()
