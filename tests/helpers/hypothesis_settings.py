"""Tests of properties: Hypothesis looks for an example that breaks one."""

import pytest
from hypothesis import HealthCheck, given, settings

from .requirements import slow


def holds(examples, *strategies):
    """Make a test of a property: so many examples where slow tests are run, otherwise a fifth.

    They are the same in every run, however slow the machine.
    """

    def decorate(check):
        @pytest.mark.parametrize("count", [examples // 5, *slow(examples)])
        def test(count):
            settings(
                max_examples=count,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )(given(*strategies)(check))()

        return test

    return decorate
