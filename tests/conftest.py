"""Settings that hold for all tests."""

from hypothesis import settings

# A test asserts behaviour and never a time: on a busy machine a deadline would fail what is right.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Whole verifications, over and over: as the last tests they would keep one process busy and leave the others idle.
FIRST = "test_verify_run.py"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != FIRST)
