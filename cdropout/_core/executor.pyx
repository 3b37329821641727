"""Executors: the calling thread alone, and a pool of threads.

The pool's threads never call Python. They wait until a gate opens, take chunks of the call that is in the pool until none
is left, and wait again. They use Python's own locks, which every Python has on every system.
"""
import operator
import os
import sys
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc

cdef extern from "pythread.h" nogil:
    ctypedef void* Lock "PyThread_type_lock"
    const unsigned long NOT_STARTED "((unsigned long)-1)"
    unsigned long PyThread_start_new_thread(void (*)(void*) noexcept nogil, void*)
    unsigned long PyThread_get_thread_ident()
    Lock PyThread_allocate_lock()
    int PyThread_acquire_lock(Lock, int)
    void PyThread_release_lock(Lock)

cdef extern from "<time.h>" nogil:
    const int TIME_UTC
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int timespec_get(timespec*, int)

cdef enum:
    WAIT = 1
    PARALLEL_MIN = 1 << 19                  # elements from which waking a second thread pays
    SPINS = 2000                      # before going to sleep: the others need about as long as the caller's last chunk
    SIGNAL_INTERVAL = 20_000_000             # ns between two checks for signals: another thread may hold the GIL for 5 ms each time

cdef struct Pool:
    Lock lock                         # of all that follows
    Lock gate                         # held while there is nothing to do; a thread that gets it takes part
    Lock done                         # held, but when the last thread has left a call for whose end the caller waits
    size_t threads                    # that were started
    bint open                         # the gate is, and nobody has come through yet
    bint taken                        # there is a call in the pool
    bint waiting                      # its caller waits until nobody is busy
    size_t wanted                     # threads that may still come
    size_t busy                       # threads at work on a chunk
    size_t next, chunks
    Work work
    const void* call

cdef Pool* current = NULL
cdef size_t thread_limit = 1                # of threads that may share a call; read and written with the pool's lock held
cdef unsigned long main_thread = 0    # the one in which signals' handlers run


# ---- the number of threads ----------------------------------------------------------------------


def available_cpus():
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(n):
    """Let at most `n` threads share one call, the caller's included.

    Parameters
    ----------
    n : int
        At least 1. The result of a call never depends on it. Calls on PyTorch's tensors are shared by no more threads
        than `torch.set_num_threads` allows either.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads has to be an int, but got {type(n).__name__}")
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"the number of threads has to be at least 1, but got {n}")
    exchange_thread_limit(min(n, sys.maxsize))


def get_num_threads():
    """Return the number of threads that may share one call: CDROPOUT_NUM_THREADS, or the CPUs this process may use."""
    return exchange_thread_limit(0)


cdef size_t exchange_thread_limit(size_t new) noexcept nogil:
    """The number so far; new from now on, unless that is 0."""
    global thread_limit
    cdef size_t old
    if current != NULL:
        PyThread_acquire_lock(current.lock, WAIT)
    old = thread_limit
    if new:
        thread_limit = new
    if current != NULL:
        PyThread_release_lock(current.lock)
    return old


def threads_from_environment(text):
    if not text:
        return available_cpus()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CDROPOUT_NUM_THREADS has to be an int of at least 1, but got {text!r}")
    return int(text)


# ---- the pool's threads -------------------------------------------------------------------------


cdef Pool* new_pool() noexcept:
    """Return a pool without threads, or NULL if there is no memory; then each caller does its work alone."""
    cdef Pool* new = <Pool*>calloc(1, sizeof(Pool))
    if new == NULL:
        return NULL
    new.lock, new.gate, new.done = PyThread_allocate_lock(), PyThread_allocate_lock(), PyThread_allocate_lock()
    if new.lock == NULL or new.gate == NULL or new.done == NULL:
        return NULL
    PyThread_acquire_lock(new.gate, WAIT)
    PyThread_acquire_lock(new.done, WAIT)
    return new


def reset_pool():
    """Make a new pool: at import, and in a forked child, which has none of its parent's threads."""
    global current, main_thread, forked
    forked = current != NULL
    current = new_pool()
    main_thread = threading.main_thread().ident


cdef void open_gate(Pool* pool) noexcept nogil:
    """Let one more thread in, which will let in the next. The lock is held."""
    if pool.wanted and pool.next < pool.chunks and not pool.open:
        pool.open = True
        PyThread_release_lock(pool.gate)


cdef bint run_next_chunk(Pool* pool) noexcept nogil:
    """Do the next chunk, if there is one. The lock is held before and after, but not meanwhile."""
    cdef size_t chunk = pool.next
    if chunk == pool.chunks:
        return False
    pool.next += 1
    pool.busy += 1
    PyThread_release_lock(pool.lock)
    pool.work(pool.call, chunk)
    PyThread_acquire_lock(pool.lock, WAIT)
    pool.busy -= 1
    return True


