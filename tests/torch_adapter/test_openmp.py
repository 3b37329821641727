"""Tests of calls with and without PyTorch's threads, of signals, and of forked processes."""

import signal

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, linux_only, unix_only
from ..helpers.subprocess_runner import run_with_torch

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

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
    "a few chunks": ((131_073,), "dropout"),
    "4-D": ((3, 5, 7, 1321), "dropout"),
    "many chunks per thread": ((5_000, 4_001), "dropout"),
    "channels": ((64, 50, 32, 32), "dropout2d"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_is_independent_of_threads(name, threads):
    torch.set_num_threads(threads)
    shape, function = CALLS[name]
    x = torch.ones(shape)
    y = getattr(ct, function)(x, 0.3, generator=cd.Generator(SEED))
    cd.set_num_threads(1)
    assert np.array_equal(y.numpy(), getattr(cd, function)(x.numpy(), 0.3, rng=SEED))


COUNT_THREADS = """
import os
import numpy as np
import torch

def run_case(native, torch_threads, cdropout_threads, in_place):
    if native:
        torch.__config__.parallel_info = lambda: "ATen parallel backend: native thread pool"
    import cdropout.torch as ct
    import cdropout as cd
    torch.set_num_threads(torch_threads)
    cd.set_num_threads(cdropout_threads)
    x = torch.from_numpy(np.ones(1 << 21, np.float32))

    def count_started(call, *arguments):
        before = set(os.listdir("/proc/self/task"))
        call(*arguments)
        return len(set(os.listdir("/proc/self/task")) - before)

    def multiply(x):
        x.mul_(2)

    def drop(x):
        if in_place:
            ct.dropout(x, 0.3, inplace=True, generator=cd.Generator(5))
        else:
            with ct.accelerate():
                torch.native_dropout(x, 0.3, True)

    print(count_started(drop, x), end=" ")
    dropped = (x.numpy() == cd.Mask(x.shape, 0.3, 5).to_scale()).all()
    print(count_started(multiply, x), end=" ")
    print(count_started(drop, x[: 1 << 17]), count_started(multiply, x), dropped, flush=True)
    os._exit(0)

for case in CASES:
    if os.fork() == 0:  # each child starts without other threads
        run_case(*case)
    os.wait()
"""
# Each case consists of the arguments of run_case and the expected output. The output is the number
# of threads that each of four calls starts (dropout, a multiplication, dropout of a part of x, and
# the multiplication again), and True if x holds the result of the first call.
CASES = {
    "PyTorch": ((False, 3, 3, True), "2 0 0 0 True"),
    "PyTorch, limited by cdropout": ((False, 4, 2, True), "3 0 0 0 True"),
    "only the caller": ((False, 3, 1, True), "0 2 0 0 True"),
    "only the caller, limited by PyTorch": ((False, 1, 3, True), "0 0 0 0 True"),
    "pool": ((True, 3, 3, True), "2 2 0 0 True"),
    "pool, limited by PyTorch": ((True, 2, 3, True), "1 1 0 0 True"),
    "PyTorch, native_dropout": ((False, 3, 3, False), "2 0 0 0 False"),
}


@linux_only
def test_dropout_uses_the_threads_of_pytorch_operations():
    """Check how many threads dropout starts, and how many a later multiplication starts."""
    cases = [arguments for arguments, _ in CASES.values()]
    status, out, errors = run_with_torch(COUNT_THREADS.replace("CASES", repr(cases)))
    assert (status, errors) == (0, "")
    assert dict(zip(CASES, out.splitlines(), strict=True)) == {
        case: counts for case, (_, counts) in CASES.items()
    }


COUNT_WRITERS = """
import os
import numpy as np
import torch
import cdropout.torch as ct
import cdropout as cd
torch.set_num_threads(4)
x = torch.from_numpy(np.ones(1 << 24, np.float32))

def page_faults():
    tasks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat") as stat:
            tasks[task] = int(stat.read().rpartition(")")[2].split()[7])  # minor page faults
    return tasks

for threads in 2, 4:
    cd.set_num_threads(threads)
    ct.dropout(x)
    before = page_faults()
    y = ct.dropout(x)  # y is in new memory: the first write to each page causes a page fault
    touched = [count - before.get(task, 0) for task, count in page_faults().items()]
    print(sum(10 * count > sum(touched) for count in touched), end=" ")
    del y
"""


@linux_only
def test_set_num_threads_limits_the_threads():
    assert run_with_torch(COUNT_WRITERS) == (0, "2 4", "")


def test_unused_threads_write_nothing():
    cd.set_num_threads(2)  # one of PyTorch's three threads remains unused
    memory, n = torch.ones(1 << 22), (1 << 21) + 5
    ct.dropout(memory[:n], 0.3, inplace=True, generator=cd.Generator(SEED))
    expected = np.ones(len(memory), np.float32)
    cd.dropout(expected[:n], 0.3, inplace=True, rng=SEED)
    assert np.array_equal(memory.numpy(), expected)


@unix_only
def test_exception_of_a_signal_handler_interrupts_a_call():
    class Stop(Exception):
        """Exception that the signal handler raises."""

    def stop(*_):
        raise Stop

    interrupted = 0
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(5):
            y = torch.ones(1 << 23, 2, 2, 2)
            with pytest.raises(Stop):
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                ct.dropout2d(y, 0.5, inplace=True)  # takes 0.2 s: the channels are small
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
# CPython 3.12 and later versions warn if a process with several threads forks.
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
torch.set_num_threads(3)
cd.set_num_threads(3)
# A call with `long` takes 0.1 s, because the channels are small.
long, short = torch.ones(1 << 21, 4, 2, 2), torch.ones(1 << 20)
elements = long.numpy().reshape(-1)

def fork(*_):
    global child
    if elements[0] == 1 or elements[-1] != 1:
        return                  # the call has not begun or is complete
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(100)       # ends the child if it hangs

def drop(function, x, seconds=None):
    x.numpy()[:] = 1            # PyTorch's own operations hang in a child
    if seconds:                 # time until the signal
        signal.setitimer(signal.ITIMER_REAL, seconds)
    function(x, 0.5, generator=cd.Generator(1), inplace=True)

def is_correct(function, x):
    ones = np.ones(x.shape, np.float32)
    return (x.numpy() == getattr(cd, function.__name__)(ones, rng=1, inplace=True)).all()

child = None
signal.signal(signal.SIGALRM, fork)
while child is None:            # until the handler has forked
    drop(ct.dropout2d, long, 0.01)
correct = is_correct(ct.dropout2d, long)
drop(ct.dropout, short)
correct = correct and is_correct(ct.dropout, short)
if child == 0:
    os._exit(0 if correct else 1)
print(correct, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@unix_only
def test_forked_child_uses_no_threads_of_pytorch():
    """Check that a forked child uses cdropout's pool. With PyTorch's threads, it would hang."""
    assert run_with_torch(FORK) == (0, "True 0", "")
