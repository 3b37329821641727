"""Settings of Hypothesis for tests of properties."""

import pytest
from hypothesis import HealthCheck, given, settings

from .requirements import slow


def given_examples(count, *strategies):
    """Return a decorator that tests a property with `count` // 5 examples.

    A second test, which is slow, uses `count` examples. The examples are the same in every run and
    have no deadline.
    """

    def decorate(check):
        @pytest.mark.parametrize("max_examples", [count // 5, *slow(count)])
        def test(max_examples):
            settings(
                max_examples=max_examples,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )(given(*strategies)(check))()

        return test

    return decorate
