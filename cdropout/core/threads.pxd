"""Calls that are cut into pieces: shared among threads, and ended between two pieces by a signal."""
from libc.stdint cimport int64_t

ctypedef void (*Work)(const void* call, size_t piece) noexcept nogil

ctypedef int (*Share)(Work work, const void* call, size_t pieces, size_t most) except -1 nogil

cdef bint forked                      # this process has none of the threads that were there at the import

cdef int share(Work work, const void* call, size_t pieces, size_t most) except -1 nogil
cdef size_t exchange_number(size_t new) noexcept nogil
cdef int answer_signals(int64_t* last) except -1 nogil
