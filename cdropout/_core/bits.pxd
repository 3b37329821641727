"""Packed bits, least significant first: appended to others, and turned into bytes and back."""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "simd.h" nogil:
    uint64_t load_bits64 "cd_load_bits64"(const void*)
    uint64_t reverse_bytes64 "cd_reverse_bytes64"(uint64_t)
    void store_bits64 "cd_store_bits64"(void*, uint64_t)

cdef struct Writer:                               # packed bits on their way to memory
    uint8_t* to
    uint64_t held                                 # those that do not fill a word yet
    uint64_t count                                # how many, under 64


cdef inline void write_bits(Writer* writer, uint64_t word, uint64_t count) noexcept nogil:
    """Append the lowest `count` bits of word, 1 to 64."""
    word &= ~<uint64_t>0 >> (64 - count)
    writer.held |= word << writer.count
    if writer.count + count < 64:
        writer.count += count
        return
    store_bits64(writer.to, writer.held)
    writer.to += 8
    writer.held = word >> 1 >> (63 - writer.count)    # a shift by 64 is undefined
    writer.count += count - 64


cdef inline void write_row(Writer* writer, uint64_t word, uint64_t count) noexcept nogil:
    """write_bits without a branch, which may use 8 bytes after what it has written."""
    cdef uint64_t total = writer.count + count
    cdef uint64_t rest
    word &= ~<uint64_t>0 >> (64 - count)
    rest = word >> 1 >> (63 - writer.count)
    writer.held |= word << writer.count
    store_bits64(writer.to, writer.held)
    writer.held = rest if total >= 64 else writer.held
    writer.to += total // 64 * 8
    writer.count = total % 64


cdef inline void write_group(Writer* writer, const uint8_t* bits) noexcept nogil:
    """Append the 512 bits of a group."""
    cdef uint64_t held = writer.held
    cdef uint64_t word
    cdef int i
    if writer.count == 0:
        memcpy(writer.to, bits, 64)
    else:
        for i in range(8):
            word = load_bits64(bits + 8 * i)
            store_bits64(writer.to + 8 * i, held | word << writer.count)
            held = word >> (64 - writer.count)
        writer.held = held
    writer.to += 64


