"""Calls that are cut into pieces: shared among threads, and ended between two pieces by a signal."""

ctypedef void (*Work)(const void* call, size_t piece) noexcept nogil

cdef int share(Work work, const void* call, size_t pieces, size_t most) except -1 nogil
