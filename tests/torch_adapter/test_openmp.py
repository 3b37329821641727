"""cdropout.torch on PyTorch's own threads, without them, and after forks."""

import signal

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, linux_only, unix_only
from ..helpers.subprocess_runner import run_with_torch

torch = import_or_skip("torch")
import cdropout.torch as ct  # noqa: E402

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
    "two pieces and a bit": ((131_073,), "dropout"),
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
import numpy as np
import torch

def drop(native, theirs, ours, dropped):
    if native:
        torch.__config__.parallel_info = lambda: "ATen parallel backend: native thread pool"
    import cdropout.torch as ct
    import cdropout as cd
    torch.set_num_threads(theirs)
    cd.set_num_threads(ours)
    x = torch.from_numpy(np.ones(1 << 21, np.float32))

    def started(call, *arguments):
        before = set(os.listdir("/proc/self/task"))
        call(*arguments)
        return len(set(os.listdir("/proc/self/task")) - before)

    def multiply(x):
        x.mul_(2)

    def drop(x):
        if dropped:
            ct.dropout(x, 0.3, inplace=True, generator=cd.Generator(5))
        else:
            with ct.accelerate():
                torch.native_dropout(x, 0.3, True)

    print(started(drop, x), end=" ")
    same = (x.numpy() == cd.Mask(x.shape, 0.3, 5).to_scale()).all()
    print(started(multiply, x), end=" ")
    print(started(drop, x[: 1 << 17]), started(multiply, x), same, flush=True)
    os._exit(0)

for case in CASES:
    if os.fork() == 0:  # before any thread is started
        drop(*case)
    os.wait()
"""
CASES = {  # (without OpenMP, PyTorch's limit, this package's, whether elements are dropped, not
    # drawn for a mask to keep): the threads that two calls start, twice
    "PyTorch's": ((False, 3, 3, True), "2 0 0 0 True"),
    "some of PyTorch's": ((False, 4, 2, True), "3 0 0 0 True"),
    "the caller alone": ((False, 3, 1, True), "0 2 0 0 True"),
    "PyTorch allows no other": ((False, 1, 3, True), "0 0 0 0 True"),
    "the pool's": ((True, 3, 3, True), "2 2 0 0 True"),
    "some of the pool's": ((True, 2, 3, True), "1 1 0 0 True"),
    "PyTorch's draw a mask": ((False, 3, 3, False), "2 0 0 0 False"),
}


@linux_only
def test_which_threads_share_a_call():
    """Those that do the first call do the others too: PyTorch's operation finds them."""
    cases = [arguments for arguments, _ in CASES.values()]
    status, out, errors = run_with_torch(COUNT.replace("CASES", repr(cases)))
    assert (status, errors) == (0, "")
    assert dict(zip(CASES, out.splitlines(), strict=True)) == {
        case: counts for case, (_, counts) in CASES.items()
    }


WRITERS = """
import os
import numpy as np
import torch
import cdropout.torch as ct
import cdropout as cd
torch.set_num_threads(4)
x = torch.from_numpy(np.ones(1 << 24, np.float32))

def faults():
    tasks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat") as stat:
            tasks[task] = int(stat.read().rpartition(")")[2].split()[7])  # minor page faults
    return tasks

for threads in 2, 4:
    cd.set_num_threads(threads)
    ct.dropout(x)
    before = faults()
    y = ct.dropout(x)  # in new memory, whose pages appear when they are first written to
    touched = [count - before.get(task, 0) for task, count in faults().items()]
    print(sum(10 * count > sum(touched) for count in touched), end=" ")
    del y
"""


@linux_only
def test_no_more_threads_share_a_call_than_this_package_allows():
    assert run_with_torch(WRITERS) == (0, "2 4", "")


def test_threads_that_do_not_take_part_write_nothing():
    cd.set_num_threads(2)  # of the three in PyTorch's team
    memory, n = torch.ones(1 << 22), (1 << 21) + 5
    ct.dropout(memory[:n], 0.3, inplace=True, generator=cd.Generator(SEED))
    expected = np.ones(len(memory), np.float32)
    cd.dropout(expected[:n], 0.3, inplace=True, rng=SEED)
    assert np.array_equal(memory.numpy(), expected)


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
long, short = torch.ones(1 << 21, 4, 2, 2), torch.ones(1 << 20)  # small channels take long: 0.1 s

def fork(*_):
    global child
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(100)       # rather than to hang

def drop(function, x):          # by none of PyTorch's own operations, which hang in a child
    x.numpy()[:] = 1
    function(x, 0.5, generator=cd.Generator(1), inplace=True)

def right(function, x):
    ones = np.ones(x.shape, np.float32)
    return (x.numpy() == getattr(cd, function.__name__)(ones, rng=1, inplace=True)).all()

child = None
signal.signal(signal.SIGALRM, fork)
while child is None:            # until the handler forks within a call
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    drop(ct.dropout2d, long)
    signal.setitimer(signal.ITIMER_REAL, 0)
same = right(ct.dropout2d, long)
drop(ct.dropout, short)
same = same and right(ct.dropout, short)
if child == 0:
    os._exit(0 if same else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@unix_only
def test_a_forked_child_does_without_pytorchs_threads():
    """OpenMP's are not in the child, which would wait for them for ever."""
    assert run_with_torch(FORK) == (0, "True 0", "")
