"""Run the programs in `examples`."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, *options, **variables):
    """Run a program with these options and environment variables; return its standard output."""
    command = [sys.executable, "-P", EXAMPLES / name, *options]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
