"""Python programs of their own, for what a test cannot do to its own process."""

import atexit
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

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


SERVER = """
import os, signal, sys, time, traceback
import torch._dynamo

for line in sys.stdin:
    script, *files = eval(line)
    child = os.fork()
    if child == 0:
        for number, file in enumerate([os.devnull, *files]):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        status = 1
        try:
            exec(script, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)  # without freeing all that the imports have made
    deadline = time.monotonic() + 300
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(done[1]), flush=True)
"""


@cache
def server():
    """Start a process that imports PyTorch, which takes seconds, and forks for each script.

    It does not import cdropout. It does import torch._dynamo, as cdropout.torch does.
    """
    command = [sys.executable, "-P", "-c", SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # it ends with its input
    return process


def run_with_torch(script):
    """Return the same as `run`, for a script that imports PyTorch; it may not set variables."""
    if not hasattr(os, "fork"):
        return run(script)
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("output", "errors")]
        print(repr((script, *map(str, files))), file=server().stdin, flush=True)
        status = int(server().stdout.readline())
        return status, *(file.read_text().strip() for file in files)
