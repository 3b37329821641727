"""Python programs of their own, for what a test cannot do to its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

unix_only = pytest.mark.skipif(sys.platform == "win32", reason="no forks, alarms and limits here")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux counts threads")

# For scripts that import from the tests: the installed package comes before the one beside them.
FIND_TESTS = f"import sys; sys.path.append({str(Path(__file__).parents[2])!r})\n"


def run(script, **variables):
    """Return (exit status, standard output, standard error) of a Python that runs the script."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True, text=True, env={**os.environ, **variables}, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.strip()
