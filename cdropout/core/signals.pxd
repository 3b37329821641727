"""Signals in a long call: their Python handlers run now and then, and may end it by raising, as Ctrl-C does."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

cdef extern from "<time.h>" nogil:
    const int TIME_UTC
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int timespec_get(timespec*, int)

cdef enum:
    PATIENCE = 20_000_000             # ns between two looks: another thread may hold the GIL for 5 ms each time


cdef inline int answer_signals(int64_t* last) except -1 nogil:
    """Let handlers run if the last look is long ago; -1 if one raised. `last` is the caller's, 0 at the beginning."""
    cdef timespec time
    cdef int64_t now
    timespec_get(&time, TIME_UTC)
    now = time.tv_sec * 1_000_000_000 + time.tv_nsec
    if last[0] == 0:
        last[0] = now
    elif not 0 <= now - last[0] < PATIENCE:
        last[0] = now
        with gil:
            PyErr_CheckSignals()
    return 0
