"""Calls on tensors, shared among PyTorch's own threads.

Between PyTorch's operations these stay awake for a while: other threads would have to be woken, and to fight them for the
CPUs. Where its OpenMP is not found (GNU's, or LLVM's by GNU's names), the pool does the work.
"""
import ctypes
import os
from pathlib import Path

from libc.stdint cimport int64_t, uintptr_t

import torch

from cdropout.core.pieces cimport sharers
from cdropout.core.threads cimport Work, answer_signals, exchange_number, share

cdef enum:
    AWAKE = 1 << 17                   # elements from which a second thread pays that need not be woken
    TURN = 64                         # pieces that each thread does between two looks for signals

cdef struct Turn:
    Work work
    const void* call
    size_t first, end                 # of the pieces

ctypedef int (*Count)() noexcept nogil
ctypedef void (*Parallel)(void (*)(void*) noexcept nogil, void*, unsigned int, unsigned int) noexcept nogil


def addresses(*names):
    """Where the functions lie that PyTorch's library calls by these names; 0 for each if it uses no OpenMP."""
    if os.name == "posix" and "backend: OpenMP" in torch.__config__.parallel_info():
        library = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"), None)
        for scope in (None, library):             # all that the process shares comes first, as for the library itself
            functions = [getattr(ctypes.CDLL(scope), name, None) for name in names]
            if None not in functions:
                return [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    return [0] * len(names)


found = addresses("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
cdef Parallel parallel = <Parallel><uintptr_t>found[0]
cdef Count thread_num = <Count><uintptr_t>found[1]
cdef Count num_threads = <Count><uintptr_t>found[2]
cdef bint alone = False               # a forked child has none of its parent's threads, and GNU's OpenMP would wait for them


def be_alone():
    global alone
    alone = True


cdef void take_part(void* turn) noexcept nogil:
    """The pieces of one thread of a team: in a row, so that it does the same ones of the next operation."""
    cdef Turn all = (<Turn*>turn)[0]
    cdef size_t n = all.end - all.first
    cdef size_t team = num_threads()
    cdef size_t me = thread_num()
    cdef size_t i
    for i in range(n * me // team, n * (me + 1) // team):
        all.work(all.call, all.first + i)


cdef size_t sharers_by_openmp(size_t n):
    """How many threads may share a call on n elements: no more than PyTorch allows."""
    if parallel == NULL or alone:
        return min(sharers(n), <size_t>torch.get_num_threads())
    return torch.get_num_threads() if n >= AWAKE else 1


cdef int share_by_openmp(Work work, const void* call, size_t pieces, size_t most) except -1 nogil:
    """`share` on PyTorch's threads."""
    cdef size_t team = min(exchange_number(0), most, pieces)
    cdef Turn turn = Turn(work, call, 0, 0)
    cdef int64_t looked = 0
    if parallel == NULL or alone or team < 2:
        return share(work, call, pieces, most)
    while turn.end < pieces:
        turn.first = turn.end
        turn.end = min(turn.first + TURN * team, pieces)
        if alone:                     # a signal's handler has forked
            take_part(&turn)          # outside of any team: one of one
        else:
            parallel(take_part, &turn, team, 0)
        answer_signals(&looked)
    return 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=be_alone)
