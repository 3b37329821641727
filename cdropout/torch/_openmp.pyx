"""The executor that uses PyTorch's own OpenMP threads.

PyTorch's threads remain active for a while after each operation. The threads of this package would have to be woken, and
would compete with PyTorch's threads for the CPUs. If PyTorch's OpenMP library does not have the interface of GNU OpenMP, the
pool of this package is used.
"""
import ctypes
import os
import sys
from pathlib import Path

from libc.stdint cimport int64_t, uintptr_t

import torch

from cdropout._core.executor cimport Executor, Work, check_signals, exchange_thread_limit, forked, pool, run_serially

cdef enum:
    MIN_PARALLEL_SIZE = 1 << 17       # elements; with fewer, a second thread takes more time than it saves
    CHUNKS_PER_CHECK = 16             # number of work chunks per thread between two checks for signals

cdef struct ChunkRange:               # the work chunks between two checks for signals
    Work work
    const void* call
    size_t first, end
    size_t team_size                  # number of threads that execute the chunks

ctypedef int (*Count)() noexcept nogil
ctypedef void (*Parallel)(void (*)(void*) noexcept nogil, void*, unsigned int, unsigned int) noexcept nogil


def find_functions(*names):
    """Return the addresses of the functions with these names in PyTorch or its dependencies, or zeros if one is missing."""
    library = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    path = Path(torch.__file__).parent / "lib" / library
    # On Linux, symbols of the whole process take precedence over those of PyTorch's dependencies
    paths = [path] if sys.platform in ("win32", "darwin") else [None, path]
    for library in [ctypes.CDLL(path and os.fspath(path)) for path in paths if path is None or path.exists()]:
        if all(hasattr(library, name) for name in names):
            return [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
    return [0] * len(names)


function_addresses = [0, 0, 0]        # on Windows, or if PyTorch does not use OpenMP
if os.name == "posix" and "backend: OpenMP" in torch.__config__.parallel_info():
    function_addresses = find_functions("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
cdef Parallel parallel = <Parallel><uintptr_t>function_addresses[0]
cdef Count thread_num = <Count><uintptr_t>function_addresses[1]
cdef Count num_threads = <Count><uintptr_t>function_addresses[2]


cdef void run_thread(void* range_) noexcept nogil:
    """Execute the work chunks of this thread. The chunks are adjacent, as in PyTorch's own operations."""
    cdef ChunkRange chunks = (<ChunkRange*>range_)[0]
    cdef size_t team_size = min(<size_t>num_threads(), chunks.team_size)
    cdef size_t thread = thread_num()
    cdef size_t n = chunks.end - chunks.first
    cdef size_t i
    if thread < team_size:
        for i in range(n * thread // team_size, n * (thread + 1) // team_size):
            chunks.work(chunks.call, chunks.first + i)


cdef int run_in_openmp(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute all work chunks on at most max_threads of PyTorch's threads, up to the limit of `cdropout.set_num_threads`."""
    cdef size_t team_size = min(exchange_thread_limit(0), max_threads, chunks)
    cdef ChunkRange range_ = ChunkRange(work, call, 0, 0, team_size)
    cdef int64_t last = 0
    if team_size < 2:
        return run_serially(work, call, chunks, 1, checks_signals)
    while range_.end < chunks:
        range_.first = range_.end
        range_.end = min(range_.first + CHUNKS_PER_CHECK * team_size, chunks) if checks_signals else chunks
        if forked:                    # a signal handler forked this process during the call
            run_thread(&range_)       # executes all chunks: outside of a parallel region, OpenMP reports one thread
        else:
            # 0 requests all threads. If a smaller team were requested, GNU OpenMP would end the other threads.
            parallel(run_thread, &range_, 0, 0)
        if checks_signals:
            check_signals(&last)
    return 0


cdef Executor OPENMP = Executor(run_in_openmp, MIN_PARALLEL_SIZE, True)


cdef const Executor* executor_of_pytorch() noexcept nogil:
    """Return the executor of PyTorch's threads, or the pool if OpenMP is not found or would hang in a forked child."""
    return pool if parallel == NULL or forked else &OPENMP
