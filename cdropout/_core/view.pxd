"""Views, which describe strided arrays, and their division into tiles."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint64_t

from cdropout cimport cdropout_axis

cdef enum:
    MAX_DIMS = 64                     # the limit of NumPy 2
    MAX_TILE = 1 << 21                # maximum number of elements per tile, and of bits that are drawn for a tile (256 KiB)
    SMALL_TILE = 1 << 18              # smaller maximum for the same numbers, exceeded only to lengthen rows or runs
    MIN_ROW = 64                      # minimum number of elements per row of a tile, if the tile's bits fit in the buffer
    TARGET_ROW = 1024                 # elements per row of a tile; longer rows save little time
    TARGET_RUN = 8192                 # bits per run; one block, because opening the stream in the middle of a block is slow
    MAX_GAP = 4096                    # longest gap in a run, in bits; drawing it is faster than opening the stream again

cdef struct View:
    int ndim
    cdropout_axis axes[MAX_DIMS]
    const char* x
    char* y
    uint64_t start                    # position in the mask of the element to which x and y point


cdef inline uint64_t distance(int64_t stride) noexcept nogil:
    return <uint64_t>stride if stride >= 0 else 0 - <uint64_t>stride


cdef inline bint comes_before(const cdropout_axis* a, const cdropout_axis* b) noexcept nogil:
    """Return whether axis a comes before axis b in the memory order of y, or of x if the strides in y are equal."""
    if a.y != b.y:
        return a.y > b.y
    return distance(a.x) > distance(b.x)


cdef inline bint continues_in_memory(const cdropout_axis* outer, const cdropout_axis* inner) noexcept nogil:
    """Return whether the two axes can be joined in x and y."""
    cdef ptrdiff_t n = <ptrdiff_t>inner.length
    return outer.x == inner.x * n and outer.y == inner.y * n


cdef inline bint continues(const cdropout_axis* outer, const cdropout_axis* inner) noexcept nogil:
    """Return whether the two axes can be joined in x, y and the mask."""
    cdef ptrdiff_t n = <ptrdiff_t>inner.length
    if not continues_in_memory(outer, inner):
        return False
    return outer.mask % n == 0 and outer.mask // n == inner.mask    # no product, because inner.mask * n may wrap around


cdef inline void add_axis(View* view, cdropout_axis axis) noexcept nogil:
    """Insert an axis in memory order. Reverse it if its stride in y is negative. Omit an axis of length 1."""
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
    while i > 0 and comes_before(&axis, &view.axes[i - 1]):
        view.axes[i] = view.axes[i - 1]
        i -= 1
    view.axes[i] = axis
    view.ndim += 1


cdef inline void join_axes(View* view) noexcept nogil:
    """Join adjacent axes where possible. If there are no axes, add an axis of length 1."""
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
    """Remove axes of length 1 and join adjacent axes."""
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
    """Set the axes of a view to `axes`, in memory order and joined where possible.

    x, y and start must be set before the call, and no length may be 0. If x is NULL, y replaces x.
    """
    cdef bint without_x = view.x == NULL
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
    """Return whether elements of y may overlap, as with a stride of 0. The view must be in memory order.

    For interleaved axes, return True even if no elements overlap.
    """
    cdef size_t extent = itemsize
    cdef int i
    for i in range(view.ndim - 1, -1, -1):
        if view.axes[i].length > 1:
            if <size_t>view.axes[i].y < extent:
                return True
            extent += (view.axes[i].length - 1) * <size_t>view.axes[i].y
    return False


# ---- the layout of a tile's bits -------------------------------------------------------------------


# The bits of a tile are drawn into a buffer as runs: ranges of consecutive positions of the mask.
cdef struct BitLayout:
    int order[MAX_DIMS]               # axes whose stride in the mask is not 0, by increasing absolute stride
    int ndim                          # number of axes in `order`
    int run_ndim                      # number of axes within a run, which are the first ones in `order`
    uint64_t run_bits                 # bits per run
    uint64_t pitch                    # distance in bits from one run to the next in the buffer
    uint64_t size                     # number of used bits of the buffer
    uint64_t capacity                 # maximum number of bits in the buffer and of elements per tile
    int64_t stride[MAX_DIMS]          # strides of the axes of the view in the buffer, in bits


cdef inline void sort_by_mask(BitLayout* layout, const View* view) noexcept nogil:
    cdef int i, j
    layout.ndim = 0
    for i in range(view.ndim):
        if view.axes[i].mask == 0 or view.axes[i].length == 1:
            continue
        j = layout.ndim
        while j > 0 and distance(view.axes[i].mask) < distance(view.axes[layout.order[j - 1]].mask):
            layout.order[j] = layout.order[j - 1]
            j -= 1
        layout.order[j] = i
        layout.ndim += 1


cdef inline void choose_runs(BitLayout* layout, const View* view, const size_t* lengths) noexcept nogil:
    """Choose which of the sorted axes belong to a run, for tiles that have at most these lengths."""
    cdef uint64_t run = 1
    cdef uint64_t step
    cdef size_t n
    layout.run_ndim = 0
    while layout.run_ndim < layout.ndim:
        n = lengths[layout.order[layout.run_ndim]]
        step = distance(view.axes[layout.order[layout.run_ndim]].mask)
        if n > 1 and step > run + MAX_GAP:
            return
        if n > 1:
            run += (n - 1) * step
        layout.run_ndim += 1


cdef inline void compute_layout(BitLayout* layout, const View* view, const size_t* lengths) noexcept nogil:
    """Compute the positions of a tile's bits in the buffer. With the same `run_ndim`, a shorter tile needs no more bits."""
    cdef int i, axis
    layout.run_bits = 1
    for axis in range(view.ndim):
        layout.stride[axis] = 0
    for i in range(layout.run_ndim):
        axis = layout.order[i]
        if lengths[axis] > 1:
            layout.stride[axis] = <int64_t>distance(view.axes[axis].mask)
            layout.run_bits += (lengths[axis] - 1) * <uint64_t>layout.stride[axis]
    layout.pitch = layout.run_bits
    if layout.run_ndim < layout.ndim:
        layout.pitch = (layout.run_bits + 63) // 64 * 64
    layout.size = layout.pitch
    for i in range(layout.run_ndim, layout.ndim):
        axis = layout.order[i]
        layout.stride[axis] = <int64_t>layout.size
        layout.size *= lengths[axis]
    for axis in range(view.ndim):
        if view.axes[axis].mask < 0:
            layout.stride[axis] = -layout.stride[axis]


