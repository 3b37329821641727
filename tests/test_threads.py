"""Tests of what calls share: threads, forked processes, memory and reference counts."""

import gc
import itertools
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import cdropout as cd

import reference

SHARED = 1 << 22  # elements from which a call is shared among threads; a test below checks it
SEED = 31
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no forks and limits")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    number = cd.get_num_threads()
    yield
    cd.set_num_threads(number)


def run(script, **variables):
    """Return (exit status, standard output, standard error) of a Python that runs the script."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True, text=True, env={**os.environ, **variables}, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def numbers(n, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(n).astype(dtype)


# ---- the number of threads --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
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


def test_where_sharing_begins():
    script = "import threading, numpy as np, cdropout as cd; cd.set_num_threads(2)"
    for n in (SHARED - 1, SHARED):
        script += f"; cd.dropout(np.zeros({n}, np.float16)); print(threading.active_count())"
    assert run(script)[:2] == (0, "1\n2")


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


@pytest.mark.parametrize("text", ["1", "3"])
def test_the_environment_sets_it(text):
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS=text)[:2] == (0, text)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say")
def test_otherwise_it_is_the_cpus_that_may_be_used():
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS="")[:2] == (0, str(len(os.sched_getaffinity(0))))
    one = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
    assert run(one + script, CDROPOUT_NUM_THREADS="")[:2] == (0, "1")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " 2"])
def test_the_environment_is_checked(text):
    status, _, err = run("import cdropout", CDROPOUT_NUM_THREADS=text)
    words = f"ValueError: CDROPOUT_NUM_THREADS has to be an int of at least 1, but got {text!r}"
    assert status == 1 and err.endswith(words)


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
            for _ in range(30 if i else 0):
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


@pytest.fixture
def late_threads(monkeypatch):
    """Return an event: threads that start from now on begin at it, or after half a second."""
    gate, begin = threading.Event(), threading.Thread.run
    monkeypatch.setattr(threading.Thread, "run", lambda self: (gate.wait(), begin(self)))
    timer = threading.Timer(0.5, gate.set)  # has a run of its own
    cd.set_num_threads(3)  # new threads for the next call
    timer.start()
    yield gate
    gate.set()
    timer.join()


def test_a_thread_that_cannot_be_started_is_done_without(monkeypatch, late_threads):
    start, started = threading.Thread.start, []

    def start_one(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    x = numbers(SHARED)
    expected = reference.dropout(x, 0.3, SEED, 0)
    cd.dropout(x, 0.3, inplace=True, rng=SEED)
    cd.dropout(numbers(SHARED), 0.3)  # whatever the first call left undone is done by now
    np.testing.assert_array_equal(x, expected)


@unix_only
def test_nothing_is_written_after_an_interrupted_call(late_threads):
    x, y = numbers(SHARED), np.zeros(SHARED, np.float32)
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        cd.dropout(x, 0.3, out=y)
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    y[:] = 7
    late_threads.set()
    for _ in range(3):  # whatever the first call left undone is done by now
        cd.dropout(x, 0.3)
    assert (y == 7).all()


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


# ---- memory -----------------------------------------------------------------------------------

LIMIT = """
import resource
import numpy as np
import cdropout as cd
huge = np.broadcast_to(np.float32(1), (1 << 15, 1 << 15))     # 4 GiB, were they not all the same
fortran = np.ones((4096, 4096), np.float32, order="F")
small, bits = np.ones(1000, np.float32), np.zeros(1 << 21, np.uint8)
generator, module, failed = cd.Generator(1), cd.Dropout(rng=2), 0
module(small)
mask = cd.Mask(huge.shape, 0.5)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
limit = used + (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
for call in [
    lambda: cd.dropout(huge, rng=generator),
    lambda: cd.dropout(huge, rng=generator, broadcast_dims=0),
    lambda: cd.dropout(huge, 1, rng=generator),
    lambda: cd.dropout_backward(huge, mask),
    lambda: cd.dropout_backward(huge, np.broadcast_to(np.True_, huge.shape), p=0.5),
    lambda: cd.dropout_backward(fortran, bits, True, p=0.5),
    lambda: module(huge),
    lambda: mask.apply(huge),
    lambda: mask.bits(),
    lambda: mask.scale(),
    lambda: mask[::2].bits(),
    lambda: np.asarray(mask),
]:
    try:
        call()
    except MemoryError:
        failed += 1
assert failed == 12, failed
assert generator.calls == 0 and module.mask == cd.Mask(1000, 0.5, 2)
assert fortran.min() == 1, "in place, but there was no room for the bits"
y, drawn = cd.dropout(small, rng=generator, return_mask=True)
assert drawn == cd.Mask(1000, 0.5, 1) and (y == drawn.scale()).all()
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_too_little_memory_changes_nothing():
    status, out, err = run(LIMIT, CDROPOUT_NUM_THREADS="1")
    assert (status, out) == (0, "done"), err


def calls_of_all_kinds(x, out, generator, mask, numpy_rng, bools, bits, scale, frozen):
    """Return calls that work and 12 calls that do not."""
    module = cd.Dropout(rng=1)
    module(x)
    return [
        lambda: cd.dropout(x, 0.5, rng=generator, return_mask=True),
        lambda: cd.dropout(x, 0, rng=generator),
        lambda: cd.dropout(x, rng=generator, out=out, broadcast_dims=0),
        lambda: cd.dropout(x, rng=numpy_rng),
        lambda: [cd.dropout_backward(x, m, p=0.5, out=out) for m in (mask, bools, bits, scale)],
        lambda: cd.dropout(memoryview(x), mask=mask),
        lambda: (mask[::2, 1], mask.apply(x), mask.apply(x, out), hash(mask), repr(mask)),
        lambda: (module(x), module.backward(x), generator.spawn(2), generator.state),
        lambda: cd.dropout(x, 1.5, rng=generator),
        lambda: cd.dropout(x, "0.5", rng=generator),
        lambda: cd.dropout([x], rng=generator),
        lambda: cd.dropout(x, rng="seed"),
        lambda: cd.dropout(x, rng=generator, out=out[1:]),
        lambda: cd.dropout(x, rng=generator, out=x[::-1]),
        lambda: cd.dropout(frozen, rng=generator, inplace=True),
        lambda: cd.dropout(x, rng=generator, broadcast_dims=(0, 0)),
        lambda: cd.dropout_backward(x, bools),
        lambda: cd.dropout_backward(x.T, mask),
        lambda: mask[5, 5, 5],
        lambda: module(x.astype(int)),
    ]


def make_all(calls, times):
    """Make all calls so often; return how many failed."""
    failed = 0
    for _ in range(times):
        for call in calls:
            try:
                call()
            except (TypeError, ValueError, IndexError):
                failed += 1
    return failed


def test_nothing_leaks():
    x, mask = np.ones((8, 20), np.float32), cd.Mask((8, 20), 0.5)
    held = [x, x.copy(), cd.Generator(1), mask, np.random.default_rng(1)]
    held += [np.asarray(mask), mask.bits(), mask.scale(), x.copy()]
    held[-1].flags.writeable = False
    calls = calls_of_all_kinds(*held)
    held.append(x.dtype)
    assert make_all(calls, 20) == 20 * 12
    gc.collect()
    before = [sys.getrefcount(thing) for thing in held]
    tracemalloc.start()
    try:
        make_all(calls, 10)
        gc.collect()
        first = tracemalloc.get_traced_memory()[0]
        make_all(calls, 1000)  # 10**4 calls and more
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - first
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(thing) for thing in held] == before
    assert grown < 20_000  # bytes; one small object in one of the calls would be 1000 times 24
