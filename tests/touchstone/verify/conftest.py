"""What holds for all tests of verify."""

import functools

import pytest

from touchstone.verify import typed_in


@pytest.fixture(scope="session", autouse=True)
def _templates_read_once():
    """No test here changes a template, so the check of the templates, a fifth of all checks' time, works once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typed_in, "typed_in_numbers", functools.cache(typed_in.typed_in_numbers))
        yield
