"""Functions that mask and scale a view tile by tile.

The bits of a tile are drawn in the order of the mask, reordered to the memory order of y, and applied row by row.
"""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cdropout cimport cdropout_axis, cdropout_mask
from cdropout._core.bits cimport (
    PADDING, BitAxis, Writer, append_bits, bits64_at, load_bits64, pack_bools, reorder_bits, spread_bits, store_bits64,
    write_bits, write_group,
)
from cdropout._core.select cimport LINE_BYTES, element, mask_and_scale, mask_and_scale_large, real
from cdropout._core.rows cimport Prefetcher, Rows, begin_prefetch, begin_rows, prefetch_lines, next_row
from cdropout._core.stream cimport GROUP, GROUP_BYTES, Stream, draw_group, open_stream
from cdropout._core.view cimport (
    MAX_DIMS, SMALL_TILE, MAX_TILE, BitLayout, View, choose_tile, continues_in_memory, count_elements, count_tiles, distance,
    join_axes, compute_layout, simplify, get_tile,
)

cdef extern from "simd.h" nogil:
    size_t load_alternate "cd_load_alternate"(void* y, const void* x, size_t n, size_t itemsize)
    size_t store_alternate "cd_store_alternate"(void* y, const void* x, size_t n, size_t itemsize)

cdef enum:
    SMALL_BYTES = 1 << 15             # bytes of packed bits per SMALL_TILE
    STRIP = 1 << 16                   # maximum elements per strip; a tile is divided into strips to reorder its bits
    STRIP_BYTES = 1 << 13             # bytes of packed bits per strip
    LONG_RUN = 512                    # minimum bits per row for which joining rows does not save time
    PREFETCH_ELEMENTS = 1 << 17       # minimum bits per tile for prefetching; smaller tiles usually fit in the cache
    PREFETCH_LINES = 4096             # maximum number of lines that are prefetched while the bits of a tile are drawn
    PREFETCH_PER_GROUP = 8            # number of lines that are prefetched per group of bits
    SHORT_ROW_BYTES = 2048            # maximum bytes per short row; the CPU does not prefetch the row after a short row
    PREFETCH_DISTANCE = 64            # number of lines between the line in use and the prefetched line, for short rows
    BUFFER_ELEMENTS = 128             # number of elements that are gathered or scattered at once
    STREAMED_ROW = 4 * GROUP          # minimum elements per row for which streaming stores save time

cdef struct Source:                   # the source of the keep bits: exactly one of these pointers is not NULL
    const cdropout_mask* mask
    const uint8_t* bits               # packed bits
    const uint8_t* bools              # one byte per element


# ---- bits in the order of the mask ------------------------------------------------------------------


