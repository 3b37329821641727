"""The rows of a view, one after the other, and memory that is fetched before its elements are needed."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_axis
from cdropout._core.view cimport MAX_DIMS, View, copy_view, distance, simplify

cdef extern from "simd.h" nogil:
    void prefetch "cd_prefetch"(const void*)

cdef enum:
    LINE_BYTES = 64

cdef struct Rows:
    const View* view                  # whose last axis holds the elements of a row
    size_t index[MAX_DIMS]
    size_t x, y                       # bytes from the first element; unsigned, since the step past the last row may overflow
    uint64_t mask                     # elements of the mask from the first one

cdef struct Ahead:                    # the lines of x and y that are fetched next
    View memory                       # whose axes are joined wherever they are one in x and y
    Rows rows
    size_t at                         # element of the row
    size_t step                       # elements per line
    size_t left                       # lines that may be fetched


cdef inline void begin_rows(Rows* rows, const View* view) noexcept nogil:
    cdef int axis
    rows.view = view
    rows.x = rows.y = 0
    rows.mask = 0
    for axis in range(view.ndim - 1):
        rows.index[axis] = 0


cdef inline bint next_row(Rows* rows) noexcept nogil:
    """Go to the next row; return whether there is one."""
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


cdef inline void begin_ahead(Ahead* ahead, const View* view, size_t lines) noexcept nogil:
    """Begin with the first of up to so many lines."""
    cdef const cdropout_axis* row
    cdef uint64_t stride
    cdef int axis
    copy_view(&ahead.memory, view)
    for axis in range(view.ndim):
        ahead.memory.axes[axis].mask = 0
    simplify(&ahead.memory)
    begin_rows(&ahead.rows, &ahead.memory)
    row = &ahead.memory.axes[ahead.memory.ndim - 1]
    stride = max(distance(row.x), distance(row.y))
    ahead.step = LINE_BYTES // stride if 0 < stride < LINE_BYTES else 1
    ahead.at = 0
    ahead.left = lines


cdef inline void fetch(Ahead* ahead, size_t lines) noexcept nogil:
    """Fetch so many lines of x, and of y, to the second level of the cache, as far as they may be fetched."""
    cdef const View* view = &ahead.memory
    cdef const cdropout_axis* row = &view.axes[view.ndim - 1]
    cdef const char* x
    cdef const char* y
    lines = min(lines, ahead.left)
    ahead.left -= lines
    while lines:
        x = view.x + <ptrdiff_t>ahead.rows.x + <ptrdiff_t>ahead.at * row.x
        y = view.y + <ptrdiff_t>ahead.rows.y + <ptrdiff_t>ahead.at * row.y
        prefetch(y)
        if x != y:
            prefetch(x)
        lines -= 1
        ahead.at += ahead.step
        if ahead.at >= row.length:
            ahead.at = 0
            if not next_row(&ahead.rows):
                ahead.left = 0
                return
