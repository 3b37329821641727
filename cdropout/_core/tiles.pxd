"""One tile of a view: its bits are drawn in the order of the mask, brought into the order of y, and applied to its rows."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cdropout cimport cdropout_axis, cdropout_mask
from cdropout._core.bits cimport (
    MARGIN, BitAxis, Writer, append_bits, bits64_at, load_bits64, pack_bools, reorder_bits, spread_bits, store_bits64,
    write_bits, write_group,
)
from cdropout._core.select cimport element, mask_and_scale, mask_and_scale_large, real
from cdropout._core.rows cimport LINE_BYTES, Ahead, Rows, begin_ahead, begin_rows, fetch, next_row
from cdropout._core.stream cimport GROUP, GROUP_BYTES, Stream, draw_group, open_stream
from cdropout._core.view cimport (
    MAX_DIMS, SMALL_TILE, TILE, Drawn, View, choose_tile, continues_in_memory, count_elements, count_tiles, distance,
    join_axes, lay_out, simplify, take_tile,
)

cdef extern from "simd.h" nogil:
    size_t take_alternate "cd_take_alternate"(void* to, const void* x, size_t n, size_t size)
    size_t put_alternate "cd_put_alternate"(void* y, const void* elements, size_t n, size_t size)

cdef enum:
    SMALL_BYTES = 1 << 15             # of the bits of a SMALL_TILE
    STRIP = 1 << 16                   # elements of a tile whose bits are reordered at once
    STRIP_BYTES = 1 << 13
    DIRECT = 512                      # bits of a row from which joining it with the next ones does not pay
    FETCHED = 4096                    # lines of a tile that are fetched while its bits are drawn, ...
    PER_GROUP = 8                     # ... so many per group
    MANY = 1 << 17                    # elements that do not fit the cache with their results: fetching pays
    SHORT_ROW = 2048                  # bytes of a row up to which the CPU does not fetch the next row by itself: ...
    AHEAD = 64                        # ... so many lines from one that is used to one that is fetched
    BUFFER = 128                      # elements that are gathered from, or scattered to, steps in memory at once
    STREAMED_ROW = 4 * GROUP          # elements from which streaming stores pay for a row

cdef struct Source:                   # what says which elements are kept: a mask, or
    const cdropout_mask* mask
    const uint8_t* bits               # packed bits, or
    const uint8_t* bools              # bytes; a position is a number of elements, bits or bytes


# ---- bits in the order of the mask ------------------------------------------------------------------


cdef inline void append_stream(
    Writer* writer, size_t n, const cdropout_mask* mask, uint64_t start, Ahead* ahead
) noexcept nogil:
    """Append n keep bits from position start on, and meanwhile fetch what is ahead, unless that is NULL."""
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
        if ahead != NULL:
            fetch(ahead, PER_GROUP)
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


cdef inline void append_run(
    Writer* writer, const Source* source, uint64_t position, size_t n, Ahead* ahead
) noexcept nogil:
    if source.mask != NULL:
        append_stream(writer, n, source.mask, position, ahead)
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
    cdef Ahead ahead
    cdef Ahead* fetched = NULL
    if drawn.bits >= MANY:
        fetched = &ahead
        begin_ahead(fetched, tile, FETCHED)
    writer.to, writer.held, writer.count = drawn_bits, 0, 0
    for i in range(drawn.ndim):
        axis = drawn.order[i]
        index[i] = 0
        if tile.axes[axis].mask < 0:              # begin at the least position
            position += <uint64_t>(tile.axes[axis].length - 1) * <uint64_t>tile.axes[axis].mask
    while True:
        append_run(&writer, source, position, drawn.run, fetched)
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


# ---- bits applied to rows ---------------------------------------------------------------------------


cdef inline void gather(element* to, const char* x, ptrdiff_t stride, size_t n) noexcept nogil:
    cdef size_t i = 0
    if sizeof(element) > 1 and stride == 2 * sizeof(element):
        i = take_alternate(to, x, n, sizeof(element))
    for i in range(i, n):
        memcpy(to + i, x + <ptrdiff_t>i * stride, sizeof(element))


cdef inline void scatter(char* y, ptrdiff_t stride, const element* elements, size_t n) noexcept nogil:
    cdef size_t i = 0
    if sizeof(element) > 1 and stride == 2 * sizeof(element):
        i = put_alternate(y, elements, n, sizeof(element))
    for i in range(i, n):
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
    for done in range(0, row.length, 128):        # BUFFER: Cython makes a loop of C of a literal step only
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


cdef inline void apply_rows(const View* strip, const uint8_t* bits, const Terms* terms, element* typed) noexcept nogil:
    """Apply bits to the rows of a strip, whose `mask` strides are those of the bits."""
    cdef Rows rows
    cdef Ahead ahead
    cdef const cdropout_axis* row = &strip.axes[strip.ndim - 1]
    cdef const char* x
    cdef char* y
    cdef uint64_t first
    cdef bint adjacent = row.x == sizeof(element) and row.y == sizeof(element)
    cdef bint large = terms.large and not terms.shifts and row.length >= STREAMED_ROW
    cdef size_t lines = row.length * sizeof(element) // LINE_BYTES + 1
    begin_rows(&rows, strip)
    ahead.left = 0
    if adjacent and row.length * sizeof(element) <= SHORT_ROW and count_elements(strip) >= STRIP // 2:
        begin_ahead(&ahead, strip, <size_t>-1)
        fetch(&ahead, AHEAD)
    while True:
        x = strip.x + <ptrdiff_t>rows.x
        y = strip.y + <ptrdiff_t>rows.y
        first = strip.start + rows.mask
        if ahead.left:
            fetch(&ahead, lines)
        if adjacent and large:
            mask_and_scale_large(<const element*>x, <element*>y, bits, first, row.length, terms.scale, True)
        elif adjacent and not terms.shifts:
            mask_and_scale(<const element*>x, <element*>y, bits, first, row.length, terms.scale)
        else:
            apply_spaced_row(x, y, row, bits, first, terms, typed)
        if not next_row(&rows):
            return


cdef inline void choose_strip(size_t* lengths, const View* tile) noexcept nogil:
    """Cut a tile, in the order of y, into strips whose bits fit; they have room for a whole transpose."""
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


cdef inline bint has_runs(const View* strip) noexcept nogil:
    """Return whether the rows of a strip are runs of bits, and reordering them would not make much longer rows."""
    cdef const cdropout_axis* row = &strip.axes[strip.ndim - 1]
    if row.mask != 1:
        return False
    return strip.ndim == 1 or row.length >= DIRECT or not continues_in_memory(row - 1, row)


cdef inline void apply_strip(View* strip, const uint8_t* bits, const Terms* terms, element* typed) noexcept nogil:
    """Bring the bits of a strip into the order of y, unless its rows are runs of them, and apply them."""
    cdef uint8_t ordered[STRIP_BYTES + MARGIN]
    cdef BitAxis axes[MAX_DIMS]
    cdef int64_t step = 1
    cdef int i
    simplify(strip)
    if not has_runs(strip):
        for i in range(strip.ndim):
            axes[i] = BitAxis(strip.axes[i].length, strip.axes[i].mask)
        reorder_bits(ordered, bits, strip.start, strip.ndim, axes)
        for i in range(strip.ndim - 1, -1, -1):
            strip.axes[i].mask = step
            step *= <int64_t>strip.axes[i].length
        strip.start = 0
        join_axes(strip)
        bits = ordered
    apply_rows(strip, bits, terms, typed)


cdef inline void apply_tile(
    View* tile, Drawn* drawn, const Source* source, uint8_t* drawn_bits, const Terms* terms, element* typed
) noexcept nogil:
    """Draw the bits of a tile, and apply them to one strip of it after the other."""
    cdef size_t lengths[MAX_DIMS]
    cdef View strip
    cdef size_t number
    cdef int axis
    for axis in range(tile.ndim):
        lengths[axis] = tile.axes[axis].length
    lay_out(drawn, tile, lengths)
    draw_tile(drawn_bits, drawn, source, tile)
    tile.start = first_bit(drawn, tile)           # from here on the drawn bits are the mask
    for axis in range(tile.ndim):
        tile.axes[axis].mask = drawn.stride[axis]
    choose_strip(lengths, tile)
    for number in range(count_tiles(tile, lengths)):
        take_tile(&strip, tile, lengths, number)
        apply_strip(&strip, drawn_bits, terms, typed)


cdef inline void apply_view(const View* view, const Source* source, const Terms* terms, element* typed) noexcept nogil:
    """Apply the mask tile by tile; the bits of a large one are in memory that is allocated, if there is some."""
    cdef uint8_t small[SMALL_BYTES + MARGIN]
    cdef uint8_t* allocated = NULL
    cdef size_t lengths[MAX_DIMS]
    cdef size_t number
    cdef View tile
    cdef Drawn drawn
    choose_tile(lengths, &drawn, view, TILE)
    lay_out(&drawn, view, lengths)
    if drawn.bits > SMALL_TILE:
        allocated = <uint8_t*>malloc(drawn.bits // 8 + 1 + MARGIN)
        if allocated == NULL:
            choose_tile(lengths, &drawn, view, SMALL_TILE)
    for number in range(count_tiles(view, lengths)):
        take_tile(&tile, view, lengths, number)
        apply_tile(&tile, &drawn, source, allocated if allocated != NULL else small, terms, typed)
    free(allocated)
