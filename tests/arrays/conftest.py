"""A fixture for the tests that call every public function."""

import pytest

from ..helpers.bad_calls import valid_calls


@pytest.fixture
def calls_with(unchanged):
    """Return a function that returns all valid calls with the named arguments."""
    calls = valid_calls(unchanged)
    return lambda *names: [call for call in calls if call.has(*names)]