# ---- tiles ----------------------------------------------------------------------------------------


cdef inline size_t product(const size_t* lengths, int ndim) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(ndim):
        n *= lengths[i]
    return n


cdef inline bint fits_buffer(BitLayout* layout, const View* view, const size_t* lengths) noexcept nogil:
    """Compute the layout for tiles of these lengths. Return whether the bits of a tile fit in the buffer."""
    choose_runs(layout, view, lengths)
    compute_layout(layout, view, lengths)
    return layout.size <= layout.capacity


cdef inline void grow(size_t* lengths, int axis, size_t limit, BitLayout* layout, const View* view) noexcept nogil:
    """Lengthen a tile along an axis to at most `limit` while its bits fit. Make tiles along this axis similar in length."""
    cdef size_t length = view.axes[axis].length
    cdef size_t before = lengths[axis]
    cdef size_t size = product(lengths, view.ndim) // before
    cdef size_t longest = min(length, limit, <size_t>layout.capacity // size)
    cdef size_t new_length, rounded
    while longest > before:
        new_length = (length - 1) // ((length - 1) // longest + 1) + 1
        rounded = (new_length + 63) // 64 * 64
        if new_length < length and rounded <= longest and (length - 1) % rounded >= 31:    # avoids a short last tile
            new_length = rounded
        lengths[axis] = new_length
        if fits_buffer(layout, view, lengths):
            return
        longest = new_length // 2
    lengths[axis] = before


cdef inline void grow_row(size_t* lengths, BitLayout* layout, const View* view, size_t limit) noexcept nogil:
    """Lengthen the row of a tile, along the innermost axes, to at most `limit` elements."""
    cdef size_t row = 1
    cdef int axis
    for axis in range(view.ndim - 1, -1, -1):
        grow(lengths, axis, limit // row, layout, view)
        if lengths[axis] < view.axes[axis].length:
            return
        row *= lengths[axis]


cdef inline void grow_along_mask(size_t* lengths, BitLayout* layout, const View* view, size_t limit) noexcept nogil:
    """Lengthen a tile along its axes, in the order of increasing absolute stride in the mask.

    The tile gets at most `limit` bits per index of the last axis.

    Before the tile is lengthened along an axis, it is lengthened along all broadcast axes inside this axis.
    """
    cdef size_t run = 1               # number of consecutive bits of the mask in the tile
    cdef size_t bits
    cdef int i, j, axis
    for i in range(layout.ndim):
        if run >= limit:
            return
        axis = layout.order[i]
        for j in range(view.ndim - 1, axis, -1):
            if view.axes[j].mask == 0:
                grow(lengths, j, <size_t>-1, layout, view)
        bits = 1
        for j in range(view.ndim - 1):
            if j != axis and view.axes[j].mask != 0:
                bits *= lengths[j]
        bits = max(bits, run)
        grow(lengths, axis, limit // bits if limit > bits else 1, layout, view)
        if distance(view.axes[axis].mask) == run:
            run *= lengths[axis]


cdef inline void choose_tile(size_t* lengths, BitLayout* layout, const View* view, size_t max_size) noexcept nogil:
    """Choose the lengths of tiles of at most `max_size` elements and bits, and the runs in which their bits are drawn.

    Long rows make memory access fast, and long runs make drawing fast.
    """
    cdef int inner = view.ndim - 1
    cdef int i
    layout.capacity = max_size
    sort_by_mask(layout, view)
    for i in range(view.ndim):
        lengths[i] = 1
    grow(lengths, inner, MIN_ROW if view.axes[inner].mask != 0 else <size_t>-1, layout, view)
    grow_along_mask(lengths, layout, view, TARGET_RUN)
    grow_row(lengths, layout, view, TARGET_ROW)
    layout.capacity = min(max_size, <size_t>SMALL_TILE)
    for i in range(view.ndim - 1, -1, -1):
        if view.axes[i].mask == 0:
            grow(lengths, i, <size_t>-1, layout, view)
    grow_along_mask(lengths, layout, view, <size_t>-1)
    choose_runs(layout, view, lengths)


cdef inline void copy_view(View* to, const View* view) noexcept nogil:
    """Copy a view. Only the first `ndim` axes are copied."""
    cdef int i
    to.ndim, to.x, to.y, to.start = view.ndim, view.x, view.y, view.start
    for i in range(view.ndim):
        to.axes[i] = view.axes[i]


cdef inline void get_tile(View* tile, const View* view, const size_t* lengths, size_t number) noexcept nogil:
    """Set `tile` to tile `number` of the view."""
    cdef size_t count, offset
    cdef int axis
    copy_view(tile, view)
    for axis in range(view.ndim - 1, -1, -1):
        count = (view.axes[axis].length - 1) // lengths[axis] + 1
        offset = number % count * lengths[axis]
        number //= count
        tile.axes[axis].length = min(lengths[axis], view.axes[axis].length - offset)
        tile.x += <ptrdiff_t>offset * view.axes[axis].x
        tile.y += <ptrdiff_t>offset * view.axes[axis].y
        tile.start += <uint64_t>offset * <uint64_t>view.axes[axis].mask


cdef inline size_t count_tiles(const View* view, const size_t* lengths) noexcept nogil:
    cdef size_t count = 1
    cdef int axis
    for axis in range(view.ndim):
        count *= (view.axes[axis].length - 1) // lengths[axis] + 1
    return count
