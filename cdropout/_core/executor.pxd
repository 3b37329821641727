"""Executors run the work chunks of an operation on one or more threads. Some check for signals between two chunks."""
from libc.stdint cimport int64_t

ctypedef void (*Work)(const void* context, size_t chunk) noexcept nogil

ctypedef int (*Run)(
    Work work, const void* context, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil

cdef struct Executor:
    Run run                           # calls work(context, i) for i < chunks; returns -1 if an exception was raised
    size_t parallel_min               # number of elements from which a second thread saves time
    bint checks_signals               # whether signal handlers may run between two chunks

cdef Executor* pool                   # runs chunks on the threads of this package
cdef Executor* uninterruptible_pool   # uses the same threads, for callers that cannot propagate Python exceptions
cdef bint forked                      # whether this process was forked after the import and thus lacks its parent's threads


cdef inline size_t threads_for(const Executor* executor, size_t n, size_t max_threads) noexcept nogil:
    """Return the maximum number of threads for an operation on n elements."""
    return max_threads if n >= executor.parallel_min else 1


cdef int run_serially(
    Work work, const void* context, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil
cdef int run_in_pool(
    Work work, const void* context, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil
cdef size_t exchange_thread_limit(size_t new) noexcept nogil
cdef int check_signals(int64_t* last) except -1 nogil
