"""Settings that hold for all tests."""

from hypothesis import settings

# A test asserts behaviour and never a time: on a busy machine a deadline would fail what is right.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
