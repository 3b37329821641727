"""One tile of a view: its bits are drawn in the order of the mask, brought into the order of y, and applied to its rows."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from cdropout cimport cdropout_axis, cdropout_mask
from cdropout.core.bits cimport (
    MARGIN, BitAxis, Writer, append_bits, bits64_at, load_bits64, pack_bools, reorder_bits, spread_bits, store_bits64,
    write_bits, write_group,
)
from cdropout.core.elements cimport element, mask_and_scale, mask_and_scale_large, real
from cdropout.core.stream cimport GROUP, GROUP_BYTES, Stream, draw_group, open_stream
from cdropout.core.view cimport (
    MAX_DIMS, TILE_BYTES, Drawn, View, choose_tile, count_tiles, distance, lay_out, take_tile,
)

cdef extern from "simd.h" nogil:
    void prefetch "cd_prefetch"(const void*)

cdef enum:
    AHEAD = 4                         # rows from one that is read to one that is prefetched
    SHORT_ROW = 2048                  # bytes of a row up to which the hardware does not prefetch the next one by itself
    BUFFER = 512                      # elements that are gathered from, or scattered to, steps in memory at once
    STREAMED_ROW = 4 * GROUP          # elements from which streaming stores pay for a row

cdef struct Source:                   # what says which elements are kept: a mask, or
    const cdropout_mask* mask
    const uint8_t* bits               # packed bits, or
    const uint8_t* bools              # bytes; a position is a number of elements, bits or bytes


# ---- rows ---------------------------------------------------------------------------------------------

cdef struct Rows:                     # the rows of a tile, one after the other
    const View* tile
    int last                          # the axis of the elements of a row
    size_t index[MAX_DIMS]
    size_t x, y                       # bytes from the first element; unsigned, since the step past the last row may overflow
    uint64_t mask                     # elements of the mask from the first one


cdef inline bint joins(const cdropout_axis* outer, const cdropout_axis* inner) noexcept nogil:
    """Return whether rows follow each other without a gap in x and in y."""
    return (
        outer.length == 1
        or outer.x == inner.x * <ptrdiff_t>inner.length and outer.y == inner.y * <ptrdiff_t>inner.length
    )


cdef inline void begin_rows(Rows* rows, const View* tile, int last) noexcept nogil:
    cdef int axis
    rows.tile = tile
    rows.last = last
    rows.x = rows.y = 0
    rows.mask = 0
    for axis in range(last):
        rows.index[axis] = 0


cdef inline void first_row(Rows* rows, View* tile) noexcept nogil:
    """Begin with the first row, after joining rows that follow each other without a gap."""
    cdef int last = tile.ndim - 1
    while last > 0 and tile.axes[last].length == 1:
        last -= 1
    while last > 0 and joins(&tile.axes[last - 1], &tile.axes[last]):
        last -= 1
        tile.axes[last] = cdropout_axis(
            tile.axes[last].length * tile.axes[last + 1].length, tile.axes[last + 1].x, tile.axes[last + 1].y, 0,
        )
    begin_rows(rows, tile, last)


cdef inline bint next_row(Rows* rows) noexcept nogil:
    """Go to the next row; return whether there is one."""
    cdef const cdropout_axis* axis
    cdef int i
    for i in range(rows.last - 1, -1, -1):
        axis = &rows.tile.axes[i]
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


cdef inline void prefetch_row(const Rows* rows, size_t bytes) noexcept nogil:
    cdef const char* x = rows.tile.x + <ptrdiff_t>rows.x
    cdef const char* y = rows.tile.y + <ptrdiff_t>rows.y
    cdef size_t i
    for i in range(0, bytes, 64):
        prefetch(x + i)
        prefetch(y + i)


# ---- bits in the order of the mask ------------------------------------------------------------------


cdef inline void append_stream(Writer* writer, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    """Append n keep bits from position start on."""
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP           # bits of the group before this are not wanted
    cdef uint64_t count
    if mask.scale == 0:                           # p = 1, whose threshold cannot be written
        while n:
            count = min(n, <size_t>64)
            write_bits(writer, 0, count)
            n -= count
        return
    open_stream(&stream, mask, start - first)
    while n:
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
    """Append a bit for each of n bytes: 0 where it is 0."""
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


cdef inline void append_run(Writer* writer, const Source* source, uint64_t position, size_t n) noexcept nogil:
    if source.mask != NULL:
        append_stream(writer, n, source.mask, position)
    elif source.bits != NULL:
        append_packed(writer, source.bits, position, n)
    else:
        append_bools(writer, source.bools + <ptrdiff_t>position, n)


cdef inline void append_packed(Writer* writer, const uint8_t* bits, uint64_t first, size_t n) noexcept nogil:
    """Append n bits of memory of which no byte past their last may be read."""
    cdef uint64_t taken
    cdef size_t i
    while n >= 72:                    # 9 bytes, read from the byte of the first bit, hold none after bit first + 71
        append_bits(writer, bits, first, 64)
        first += 64
        n -= 64
    while n:
        taken = bits[first // 8] >> first % 8
        i = min(n, <size_t>(8 - first % 8))
        write_bits(writer, taken, i)
        first += i
        n -= i


cdef inline void draw_tile(uint8_t* drawn_bits, const Drawn* drawn, const Source* source, const View* tile) noexcept nogil:
    """Fill the buffer with the bits of a tile, run by run."""
    cdef size_t index[MAX_DIMS]
    cdef uint64_t position = tile.start
    cdef int i, axis
    cdef Writer writer
    writer.to, writer.held, writer.count = drawn_bits, 0, 0
    for i in range(drawn.ndim):
        axis = drawn.order[i]
        index[i] = 0
        if tile.axes[axis].mask < 0:              # begin at the least position
            position += <uint64_t>(tile.axes[axis].length - 1) * <uint64_t>tile.axes[axis].mask
    while True:
        append_run(&writer, source, position, drawn.run)
        if drawn.pitch > drawn.run:
            write_bits(&writer, 0, drawn.pitch - drawn.run)
        i = drawn.runs
        while i < drawn.ndim:
            axis = drawn.order[i]
            position += distance(tile.axes[axis].mask)
            index[i] += 1
            if index[i] < tile.axes[axis].length:
                break
            position -= distance(tile.axes[axis].mask) * <uint64_t>tile.axes[axis].length
            index[i] = 0
            i += 1
        if i == drawn.ndim:
            break
    store_bits64(writer.to, writer.held)


cdef inline uint64_t first_bit(const Drawn* drawn, const View* tile) noexcept nogil:
    """Return where the bit of the tile's first element is."""
    cdef uint64_t first = 0
    cdef int axis
    for axis in range(tile.ndim):
        if drawn.stride[axis] < 0:
            first -= <uint64_t>drawn.stride[axis] * <uint64_t>(tile.axes[axis].length - 1)
    return first


