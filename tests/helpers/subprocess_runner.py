"""Functions that run Python scripts in new processes, for tests that change their process."""

import atexit
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

# First line of a script that imports from `tests`. The checkout is last in the path, so that an
# installed cdropout has precedence.
FIND_TESTS = f"import sys; sys.path.append({str(Path(__file__).parents[2])!r})\n"


def run(script, **variables):
    """Run a Python script with these environment variables added.

    Returns
    -------
    status, output, errors : the exit status and the two streams without surrounding whitespace.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True, text=True, env={**os.environ, **variables}, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.strip()


FORK_SERVER = """
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
        os._exit(status)  # skips the finalization of all imported modules
    deadline = time.monotonic() + 300
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(done[1]), flush=True)
"""


@cache
def fork_server():
    """Start a process that imports PyTorch once and forks for each script; return the process.

    The import takes seconds. The process also imports torch._dynamo, as cdropout.torch does, but
    not cdropout.
    """
    command = [sys.executable, "-P", "-c", FORK_SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # closes standard input, so that the process ends
    return process


def run_with_torch(script):
    """Run a script that imports PyTorch; return the same values as `run`.

    The environment variables are those that this process had at the first call.
    """
    if not hasattr(os, "fork"):
        return run(script)
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("output", "errors")]
        print(repr((script, *map(str, files))), file=fork_server().stdin, flush=True)
        status = int(fork_server().stdout.readline())
        return status, *(file.read_text().strip() for file in files)
