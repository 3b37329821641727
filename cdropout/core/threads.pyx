"""How many threads share a large array, and the small pool of Python threads that they come from."""
import os
from concurrent.futures import ThreadPoolExecutor

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
    if n < 1:
        raise ValueError(f"the number of threads has to be at least 1, but got {n}")
    number = int(n)
    forget_pool()


def get_num_threads():
    """Return the number of threads that may share one call: CDROPOUT_NUM_THREADS, or the CPUs this process may use."""
    return number


def forget_pool():
    """Make the next call start a new pool: after a fork the child has none of its parent's threads."""
    global pool
    pool = None


def share(work, int pieces):
    """Call work(0), ..., work(pieces - 1), each once, on as many threads; return when all are done."""
    global pool
    if pool is None:
        pool = ThreadPoolExecutor(max(number - 1, 1), thread_name_prefix="cdropout")
    others = []
    for piece in range(1, pieces):
        try:
            others.append(pool.submit(work, piece))
        except RuntimeError:           # the interpreter is on its way out and starts no more threads
            work(piece)
    work(0)
    for other in others:
        other.result()


def from_environment(text):
    if not text:
        return available()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CDROPOUT_NUM_THREADS has to be an int of at least 1, but got {text!r}")
    return int(text)


set_num_threads(from_environment(os.environ.get("CDROPOUT_NUM_THREADS")))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_pool)
