"""Executors: the calling thread alone, and a pool of threads.

The threads of the pool never call Python. They wait until a gate opens, execute chunks of the current job until all
chunks have begun, and wait again. The pool uses CPython's locks, which exist on every platform.
"""
import os
import sys
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc

from cdropout._core.arguments cimport as_index

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
    PARALLEL_MIN = 1 << 19            # number of elements from which a second thread saves more time than its start takes
    SPINS = 2000                      # attempts to acquire a lock before sleeping; the other threads usually finish soon
    SIGNAL_INTERVAL = 20_000_000      # ns between two checks for signals; a check may wait 5 ms for the GIL

cdef struct Pool:
    Lock lock                         # protects all fields below
    Lock gate                         # a thread that acquires the gate joins the job; the gate is held while none is needed
    Lock done                         # released when the last busy thread finishes while the caller waits
    size_t threads                    # number of started threads
    bint open                         # whether the gate was released and no thread has acquired it yet
    bint occupied                     # whether the pool has a job
    bint waiting                      # whether the caller waits until no thread is busy
    size_t wanted                     # number of threads that may still join the job
    size_t busy                       # number of threads that are executing a chunk
    size_t next, chunks               # the next chunk, and the number of chunks
    Work work
    const void* context

cdef Pool* current = NULL
cdef size_t thread_limit = 1          # maximum number of threads per job, including the caller; protected by the pool's lock
cdef unsigned long main_thread = 0    # identifier of the thread in which Python runs signal handlers


# ---- the number of threads ----------------------------------------------------------------------


def available_cpus():
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(n):
    """Set the maximum number of threads of a call, including the thread that makes the call.

    Parameters
    ----------
    n : int
        The number of threads, at least 1. The result of a call never depends on this number.

    Raises
    ------
    TypeError
        If n is not an int.
    ValueError
        If n is less than 1.

    See Also
    --------
    get_num_threads

    Notes
    -----
    Calls on PyTorch tensors also respect the limit of `torch.set_num_threads`.

    Examples
    --------
    >>> import cdropout
    >>> before = cdropout.get_num_threads()
    >>> cdropout.set_num_threads(1)
    >>> cdropout.get_num_threads()
    1
    >>> cdropout.set_num_threads(before)
    """
    n = as_index(n, "the number of threads")
    if n < 1:
        raise ValueError(f"the number of threads has to be at least 1, but got {n}")
    exchange_thread_limit(min(n, sys.maxsize))


def get_num_threads():
    """Return the maximum number of threads of a call, including the thread that makes the call.

    Returns
    -------
    int
        The number that was given to `set_num_threads`. Before the first call of `set_num_threads`, it is the value
        of the environment variable CDROPOUT_NUM_THREADS or, if this variable is not set or empty, the number of CPUs
        that this process may use.

    See Also
    --------
    set_num_threads

    Examples
    --------
    >>> import cdropout
    >>> cdropout.get_num_threads() >= 1
    True
    """
    return exchange_thread_limit(0)


cdef size_t exchange_thread_limit(size_t new) noexcept nogil:
    """Return the current thread limit, and replace the limit by `new` unless `new` is 0."""
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
    """Return `text`, the value of CDROPOUT_NUM_THREADS, as an int, or the number of CPUs if it is None or empty."""
    if not text:
        return available_cpus()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CDROPOUT_NUM_THREADS has to be an int of at least 1, but got {text!r}")
    return int(text)


# ---- the threads of the pool --------------------------------------------------------------------


cdef Pool* new_pool() noexcept:
    """Return a pool without threads, or NULL if an allocation fails. Without a pool, callers execute all chunks."""
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
    """Create a new pool.

    This function is called at import, and in each forked child process, because the threads of the parent process do not
    exist there.
    """
    global current, main_thread, forked
    forked = current != NULL
    current = new_pool()
    main_thread = threading.main_thread().ident


