"""The executor of PyTorch's own OpenMP threads.

Between PyTorch's operations these threads stay awake for a while. Other threads would have to be woken, and would compete
with them for the CPUs. Where PyTorch's OpenMP is not found (GNU's, or LLVM's by GNU's names), the pool is used.
"""
import ctypes
import os
import sys
from pathlib import Path

from libc.stdint cimport int64_t, uintptr_t

import torch

from cdropout._core.executor cimport Executor, Work, check_signals, exchange_thread_limit, forked, pool, run_serially

cdef enum:
    AWAKE = 1 << 17                   # elements from which a second thread pays that need not be woken
    TURN = 16                         # chunks that each thread does between two checks for signals

cdef struct Turn:
    Work work
    const void* call
    size_t first, end                 # of the chunks
    size_t team                       # threads

ctypedef int (*Count)() noexcept nogil
ctypedef void (*Parallel)(void (*)(void*) noexcept nogil, void*, unsigned int, unsigned int) noexcept nogil


def addresses(*names):
    """Return the addresses of the functions that PyTorch's library calls by these names; 0 for each if it uses no OpenMP."""
    functions = []
    if os.name == "posix" and "backend: OpenMP" in torch.__config__.parallel_info():
        folder = Path(torch.__file__).parent / "lib"
        # as the library's own names are looked up: on Linux first among those that the whole process shares
        places = [folder / "libtorch_cpu.dylib"] if sys.platform == "darwin" else [None, folder / "libtorch_cpu.so"]
        for library in [ctypes.CDLL(place) for place in places if place is None or place.exists()]:
            functions = functions or [getattr(library, name) for name in names if hasattr(library, name)]
    if len(functions) < len(names):
        return [0] * len(names)
    return [ctypes.cast(function, ctypes.c_void_p).value for function in functions]


found = addresses("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
cdef Parallel parallel = <Parallel><uintptr_t>found[0]
cdef Count thread_num = <Count><uintptr_t>found[1]
cdef Count num_threads = <Count><uintptr_t>found[2]


cdef void run_chunks(void* turn) noexcept nogil:
    """Do the chunks of one thread of a team, which are adjacent, as in PyTorch's own operations."""
    cdef Turn all = (<Turn*>turn)[0]
    cdef size_t team = min(<size_t>num_threads(), all.team)
    cdef size_t me = thread_num()
    cdef size_t n = all.end - all.first
    cdef size_t i
    if me < team:
        for i in range(n * me // team, n * (me + 1) // team):
            all.work(all.call, all.first + i)


cdef int run_by_openmp(
    Work work, const void* call, size_t chunks, size_t max_threads, bint checks_signals
) except -1 nogil:
    """Execute a call on at most max_threads of PyTorch's threads, and on no more than `set_num_threads` allows."""
    cdef size_t team = min(exchange_thread_limit(0), max_threads, chunks)
    cdef Turn turn = Turn(work, call, 0, 0, team)
    cdef int64_t last = 0
    if team < 2:
        return run_serially(work, call, chunks, 1, checks_signals)
    while turn.end < chunks:
        turn.first = turn.end
        turn.end = min(turn.first + TURN * team, chunks) if checks_signals else chunks
        if forked:                    # by a signal's handler
            run_chunks(&turn)          # outside of any team: one of one
        else:
            parallel(run_chunks, &turn, 0, 0)    # all of its threads: GNU's ends those that a smaller team leaves over
        if checks_signals:
            check_signals(&last)
    return 0


cdef Executor OPENMP = Executor(run_by_openmp, AWAKE, True)


cdef const Executor* executor_of_pytorch() noexcept nogil:
    """Return PyTorch's threads, or the pool: GNU's OpenMP would wait for threads that a forked child lacks."""
    return pool if parallel == NULL or forked else &OPENMP
