"""cdropout.torch on PyTorch's own threads, without them, and after forks."""

import signal
import sys

import numpy as np
import pytest

import cdropout as cd

from children import run

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")

unix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no forks and alarms")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux counts threads")
pytestmark = pytest.mark.usefixtures("three_threads")
SEED = 5


@pytest.fixture
def three_threads():
    before = torch.get_num_threads(), cd.get_num_threads()
    torch.set_num_threads(3)
    cd.set_num_threads(3)
    yield
    torch.set_num_threads(before[0])
    cd.set_num_threads(before[1])


CALLS = {
    "a piece and a bit": ((65_537,), "dropout"),
    "some pieces": ((3, 5, 7, 1321), "dropout"),
    "turns": ((5_000, 4_001), "dropout"),
    "channels": ((64, 50, 32, 32), "dropout2d"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_matter(name, threads):
    torch.set_num_threads(threads)
    shape, function = CALLS[name]
    x = torch.ones(shape)
    y = getattr(ct, function)(x, 0.3, generator=cd.Generator(SEED))
    cd.set_num_threads(1)
    assert np.array_equal(y.numpy(), getattr(cd, function)(x.numpy(), 0.3, rng=SEED))


COUNT = """
import os
import torch
native = {native}
if native:
    torch.__config__.parallel_info = lambda: "ATen parallel backend: native thread pool"
import cdropout as cd
import cdropout.torch as ct
from cdropout.core.openmp import found
torch.set_num_threads(3)
cd.set_num_threads(3)
x = torch.ones(1 << 21)
x * 2                           # PyTorch's threads are there from now on
before = len(os.listdir("/proc/self/task"))
y = ct.dropout(x, 0.3, generator=cd.Generator(5))
started = len(os.listdir("/proc/self/task")) - before
print(any(found), started, torch.equal(y, torch.from_numpy(cd.Mask(x.shape, 0.3, 5).scale())))
"""


@linux_only
@pytest.mark.parametrize(("native", "out"), [(False, "True 0 True"), (True, "False 2 True")])
def test_threads_are_pytorchs_where_they_are_openmps(native, out):
    assert run(COUNT.format(native=native)) == (0, out, "")


@unix_only
def test_a_signals_handler_ends_a_call():
    class Stop(Exception):
        """What the handler raises."""

    def stop(*_):
        raise Stop

    interrupted = 0
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(5):
            y = torch.ones(1 << 23, 2, 2, 2)  # small channels take long: 0.2 s
            with pytest.raises(Stop):
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                ct.dropout2d(y, 0.5, inplace=True)
                signal.pause()
            interrupted += bool((y[:1000] != 1).all() and (y[-1000:] == 1).any())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 0


FORK = """
import os, signal, warnings
import numpy as np
import torch
import cdropout as cd
import cdropout.torch as ct
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # CPython's, since 3.12
torch.set_num_threads(3)
cd.set_num_threads(3)
long, short = torch.ones(1 << 22, 4, 2, 2), torch.ones(1 << 20)  # small channels take long: 0.2 s

def fork(*_):
    global child
    child = os.fork()

def drop(function, x):      # by none of PyTorch's own operations, which hang in a child
    function(x, 0.5, generator=cd.Generator(1), inplace=True)
    return (x.numpy() == getattr(cd, function.__name__)(np.ones(x.shape), rng=1)).all()

child = None
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.01)
same = drop(ct.dropout2d, long)
if child is None:
    signal.pause()
same = same and drop(ct.dropout, short)
if child == 0:
    os._exit(0 if same else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@unix_only
def test_a_forked_child_does_without_pytorchs_threads():
    """OpenMP's are not in the child, which would wait for them for ever."""
    assert run(FORK) == (0, "True 0", "")
