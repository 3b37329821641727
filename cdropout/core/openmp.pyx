"""Calls on tensors, shared among PyTorch's own threads.

Between PyTorch's operations these stay awake for a while: other threads would have to be woken, and to fight them for the
CPUs. Where its OpenMP is not found (GNU's, or LLVM's by GNU's names), the pool does the work.
"""
import ctypes
import os
import sys
from pathlib import Path

from libc.stdint cimport int64_t, uintptr_t

import torch

from cdropout.core.pieces cimport sharers
from cdropout.core.threads cimport Work, answer_signals, exchange_number, forked, share

cdef enum:
    AWAKE = 1 << 17                   # elements from which a second thread pays that need not be woken
    TURN = 16                         # pieces that each thread does between two looks for signals

cdef struct Turn:
    Work work
    const void* call
    size_t first, end                 # of the pieces
    size_t most                       # threads

ctypedef int (*Count)() noexcept nogil
ctypedef void (*Parallel)(void (*)(void*) noexcept nogil, void*, unsigned int, unsigned int) noexcept nogil


def addresses(*names):
    """Where the functions lie that PyTorch's library calls by these names; 0 for each if it uses no OpenMP."""
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


cdef void take_part(void* turn) noexcept nogil:
    """The pieces of one thread of a team: in a row, as PyTorch gives out parts of tensors."""
    cdef Turn all = (<Turn*>turn)[0]
    cdef size_t team = min(<size_t>num_threads(), all.most)
    cdef size_t me = thread_num()
    cdef size_t n = all.end - all.first
    cdef size_t i
    if me < team:
        for i in range(n * me // team, n * (me + 1) // team):
            all.work(all.call, all.first + i)


cdef size_t sharers_by_openmp(size_t n):
    """How many threads may share a call on n elements: no more than PyTorch allows."""
    if parallel == NULL or forked:    # GNU's OpenMP would wait for threads that a forked child lacks
        return min(sharers(n), <size_t>torch.get_num_threads())
    return torch.get_num_threads() if n >= AWAKE else 1


cdef int share_by_openmp(Work work, const void* call, size_t pieces, size_t most) except -1 nogil:
    """`share` on PyTorch's threads."""
    cdef size_t team = min(exchange_number(0), most, pieces)
    cdef Turn turn = Turn(work, call, 0, 0, team)
    cdef int64_t looked = 0
    if parallel == NULL or forked or team < 2:
        return share(work, call, pieces, most)
    while turn.end < pieces:
        turn.first = turn.end
        turn.end = min(turn.first + TURN * team, pieces)
        if forked:                    # by a signal's handler
            take_part(&turn)          # outside of any team: one of one
        else:
            parallel(take_part, &turn, 0, 0)    # all of its threads: GNU's ends those that a smaller team leaves over
        answer_signals(&looked)
    return 0
