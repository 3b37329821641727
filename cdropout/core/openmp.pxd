"""Calls that are shared among the threads of PyTorch's own OpenMP."""
from cdropout.core.threads cimport Work

cdef size_t sharers_by_openmp(size_t n)
cdef int share_by_openmp(Work work, const void* call, size_t pieces, size_t most) except -1 nogil
