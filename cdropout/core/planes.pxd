"""Rows and columns of elements at any strides, masked by bytes; dense rows are run through as one."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cdropout cimport cdropout_plane
from cdropout.core.bits cimport Writer, load_bits64, pack_bools, store_bits64, write_bits
from cdropout.core.elements cimport (
    WORD, bits_at, element, few_bits_at, mask_and_scale, step, step_few, store_bits32, up_to_line,
)

cdef enum:
    LONGEST = 8192                                # elements of a row whose bits are packed at once
    LONGEST_BYTES = 1024
    PIECE = 512                                    # elements that are brought side by side at once
    PIECE_BYTES = 64


cdef inline void gather_bits(uint8_t* bits, const uint8_t* keep, ptrdiff_t stride, size_t n) noexcept nogil:
    """The packed bits of 1 <= n <= LONGEST bytes: 0 where they are 0; filled up to a byte with 0."""
    cdef uint8_t bools[LONGEST]
    cdef size_t i
    cdef size_t bytes = (n + 7) // 8
    if stride == 1 and n % 8 == 0:
        pack_bools(bits, keep, n)
        return
    memset(bools + 8 * bytes - 8, 0, 8)
    for i in range(n):
        bools[i] = keep[<ptrdiff_t>i * stride]
    pack_bools(bits, bools, 8 * bytes)


# ---- rows anywhere ------------------------------------------------------------------------------


cdef inline void gather(element* to, const char* x, ptrdiff_t stride, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(to + i, x + <ptrdiff_t>i * stride, sizeof(element))


cdef inline void scatter(char* y, ptrdiff_t stride, const element* elements, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(y + <ptrdiff_t>i * stride, elements + i, sizeof(element))


cdef inline void apply_row(
    const cdropout_plane* plane, const char* x, char* y, const uint8_t* bits, size_t n, double scale, element* typed
) noexcept nogil:
    """n elements of a row; `typed`: its type only."""
    cdef element buffer[PIECE]
    cdef element* target
    cdef const char* source
    cdef char* place
    cdef size_t first, part
    if plane.x[1] == sizeof(element) and plane.y[1] == sizeof(element):
        mask_and_scale(<const element*>x, <element*>y, bits, 0, n, scale)
        return
    for first in range(0, n, 512):                # PIECE: Cython loops in C by a literal step only
        part = min(n - first, <size_t>PIECE)
        source = x + <ptrdiff_t>first * plane.x[1]
        place = y + <ptrdiff_t>first * plane.y[1]
        target = <element*>place if plane.y[1] == sizeof(element) else buffer
        if plane.x[1] == sizeof(element):
            mask_and_scale(<const element*>source, target, bits, first, part, scale)
        else:
            gather(buffer, source, plane.x[1], part)
            mask_and_scale(<const element*>buffer, target, bits, first, part, scale)
        if target == buffer:
            scatter(place, plane.y[1], <const element*>buffer, part)


cdef inline void apply_rows(
    const cdropout_plane* plane, const char* x, char* y, const uint8_t* keep, double scale, element* typed
) noexcept nogil:
    cdef uint8_t bits[LONGEST_BYTES]
    cdef size_t row, n
    cdef ptrdiff_t first                          # no pointer steps past the last: a step of keep may be beyond all memory
    for first in range(0, <ptrdiff_t>plane.columns, 8192):    # LONGEST
        n = min(plane.columns - <size_t>first, <size_t>LONGEST)
        for row in range(plane.rows):
            if row == 0 or plane.keep[0] != 0:
                gather_bits(bits, keep + <ptrdiff_t>row * plane.keep[0] + first * plane.keep[1], plane.keep[1], n)
            apply_row(
                plane, x + <ptrdiff_t>row * plane.x[0] + first * plane.x[1],
                y + <ptrdiff_t>row * plane.y[0] + first * plane.y[1], bits, n, scale, typed,
            )


# ---- rows side by side: steps run on from row to row, and end where the lines of y do -------------


cdef inline bint is_dense(const cdropout_plane* plane, ptrdiff_t size) noexcept nogil:
    """Whether the rows of x, and of y, lie side by side without gaps."""
    cdef ptrdiff_t row = <ptrdiff_t>plane.columns * size
    return plane.x[1] == size and plane.y[1] == size and plane.x[0] == row and plane.y[0] == row


cdef inline void apply_shared(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    """Dense rows of at least WORD elements, each of which lives or dies as a whole: channels first."""
    cdef size_t n = up_to_line(y, plane.rows * plane.columns)
    cdef size_t count = 0                         # elements of earlier rows in the next step, and their bits
    cdef uint32_t held = 0
    cdef uint32_t word
    cdef uint8_t bits[4]
    cdef size_t row, _step
    step_few(x, y, 0 - <uint32_t>(keep[0] != 0), n, scale)
    x += n
    y += n
    n = plane.columns - n
    for row in range(plane.rows):
        word = 0 - <uint32_t>(keep[<ptrdiff_t>row * plane.keep[0]] != 0)
        if count:
            store_bits32(bits, held | word << count)
            step(x, y, bits, scale)
            x += WORD
            y += WORD
            n -= WORD - count
        store_bits32(bits, word)
        for _step in range(n // WORD):
            step(x, y, bits, scale)
            x += WORD
            y += WORD
        count = n % WORD
        held = word & ~(~<uint32_t>0 << count)
        n = plane.columns
    step_few(x, y, held, count, scale)


cdef inline void apply_repeated(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    """Dense rows of at most LONGEST elements that share their keep bits: channels last."""
    cdef uint8_t row_bits[LONGEST_BYTES]
    cdef uint8_t bits[2 * LONGEST_BYTES + 16]
    cdef uint8_t word[4]
    cdef size_t period = (2 * WORD // plane.columns + 1) * plane.columns    # longer than two steps
    cdef size_t n = plane.rows * plane.columns
    cdef size_t at = up_to_line(y, n)
    cdef size_t i, _step
    cdef Writer writer
    writer.to = bits
    writer.held = writer.count = 0
    gather_bits(row_bits, keep, plane.keep[1], plane.columns)
    while 8 * <size_t>(writer.to - bits) + writer.count < period + 2 * WORD:
        for i in range(0, plane.columns, 64):
            write_bits(&writer, load_bits64(row_bits + i // 8), min(plane.columns - i, <size_t>64))
    store_bits64(writer.to, writer.held)
    step_few(x, y, few_bits_at(bits, 0, at), at, scale)
    x += at
    y += at
    n -= at
    for _step in range(n // WORD):
        store_bits32(word, bits_at(bits, at))
        step(x, y, word, scale)
        x += WORD
        y += WORD
        at += WORD
        if at >= period:
            at -= period
    step_few(x, y, few_bits_at(bits, at, n % WORD), n % WORD, scale)


cdef inline void apply_strung(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    """Dense short rows, each with keep bits of its own: these are strung together."""
    cdef uint8_t row_bits[LONGEST_BYTES]
    cdef uint8_t bits[PIECE_BYTES + 8]
    cdef uint64_t skip = -up_to_line(y, plane.rows * plane.columns) % WORD    # bits of no element
    cdef size_t row, i
    cdef Writer writer
    writer.to = bits
    writer.held = 0
    writer.count = skip
    for row in range(plane.rows):
        gather_bits(row_bits, keep + <ptrdiff_t>row * plane.keep[0], plane.keep[1], plane.columns)
        for i in range(0, plane.columns, 64):
            write_bits(&writer, load_bits64(row_bits + i // 8), min(plane.columns - i, <size_t>64))
            if writer.to == bits + PIECE_BYTES:
                mask_and_scale(x, y, bits, skip, PIECE - skip, scale)
                x += PIECE - skip
                y += PIECE - skip
                skip = 0
                writer.to = bits
    store_bits64(writer.to, writer.held)
    mask_and_scale(x, y, bits, skip, 8 * <size_t>(writer.to - bits) + writer.count - skip, scale)


cdef inline void apply_plane(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    if plane.rows == 0 or plane.columns == 0:
        return
    if plane.columns > LONGEST and plane.keep[1] != 0 or not is_dense(plane, sizeof(element)):
        apply_rows(plane, <const char*>x, <char*>y, keep, scale, y)
    elif plane.keep[1] == 0 and plane.columns >= WORD:
        apply_shared(plane, x, y, keep, scale)
    elif plane.keep[0] == 0:
        apply_repeated(plane, x, y, keep, scale)
    else:
        apply_strung(plane, x, y, keep, scale)
