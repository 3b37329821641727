"""Executors: operations are split into work chunks, which threads share, and end between two chunks by a signal."""
from libc.stdint cimport int64_t

ctypedef void (*Work)(const void* call, size_t chunk) noexcept nogil

ctypedef int (*Run)(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil

cdef struct Executor:
    Run run                           # work(call, i) for each i < chunks; -1 if a signal's handler raised
    size_t parallel_min               # elements from which a second thread saves more time than it costs
    bint checks_signals              # whether signals' handlers may run between two chunks

cdef Executor* pool                   # the threads of this package
cdef Executor* uninterruptible_pool   # the same, for callers that cannot pass on what a signal's handler raises
cdef bint forked                      # this process has none of the threads that were there at the import


cdef inline size_t threads_for(const Executor* executor, size_t n, size_t max_threads) noexcept nogil:
    """Return how many threads may share an operation on n elements."""
    return max_threads if n >= executor.parallel_min else 1


cdef int run_serially(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil
cdef int run_in_pool(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil
cdef size_t exchange_thread_limit(size_t new) noexcept nogil
cdef int check_signals(int64_t* last) except -1 nogil
