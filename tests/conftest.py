"""Check that there is a built package, and run slow tests that are named one by one."""

import os

import pytest

# The tests multiply small matrices only. In each of their processes, OpenBLAS would start threads
# when NumPy is imported, which takes as long as the import itself.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure(config):
    check_package()
    select_named_tests(config)


def check_package():
    """Say once, before any test is collected, what to do if there is no built package to test."""
    try:
        import cdropout  # noqa: F401
    except ImportError as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name == "cdropout":
            message = "cdropout is not installed: run `pip install -e .` in its checkout"
        message += ". See the beginning of CONTRIBUTING.md."
        raise pytest.UsageError(message) from None


def select_named_tests(config):
    """Select tests that are named on the command line, `file::test`, also if they are slow."""
    named = config.args and all("::" in argument for argument in config.args)
    if named and config.option.markexpr == "not slow":  # as in pyproject.toml
        config.option.markexpr = ""
