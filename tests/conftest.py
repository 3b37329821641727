"""Slow tests: pyproject.toml leaves them out, but a test that is named in the command is run."""


def pytest_configure(config):
    named = config.args and all("::" in argument for argument in config.args)
    if named and config.option.markexpr == "not slow":  # as in pyproject.toml
        config.option.markexpr = ""
