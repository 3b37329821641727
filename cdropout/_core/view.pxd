"""Arrays as seen from C, at any strides, and the tiles that they are cut into."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint64_t

from cdropout cimport cdropout_axis

cdef enum:
    MAX_DIMS = 64                     # NumPy's limit
    TILE = 1 << 21                    # most elements of a tile, and bits that are drawn for it: 256 KiB
    SMALL_TILE = 1 << 18              # enough where its rows in memory and its runs of the mask are long
    ROW = 64                          # least elements of a row of a tile, if its bits fit
    LONG_ROW = 1024                   # elements, from which gaps between rows of a tile cost little
    RUN = 8192                        # bits to draw at once: a block, as entering one in the middle can cost as much
    GAP = 4096                        # bits that are drawn and not used, rather than entering the stream again

cdef struct View:
    int ndim
    cdropout_axis axes[MAX_DIMS]
    const char* x
    char* y
    uint64_t start                    # the position in the mask of the element at x and y


cdef inline uint64_t distance(int64_t stride) noexcept nogil:
    return <uint64_t>stride if stride >= 0 else 0 - <uint64_t>stride


cdef inline bint is_outside(const cdropout_axis* a, const cdropout_axis* b) noexcept nogil:
    """Return whether axis a comes before b in the order of memory of y (and of x, where the strides in y are equal)."""
    if a.y != b.y:
        return a.y > b.y
    return distance(a.x) > distance(b.x)


cdef inline bint continues_in_memory(const cdropout_axis* outer, const cdropout_axis* inner) noexcept nogil:
    """Return whether the two axes are one in x and y."""
    cdef ptrdiff_t n = <ptrdiff_t>inner.length
    return outer.x == inner.x * n and outer.y == inner.y * n


cdef inline bint continues(const cdropout_axis* outer, const cdropout_axis* inner) noexcept nogil:
    """Return whether the two axes are one in x, y and the mask."""
    cdef ptrdiff_t n = <ptrdiff_t>inner.length
    if not continues_in_memory(outer, inner):
        return False
    return outer.mask % n == 0 and outer.mask // n == inner.mask    # the product may wrap around


cdef inline void add_axis(View* view, cdropout_axis axis) noexcept nogil:
    """Insert an axis at its place in the order of memory, with a positive stride in y."""
    cdef int i = view.ndim
    cdef ptrdiff_t last = <ptrdiff_t>axis.length - 1
    if axis.length == 1:
        return
    if axis.y < 0:
        view.x += last * axis.x
        view.y += last * axis.y
        view.start += <uint64_t>last * <uint64_t>axis.mask
        axis.x = -axis.x
        axis.y = -axis.y
        axis.mask = <int64_t>(0 - <uint64_t>axis.mask)
    while i > 0 and is_outside(&axis, &view.axes[i - 1]):
        view.axes[i] = view.axes[i - 1]
        i -= 1
    view.axes[i] = axis
    view.ndim += 1


cdef inline void join_axes(View* view) noexcept nogil:
    """Join neighbouring axes that are one, so that at least one axis is left."""
    cdef int kept = 0
    cdef int i
    if view.ndim == 0:
        view.axes[0] = cdropout_axis(1, 0, 0, 1)
        view.ndim = 1
    for i in range(1, view.ndim):
        if continues(&view.axes[kept], &view.axes[i]):
            view.axes[i].length *= view.axes[kept].length
        else:
            kept += 1
        view.axes[kept] = view.axes[i]
    view.ndim = kept + 1


cdef inline void simplify(View* view) noexcept nogil:
    """Drop axes of length 1 and join others."""
    cdef int kept = 0
    cdef int i
    for i in range(view.ndim):
        if view.axes[i].length > 1:
            view.axes[kept] = view.axes[i]
            kept += 1
    view.ndim = kept
    join_axes(view)


cdef inline size_t count_elements(const View* view) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(view.ndim):
        n *= view.axes[i].length
    return n


cdef inline void arrange(View* view, int ndim, const cdropout_axis* axes) noexcept nogil:
    """Fill the view with these axes in the order of memory; x, y and start are set, no length is 0."""
    cdef bint without_x = view.x == NULL          # as when bools are drawn; then x is not looked at
    cdef cdropout_axis axis
    cdef int i
    if without_x:
        view.x = view.y
    view.ndim = 0
    for i in range(ndim):
        axis = axes[i]
        if without_x:
            axis.x = axis.y
        add_axis(view, axis)
    join_axes(view)


cdef inline bint overlaps_itself(const View* view, size_t itemsize) noexcept nogil:
    """Return whether elements of y may share memory (0 strides, sliding windows); interleaved axes count as such."""
    cdef size_t extent = itemsize
    cdef int i
    for i in range(view.ndim - 1, -1, -1):
        if view.axes[i].length > 1:
            if <size_t>view.axes[i].y < extent:
                return True
            extent += (view.axes[i].length - 1) * <size_t>view.axes[i].y
    return False


# ---- the bits of a tile ---------------------------------------------------------------------------


cdef struct Drawn:                    # where the bits of a tile lie in the buffer that they are drawn into
    int order[MAX_DIMS]               # axes along which the mask differs, by their steps in it
    int ndim                          # how many
    int runs                          # of them within one run; along the others the runs follow each other
    uint64_t run                      # bits of a run
    uint64_t pitch                    # bits from run to run
    uint64_t bits                     # of the buffer that are used
    uint64_t most                     # that it holds, and elements of a tile
    int64_t stride[MAX_DIMS]          # bits from one index to the next along each axis of the view


cdef inline void sort_by_mask(Drawn* drawn, const View* view) noexcept nogil:
    cdef int i, j
    drawn.ndim = 0
    for i in range(view.ndim):
        if view.axes[i].mask == 0 or view.axes[i].length == 1:
            continue
        j = drawn.ndim
        while j > 0 and distance(view.axes[i].mask) < distance(view.axes[drawn.order[j - 1]].mask):
            drawn.order[j] = drawn.order[j - 1]
            j -= 1
        drawn.order[j] = i
        drawn.ndim += 1


cdef inline void choose_runs(Drawn* drawn, const View* view, const size_t* lengths) noexcept nogil:
    """Decide for tiles of at most these lengths which axes lie within one run; the axes have been sorted."""
    cdef uint64_t run = 1
    cdef uint64_t step
    cdef size_t n
    drawn.runs = 0
    while drawn.runs < drawn.ndim:
        n = lengths[drawn.order[drawn.runs]]
        step = distance(view.axes[drawn.order[drawn.runs]].mask)
        if n > 1 and step > run + GAP:
            return
        if n > 1:
            run += (n - 1) * step
        drawn.runs += 1


cdef inline void lay_out(Drawn* drawn, const View* view, const size_t* lengths) noexcept nogil:
    """Compute where the bits of a tile are drawn to. Shorter tiles need fewer bits, since the runs were chosen before."""
    cdef int i, axis
    drawn.run = 1
    for axis in range(view.ndim):
        drawn.stride[axis] = 0
    for i in range(drawn.runs):
        axis = drawn.order[i]
        if lengths[axis] > 1:
            drawn.stride[axis] = <int64_t>distance(view.axes[axis].mask)
            drawn.run += (lengths[axis] - 1) * <uint64_t>drawn.stride[axis]
    drawn.pitch = drawn.run
    if drawn.runs < drawn.ndim:
        drawn.pitch = (drawn.run + 63) // 64 * 64
    drawn.bits = drawn.pitch
    for i in range(drawn.runs, drawn.ndim):
        axis = drawn.order[i]
        drawn.stride[axis] = <int64_t>drawn.bits
        drawn.bits *= lengths[axis]
    for axis in range(view.ndim):
        if view.axes[axis].mask < 0:
            drawn.stride[axis] = -drawn.stride[axis]


# ---- tiles ----------------------------------------------------------------------------------------


cdef inline size_t product(const size_t* lengths, int ndim) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(ndim):
        n *= lengths[i]
    return n


cdef inline bint fits(Drawn* drawn, const View* view, const size_t* lengths) noexcept nogil:
    """Return whether the bits of a tile of these lengths fit in the buffer."""
    choose_runs(drawn, view, lengths)
    lay_out(drawn, view, lengths)
    return drawn.bits <= drawn.most


cdef inline void grow(size_t* lengths, int axis, size_t limit, Drawn* drawn, const View* view) noexcept nogil:
    """Lengthen a tile along one axis up to the limit, in equal parts of the axis, as far as its bits fit."""
    cdef size_t length = view.axes[axis].length
    cdef size_t before = lengths[axis]
    cdef size_t size = product(lengths, view.ndim) // before
    cdef size_t most = min(length, limit, <size_t>drawn.most // size)
    cdef size_t part, rounded
    while most > before:
        part = (length - 1) // ((length - 1) // most + 1) + 1    # equal parts
        rounded = (part + 63) // 64 * 64
        if part < length and rounded <= most and (length - 1) % rounded >= 31:    # the last part is not too short
            part = rounded
        lengths[axis] = part
        if fits(drawn, view, lengths):
            return
        most = part // 2
    lengths[axis] = before


cdef inline void grow_row(size_t* lengths, Drawn* drawn, const View* view, size_t limit) noexcept nogil:
    """Lengthen a tile to at most `limit` elements that follow each other in the order of y."""
    cdef size_t row = 1
    cdef int axis
    for axis in range(view.ndim - 1, -1, -1):
        grow(lengths, axis, limit // row, drawn, view)
        if lengths[axis] < view.axes[axis].length:
            return
        row *= lengths[axis]


cdef inline void grow_along_mask(size_t* lengths, Drawn* drawn, const View* view, size_t limit) noexcept nogil:
    """Lengthen a tile to at most `limit` bits: axes by increasing stride in the mask, after the shared axes inside them."""
    cdef size_t run = 1               # bits without a gap
    cdef size_t held
    cdef int i, j, axis
    for i in range(drawn.ndim):
        if run >= limit:
            return
        axis = drawn.order[i]
        for j in range(view.ndim - 1, axis, -1):
            if view.axes[j].mask == 0:
                grow(lengths, j, <size_t>-1, drawn, view)
        held = 1
        for j in range(view.ndim - 1):
            if j != axis and view.axes[j].mask != 0:
                held *= lengths[j]
        held = max(held, run)
        grow(lengths, axis, limit // held if limit > held else 1, drawn, view)
        if distance(view.axes[axis].mask) == run:
            run *= lengths[axis]


cdef inline void choose_tile(size_t* lengths, Drawn* drawn, const View* view, size_t most) noexcept nogil:
    """Choose the lengths of tiles of at most so many elements and bits, and how their bits are drawn.

    Their rows in memory and their runs of the mask are long.
    """
    cdef int inner = view.ndim - 1
    cdef int i
    drawn.most = most
    sort_by_mask(drawn, view)
    for i in range(view.ndim):
        lengths[i] = 1
    grow(lengths, inner, ROW if view.axes[inner].mask != 0 else <size_t>-1, drawn, view)
    grow_along_mask(lengths, drawn, view, RUN)
    grow_row(lengths, drawn, view, LONG_ROW)
    drawn.most = min(most, <size_t>SMALL_TILE)
    for i in range(view.ndim - 1, -1, -1):
        if view.axes[i].mask == 0:
            grow(lengths, i, <size_t>-1, drawn, view)
    grow_along_mask(lengths, drawn, view, <size_t>-1)
    choose_runs(drawn, view, lengths)


cdef inline void copy_view(View* to, const View* view) noexcept nogil:
    """Copy a view without the room for axes that it does not have."""
    cdef int i
    to.ndim, to.x, to.y, to.start = view.ndim, view.x, view.y, view.start
    for i in range(view.ndim):
        to.axes[i] = view.axes[i]


cdef inline void take_tile(View* tile, const View* view, const size_t* lengths, size_t number) noexcept nogil:
    """Fill `tile` with tile `number` of the view."""
    cdef size_t count, first
    cdef int axis
    copy_view(tile, view)
    for axis in range(view.ndim - 1, -1, -1):
        count = (view.axes[axis].length - 1) // lengths[axis] + 1
        first = number % count * lengths[axis]
        number //= count
        tile.axes[axis].length = min(lengths[axis], view.axes[axis].length - first)
        tile.x += <ptrdiff_t>first * view.axes[axis].x
        tile.y += <ptrdiff_t>first * view.axes[axis].y
        tile.start += <uint64_t>first * <uint64_t>view.axes[axis].mask


cdef inline size_t count_tiles(const View* view, const size_t* lengths) noexcept nogil:
    cdef size_t count = 1
    cdef int axis
    for axis in range(view.ndim):
        count *= (view.axes[axis].length - 1) // lengths[axis] + 1
    return count
