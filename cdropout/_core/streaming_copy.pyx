"""A copy with streaming stores, which the benchmark times to measure the memory bandwidth."""
cimport numpy as cnp
from libc.stddef cimport size_t
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

cdef extern from "simd.h" nogil:
    const bint CD_STREAMS
    void store_streaming "cd_store_streaming"(void* to, const void* source, size_t)
    void end_streaming "cd_end_streaming"()

cnp.import_array()

streams = CD_STREAMS != 0             # whether this module was built with streaming stores


cdef void copy_lines(char* to, const char* source, size_t n) noexcept nogil:
    """Copy n bytes. Whole cache lines of `to` are written with streaming stores, the rest with memcpy."""
    cdef size_t head = min(n, <size_t>(-<uintptr_t>to % 64))
    cdef size_t last = n - (n - head) % 64
    memcpy(to, source, head)
    store_streaming(to + head, source + head, last - head)
    end_streaming()
    memcpy(to + last, source + last, n - last)


def stream_copy(cnp.ndarray to, cnp.ndarray source):
    """Copy `source` to `to`, with streaming stores if possible. The arrays must be C-contiguous and have equal nbytes."""
    cdef size_t n = cnp.PyArray_NBYTES(to)
    if n != <size_t>cnp.PyArray_NBYTES(source):
        raise ValueError(f"to has to have the {source.nbytes} bytes of source, but has {to.nbytes}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(to) or not cnp.PyArray_IS_C_CONTIGUOUS(source):
        raise ValueError("to and source have to be contiguous")
    with nogil:
        copy_lines(<char*>cnp.PyArray_DATA(to), <const char*>cnp.PyArray_DATA(source), n)
