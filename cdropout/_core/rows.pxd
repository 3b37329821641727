"""Iteration over the rows of a view, and prefetching of their memory."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_axis
from cdropout._core.select cimport LINE_BYTES
from cdropout._core.view cimport MAX_DIMS, View, copy_view, distance, simplify

cdef extern from "simd.h" nogil:
    void prefetch "cd_prefetch"(const void*)

cdef struct Rows:
    const View* view                  # a row extends along the last axis of the view
    size_t index[MAX_DIMS]
    size_t x, y                       # offsets in bytes; unsigned, because the addition after the last row may overflow
    uint64_t mask                     # offset in the mask, in elements

cdef struct Prefetcher:
    View memory                       # a copy of the view, in which axes are joined where x and y allow it
    Rows rows
    size_t element                    # index of the next element in the row
    size_t elements_per_line
    size_t left                       # number of cache lines of x, and of y, that may still be prefetched


cdef inline void begin_rows(Rows* rows, const View* view) noexcept nogil:
    cdef int axis
    rows.view = view
    rows.x = rows.y = 0
    rows.mask = 0
    for axis in range(view.ndim - 1):
        rows.index[axis] = 0


cdef inline bint next_row(Rows* rows) noexcept nogil:
    """Advance to the next row and return True, or return False after the last row."""
    cdef const cdropout_axis* axis
    cdef int i
    for i in range(rows.view.ndim - 2, -1, -1):
        axis = &rows.view.axes[i]
        rows.x += <size_t>axis.x
        rows.y += <size_t>axis.y
        rows.mask += <uint64_t>axis.mask
        rows.index[i] += 1
        if rows.index[i] < axis.length:
            return True
        rows.x -= <size_t>axis.x * axis.length
        rows.y -= <size_t>axis.y * axis.length
        rows.mask -= <uint64_t>axis.mask * axis.length
        rows.index[i] = 0
    return False


cdef inline void begin_prefetch(Prefetcher* prefetcher, const View* view, size_t lines) noexcept nogil:
    """Prepare to prefetch the first rows of a view: at most `lines` cache lines of x and at most `lines` of y."""
    cdef const cdropout_axis* row
    cdef uint64_t stride
    cdef int axis
    copy_view(&prefetcher.memory, view)
    for axis in range(view.ndim):
        prefetcher.memory.axes[axis].mask = 0
    simplify(&prefetcher.memory)
    begin_rows(&prefetcher.rows, &prefetcher.memory)
    row = &prefetcher.memory.axes[prefetcher.memory.ndim - 1]
    stride = max(distance(row.x), distance(row.y))
    prefetcher.elements_per_line = LINE_BYTES // stride if 0 < stride < LINE_BYTES else 1
    prefetcher.element = 0
    prefetcher.left = lines


cdef inline void prefetch_lines(Prefetcher* prefetcher, size_t lines) noexcept nogil:
    """Prefetch the next cache lines of x and of y, at most `lines` of each, into the L2 cache."""
    cdef const View* view = &prefetcher.memory
    cdef const cdropout_axis* row = &view.axes[view.ndim - 1]
    cdef const char* x
    cdef const char* y
    lines = min(lines, prefetcher.left)
    prefetcher.left -= lines
    while lines:
        x = view.x + <ptrdiff_t>prefetcher.rows.x + <ptrdiff_t>prefetcher.element * row.x
        y = view.y + <ptrdiff_t>prefetcher.rows.y + <ptrdiff_t>prefetcher.element * row.y
        prefetch(y)
        if x != y:
            prefetch(x)
        lines -= 1
        prefetcher.element += prefetcher.elements_per_line
        if prefetcher.element >= row.length:
            prefetcher.element = 0
            if not next_row(&prefetcher.rows):
                prefetcher.left = 0
                return
