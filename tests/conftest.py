"""Check once, before any test is collected, that there is a built package to test."""

import pytest


def pytest_configure():
    try:
        import cdropout  # noqa: F401
    except ImportError as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name == "cdropout":
            message = "cdropout is not installed: run `pip install -e .` in its checkout"
        message += ". See the beginning of CONTRIBUTING.md."
        raise pytest.UsageError(message) from None