cdef void run_thread(void* argument) noexcept nogil:
    """The life of a thread."""
    cdef Pool* pool = <Pool*>argument
    while True:
        PyThread_acquire_lock(pool.gate, WAIT)
        PyThread_acquire_lock(pool.lock, WAIT)
        pool.open = False
        if pool.wanted:               # not too late
            pool.wanted -= 1
            open_gate(pool)
            while run_next_chunk(pool):
                continue
            if pool.waiting and pool.busy == 0:
                pool.waiting = False
                PyThread_release_lock(pool.done)
        PyThread_release_lock(pool.lock)


# ---- the caller ---------------------------------------------------------------------------------


cdef bint submit(Pool* pool, Work work, const void* call, size_t chunks, size_t max_threads) noexcept nogil:
    """Put a call into the pool; return False if another call is in it (its threads are busy), or one thread is enough."""
    cdef size_t helpers
    if pool == NULL or min(chunks, max_threads) < 2:
        return False
    PyThread_acquire_lock(pool.lock, WAIT)
    helpers = min(thread_limit, max_threads, chunks) - 1
    if pool.taken or helpers == 0:
        PyThread_release_lock(pool.lock)
        return False
    while pool.threads < helpers and PyThread_start_new_thread(run_thread, pool) != NOT_STARTED:
        pool.threads += 1             # where none can be started, the others do what is left
    pool.taken = True
    pool.work, pool.call, pool.next, pool.chunks, pool.wanted = work, call, 0, chunks, helpers
    open_gate(pool)
    PyThread_release_lock(pool.lock)
    return True


cdef void finish(Pool* pool) noexcept nogil:
    """Let no thread begin another chunk, and wait for those at work, since they use the caller's memory."""
    cdef int _spin
    PyThread_acquire_lock(pool.lock, WAIT)
    pool.wanted = 0
    pool.chunks = pool.next
    if pool.busy:
        pool.waiting = True
        PyThread_release_lock(pool.lock)
        for _spin in range(SPINS):
            if PyThread_acquire_lock(pool.done, 0):
                break
        else:
            PyThread_acquire_lock(pool.done, WAIT)
        PyThread_acquire_lock(pool.lock, WAIT)
    pool.taken = False
    PyThread_release_lock(pool.lock)


cdef int run_chunks(Pool* pool, bint checks_signals) except -1 nogil:
    cdef int64_t last = 0
    cdef bint more = True
    while more:
        PyThread_acquire_lock(pool.lock, WAIT)
        more = run_next_chunk(pool)
        PyThread_release_lock(pool.lock)
        if checks_signals:
            check_signals(&last)
            if current != pool:
                with gil:
                    raise RuntimeError(
                        "a signal's handler has forked within a call on several threads, which the child lacks"
                    )
    return 0


cdef int run_serially(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute a call on the calling thread, one chunk after the other."""
    cdef int64_t last = 0
    cdef size_t chunk
    for chunk in range(chunks):
        work(call, chunk)
        if checks_signals:
            check_signals(&last)
    return 0


cdef int run_in_pool(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute a call on at most max_threads threads, and on no more than `set_num_threads` allows.

    If a signal's handler raises, some chunks are not done.
    """
    cdef Pool* pool = current
    if not submit(pool, work, call, chunks, max_threads):
        return run_serially(work, call, chunks, 1, checks_signals)
    try:
        return run_chunks(pool, checks_signals)
    finally:
        if current == pool:
            finish(pool)


cdef int check_signals(int64_t* last) except -1 nogil:
    """Let signals' handlers run if the last check was long ago; -1 if one raised. `last` is 0 at the beginning."""
    cdef timespec time
    cdef int64_t now
    if PyThread_get_thread_ident() != main_thread:
        return 0
    timespec_get(&time, TIME_UTC)
    now = time.tv_sec * 1_000_000_000 + time.tv_nsec
    if last[0] == 0:
        last[0] = now
    elif not 0 <= now - last[0] < SIGNAL_INTERVAL:
        last[0] = now
        with gil:
            PyErr_CheckSignals()
    return 0


cdef Executor POOL = Executor(run_in_pool, PARALLEL_MIN, True)
cdef Executor UNINTERRUPTIBLE = Executor(run_in_pool, PARALLEL_MIN, False)
pool = &POOL
uninterruptible_pool = &UNINTERRUPTIBLE
reset_pool()
set_num_threads(threads_from_environment(os.environ.get("CDROPOUT_NUM_THREADS")))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reset_pool)
