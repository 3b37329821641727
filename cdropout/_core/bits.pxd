"""Functions that append packed bits (least significant bit first), convert them to bytes and back, and reorder them."""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from cdropout._core.view cimport MAX_DIMS

cdef extern from "simd.h" nogil:
    uint64_t load_bits64 "cd_load_bits64"(const void*)
    uint64_t reverse_bytes64 "cd_reverse_bytes64"(uint64_t)
    void store_bits64 "cd_store_bits64"(void*, uint64_t)

cdef struct Writer:                               # appends packed bits to memory
    uint8_t* to
    uint64_t held                                 # bits that are not written yet
    uint64_t count                                # number of held bits, less than 64


cdef inline void write_bits(Writer* writer, uint64_t value, uint64_t count) noexcept nogil:
    """Append the lowest `count` bits of value; count is 1 to 64."""
    value &= ~<uint64_t>0 >> (64 - count)
    writer.held |= value << writer.count
    if writer.count + count < 64:
        writer.count += count
        return
    store_bits64(writer.to, writer.held)
    writer.to += 8
    writer.held = value >> 1 >> (63 - writer.count)    # two shifts, because a shift by 64 is undefined
    writer.count += count - 64


cdef inline void write_bits_branchless(Writer* writer, uint64_t value, uint64_t count) noexcept nogil:
    """Append bits like write_bits, but without a branch. Up to 8 bytes after the appended bits may be overwritten."""
    cdef uint64_t total = writer.count + count
    cdef uint64_t rest
    value &= ~<uint64_t>0 >> (64 - count)
    rest = value >> 1 >> (63 - writer.count)
    writer.held |= value << writer.count
    store_bits64(writer.to, writer.held)
    writer.held = rest if total >= 64 else writer.held
    writer.to += total // 64 * 8
    writer.count = total % 64


cdef inline void write_group(Writer* writer, const uint8_t* bits) noexcept nogil:
    """Append the 512 bits of a group."""
    cdef uint64_t held = writer.held
    cdef uint64_t value
    cdef int i
    if writer.count == 0:
        memcpy(writer.to, bits, 64)
    else:
        for i in range(8):
            value = load_bits64(bits + 8 * i)
            store_bits64(writer.to + 8 * i, held | value << writer.count)
            held = value >> (64 - writer.count)
        writer.held = held
    writer.to += 64