cdef void open_gate(Pool* pool) noexcept nogil:
    """Let one more thread join the job if more threads are wanted and a chunk is left. The caller must hold the lock."""
    if pool.wanted and pool.next < pool.chunks and not pool.open:
        pool.open = True
        PyThread_release_lock(pool.gate)


cdef bint run_next_chunk(Pool* pool) noexcept nogil:
    """Execute the next chunk and return True, or return False if all chunks have begun.

    The caller must hold the lock. The lock is released while the chunk is executed.
    """
    cdef size_t chunk = pool.next
    if chunk == pool.chunks:
        return False
    pool.next += 1
    pool.busy += 1
    PyThread_release_lock(pool.lock)
    pool.work(pool.context, chunk)
    PyThread_acquire_lock(pool.lock, WAIT)
    pool.busy -= 1
    return True


cdef void run_thread(void* argument) noexcept nogil:
    """Join one job after another. This function never returns."""
    cdef Pool* pool = <Pool*>argument
    while True:
        PyThread_acquire_lock(pool.gate, WAIT)
        PyThread_acquire_lock(pool.lock, WAIT)
        pool.open = False
        if pool.wanted:               # if no thread is wanted, the job has ended
            pool.wanted -= 1
            open_gate(pool)
            while run_next_chunk(pool):
                continue
            if pool.waiting and pool.busy == 0:
                pool.waiting = False
                PyThread_release_lock(pool.done)
        PyThread_release_lock(pool.lock)


# ---- jobs ---------------------------------------------------------------------------------------


cdef bint submit(Pool* pool, Work work, const void* context, size_t chunks, size_t max_threads) noexcept nogil:
    """Give a job to the pool and return True. Return False if the pool is NULL, is occupied, or would add no thread."""
    cdef size_t helpers
    if pool == NULL or min(chunks, max_threads) < 2:
        return False
    PyThread_acquire_lock(pool.lock, WAIT)
    helpers = min(thread_limit, max_threads, chunks) - 1
    if pool.occupied or helpers == 0:
        PyThread_release_lock(pool.lock)
        return False
    while pool.threads < helpers and PyThread_start_new_thread(run_thread, pool) != NOT_STARTED:
        pool.threads += 1             # if a thread cannot be started, the other threads execute all chunks
    pool.occupied = True
    pool.work, pool.context, pool.next, pool.chunks, pool.wanted = work, context, 0, chunks, helpers
    open_gate(pool)
    PyThread_release_lock(pool.lock)
    return True


cdef void finish(Pool* pool) noexcept nogil:
    """End the job, so that no further chunk begins. Wait for the busy threads, because they use the caller's memory."""
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
    pool.occupied = False
    PyThread_release_lock(pool.lock)


cdef int run_chunks(Pool* pool, bint checks_signals) except -1 nogil:
    """Execute chunks of the submitted job until all chunks have begun."""
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
                        "a signal handler forked during a call on several threads, which the child process lacks"
                    )
    return 0


cdef int run_serially(
    Work work, const void* context, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute all chunks in order on the calling thread."""
    cdef int64_t last = 0
    cdef size_t chunk
    for chunk in range(chunks):
        work(context, chunk)
        if checks_signals:
            check_signals(&last)
    return 0


cdef int run_in_pool(
    Work work, const void* context, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute all chunks on at most max_threads threads, within the limit of `set_num_threads`.

    If a signal handler raises an exception, the remaining chunks are not executed.
    """
    cdef Pool* pool = current
    if not submit(pool, work, context, chunks, max_threads):
        return run_serially(work, context, chunks, 1, checks_signals)
    try:
        return run_chunks(pool, checks_signals)
    finally:
        if current == pool:
            finish(pool)


cdef int check_signals(int64_t* last) except -1 nogil:
    """On the main thread, run pending signal handlers if SIGNAL_INTERVAL has passed since the time `last`.

    `last` must be 0 before the first call, which runs no handlers. The first call and each check for signals set `last`
    to the current time. Return 0, or -1 if a handler raised an exception.
    """
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