cdef inline void spread_bits(uint8_t* out, const uint8_t* bits, size_t n) noexcept nogil:
    """A byte of 0 or 1 for each of n bits, n a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):                       # each byte selects its own bit; adding 127 carries any to the top
        lanes = bits[i] * <uint64_t>0x0101010101010101 & <uint64_t>0x8040201008040201
        store_bits64(out + 8 * i, (lanes + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7 & <uint64_t>0x0101010101010101)


cdef inline void pack_bools(uint8_t* bits, const uint8_t* bools, size_t n) noexcept nogil:
    """The bits of n bytes, 0 where they are 0; n a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):                       # adding 127 carries any bit of a byte to its highest, ...
        lanes = load_bits64(bools + 8 * i)
        lanes = (lanes | (lanes & <uint64_t>0x7F7F7F7F7F7F7F7F) + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7
        lanes &= <uint64_t>0x0101010101010101     # ... and the product gathers the 8 in one byte
        bits[i] = <uint8_t>(lanes * <uint64_t>0x0102040810204080 >> 56)


# ---- packed bits in another order -------------------------------------------------------------------

cdef extern from "simd.h" nogil:
    ctypedef unsigned long long word "cd_word"    # a vector
    word load "cd_load"(const void*)
    void store "cd_store"(void*, word)
    word zero "cd_zero"()
    word part_per_lane "cd_part_per_lane"(uint64_t a, uint64_t b, uint64_t bits)

cdef extern from *:
    """
    enum { CD_VECTOR_WORDS = sizeof(cd_word) / 8, CD_VECTORS = 64 / CD_VECTOR_WORDS };
    """
    const int VECTOR_WORDS "CD_VECTOR_WORDS"      # 64-bit integers per vector
    const int VECTORS "CD_VECTORS"                # vectors that hold 64 of them

cdef enum:
    MOST_AXES = 64
    MARGIN = 16                                   # bytes after packed bits that may be used, too: `interleave` reads so far

cdef struct BitAxis:
    size_t length
    int64_t stride                                # bits from one index to the next in the source


cdef inline uint64_t bits64_at(const uint8_t* bits, uint64_t first) noexcept nogil:
    """Return 64 bits from bit `first` on; reads up to 8 bytes past the byte of the first."""
    cdef const uint8_t* byte = bits + first // 8
    cdef uint64_t shift = first % 8
    return load_bits64(byte) >> shift | <uint64_t>byte[8] << 1 << (63 - shift)    # a shift by 64 is undefined


cdef inline uint64_t reversed_bits(uint64_t bits) noexcept nogil:
    bits = bits >> 1 & <uint64_t>0x5555555555555555 | (bits & <uint64_t>0x5555555555555555) << 1
    bits = bits >> 2 & <uint64_t>0x3333333333333333 | (bits & <uint64_t>0x3333333333333333) << 2
    bits = bits >> 4 & <uint64_t>0x0F0F0F0F0F0F0F0F | (bits & <uint64_t>0x0F0F0F0F0F0F0F0F) << 4
    return reverse_bytes64(bits)


cdef inline void exchange(word* a, word* b, int shift, uint64_t low) noexcept nogil:
    """Exchange the higher bits of a with the lower ones of b."""
    cdef word t = ((a[0] >> shift) ^ b[0]) & low
    b[0] ^= t
    a[0] ^= t << shift


cdef inline void exchange_rows(word* rows, int shift, int apart, uint64_t low) noexcept nogil:
    """One step of a transpose: exchange blocks of `shift` bits between rows that are `apart` of 64 places apart."""
    cdef int distance = apart // VECTOR_WORDS
    cdef int i
    for i in range(VECTORS):
        if i & distance == 0:
            exchange(&rows[i], &rows[i + distance], shift, low)


cdef inline void transpose(uint64_t* rows) noexcept nogil:
    """Transpose 64 x 64 bits; row i of the result is at place_of(i).

    Hacker's Delight, section 7-3. Rows 32, 16 and 8 apart are in different vectors; rows 4, 2 and 1 apart are so after the
    rows themselves have been transposed as 8 x 8.
    """
    cdef word vectors[64]
    cdef uint64_t moved[64]
    cdef int i, j
    for i in range(VECTORS):
        vectors[i] = load(rows + i * VECTOR_WORDS)
    exchange_rows(vectors, 32, 32, <uint64_t>0x00000000FFFFFFFF)
    exchange_rows(vectors, 16, 16, <uint64_t>0x0000FFFF0000FFFF)
    exchange_rows(vectors, 8, 8, <uint64_t>0x00FF00FF00FF00FF)
    for i in range(VECTORS):
        store(rows + i * VECTOR_WORDS, vectors[i])
    for i in range(8):
        for j in range(8):
            moved[8 * j + i] = rows[8 * i + j]
    for i in range(VECTORS):
        vectors[i] = load(moved + i * VECTOR_WORDS)
    exchange_rows(vectors, 4, 32, <uint64_t>0x0F0F0F0F0F0F0F0F)
    exchange_rows(vectors, 2, 16, <uint64_t>0x3333333333333333)
    exchange_rows(vectors, 1, 8, <uint64_t>0x5555555555555555)
    for i in range(VECTORS):
        store(rows + i * VECTOR_WORDS, vectors[i])


cdef inline int place_of(int row) noexcept nogil:
    return (row & 7) << 3 | row >> 3


cdef inline uint64_t bits64_down_from(const uint8_t* source, uint64_t first) noexcept nogil:
    """Return 64 bits from bit `first` down."""
    if first >= 63:
        return reversed_bits(bits64_at(source, first - 63))
    return reversed_bits(load_bits64(source) << (63 - first))


cdef inline void load_rows(
    uint64_t* rows, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row, size_t begin, size_t n
) noexcept nogil:
    """Load up to 64 bits along `outer`, whose stride is 1 or -1, of n rows."""
    cdef size_t i
    first += <uint64_t>row.stride * begin
    if outer.stride < 0:
        for i in range(n):
            rows[i] = bits64_down_from(source, first + <uint64_t>row.stride * i)
    else:
        for i in range(n):
            rows[i] = bits64_at(source, first + <uint64_t>row.stride * i)


cdef inline void append_bits(Writer* writer, const uint8_t* bits, uint64_t first, size_t n) noexcept nogil:
    """Append n bits from bit `first` on."""
    cdef size_t done
    for done in range(0, n, 64):
        write_bits(writer, bits64_at(bits, first + done), min(n - done, <size_t>64))


cdef inline void append_reversed(Writer* writer, const uint8_t* bits, uint64_t last, size_t n) noexcept nogil:
    """Append n bits down from bit `last`."""
    cdef uint64_t words[8]
    cdef uint8_t group[64]
    cdef size_t done = 0
    cdef size_t i
    while n - done >= 512:                        # compilers vectorize the second loop
        for i in range(8):
            words[i] = bits64_at(bits, last - done - 63 - 64 * i)
        for i in range(8):
            words[i] = reversed_bits(words[i])
        for i in range(8):
            store_bits64(group + 8 * i, words[i])
        write_group(writer, group)
        done += 512
    for done in range(done, n, 64):
        write_bits(writer, bits64_down_from(bits, last - done), min(n - done, <size_t>64))


cdef inline void append_equal(Writer* writer, bint bit, size_t n) noexcept nogil:
    """Append n times the same bit."""
    cdef size_t done
    for done in range(0, n, 64):
        write_bits(writer, 0 - <uint64_t>bit, min(n - done, <size_t>64))


cdef inline void append_spaced(
    Writer* writer, const uint8_t* bits, uint64_t first, int64_t stride, size_t n
) noexcept nogil:
    """Append n bits that are `stride` apart."""
    cdef uint64_t taken = 0
    cdef size_t i
    for i in range(n):
        taken |= <uint64_t>(bits[first // 8] >> first % 8 & 1) << i % 64
        first += <uint64_t>stride
        if i % 64 == 63:
            write_bits(writer, taken, 64)
            taken = 0
    if n % 64:
        write_bits(writer, taken, n % 64)


cdef inline void append_rows(
    Writer* writer, const uint8_t* source, uint64_t first, int ndim, const BitAxis* axes
) noexcept nogil:
    """Append the bits of all rows; rows are the last axis."""
    cdef size_t index[MOST_AXES]
    cdef const BitAxis* row = &axes[ndim - 1]
    cdef Writer local = writer[0]                 # in registers: what is stored may be a part of *writer
    cdef size_t i
    cdef int axis
    cdef bint short_rows = row.stride == 1 and row.length <= 64 and ndim > 1
    for axis in range(ndim):
        index[axis] = 0
    while True:
        if short_rows:                            # all of axis ndim - 2
            axis = ndim - 2
            for i in range(axes[axis].length):
                write_row(&local, bits64_at(source, first + i * <uint64_t>axes[axis].stride), row.length)
        else:
            axis = ndim - 1
            if row.stride == 1:
                append_bits(&local, source, first, row.length)
            elif row.stride == -1:
                append_reversed(&local, source, first, row.length)
            elif row.stride == 0:
                append_equal(&local, source[first // 8] >> first % 8 & 1, row.length)
            else:
                append_spaced(&local, source, first, row.stride, row.length)
        axis -= 1
        while axis >= 0:
            first += <uint64_t>axes[axis].stride
            index[axis] += 1
            if index[axis] < axes[axis].length:
                break
            first -= <uint64_t>axes[axis].stride * <uint64_t>axes[axis].length
            index[axis] = 0
            axis -= 1
        if axis < 0:
            writer[0] = local
            return


cdef inline void put_bits(uint8_t* out, uint64_t at, uint64_t bits, size_t n) noexcept nogil:
    """Set n bits from bit `at` on, of zeroed memory."""
    cdef uint8_t* byte = out + at // 8
    cdef uint64_t shift = at % 8
    bits &= ~<uint64_t>0 >> (64 - n)
    store_bits64(byte, load_bits64(byte) | bits << shift)
    if shift + n > 64:
        byte[8] |= <uint8_t>(bits >> (64 - shift))


cdef inline void interleave(
    uint8_t* out, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row
) noexcept nogil:
    """Write the bits of up to 8 rows in turn, from a whole byte on: a bit of each row, then the next bit of each row.

    A lane of a vector holds 16 bits of a row (8, if there are more than 4 rows), which are moved apart by halves.
    """
    cdef uint64_t n = row.length
    cdef uint64_t bits = 16 if n <= 4 else 8
    cdef uint64_t masks[4]
    cdef uint64_t lanes[8]
    cdef uint64_t group, place
    cdef size_t j, count
    cdef word v, merged
    cdef int steps = 0
    cdef int i, k
    group = bits // 2
    while group:
        masks[steps] = 0
        for place in range(bits):
            masks[steps] |= <uint64_t>1 << (place // group * group * n + place % group)
        steps += 1
        group //= 2
    j = 0
    while j < outer.length:
        count = min(outer.length - j, <size_t>(bits * VECTOR_WORDS))
        merged = zero()
        for i in range(<int>n):
            place = first + j + <uint64_t>(i * row.stride)
            v = part_per_lane(bits64_at(source, place), bits64_at(source, place + 4 * bits), bits)
            group = bits // 2
            for k in range(steps):
                v = (v | (v << <int>(group * (n - 1)))) & masks[k]
                group //= 2
            merged |= v << i
        store(lanes, merged)
        for k in range(VECTOR_WORDS):
            if k * bits >= count:
                break
            store_bits64(out + k * (bits * n // 8), lanes[k])
        j += count
        out += VECTOR_WORDS * bits * n // 8


cdef inline void transpose_pair(
    uint8_t* out, uint64_t at, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row
) noexcept nogil:
    """Write the transpose of up to 64 rows, whose stride is 1 or -1 along `outer`, from bit `at` of out on.

    Where there are few rows, one transpose takes several pieces of them.
    """
    cdef uint64_t rows[64]
    cdef size_t n = row.length
    cdef size_t width = 64
    cdef size_t j, k, q, place
    cdef Writer writer
    writer.to = out + at // 64 * 8
    writer.count = at % 64
    writer.held = load_bits64(writer.to) & ~(~<uint64_t>0 << writer.count)    # bits above are not part of the result
    while width // 2 >= n:
        width //= 2
    memset(rows, 0, sizeof(rows))
    for j in range(0, outer.length, 64):
        if j // 64 % (64 // width) == 0:
            for q in range(64 // width):
                place = j + 64 * q
                if place < outer.length:
                    load_rows(rows + q * width, source, first + <uint64_t>outer.stride * place, outer, row, 0, n)
            transpose(rows)
        q = j // 64 % (64 // width) * width
        for k in range(min(outer.length - j, <size_t>64)):
            write_row(&writer, rows[place_of(<int>k)] >> q, n)
    if writer.count:
        store_bits64(writer.to, writer.held)


cdef inline void transpose_axes(
    uint8_t* out, uint64_t at, const uint8_t* source, uint64_t first, int ndim, const BitAxis* axes
) noexcept nogil:
    """Write the bits of axis 0, whose stride is 1 or -1, and of the axes within it, from bit `at` of out on."""
    cdef const BitAxis* outer = &axes[0]
    cdef const BitAxis* row = &axes[ndim - 1]
    cdef uint64_t rows[64]
    cdef uint64_t pitch = 1                       # bits of out from one index of axis 0 to the next
    cdef size_t index[MOST_AXES]
    cdef size_t i, j, k, n, count
    cdef uint64_t place, here
    cdef int axis
    memset(rows, 0, sizeof(rows))
    for axis in range(1, ndim):
        pitch *= axes[axis].length
        index[axis] = 0
    if ndim == 2 and pitch <= 8 and at % 8 == 0 and outer.stride == 1:
        interleave(out + at // 8, source, first, outer, row)
        return
    if ndim == 2 and pitch <= 64:
        transpose_pair(out, at, source, first, outer, row)
        return
    for j in range(0, outer.length, 64):
        count = min(outer.length - j, <size_t>64)
        place = at + j * pitch
        here = first + <uint64_t>outer.stride * j
        while True:
            for i in range(0, row.length, 64):
                n = min(row.length - i, <size_t>64)
                load_rows(rows, source, here, outer, row, i, n)
                transpose(rows)
                if n == 64 and place % 64 == 0 and pitch % 64 == 0:
                    for k in range(count):
                        store_bits64(out + (place + i + k * pitch) // 8, rows[place_of(<int>k)])
                else:
                    for k in range(count):
                        put_bits(out, place + i + k * pitch, rows[place_of(<int>k)], n)
            axis = ndim - 2
            place += row.length
            while axis > 0:
                here += <uint64_t>axes[axis].stride
                index[axis] += 1
                if index[axis] < axes[axis].length:
                    break
                here -= <uint64_t>axes[axis].stride * <uint64_t>axes[axis].length
                index[axis] = 0
                axis -= 1
            if axis <= 0:
                break


cdef inline void reorder_bits(
    uint8_t* out, const uint8_t* source, uint64_t first, int ndim, const BitAxis* axes
) noexcept nogil:
    """Write the bits of the source in the order of these axes, the last fastest. out is MARGIN bytes longer."""
    cdef size_t n = 1
    cdef size_t i, outer
    cdef size_t index
    cdef int axis
    cdef int unit = -1                            # the axis along which the source is contiguous
    cdef Writer writer
    cdef uint64_t skip
    for axis in range(ndim):
        n *= axes[axis].length
        if axes[axis].stride in (1, -1) and axes[axis].length > 1:
            unit = axis
    if unit < 0 or unit == ndim - 1 or axes[ndim - 1].stride == 0:
        writer = Writer(out, 0, 0)
        append_rows(&writer, source, first, ndim, axes)
        store_bits64(writer.to, writer.held)
        return
    memset(out, 0, n // 8 + MARGIN)
    outer = 1
    for axis in range(unit):
        outer *= axes[axis].length
    for i in range(outer):
        index = i
        skip = 0
        for axis in range(unit - 1, -1, -1):
            skip += <uint64_t>axes[axis].stride * (index % axes[axis].length)
            index //= axes[axis].length
        transpose_axes(out, i * (n // outer), source, first + skip, ndim - unit, &axes[unit])