cdef inline void append_stream(
    Writer* writer, size_t n, const cdropout_mask* mask, uint64_t start, Prefetcher* prefetcher
) noexcept nogil:
    """Append n keep bits from position `start` on. Prefetch memory at the same time unless `prefetcher` is NULL."""
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP  # index in the group of the next bit to append
    cdef uint64_t count
    if mask.scale == 0:               # p is 1, whose threshold 2^64 does not fit in 64 bits
        while n:
            count = min(n, <size_t>64)
            write_bits(writer, 0, count)
            n -= count
        return
    open_stream(&stream, mask, start - first)
    while n:
        if prefetcher != NULL:
            prefetch_lines(prefetcher, PREFETCH_PER_GROUP)
        draw_group(&stream, keep)
        if first == 0 and n >= GROUP:
            write_group(writer, keep)
            n -= GROUP
            continue
        while n and first < GROUP:
            count = min(64 - first % 64, n)
            write_bits(writer, load_bits64(keep + first // 64 * 8) >> first % 64, count)
            first += count
            n -= count
        first = 0


cdef inline void append_bools(Writer* writer, const uint8_t* bools, size_t n) noexcept nogil:
    """Append one bit for each of n bytes: 0 if the byte is 0, otherwise 1."""
    cdef uint8_t bits[8]
    cdef uint8_t last[64]
    cdef size_t done
    for done in range(0, n - n % 64, 64):
        pack_bools(bits, bools + done, 64)
        write_bits(writer, load_bits64(bits), 64)
    if n % 64:
        memset(last, 0, 64)
        memcpy(last, bools + n - n % 64, n % 64)
        pack_bools(bits, last, 64)
        write_bits(writer, load_bits64(bits), n % 64)


cdef inline void append_run(
    Writer* writer, const Source* source, uint64_t position, size_t n, Prefetcher* prefetcher
) noexcept nogil:
    if source.mask != NULL:
        append_stream(writer, n, source.mask, position, prefetcher)
    elif source.bits != NULL:
        append_packed(writer, source.bits, position, n)
    else:
        append_bools(writer, source.bools + <ptrdiff_t>position, n)


cdef inline void append_packed(Writer* writer, const uint8_t* bits, uint64_t first, size_t n) noexcept nogil:
    """Append n bits of `bits`, from bit `first` on. Unlike append_bits, this function reads no bytes after the last bit."""
    cdef uint64_t taken
    cdef size_t i
    while n >= 72:                    # append_bits reads 9 bytes, but no bits after first + 71
        append_bits(writer, bits, first, 64)
        first += 64
        n -= 64
    while n:
        taken = bits[first // 8] >> first % 8
        i = min(n, <size_t>(8 - first % 8))
        write_bits(writer, taken, i)
        first += i
        n -= i


cdef inline void draw_tile(uint8_t* buffer, const BitLayout* layout, const Source* source, const View* tile) noexcept nogil:
    """Draw the bits of a tile into the buffer, run by run."""
    cdef size_t index[MAX_DIMS]
    cdef uint64_t position = tile.start
    cdef int i, axis
    cdef Writer writer
    cdef Prefetcher prefetcher
    cdef Prefetcher* active = NULL
    if layout.size >= PREFETCH_ELEMENTS:
        active = &prefetcher
        begin_prefetch(active, tile, PREFETCH_LINES)
    writer.to, writer.held, writer.count = buffer, 0, 0
    for i in range(layout.ndim):
        axis = layout.order[i]
        index[i] = 0
        if tile.axes[axis].mask < 0:  # begin at the lowest position
            position += <uint64_t>(tile.axes[axis].length - 1) * <uint64_t>tile.axes[axis].mask
    while True:
        append_run(&writer, source, position, layout.run_bits, active)
        if layout.pitch > layout.run_bits:
            write_bits(&writer, 0, layout.pitch - layout.run_bits)
        i = layout.run_ndim
        while i < layout.ndim:
            axis = layout.order[i]
            position += distance(tile.axes[axis].mask)
            index[i] += 1
            if index[i] < tile.axes[axis].length:
                break
            position -= distance(tile.axes[axis].mask) * <uint64_t>tile.axes[axis].length
            index[i] = 0
            i += 1
        if i == layout.ndim:
            break
    store_bits64(writer.to, writer.held)


cdef inline uint64_t first_bit(const BitLayout* layout, const View* tile) noexcept nogil:
    """Return the position in the buffer of the keep bit of the tile's first element."""
    cdef uint64_t first = 0
    cdef int axis
    for axis in range(tile.ndim):
        if layout.stride[axis] < 0:
            first -= <uint64_t>layout.stride[axis] * <uint64_t>(tile.axes[axis].length - 1)
    return first


# ---- applying bits to rows ---------------------------------------------------------------------------


cdef inline void gather(element* to, const char* x, ptrdiff_t stride, size_t n) noexcept nogil:
    cdef size_t i = 0
    if sizeof(element) > 1 and stride == 2 * sizeof(element):
        i = load_alternate(to, x, n, sizeof(element))
    for i in range(i, n):
        memcpy(to + i, x + <ptrdiff_t>i * stride, sizeof(element))


cdef inline void scatter(char* y, ptrdiff_t stride, const element* elements, size_t n) noexcept nogil:
    cdef size_t i = 0
    if sizeof(element) > 1 and stride == 2 * sizeof(element):
        i = store_alternate(y, elements, n, sizeof(element))
    for i in range(i, n):
        memcpy(y + <ptrdiff_t>i * stride, elements + i, sizeof(element))


# A kept element becomes x * scale, and a dropped element becomes 0. With a shift, a kept element becomes x * scale + shift,
# and a dropped element becomes the constant.
cdef struct Transform:
    double scale
    bint large                        # y is part of an array that does not fit in the cache: use streaming stores
    bint has_shift                    # shift and constant are used (float32 and float64 only)
    double shift
    double constant


cdef inline void select_shifted(real* values, const uint8_t* keep, size_t n, real shift, real constant) noexcept nogil:
    cdef real shifted
    cdef size_t i
    for i in range(n):
        shifted = values[i] + shift
        values[i] = shifted if keep[i] else constant


cdef inline void shift_elements(
    element* y, const uint8_t* bits, uint64_t first, size_t n, const Transform* transform
) noexcept nogil:
    """Add the shift to kept elements and replace dropped elements by the constant.

    n must be at most BUFFER_ELEMENTS. y may be unaligned.
    """
    cdef element values[BUFFER_ELEMENTS]
    cdef uint8_t keep[BUFFER_ELEMENTS]
    cdef uint8_t packed[8]
    cdef size_t i
    for i in range(0, n, 64):
        store_bits64(packed, bits64_at(bits, first + i))
        spread_bits(keep + i, packed, 64)
    memcpy(values, y, n * sizeof(element))
    if element is float or element is double:
        select_shifted(values, keep, n, <element>transform.shift, <element>transform.constant)
    memcpy(y, values, n * sizeof(element))


cdef inline void apply_strided_row(
    const char* x, char* y, const cdropout_axis* row, const uint8_t* bits, uint64_t first, const Transform* transform,
    element* typed,
) noexcept nogil:
    """Apply bits to a row with any strides in x and y. Only the type of `typed` is used."""
    cdef element buffer[BUFFER_ELEMENTS]
    cdef const element* source
    cdef element* target
    cdef size_t done, n
    for done in range(0, row.length, 128):  # 128 is BUFFER_ELEMENTS; Cython generates a C loop only for a literal step
        n = min(row.length - done, <size_t>BUFFER_ELEMENTS)
        source = <const element*>x
        target = <element*>y if row.y == sizeof(element) else buffer
        if row.x != sizeof(element):
            gather(buffer, x, row.x, n)
            source = buffer
        mask_and_scale(source, target, bits, first + done, n, transform.scale)
        if transform.has_shift:
            shift_elements(target, bits, first + done, n, transform)
        if target == buffer:
            scatter(y, row.y, <const element*>buffer, n)
        x += <ptrdiff_t>n * row.x
        y += <ptrdiff_t>n * row.y


cdef inline void apply_rows(
    const View* strip, const uint8_t* bits, const Transform* transform, element* typed
) noexcept nogil:
    """Apply bits to the rows of a strip. `start` and the `mask` strides of the strip are positions and strides in `bits`."""
    cdef Rows rows
    cdef Prefetcher prefetcher
    cdef const cdropout_axis* row = &strip.axes[strip.ndim - 1]
    cdef const char* x
    cdef char* y
    cdef uint64_t first
    cdef bint adjacent = row.x == sizeof(element) and row.y == sizeof(element)
    cdef bint large = transform.large and not transform.has_shift and row.length >= STREAMED_ROW
    cdef size_t lines = row.length * sizeof(element) // LINE_BYTES + 1
    begin_rows(&rows, strip)
    prefetcher.left = 0
    if adjacent and row.length * sizeof(element) <= SHORT_ROW_BYTES and count_elements(strip) >= STRIP // 2:
        begin_prefetch(&prefetcher, strip, <size_t>-1)
        prefetch_lines(&prefetcher, PREFETCH_DISTANCE)
    while True:
        x = strip.x + <ptrdiff_t>rows.x
        y = strip.y + <ptrdiff_t>rows.y
        first = strip.start + rows.mask
        if prefetcher.left:
            prefetch_lines(&prefetcher, lines)
        if adjacent and large:
            mask_and_scale_large(<const element*>x, <element*>y, bits, first, row.length, transform.scale, True)
        elif adjacent and not transform.has_shift:
            mask_and_scale(<const element*>x, <element*>y, bits, first, row.length, transform.scale)
        else:
            apply_strided_row(x, y, row, bits, first, transform, typed)
        if not next_row(&rows):
            return


cdef inline void choose_strip(size_t* lengths, const View* tile) noexcept nogil:
    """Choose the lengths of the strips of a tile, so that a strip consists of squares of 64 x 64 bits if possible."""
    cdef size_t size = STRIP
    cdef size_t kept = 1
    cdef int unit = tile.ndim
    cdef int axis
    for axis in range(tile.ndim - 1):
        if tile.axes[axis].mask in (1, -1):
            unit = axis
            kept = min(tile.axes[axis].length, <size_t>64)
    size //= kept
    for axis in range(tile.ndim - 1, -1, -1):
        if axis == unit:
            size *= kept
        lengths[axis] = min(tile.axes[axis].length, max(size, <size_t>1))
        if 64 < lengths[axis] < tile.axes[axis].length:
            lengths[axis] -= lengths[axis] % 64
        size //= lengths[axis]


cdef inline bint rows_are_runs(const View* strip) noexcept nogil:
    """Return whether each row of a strip is a run of bits, and the rows are long or could not be joined."""
    cdef const cdropout_axis* row = &strip.axes[strip.ndim - 1]
    if row.mask != 1:
        return False
    return strip.ndim == 1 or row.length >= LONG_RUN or not continues_in_memory(row - 1, row)


cdef inline void apply_strip(View* strip, const uint8_t* bits, const Transform* transform, element* typed) noexcept nogil:
    """Apply bits to a strip. The bits are first reordered to the order of y unless `rows_are_runs`."""
    cdef uint8_t ordered[STRIP_BYTES + PADDING]
    cdef BitAxis axes[MAX_DIMS]
    cdef int64_t step = 1
    cdef int i
    simplify(strip)
    if not rows_are_runs(strip):
        for i in range(strip.ndim):
            axes[i] = BitAxis(strip.axes[i].length, strip.axes[i].mask)
        reorder_bits(ordered, bits, strip.start, strip.ndim, axes)
        for i in range(strip.ndim - 1, -1, -1):
            strip.axes[i].mask = step
            step *= <int64_t>strip.axes[i].length
        strip.start = 0
        join_axes(strip)
        bits = ordered
    apply_rows(strip, bits, transform, typed)


cdef inline void apply_tile(
    View* tile, BitLayout* layout, const Source* source, uint8_t* buffer, const Transform* transform, element* typed
) noexcept nogil:
    """Draw the bits of a tile and apply them strip by strip."""
    cdef size_t lengths[MAX_DIMS]
    cdef View strip
    cdef size_t number
    cdef int axis
    for axis in range(tile.ndim):
        lengths[axis] = tile.axes[axis].length
    compute_layout(layout, tile, lengths)
    draw_tile(buffer, layout, source, tile)
    tile.start = first_bit(layout, tile)  # from here on, the tile's `start` and `mask` strides refer to the buffer
    for axis in range(tile.ndim):
        tile.axes[axis].mask = layout.stride[axis]
    choose_strip(lengths, tile)
    for number in range(count_tiles(tile, lengths)):
        get_tile(&strip, tile, lengths, number)
        apply_strip(&strip, buffer, transform, typed)


cdef inline void apply_view(
    const View* view, const Source* source, const Transform* transform, element* typed
) noexcept nogil:
    """Mask and scale a view tile by tile. If memory for the bits of a large tile cannot be allocated, use small tiles."""
    cdef uint8_t small[SMALL_BYTES + PADDING]
    cdef uint8_t* allocated = NULL
    cdef size_t lengths[MAX_DIMS]
    cdef size_t number
    cdef View tile
    cdef BitLayout layout
    choose_tile(lengths, &layout, view, MAX_TILE)
    compute_layout(&layout, view, lengths)
    if layout.size > SMALL_TILE:
        allocated = <uint8_t*>malloc(layout.size // 8 + 1 + PADDING)
        if allocated == NULL:
            choose_tile(lengths, &layout, view, SMALL_TILE)
    for number in range(count_tiles(view, lengths)):
        get_tile(&tile, view, lengths, number)
        apply_tile(&tile, &layout, source, allocated if allocated != NULL else small, transform, typed)
    free(allocated)
