"""Fixtures for the tests of the command line and of cdropout.bench."""

import numpy as np
import pytest

import cdropout as cd
from cdropout.__main__ import main
from cdropout.bench import check, peers, timing

from ..helpers.command_line import find_command
from ..helpers.requirements import slow


@pytest.fixture(scope="module")
def quick_bench():
    """Make checks and measurements shorter, and the terminal 80 columns wide.

    The number of threads is restored afterwards.
    """
    before = cd.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr(check, "SIZE", 1 << 18)
        patch.setattr(check, "LOAD_SECONDS", 0.02)
        patch.setattr(timing, "BATCH_SECONDS", 1e-5)
        yield
    cd.set_num_threads(before)


@pytest.fixture
def refuse(capsys):
    """Return a function that runs the command line with arguments that are invalid.

    The function asserts that the exit code is 2 and that the only output is one line on standard
    error. It returns this line.
    """

    def refuse(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = capsys.readouterr()
        assert caught.value.code == 2 and printed.out == ""
        assert printed.err.endswith("\n") and printed.err.count("\n") == 1
        return printed.err

    return refuse


@pytest.fixture(params=["module", *slow("script")])
def command(request):
    """Return the arguments that run cdropout's command line in a new process."""
    return find_command(request.param)


@pytest.fixture
def fake():
    """Return a function that makes a benchmark implementation from `drop(x, keep, p)`."""
    random = np.random.default_rng(1)

    def fake(drop):
        def prepare(arrays, p):
            def both():
                keep = random.random(arrays.x.shape) >= p
                return drop(arrays.x, keep, p), drop(arrays.gy, keep, p)

            return lambda: both()[0], both

        return peers.Implementation("fake", "1", prepare)

    return fake
