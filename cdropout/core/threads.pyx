"""How many threads share a large array, and the small pool of Python threads that they come from."""
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from cpython.exc cimport PyErr_CheckSignals
from libc.limits cimport INT_MAX

pool = None
number = 0


def available():
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(n):
    """Let at most `n` threads share one call, the caller's included.

    Parameters
    ----------
    n : int
        At least 1. The result of a call never depends on it.
    """
    global number
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads has to be an int, but got {type(n).__name__}")
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"the number of threads has to be at least 1, but got {n}")
    number = n
    forget_pool()


def get_num_threads():
    """Return the number of threads that may share one call: CDROPOUT_NUM_THREADS, or the CPUs this process may use."""
    return number


def forget_pool():
    """Make the next call start a new pool: after a fork the child has none of its parent's threads."""
    global pool
    pool = None


class Share:
    """The pieces of one call: each is claimed once, by the caller or by a thread of the pool."""

    def __init__(self, work, pieces):
        self.work = work
        self.todo = list(range(pieces))
        self.busy = 0                  # threads of the pool at work on a piece
        self.error = None              # what went wrong in one of them
        self.idle = threading.Condition()

    def help(self):
        """What a thread of the pool does."""
        while True:
            with self.idle:
                if not self.todo:
                    return
                piece = self.todo.pop()
                self.busy += 1
            try:
                self.work(piece)
            except BaseException as error:
                self.error = error
            finally:
                with self.idle:
                    self.busy -= 1
                    self.idle.notify_all()

    def stop(self):
        """Let nobody claim another piece, and wait for those at work: their memory is the caller's."""
        interrupt = None
        self.todo.clear()
        while True:
            try:
                with self.idle:
                    while self.busy:
                        self.idle.wait()
                break
            except BaseException as error:    # a second Ctrl-C must not leave threads behind that write
                interrupt = error
        if interrupt is not None:
            raise interrupt


def share(work, int pieces, int most=INT_MAX):
    """Call work(0), ..., work(pieces - 1), each once, on at most `most` threads; return when all are done.

    Between its pieces the caller lets signal handlers run; if one raises, no other piece is begun.
    """
    global pool
    cdef int helpers = <int>min(pieces, most, number) - 1
    executor = pool                    # another thread may set `pool` to None at any time
    if executor is None and helpers:
        executor = pool = ThreadPoolExecutor(max(number - 1, 1), thread_name_prefix="cdropout")
    shared = Share(work, pieces)
    try:
        for _helper in range(helpers):
            try:
                executor.submit(shared.help)
            except RuntimeError:       # no thread can be started: the caller does what is left
                break
        while True:
            try:
                piece = shared.todo.pop()
            except IndexError:
                break
            work(piece)
            PyErr_CheckSignals()
    finally:
        shared.stop()
    if shared.error is not None:
        raise shared.error


def from_environment(text):
    if not text:
        return available()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CDROPOUT_NUM_THREADS has to be an int of at least 1, but got {text!r}")
    return int(text)


set_num_threads(from_environment(os.environ.get("CDROPOUT_NUM_THREADS")))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_pool)
