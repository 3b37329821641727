"""Tests of what calls share: threads, and what forked processes have of them."""

import itertools
import operator
import os
import re
import signal
import sys
import threading

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import linux_only, needs_memory_limit, slow, unix_only
from ..helpers.subprocess_runner import run

SHARED = 1 << 19  # elements from which a call is shared among threads; a test below checks it
SEED = 31


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    number = cd.get_num_threads()
    yield
    cd.set_num_threads(number)


def numbers(n, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(n).astype(dtype)


# ---- the number of threads --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float64)])
@pytest.mark.parametrize("extra", [-1, 0, 1, 8193, SHARED // 2 + 777])
def test_the_result_does_not_depend_on_the_number_of_threads(extra, dtype):
    x = numbers(SHARED + extra, dtype)
    expected = reference.dropout(x, 0.3, SEED, 0)
    for count in (1, 2, 3):
        cd.set_num_threads(count)
        y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(cd.dropout_backward(x, mask, out=y), expected)
        np.testing.assert_array_equal(mask[5:].apply(x[5:]), expected[5:])
        assert not cd.dropout(x, 1, out=y).any()
        y[:] = x
        np.testing.assert_array_equal(cd.dropout(y, 0.3, inplace=True, rng=SEED), expected)


COUNT = """
import os
import numpy as np
import cdropout as cd

def started(call):
    # how many threads the call starts
    before = len(os.listdir("/proc/self/task"))
    call()
    return len(os.listdir("/proc/self/task")) - before

cd.set_num_threads(3)
"""
CALLS = {
    "dropout": "cd.dropout(x)",
    "layout": "cd.dropout(x.reshape(1024, -1).T)",
    "channels": "cd.dropout2d(x.reshape(8, 8, 64, -1))",
    "bits given": "cd.dropout_backward(x, bits, p=0.5)",
    "bools given": "cd.dropout_backward(x, keep, p=0.5)",
    "bits": "cd.Mask(n, 0.5).bits()",
    "bools": "np.asarray(cd.Mask(n, 0.5))",
    "bias": "cd.bias_dropout_add(x.reshape(1024, -1), x[: n // 1024], x.reshape(1024, -1))",
}


# each call in a process that has no threads yet
STARTED = f"""
for name, call in {CALLS!r}.items():
    if os.fork():
        os.wait()
        continue
    counts = []
    for n in ({SHARED - 4096}, {SHARED}, {4 * SHARED}, {8 * SHARED}):
        x = np.zeros(n, np.float32)
        keep = x == 0
        bits = np.packbits(keep)
        counts.append(started(lambda: eval(call)))
    print(name, *counts, sep=", ", flush=True)
    os._exit(0)
"""


@linux_only
def test_where_sharing_begins():
    """With less work there are no threads; with more as many as may be, and no others later."""
    lines = [line.split(", ") for line in run(COUNT + STARTED)[1].splitlines()]
    assert [name for name, *_ in lines] == list(CALLS)
    for name, *counts in lines:
        counts = [int(count) for count in counts]
        assert counts[0] == counts[-1] == 0 and sum(counts) == 2, name


def test_other_layouts_do_not_depend_on_it_either():
    x = numbers(1100 * 1000).reshape(1100, 1000)
    for view, count in itertools.product((x.T, x[::-1], x[:, ::2]), (1, 3)):
        cd.set_num_threads(count)
        expected = reference.dropout(view, 0.3, SEED, 0)
        np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), expected)


def test_a_number_of_threads_may_be_any_int():
    class Two:
        def __index__(self):
            return 2

    for count in (1, 5, np.int64(2), 1000, Two()):
        cd.set_num_threads(count)
        number = cd.get_num_threads()
        assert number == operator.index(count) and type(number) is int


INT = "the number of threads has to be an int, but got "
POSITIVE = "the number of threads has to be at least 1, but got "


@pytest.mark.parametrize(
    "number, error, words",
    [(True, TypeError, INT + "bool"), (2.0, TypeError, INT + "float"),
     ("2", TypeError, INT + "str"), (None, TypeError, INT + "NoneType"),
     (0, ValueError, POSITIVE + "0"), (-2, ValueError, POSITIVE + "-2")],
)  # fmt: skip
def test_a_number_of_threads_that_is_none(number, error, words):
    cd.set_num_threads(3)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        cd.set_num_threads(number)
    assert cd.get_num_threads() == 3


def test_a_number_of_threads_beyond_all_numbers_is_no_limit():
    cd.set_num_threads(2**64)
    assert cd.get_num_threads() == sys.maxsize


@pytest.mark.parametrize("text", ["3", *slow("1")])
def test_the_environment_sets_it(text):
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS=text)[:2] == (0, text)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say")
def test_otherwise_it_is_the_cpus_that_may_be_used():
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS="")[:2] == (0, str(len(os.sched_getaffinity(0))))
    one = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
    assert run(one + script, CDROPOUT_NUM_THREADS="")[:2] == (0, "1")


# ---- many callers -----------------------------------------------------------------------------


