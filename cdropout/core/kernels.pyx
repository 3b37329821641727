"""THE KERNELS: draw, mask and scale, fused. Built once for each instruction set (see setup.py); the capsule `table` holds them.

No Python object is touched, no memory allocated, no state kept: any number of threads may run any of these.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport ldexp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cdropout cimport (
    CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, CDROPOUT_TABLE_VERSION, cdropout_dtype, cdropout_mask, cdropout_table,
)
from cdropout.core.stream cimport BLOCK, GROUP, GROUP_BYTES, LANES, Stream, draw_group, load_bits64, open_stream, store_bits64

cdef extern from "simd.h" nogil:
    ctypedef float f32 "cd_f32"                   # vectors of elements, as wide as a register
    ctypedef double f64 "cd_f64"
    ctypedef unsigned int keep_bits "cd_keep"     # 32 keep bits, ready to be looked at by the lanes
    keep_bits load_keep "cd_load_keep"(const void*)
    f32 load_f32 "cd_load_f32"(const void*)
    f64 load_f64 "cd_load_f64"(const void*)
    void store_f32 "cd_store_f32"(void*, f32)
    void store_f64 "cd_store_f64"(void*, f64)
    f32 fill_f32 "cd_fill_f32"(float)
    f64 fill_f64 "cd_fill_f64"(double)
    f32 kept_f32 "cd_kept_f32"(f32, keep_bits, size_t)
    f64 kept_f64 "cd_kept_f64"(f64, keep_bits, size_t)
    void stream_line "cd_stream_line"(void*, const void*)
    void stream_end "cd_stream_end"()

ctypedef fused element:
    float
    double

cdef enum:
    WORD = 32                                     # elements that one load of keep bits serves
    BLOCK_WORDS = 128                             # 64-bit words of a block's keep bits


cdef inline void mask_and_scale(const element* x, element* y, const uint8_t* keep, size_t n, double scale) noexcept nogil:
    """y = x * scale where the bit of keep is set, else +0.0; n a multiple of WORD."""
    cdef size_t i, j
    cdef keep_bits bits
    cdef f32 scale_f32 = fill_f32(<float>scale)
    cdef f64 scale_f64 = fill_f64(scale)
    for i in range(n // WORD):
        bits = load_keep(keep + i * (WORD // 8))
        if element is float:
            for j in range(WORD * sizeof(float) // sizeof(f32)):
                store_f32(<f32*>y + j, kept_f32(load_f32(<f32*>x + j) * scale_f32, bits, j))
        else:
            for j in range(WORD * sizeof(double) // sizeof(f64)):
                store_f64(<f64*>y + j, kept_f64(load_f64(<f64*>x + j) * scale_f64, bits, j))
        x += WORD
        y += WORD


cdef inline element kept(element value, uint8_t keep) noexcept nogil:
    """value where keep is 1, +0.0 where it is 0: by bits, since a product would let NaN and infinity through."""
    if element is float:
        (<uint32_t*>&value)[0] &= -<uint32_t>keep
    else:
        (<uint64_t*>&value)[0] &= -<uint64_t>keep
    return value


cdef inline void copy_bits(uint64_t* to, const uint8_t* bits, uint64_t first, size_t n) noexcept nogil:
    """Bits first .. first + n - 1, n <= GROUP, moved to the start of `to`; reads no byte that holds none of them."""
    cdef uint64_t source[9]              # one more than a group has: the shift looks one ahead
    cdef int shift = first % 8
    cdef size_t i
    memset(source, 0, sizeof(source))
    memcpy(source, bits + first // 8, (shift + n + 7) // 8)
    for i in range((n + 63) // 64):
        to[i] = load_bits64(&source[i]) >> shift
        if shift:
            to[i] |= load_bits64(&source[i + 1]) << (64 - shift)
        store_bits64(&to[i], to[i])


cdef inline void mask_and_scale_part(
    const element* x, element* y, const uint8_t* keep, uint64_t first, size_t n, double scale
) noexcept nogil:
    """mask_and_scale for any n <= GROUP, with keep bits that begin at bit `first`."""
    cdef uint64_t bits[LANES]
    cdef size_t whole = n // WORD * WORD
    cdef size_t rest = n - whole
    cdef element end[WORD]                        # the last elements, padded to what the vectors take
    copy_bits(bits, keep, first, n)
    mask_and_scale(x, y, <uint8_t*>bits, whole, scale)
    if rest:
        memset(end, 0, sizeof(end))
        memcpy(end, x + whole, rest * sizeof(element))
        mask_and_scale(<const element*>end, end, <uint8_t*>bits + whole // 8, WORD, scale)
        memcpy(y + whole, end, rest * sizeof(element))


cdef void apply_stream(const element* x, element* y, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t skip = start % GROUP            # elements of the first group that lie before start
    cdef size_t part
    open_stream(&stream, mask, start - skip)
    while n:
        draw_group(&stream, keep)
        part = min(GROUP - skip, n)
        if part == GROUP:
            mask_and_scale(x, y, keep, GROUP, mask.scale)
        else:
            mask_and_scale_part(x, y, keep, skip, part, mask.scale)
        x += part
        y += part
        n -= part
        skip = 0


cdef void apply_packed(
    const element* x, element* y, size_t n, const uint8_t* bits, uint64_t first, double scale
) noexcept nogil:
    cdef size_t part
    if first % 8 == 0:
        part = n // WORD * WORD
        mask_and_scale(x, y, bits + first // 8, part, scale)
        x += part
        y += part
        n -= part
        first += part
    while n:
        part = min(<size_t>GROUP, n)
        mask_and_scale_part(x, y, bits, first, part, scale)
        x += part
        y += part
        n -= part
        first += part


cdef int mask_init(cdropout_mask* mask, uint64_t seed, uint64_t call, double p) noexcept nogil:
    if not 0 <= p <= 1:
        return -1
    mask.seed = seed
    mask.call = call
    mask.threshold = <uint64_t>ldexp(p, 64) if p < 1 else 0
    mask.scale = 1 / (1 - p) if p < 1 else 0      # nothing is kept: every kernel looks at scale first
    return 0


cdef int apply(cdropout_dtype dtype, const void* x, void* y, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef size_t size = 4 if dtype == CDROPOUT_FLOAT32 else 8
    if dtype not in (CDROPOUT_FLOAT32, CDROPOUT_FLOAT64):
        return -1
    if mask.scale == 0:
        memset(y, 0, n * size)
    elif dtype == CDROPOUT_FLOAT32:
        apply_stream(<const float*>x, <float*>y, n, mask, start)
    else:
        apply_stream(<const double*>x, <double*>y, n, mask, start)
    return 0


cdef int apply_bits(
    cdropout_dtype dtype, const void* x, void* y, size_t n, const uint8_t* bits, uint64_t bit_start, double scale
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT32:
        apply_packed(<const float*>x, <float*>y, n, bits, bit_start, scale)
    elif dtype == CDROPOUT_FLOAT64:
        apply_packed(<const double*>x, <double*>y, n, bits, bit_start, scale)
    else:
        return -1
    return 0


cdef void apply_row(
    const char* x, ptrdiff_t x_stride, char* y, ptrdiff_t y_stride,
    const uint8_t* keep, ptrdiff_t keep_stride, size_t n, element scale,
) noexcept nogil:
    """One row at any strides. The branches are there for the compiler, which turns each loop into vectors."""
    cdef const element* x_row = <const element*>x
    cdef element* y_row = <element*>y
    cdef size_t i
    if x_stride == sizeof(element) and y_stride == sizeof(element):
        if keep_stride == 1:
            for i in range(n):
                y_row[i] = kept(x_row[i] * scale, keep[i])
            return
        if keep_stride == 0:
            for i in range(n):
                y_row[i] = kept(x_row[i] * scale, keep[0])
            return
    for i in range(n):
        y_row = <element*>(y + <ptrdiff_t>i * y_stride)
        y_row[0] = kept((<const element*>(x + <ptrdiff_t>i * x_stride))[0] * scale, keep[<ptrdiff_t>i * keep_stride])


cdef int apply_bools(
    cdropout_dtype dtype, const void* x, ptrdiff_t x_stride, void* y, ptrdiff_t y_stride,
    const uint8_t* keep, ptrdiff_t keep_stride, size_t n, double scale
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT32:
        apply_row(<const char*>x, x_stride, <char*>y, y_stride, keep, keep_stride, n, <float>scale)
    elif dtype == CDROPOUT_FLOAT64:
        apply_row(<const char*>x, x_stride, <char*>y, y_stride, keep, keep_stride, n, scale)
    else:
        return -1
    return 0


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


cdef void bits(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef Stream stream
    cdef Writer writer = Writer(out, 0, 0)
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP           # bits of the group before this are not wanted
    cdef uint64_t count
    if mask.scale == 0:
        memset(out, 0, n // 8 + (n % 8 != 0))
        return
    open_stream(&stream, mask, start - first)
    while n:
        draw_group(&stream, keep)
        if first == 0 and writer.count == 0 and n >= GROUP:
            memcpy(writer.to, keep, GROUP_BYTES)
            writer.to += GROUP_BYTES
            n -= GROUP
            continue
        while n and first < GROUP:
            count = min(64 - first % 64, n)
            write_bits(&writer, load_bits64(keep + first // 64 * 8) >> first % 64, count)
            first += count
            n -= count
        first = 0
    store_bits64(keep, writer.held)
    memcpy(writer.to, keep, (writer.count + 7) // 8)


cdef inline void spread_bits(uint8_t* out, const uint8_t* keep, size_t n) noexcept nogil:
    """A byte of 0 or 1 for each of n bits, n a multiple of 8."""
    cdef size_t i
    cdef uint64_t lane
    for i in range(n // 8):
        lane = keep[i] * <uint64_t>0x0101010101010101 & <uint64_t>0x8040201008040201
        store_bits64(out + 8 * i, (lane + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7 & <uint64_t>0x0101010101010101)


cdef void bools(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef uint64_t packed[BLOCK_WORDS]
    cdef uint8_t end[8]
    cdef size_t part, whole
    while n:
        part = min(n, <size_t>(BLOCK - start % BLOCK))
        bits(<uint8_t*>packed, part, mask, start)
        whole = part // 8 * 8
        spread_bits(out, <uint8_t*>packed, whole)
        if part > whole:
            spread_bits(end, <uint8_t*>packed + whole // 8, 8)
            memcpy(out + whole, end, part - whole)
        out += part
        n -= part
        start += part


cdef cdropout_table kernels
kernels.version = CDROPOUT_TABLE_VERSION
kernels.size = sizeof(cdropout_table)
kernels.mask_init = mask_init
kernels.apply = apply
kernels.apply_bits = apply_bits
kernels.apply_bools = apply_bools
kernels.bits = bits
kernels.bools = bools
table = PyCapsule_New(&kernels, "cdropout.core.table", NULL)