cdef inline void spread_bits(uint8_t* out, const uint8_t* bits, size_t n) noexcept nogil:
    """Write one byte, 0 or 1, for each of n bits. n is a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):                       # byte k is 0 or 1 << k; adding 127 sets bit 7 unless the byte is 0
        lanes = bits[i] * <uint64_t>0x0101010101010101 & <uint64_t>0x8040201008040201
        store_bits64(out + 8 * i, (lanes + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7 & <uint64_t>0x0101010101010101)


cdef inline void pack_bools(uint8_t* bits, const uint8_t* bools, size_t n) noexcept nogil:
    """Write one bit for each of n bytes: 0 if the byte is 0, otherwise 1. n is a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):
        lanes = load_bits64(bools + 8 * i)        # adding 127 to the lower 7 bits sets bit 7 unless the lower bits are 0
        lanes = (lanes | (lanes & <uint64_t>0x7F7F7F7F7F7F7F7F) + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7
        lanes &= <uint64_t>0x0101010101010101
        bits[i] = <uint8_t>(lanes * <uint64_t>0x0102040810204080 >> 56)    # the product gathers the 8 bits in one byte


# ---- packed bits in another order -------------------------------------------------------------------

cdef extern from "simd.h" nogil:
    ctypedef unsigned long long vector "cd_u64"   # a vector of 64-bit lanes
    vector load "cd_load"(const void*)
    void store "cd_store"(void*, vector)
    vector zero "cd_zero"()
    vector spread_parts "cd_spread_parts"(uint64_t a, uint64_t b, uint64_t bits)

cdef extern from *:
    """
    enum { CD_VECTOR_LANES = sizeof(cd_u64) / 8, CD_ROW_VECTORS = 64 / CD_VECTOR_LANES };
    """
    const int VECTOR_LANES "CD_VECTOR_LANES"      # 64-bit lanes per vector
    const int ROW_VECTORS "CD_ROW_VECTORS"        # vectors per 64 rows of 64 bits

cdef enum:
    PADDING = 16                                  # bytes after packed bits that may be read and overwritten

cdef struct BitAxis:
    size_t length
    int64_t stride                                # distance in bits from one index to the next in the source


cdef inline uint64_t bits64_at(const uint8_t* bits, uint64_t first) noexcept nogil:
    """Return 64 bits from bit `first` on; 9 bytes are read."""
    cdef const uint8_t* byte = bits + first // 8
    cdef uint64_t shift = first % 8
    return load_bits64(byte) >> shift | <uint64_t>byte[8] << 1 << (63 - shift)    # two shifts, as a shift by 64 is undefined


cdef inline uint64_t reversed_bits(uint64_t bits) noexcept nogil:
    bits = bits >> 1 & <uint64_t>0x5555555555555555 | (bits & <uint64_t>0x5555555555555555) << 1
    bits = bits >> 2 & <uint64_t>0x3333333333333333 | (bits & <uint64_t>0x3333333333333333) << 2
    bits = bits >> 4 & <uint64_t>0x0F0F0F0F0F0F0F0F | (bits & <uint64_t>0x0F0F0F0F0F0F0F0F) << 4
    return reverse_bytes64(bits)


cdef inline void exchange(vector* a, vector* b, int shift, uint64_t low) noexcept nogil:
    """Exchange the bits of a that `low << shift` selects with the bits of b that `low` selects."""
    cdef vector t = ((a[0] >> shift) ^ b[0]) & low
    b[0] ^= t
    a[0] ^= t << shift


cdef inline void exchange_rows(vector* rows, int shift, int offset, uint64_t low) noexcept nogil:
    """Exchange ranges of `shift` bits, selected by `low`, between rows i and i + offset. This is one step of a transpose."""
    cdef int distance = offset // VECTOR_LANES
    cdef int i
    for i in range(ROW_VECTORS):
        if i & distance == 0:
            exchange(&rows[i], &rows[i + distance], shift, low)


cdef inline void transpose(uint64_t* rows) noexcept nogil:
    """Transpose 64 x 64 bits; row i of the result is at index transposed_index(i) of `rows`.

    The algorithm is described in Hacker's Delight, section 7-3. Each step exchanges bits between pairs of rows. The two
    rows of a pair must be in different vectors, which is always true at a distance of 32, 16 or 8. Before the steps for the
    distances 4, 2 and 1, the 64 rows are rearranged: they are transposed as an 8 x 8 matrix of rows.
    """
    cdef vector vectors[64]
    cdef uint64_t moved[64]
    cdef int i, j
    for i in range(ROW_VECTORS):
        vectors[i] = load(rows + i * VECTOR_LANES)
    exchange_rows(vectors, 32, 32, <uint64_t>0x00000000FFFFFFFF)
    exchange_rows(vectors, 16, 16, <uint64_t>0x0000FFFF0000FFFF)
    exchange_rows(vectors, 8, 8, <uint64_t>0x00FF00FF00FF00FF)
    for i in range(ROW_VECTORS):
        store(rows + i * VECTOR_LANES, vectors[i])
    for i in range(8):
        for j in range(8):
            moved[8 * j + i] = rows[8 * i + j]
    for i in range(ROW_VECTORS):
        vectors[i] = load(moved + i * VECTOR_LANES)
    exchange_rows(vectors, 4, 32, <uint64_t>0x0F0F0F0F0F0F0F0F)
    exchange_rows(vectors, 2, 16, <uint64_t>0x3333333333333333)
    exchange_rows(vectors, 1, 8, <uint64_t>0x5555555555555555)
    for i in range(ROW_VECTORS):
        store(rows + i * VECTOR_LANES, vectors[i])


cdef inline int transposed_index(int row) noexcept nogil:
    return (row & 7) << 3 | row >> 3


cdef inline uint64_t reversed_bits64_at(const uint8_t* source, uint64_t first) noexcept nogil:
    """Return the 64 bits at positions first, first - 1, and so on; bits at negative positions are 0."""
    if first >= 63:
        return reversed_bits(bits64_at(source, first - 63))
    return reversed_bits(load_bits64(source) << (63 - first))


cdef inline void load_rows(
    uint64_t* rows, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row, size_t begin, size_t n
) noexcept nogil:
    """Load 64 bits along axis `outer`, whose stride is 1 or -1, for each index of axis `row` in [begin, begin + n)."""
    cdef size_t i
    first += <uint64_t>row.stride * begin
    if outer.stride < 0:
        for i in range(n):
            rows[i] = reversed_bits64_at(source, first + <uint64_t>row.stride * i)
    else:
        for i in range(n):
            rows[i] = bits64_at(source, first + <uint64_t>row.stride * i)


cdef inline void append_bits(Writer* writer, const uint8_t* bits, uint64_t first, size_t n) noexcept nogil:
    """Append n bits of `bits`, from bit `first` on."""
    cdef size_t done
    for done in range(0, n, 64):
        write_bits(writer, bits64_at(bits, first + done), min(n - done, <size_t>64))


cdef inline void append_reversed(Writer* writer, const uint8_t* bits, uint64_t last, size_t n) noexcept nogil:
    """Append the n bits that end at bit `last`, in reverse order."""
    cdef uint64_t values[8]
    cdef uint8_t group[64]
    cdef size_t done = 0
    cdef size_t i
    while n - done >= 512:                        # three separate loops, so that compilers vectorize the second one
        for i in range(8):
            values[i] = bits64_at(bits, last - done - 63 - 64 * i)
        for i in range(8):
            values[i] = reversed_bits(values[i])
        for i in range(8):
            store_bits64(group + 8 * i, values[i])
        write_group(writer, group)
        done += 512
    for done in range(done, n, 64):
        write_bits(writer, reversed_bits64_at(bits, last - done), min(n - done, <size_t>64))


cdef inline void append_repeated(Writer* writer, bint bit, size_t n) noexcept nogil:
    """Append n copies of a bit."""
    cdef size_t done
    for done in range(0, n, 64):
        write_bits(writer, 0 - <uint64_t>bit, min(n - done, <size_t>64))


cdef inline void append_strided(
    Writer* writer, const uint8_t* bits, uint64_t first, int64_t stride, size_t n
) noexcept nogil:
    """Append the n bits at positions first, first + stride, and so on."""
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
    """Append the bits of all rows of the source. A row extends along the last axis."""
    cdef size_t index[MAX_DIMS]
    cdef const BitAxis* row = &axes[ndim - 1]
    cdef Writer local = writer[0]                 # a local copy stays in registers, because no store can change it
    cdef size_t i
    cdef int axis
    cdef bint short_rows = row.stride == 1 and row.length <= 64 and ndim > 1
    for axis in range(ndim):
        index[axis] = 0
    while True:
        if short_rows:                            # append all rows along axis ndim - 2
            axis = ndim - 2
            for i in range(axes[axis].length):
                write_bits_branchless(&local, bits64_at(source, first + i * <uint64_t>axes[axis].stride), row.length)
        else:
            axis = ndim - 1
            if row.stride == 1:
                append_bits(&local, source, first, row.length)
            elif row.stride == -1:
                append_reversed(&local, source, first, row.length)
            elif row.stride == 0:
                append_repeated(&local, source[first // 8] >> first % 8 & 1, row.length)
            else:
                append_strided(&local, source, first, row.stride, row.length)
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
    """Write the lowest n bits of `bits` to out, beginning at bit `at`. Before the call, these bits of out must be 0."""
    cdef uint8_t* byte = out + at // 8
    cdef uint64_t shift = at % 8
    bits &= ~<uint64_t>0 >> (64 - n)
    store_bits64(byte, load_bits64(byte) | bits << shift)
    if shift + n > 64:
        byte[8] |= <uint8_t>(bits >> (64 - shift))


cdef inline void interleave(
    uint8_t* out, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row
) noexcept nogil:
    """Interleave the bits of up to 8 rows: bit 0 of each row, then bit 1 of each row, and so on.

    A lane of a vector holds 16 bits of a row, or 8 bits if there are more than 4 rows. Each step divides every run
    of adjacent bits in half and moves the upper half to higher positions.
    """
    cdef uint64_t n = row.length
    cdef uint64_t bits = 16 if n <= 4 else 8
    cdef uint64_t masks[4]
    cdef uint64_t lanes[8]
    cdef uint64_t group, bit, position
    cdef size_t j, count
    cdef vector v, merged
    cdef int steps = 0
    cdef int i, k
    group = bits // 2
    while group:
        masks[steps] = 0
        for bit in range(bits):
            masks[steps] |= <uint64_t>1 << (bit // group * group * n + bit % group)
        steps += 1
        group //= 2
    j = 0
    while j < outer.length:
        count = min(outer.length - j, <size_t>(bits * VECTOR_LANES))
        merged = zero()
        for i in range(<int>n):
            position = first + j + <uint64_t>(i * row.stride)
            v = spread_parts(bits64_at(source, position), bits64_at(source, position + 4 * bits), bits)
            group = bits // 2
            for k in range(steps):
                v = (v | (v << <int>(group * (n - 1)))) & masks[k]
                group //= 2
            merged |= v << i
        store(lanes, merged)
        for k in range(VECTOR_LANES):
            if k * bits >= count:
                break
            store_bits64(out + k * (bits * n // 8), lanes[k])
        j += count
        out += VECTOR_LANES * bits * n // 8


cdef inline void transpose_two_axes(
    uint8_t* out, uint64_t at, const uint8_t* source, uint64_t first, const BitAxis* outer, const BitAxis* row
) noexcept nogil:
    """Write the transpose of up to 64 rows to out, from bit `at` on. The stride of axis `outer` must be 1 or -1.

    If there are at most 32 rows, each 64 x 64 transpose processes several parts of every row at once.
    """
    cdef uint64_t rows[64]
    cdef size_t n = row.length
    cdef size_t width = 64
    cdef size_t j, k, part, begin, shift
    cdef Writer writer
    writer.to = out + at // 64 * 8
    writer.count = at % 64
    writer.held = load_bits64(writer.to) & ~(~<uint64_t>0 << writer.count)    # the bits before bit `at`, which are kept
    while width // 2 >= n:
        width //= 2
    memset(rows, 0, sizeof(rows))
    for j in range(0, outer.length, 64):
        if j // 64 % (64 // width) == 0:
            for part in range(64 // width):
                begin = j + 64 * part
                if begin < outer.length:
                    load_rows(rows + part * width, source, first + <uint64_t>outer.stride * begin, outer, row, 0, n)
            transpose(rows)
        shift = j // 64 % (64 // width) * width
        for k in range(min(outer.length - j, <size_t>64)):
            write_bits_branchless(&writer, rows[transposed_index(<int>k)] >> shift, n)
    if writer.count:
        store_bits64(writer.to, writer.held)


cdef inline void transpose_axes(
    uint8_t* out, uint64_t at, const uint8_t* source, uint64_t first, int ndim, const BitAxis* axes
) noexcept nogil:
    """Write bits of the source to out in C order of the axes, from bit `at` on. The stride of axis 0 must be 1 or -1."""
    cdef const BitAxis* outer = &axes[0]
    cdef const BitAxis* row = &axes[ndim - 1]
    cdef uint64_t rows[64]
    cdef uint64_t pitch = 1                       # distance in bits from one index of axis 0 to the next in out
    cdef size_t index[MAX_DIMS]
    cdef size_t i, j, k, n, count
    cdef uint64_t out_bit, source_bit
    cdef int axis
    memset(rows, 0, sizeof(rows))
    for axis in range(1, ndim):
        pitch *= axes[axis].length
        index[axis] = 0
    if ndim == 2 and pitch <= 8 and at % 8 == 0 and outer.stride == 1:
        interleave(out + at // 8, source, first, outer, row)
        return
    if ndim == 2 and pitch <= 64:
        transpose_two_axes(out, at, source, first, outer, row)
        return
    for j in range(0, outer.length, 64):
        count = min(outer.length - j, <size_t>64)
        out_bit = at + j * pitch
        source_bit = first + <uint64_t>outer.stride * j
        while True:
            for i in range(0, row.length, 64):
                n = min(row.length - i, <size_t>64)
                load_rows(rows, source, source_bit, outer, row, i, n)
                transpose(rows)
                if n == 64 and out_bit % 64 == 0 and pitch % 64 == 0:
                    for k in range(count):
                        store_bits64(out + (out_bit + i + k * pitch) // 8, rows[transposed_index(<int>k)])
                else:
                    for k in range(count):
                        put_bits(out, out_bit + i + k * pitch, rows[transposed_index(<int>k)], n)
            axis = ndim - 2
            out_bit += row.length
            while axis > 0:
                source_bit += <uint64_t>axes[axis].stride
                index[axis] += 1
                if index[axis] < axes[axis].length:
                    break
                source_bit -= <uint64_t>axes[axis].stride * <uint64_t>axes[axis].length
                index[axis] = 0
                axis -= 1
            if axis <= 0:
                break


cdef inline void reorder_bits(
    uint8_t* out, const uint8_t* source, uint64_t first, int ndim, const BitAxis* axes
) noexcept nogil:
    """Write the bits of the source to out in C order of the axes. PADDING bytes after the bits of out may be overwritten."""
    cdef size_t n = 1
    cdef size_t i, outer
    cdef size_t index
    cdef int axis
    cdef int unit = -1                            # the axis along which the source is contiguous; -1 if there is none
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
    memset(out, 0, n // 8 + PADDING)
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
