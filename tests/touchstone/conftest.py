"""What holds for all tests of the instrument."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """No test here cuts the power: a run is written to be read at once (tests/faults keep the disk as it is)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