cdef inline bint in_order(const Drawn* drawn, const View* tile) noexcept nogil:
    """Return whether the bits are drawn in the order of y."""
    cdef int64_t step = 1
    cdef int axis
    for axis in range(tile.ndim - 1, -1, -1):
        if tile.axes[axis].length > 1 and drawn.stride[axis] != step:
            return False
        step *= <int64_t>tile.axes[axis].length
    return True


# ---- bits applied to rows ---------------------------------------------------------------------------


cdef inline void gather(element* to, const char* x, ptrdiff_t stride, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(to + i, x + <ptrdiff_t>i * stride, sizeof(element))


cdef inline void scatter(char* y, ptrdiff_t stride, const element* elements, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(y + <ptrdiff_t>i * stride, elements + i, sizeof(element))


cdef struct Terms:                    # what becomes of an element:
    double scale                      # a kept one is multiplied by this
    bint large                        # y is part of an array that does not fit the cache: use streaming stores
    bint shifts                       # and then, if this is set (float32 and float64 only),
    double shift                      # this is added to a kept one
    double constant                   # and a dropped one becomes this; otherwise +0.0


cdef inline void select_shifted(real* values, const uint8_t* keep, size_t n, real shift, real constant) noexcept nogil:
    cdef real shifted
    cdef size_t i
    for i in range(n):
        shifted = values[i] + shift
        values[i] = shifted if keep[i] else constant


cdef inline void shift_elements(
    element* y, const uint8_t* bits, uint64_t first, size_t n, const Terms* terms
) noexcept nogil:
    """Add the shift to up to BUFFER kept elements, and write the constant to dropped ones. y may have any alignment."""
    cdef element values[BUFFER]
    cdef uint8_t keep[BUFFER]
    cdef uint8_t packed[8]
    cdef size_t i
    for i in range(0, n, 64):
        store_bits64(packed, bits64_at(bits, first + i))
        spread_bits(keep + i, packed, 64)
    memcpy(values, y, n * sizeof(element))
    if element is float or element is double:
        select_shifted(values, keep, n, <element>terms.shift, <element>terms.constant)
    memcpy(y, values, n * sizeof(element))


cdef inline void apply_spaced_row(
    const char* x, char* y, const cdropout_axis* row, const uint8_t* bits, uint64_t first, const Terms* terms, element* typed
) noexcept nogil:
    """Apply bits to a row whose elements may have gaps in x or in y; `typed`: its type only."""
    cdef element buffer[BUFFER]
    cdef const element* source
    cdef element* target
    cdef size_t done, n
    for done in range(0, row.length, 512):        # BUFFER: Cython makes a loop of C of a literal step only
        n = min(row.length - done, <size_t>BUFFER)
        source = <const element*>x
        target = <element*>y if row.y == sizeof(element) else buffer
        if row.x != sizeof(element):
            gather(buffer, x, row.x, n)
            source = buffer
        mask_and_scale(source, target, bits, first + done, n, terms.scale)
        if terms.shifts:
            shift_elements(target, bits, first + done, n, terms)
        if target == buffer:
            scatter(y, row.y, <const element*>buffer, n)
        x += <ptrdiff_t>n * row.x
        y += <ptrdiff_t>n * row.y


cdef inline void apply_rows(View* tile, const uint8_t* bits, const Terms* terms, element* typed) noexcept nogil:
    """Apply bits in the order of y to the rows of a tile."""
    cdef Rows rows, ahead
    cdef const cdropout_axis* row
    cdef const char* x
    cdef char* y
    cdef uint64_t first = 0
    cdef bint adjacent, large, more
    cdef int _i
    first_row(&rows, tile)
    row = &tile.axes[rows.last]
    adjacent = row.x == sizeof(element) and row.y == sizeof(element)
    large = terms.large and not terms.shifts and row.length >= STREAMED_ROW
    ahead = rows
    more = adjacent and row.length * sizeof(element) <= SHORT_ROW
    for _i in range(AHEAD):
        more = more and next_row(&ahead)
    while True:
        x = tile.x + <ptrdiff_t>rows.x
        y = tile.y + <ptrdiff_t>rows.y
        if more:
            prefetch_row(&ahead, row.length * sizeof(element))
            more = next_row(&ahead)
        if adjacent and large:
            mask_and_scale_large(<const element*>x, <element*>y, bits, first, row.length, terms.scale, True)
        elif adjacent and not terms.shifts:
            mask_and_scale(<const element*>x, <element*>y, bits, first, row.length, terms.scale)
        else:
            apply_spaced_row(x, y, row, bits, first, terms, typed)
        first += row.length
        if not next_row(&rows):
            return


cdef inline void apply_tile(
    View* tile, Drawn* drawn, const Source* source, const Terms* terms, element* typed
) noexcept nogil:
    """Draw, reorder and apply the bits of a tile, whose axes are then those of its rows."""
    cdef uint8_t drawn_bits[TILE_BYTES + MARGIN]
    cdef uint8_t ordered_bits[TILE_BYTES + MARGIN]
    cdef const uint8_t* bits = drawn_bits
    cdef BitAxis axes[MAX_DIMS]
    cdef size_t lengths[MAX_DIMS]
    cdef int ndim = 0
    cdef int axis
    for axis in range(tile.ndim):
        lengths[axis] = tile.axes[axis].length
    lay_out(drawn, tile, lengths)
    draw_tile(drawn_bits, drawn, source, tile)
    if not in_order(drawn, tile):
        for axis in range(tile.ndim):
            if tile.axes[axis].length > 1:
                axes[ndim] = BitAxis(tile.axes[axis].length, drawn.stride[axis])
                ndim += 1
        reorder_bits(ordered_bits, drawn_bits, first_bit(drawn, tile), ndim, axes)
        bits = ordered_bits
    apply_rows(tile, bits, terms, typed)


cdef inline void apply_view(const View* view, const Source* source, const Terms* terms, element* typed) noexcept nogil:
    cdef size_t lengths[MAX_DIMS]
    cdef size_t number
    cdef View tile
    cdef Drawn drawn
    choose_tile(lengths, &drawn, view)
    for number in range(count_tiles(view, lengths)):
        take_tile(&tile, view, lengths, number)
        apply_tile(&tile, &drawn, source, terms, typed)
