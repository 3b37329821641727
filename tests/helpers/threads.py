"""Run a function in several threads, and count the threads that a call starts."""

import os
import sys
import threading


def run_in_threads(count, function):
    """Call function(0), ..., function(count - 1), each in its own thread; return the results.

    The interpreter switches between the threads as often as possible. An exception in a thread
    is raised again in the caller.
    """
    results, errors, barrier = [None] * count, [], threading.Barrier(count)

    def target(i):
        barrier.wait()
        try:
            results[i] = function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=target, args=(i,), daemon=True) for i in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads), "the threads are deadlocked"
    if errors:
        raise errors[0]
    return results


def count_started_threads(call):
    """Return how many threads the call starts in this process and leaves running; needs Linux."""
    before = len(os.listdir("/proc/self/task"))
    call()
    return len(os.listdir("/proc/self/task")) - before