def in_threads(count, work):
    """Run work(0), ..., work(count - 1) at once; return what they raised."""
    errors = []

    def guarded(i):
        try:
            work(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_eight_callers_at_once_finish_and_agree():
    cd.set_num_threads(3)
    x, generator = numbers(SHARED + 4321), cd.Generator(SEED)
    drawn = [[] for _ in range(8)]

    def work(i):
        for _ in range(2):
            y, mask = cd.dropout(x, 0.3, rng=generator, return_mask=True)
            drawn[i].append((mask, y))

    assert in_threads(8, work) == []
    assert sorted(mask.call for pairs in drawn for mask, _ in pairs) == list(range(16))
    for mask, y in (pair for pairs in drawn for pair in pairs):
        np.testing.assert_array_equal(y, reference.dropout(x, 0.3, SEED, mask.call))


def test_the_number_may_change_while_others_call():
    x, ready = numbers(SHARED), []
    expected = reference.dropout(x, 0.3, SEED, 0)

    def work(i):
        try:
            for _ in range(10 if i else 0):
                np.testing.assert_array_equal(cd.dropout(x, 0.3, rng=SEED), expected)
        finally:
            ready.append(i)
        while len(ready) < 4:  # the first goes on until the others are done
            cd.set_num_threads(2 + len(ready))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many switches as can be had
    try:
        assert in_threads(4, work) == []
    finally:
        sys.setswitchinterval(interval)


FEW = (
    COUNT
    + """
import resource
x, y = np.ones(1 << 20, np.float32), np.zeros(1 << 20, np.float32)
mask = cd.Mask(x.size, 0.3, 1)
cd.set_num_threads(1)
expected = mask.apply(x)
cd.set_num_threads(3)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), limits[1]))     # no stack fits
none = started(lambda: mask.apply(x, y))
resource.setrlimit(resource.RLIMIT_AS, limits)
same = (y == expected).all()
y[:] = 0
print(none, same, started(lambda: mask.apply(x, y)), (y == expected).all())
"""
)


@needs_memory_limit
def test_a_thread_that_cannot_be_started_is_done_without():
    assert run(FEW) == (0, "0 True 2 True", "")


@unix_only
@pytest.mark.parametrize("times", [1, *slow(40)])
def test_nothing_is_written_after_an_interrupted_call(times):
    class Stop(Exception):
        """What the handler raises."""

    def stop(*_):
        raise Stop

    cd.set_num_threads(3)
    x, interrupted = numbers(1 << 24), 0
    mask, y = cd.Mask(x.size, 0.3, SEED), np.zeros_like(x)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(times):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                while True:  # the signal is answered in one of the calls, or between two
                    mask.apply(x, y)
            except Stop:
                y[:] = 7
                interrupted += 1
            assert (y == 7).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == times


FORK_WITHIN = """
import os, signal, warnings
import numpy as np
import cdropout as cd
cd.set_num_threads(3)
x, parent = np.ones(1 << 21, np.float32), os.getpid()
mask = cd.Mask(x.shape, 0.3, strides=(5000,))   # takes long: the stream is entered for each element
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # CPython's, since 3.12

def fork(*_):
    global child
    child = os.fork()

signal.signal(signal.SIGALRM, fork)
status = 3
while status == 3:                              # until it was not before the call, nor after it
    child = None
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        mask.apply(x, out=x)
    except RuntimeError as error:
        assert os.getpid() != parent and "the child lacks" in str(error), error
        x = np.ones(1 << 20, np.float32)
        same = (cd.dropout(x, 0.3, rng=1) == cd.Mask(x.size, 0.3, 1).to_scale()).all()
        os._exit(0 if same else 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if child == 0:
        os._exit(3)
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, x.min(), x.max() > 1)
"""


@unix_only
def test_a_fork_in_the_middle_of_a_call():
    """The parent's call goes on; the child's ends with an error: nobody does the others' part."""
    assert run(FORK_WITHIN) == (0, "0 0.0 True", "")


# ---- forks ------------------------------------------------------------------------------------

FORK = """
import os, threading
import numpy as np
import cdropout as cd
cd.set_num_threads(3)
x = np.ones(5 << 20, np.float32)
expected = cd.dropout(x, 0.3, rng=1)  # there are threads from now on
stop = threading.Event()

def keep_calling():
    while not stop.is_set():
        cd.dropout(x, 0.3, rng=2)

threads = [threading.Thread(target=keep_calling) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        same = all((cd.dropout(x, 0.3, rng=1) == expected).all() for _ in range(2))
        os._exit(0 if same and cd.get_num_threads() == 3 else 1)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for thread in threads:
    thread.join()
assert (cd.dropout(x, 0.3, rng=1) == expected).all()
print(statuses)
"""


@unix_only
def test_a_fork_after_and_while_threads_were_used():
    status, out, err = run(FORK)
    assert (status, out) == (0, "[0, 0, 0, 0, 0]"), err


def test_an_interpreter_that_ends_does_not_hang():
    script = (
        "import atexit, numpy as np, cdropout as cd\n"
        "cd.set_num_threads(3)\n"
        "x = np.ones(5 << 20)\n"
        "y = cd.dropout(x, 0.3, rng=1)\n"
        "atexit.register(lambda: print((cd.dropout(x, 0.3, rng=1) == y).all()))\n"
        "cd.set_num_threads(2)\n"
    )
    assert run(script)[:2] == (0, "True")
