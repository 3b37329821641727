"""Boxes of elements at any strides: drawn piece by piece into bools, and walked in the order of memory."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from cdropout cimport CDROPOUT_FLOAT32, cdropout_mask, cdropout_plane
from cdropout.core.dispatch cimport kernels

cdef enum:
    SPAN = 32768                      # elements of the mask that are drawn at once, a byte each, on the stack
    ROW = 1024                        # elements of a row to which terms are added at once
    MULTIPLE = 32                     # elements that the kernels step by
    LONG_ROW = 4096                   # elements from which entering the stream anew for each row costs little


cdef inline size_t distance(ptrdiff_t stride) noexcept nogil:
    return <size_t>stride if stride >= 0 else 0 - <size_t>stride


cdef inline bint walks_before(const Axis* a, const Axis* b) noexcept nogil:
    """Outer axes first: larger steps in y (or, where that says nothing, in x) lie further out."""
    if distance(a.y) != distance(b.y):
        return distance(a.y) > distance(b.y)
    return distance(a.x) > distance(b.x)


cdef void arrange(Box* box) noexcept nogil:
    """Drop axes of length 1, sort the others into memory order, and join those that run on into each other.

    Nothing is shifted, unless the caller sets `shifts` afterwards.
    """
    cdef Axis axis
    cdef Axis* outer
    cdef ptrdiff_t length
    cdef int kept = 0
    cdef int i, j
    box.shifts = False
    for i in range(box.ndim):
        axis = box.axes[i]
        if axis.length == 1:
            continue
        j = kept
        while j > 0 and walks_before(&axis, &box.axes[j - 1]):
            box.axes[j] = box.axes[j - 1]
            j -= 1
        box.axes[j] = axis
        kept += 1
    box.ndim = 0
    for i in range(kept):
        axis = box.axes[i]
        if box.ndim:
            outer = &box.axes[box.ndim - 1]
            length = <ptrdiff_t>axis.length
            if (outer.x == axis.x * length and outer.y == axis.y * length
                    and outer.keep % length == 0 and outer.keep // length == axis.keep):    # the product may wrap around
                axis.length *= outer.length
                box.ndim -= 1
        box.axes[box.ndim] = axis
        box.ndim += 1
    while box.ndim < 2:               # a plane needs two axes
        box.axes[box.ndim] = box.axes[0]
        box.axes[0] = Axis(1, 0, 0, 0)
        box.ndim += 1


cdef bint is_far_from_mask(const Box* box) noexcept nogil:
    """Whether neighbours in memory lie so far apart in the mask that a walk would take a few of them at a time only.

    Copies in the mask's order then cost less: of channels last, 8 x 64 x 56 x 56, an eighth.
    """
    return distance(box.axes[box.ndim - 1].keep) > SPAN // MULTIPLE


cdef bint overlaps_itself(const Box* box) noexcept nogil:
    """Return whether elements of y may share memory (0 strides, sliding windows); interleaved axes count as such.

    The box has been arranged.
    """
    cdef size_t extent = box.size
    cdef int i
    for i in range(box.ndim - 1, -1, -1):
        if box.axes[i].length > 1:
            if distance(box.axes[i].y) < extent:
                return True
            extent += (box.axes[i].length - 1) * distance(box.axes[i].y)
    return False


cdef size_t elements(const Box* box) noexcept nogil:
    cdef size_t product = 1
    cdef int i
    for i in range(box.ndim):
        product *= box.axes[i].length
    return product


cdef int axis_to_cut(const Box* box) noexcept nogil:
    """The longer axis furthest out in memory; in a long mask the one of the widest steps, or each part would draw it all."""
    cdef size_t reach = 0
    cdef int outer = 0
    cdef int widest = 0
    cdef int i
    for i in range(box.ndim - 1, -1, -1):
        if box.axes[i].length > 1:
            outer = i
            reach += (box.axes[i].length - 1) * distance(box.axes[i].keep)
            if box.axes[widest].length == 1 or distance(box.axes[i].keep) >= distance(box.axes[widest].keep):
                widest = i
    return outer if reach < SPAN else widest


cdef void copy_plane(const cdropout_plane* plane, char* y, const uint8_t* keep) noexcept nogil:
    cdef ptrdiff_t i, j               # no pointer steps past the last row: the step to it may be beyond all memory
    for i in range(<ptrdiff_t>plane.rows):
        for j in range(<ptrdiff_t>plane.columns):
            y[i * plane.y[0] + j * plane.y[1]] = keep[i * plane.keep[0] + j * plane.keep[1]]


ctypedef fused real:
    float
    double

ctypedef fused integer:
    int32_t
    int64_t


cdef inline void add_terms(
    size_t n, char* y, ptrdiff_t y_step, const uint8_t* keep, ptrdiff_t keep_step, const real* terms, const integer* bits
) noexcept nogil:
    """Add terms[keep] to each element; bits are those of the two terms. Rows without gaps have faster loops."""
    cdef integer chosen[ROW]
    cdef real* row = <real*>y
    cdef ptrdiff_t i, part
    cdef ptrdiff_t first = 0
    if y_step == sizeof(real) and keep_step == 1:
        while first < <ptrdiff_t>n:
            part = min(<ptrdiff_t>n - first, <ptrdiff_t>ROW)
            for i in range(part):     # by arithmetic, which compilers turn into vector instructions
                chosen[i] = bits[0] ^ ((bits[0] ^ bits[1]) & -<integer>keep[first + i])
            for i in range(part):
                row[first + i] += (<real*>chosen)[i]
            first += part
    elif y_step == sizeof(real) and keep_step == 0:
        for i in range(<ptrdiff_t>n):
            row[i] += terms[keep[0]]
    else:
        for i in range(<ptrdiff_t>n):
            (<real*>(y + i * y_step))[0] += terms[keep[i * keep_step]]


cdef void shift_plane(const Box* box, const cdropout_plane* plane, char* y, const uint8_t* keep) noexcept nogil:
    """Add shift where the mask keeps. Elsewhere y is +0.0, and becomes constant."""
    cdef double[2] terms = [box.constant, box.shift]
    cdef float[2] rounded = [<float>box.constant, <float>box.shift]
    cdef ptrdiff_t i
    for i in range(<ptrdiff_t>plane.rows):
        if box.dtype == CDROPOUT_FLOAT32:
            add_terms[float, int32_t](
                plane.columns, y, plane.y[1], keep, plane.keep[1], rounded, <int32_t*>rounded
            )
        else:
            add_terms[double, int64_t](plane.columns, y, plane.y[1], keep, plane.keep[1], terms, <int64_t*>terms)
        y += plane.y[0]
        keep += plane.keep[0]


cdef void apply_axes(const Box* box, int axis, const char* x, char* y, const uint8_t* keep) noexcept nogil:
    cdef const Axis* outer = &box.axes[axis]
    cdef const Axis* inner = &box.axes[axis + 1]
    cdef cdropout_plane plane
    cdef ptrdiff_t i
    if axis < box.ndim - 2:
        for i in range(<ptrdiff_t>outer.length):
            apply_axes(box, axis + 1, x + i * outer.x if x else NULL, y + i * outer.y, keep + i * outer.keep)
        return
    plane = cdropout_plane(
        outer.length, inner.length, [outer.x, inner.x], [outer.y, inner.y], [outer.keep, inner.keep],
    )
    if x != NULL:
        kernels.apply_bools(box.dtype, x, y, keep, &plane, box.scale)
        if box.shifts:
            shift_plane(box, &plane, y, keep)
    else:
        copy_plane(&plane, y, keep)


cdef void apply_box(const Box* box, const char* x, char* y, const uint8_t* keep) noexcept nogil:
    """y = x * scale where keep is 1, else +0.0; without x, y = keep. The box has been arranged."""
    apply_axes(box, 0, x, y, keep)


cdef bint has_long_rows(const Box* box) noexcept nogil:
    cdef const Axis* row = &box.axes[box.ndim - 1]
    return row.keep == 1 and row.x == box.size and row.y == box.size and row.length >= LONG_ROW and not box.shifts


cdef void draw_rows(
    const Box* box, int axis, const char* x, char* y, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    """Each row by the fused kernel."""
    cdef const Axis* step = &box.axes[axis]
    cdef ptrdiff_t i
    if axis == box.ndim - 1:
        kernels.apply(box.dtype, x, y, step.length, mask, start)
        return
    for i in range(<ptrdiff_t>step.length):
        draw_rows(box, axis + 1, x + i * step.x, y + i * step.y, mask, start + <uint64_t>(i * step.keep))


cdef void draw_span(const Box* box, const char* x, char* y, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    """A box whose elements lie within SPAN of the mask."""
    cdef uint8_t drawn[SPAN]
    cdef size_t before = 0            # elements of the mask that negative strides reach before start
    cdef size_t after = 0
    cdef size_t reach
    cdef int i
    for i in range(box.ndim):
        reach = (box.axes[i].length - 1) * distance(box.axes[i].keep)
        if box.axes[i].keep < 0:
            before += reach
        else:
            after += reach
    kernels.bools(drawn, before + 1 + after, mask, start - before)
    apply_box(box, x, y, drawn + before)


cdef void draw_pieces(Box* box, const char* x, char* y, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    """Cut the axis that reaches furthest in the mask until a piece lies within SPAN."""
    cdef size_t reach = 0             # from the first element in the mask to the last: their number might wrap to 0
    cdef size_t length, step, part
    cdef ptrdiff_t i, first
    cdef Axis* widest = &box.axes[0]
    cdef int axis
    for axis in range(box.ndim):
        reach += (box.axes[axis].length - 1) * distance(box.axes[axis].keep)
        if box.axes[axis].length > 1 and (widest.length == 1 or distance(box.axes[axis].keep) > distance(widest.keep)):
            widest = &box.axes[axis]
    if reach < SPAN:
        draw_span(box, x, y, mask, start)
        return
    length = widest.length
    step = distance(widest.keep)
    reach -= (length - 1) * step      # of the other axes: what is left is for this one
    part = 1 + (SPAN - 1 - reach) // step if reach < SPAN else 1
    if part > MULTIPLE:
        part -= part % MULTIPLE
    for i in range(<ptrdiff_t>((length + part - 1) // part)):
        first = i * <ptrdiff_t>part
        widest.length = min(part, length - <size_t>first)
        draw_pieces(
            box, x + first * widest.x if x else NULL, y + first * widest.y, mask, start + <uint64_t>(first * widest.keep)
        )
    widest.length = length


cdef void draw_box(const Box* box, const char* x, char* y, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    """y = x * scale where the mask keeps, else +0.0; without x, y = 1 or 0. The box has been arranged."""
    cdef Box copy = box[0]
    if x != NULL and has_long_rows(box):
        draw_rows(box, 0, x, y, mask, start)
    else:
        draw_pieces(&copy, x, y, mask, start)
