"""Functions that run the commands of cdropout in new processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("cdropout")
COMMANDS = {
    "module": [sys.executable, "-P", "-m", "cdropout"],
    "script": [sys.executable, "-P", str(SCRIPT)],
}
BENCH = ["bench", "--sizes", "64", "--seconds", "0", "--peer", "none"]


def find_command(name):
    """Return the arguments that start this command; skip the test if the command is missing."""
    if name == "script" and not SCRIPT.exists():
        pytest.skip("the script cdropout was not installed")
    return COMMANDS[name]


def run(command, *arguments, stdout=subprocess.PIPE, **variables):
    """Run a command; return its exit code, standard output and standard error."""
    done = subprocess.run(
        [*command, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300,
        env={**os.environ, "PYTHONUNBUFFERED": "", **variables},
        cwd=tempfile.gettempdir(),  # not in the checkout, which may not be built
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def assert_error(result, code, text):
    """Assert that a command had this exit code and printed only one line, to standard error.

    The line begins with "cdropout" and contains `text`.
    """
    assert result[0] == code and not result[1]
    assert result[2].count("\n") == 1 and result[2].startswith("cdropout") and text in result[2]
