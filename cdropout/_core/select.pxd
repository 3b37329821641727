"""What is done to the elements of each type: mask and scale, 32 of them at a time, in vectors as wide as a register."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cdropout._core.bits cimport spread_bits
from cdropout._core.stream cimport GROUP, WORDS

cdef extern from "simd.h" nogil:
    uint32_t load_bits32 "cd_load_bits32"(const void*)
    void store_bits32 "cd_store_bits32"(void*, uint32_t)
    ctypedef float f32 "cd_f32"                   # vectors
    ctypedef double f64 "cd_f64"
    f32 load_f32 "cd_load_f32"(const void*)
    f64 load_f64 "cd_load_f64"(const void*)
    void store_f32 "cd_store_f32"(void*, f32)
    void store_f64 "cd_store_f64"(void*, f64)
    f32 fill_f32 "cd_fill_f32"(float)
    f64 fill_f64 "cd_fill_f64"(double)
    void step_f16 "cd_step_f16"(const void*, void*, const uint8_t*, float)
    void step_bf16 "cd_step_bf16"(const void*, void*, const uint8_t*, float)
    f32 kept_f32 "cd_kept_f32"(f32, const uint8_t*, size_t)
    f64 kept_f64 "cd_kept_f64"(f64, const uint8_t*, size_t)
    void store_streaming "cd_stream"(void*, const void*, size_t)
    void end_streaming "cd_end_stream"()

cdef struct half:                                 # structs, since Cython would take two ctypedefs of one type for one
    uint16_t bits

cdef struct bfloat:
    uint16_t bits

cdef struct boolean:                              # of y only: 1 where an element is kept
    uint8_t byte

ctypedef fused floating:
    float
    double
    half
    bfloat

ctypedef fused element:
    float
    double
    half
    bfloat
    boolean

cdef enum:
    WORD = 32                                     # elements that one step takes
    LINE = 64                                     # bytes of a cache line, and of the widest register
    ROOM = 4160                                   # bytes that hold the lines of a GROUP, wherever the first one begins


cdef inline void step(const element* x, element* y, const uint8_t* keep, double scale) noexcept nogil:
    """y = x * scale where the bit of keep (4 bytes) is set, else +0.0, for WORD elements; y is x, or does not overlap it."""
    cdef size_t i
    cdef f32 factor = fill_f32(<float>scale)
    cdef f64 factor_f64 = fill_f64(scale)
    if element is double:
        for i in range(WORD * sizeof(double) // sizeof(f64)):
            store_f64(<f64*>y + i, kept_f64(load_f64(<f64*>x + i) * factor_f64, keep, i))
    elif element is float:
        for i in range(WORD * sizeof(float) // sizeof(f32)):
            store_f32(<f32*>y + i, kept_f32(load_f32(<f32*>x + i) * factor, keep, i))
    elif element is half:
        step_f16(x, y, keep, <float>scale)
    elif element is bfloat:
        step_bf16(x, y, keep, <float>scale)
    else:
        spread_bits(<uint8_t*>y, keep, WORD)


cdef inline uint32_t bits_at(const uint8_t* keep, uint64_t first) noexcept nogil:
    """WORD bits from bit `first` on; reads no byte that holds none of them."""
    cdef const uint8_t* byte = keep + first // 8
    cdef uint64_t shift = first % 8
    return <uint32_t>((load_bits32(byte) | <uint64_t>byte[(shift + WORD - 1) // 8] << 32) >> shift)


cdef inline uint32_t few_bits_at(const uint8_t* keep, uint64_t first, size_t n) noexcept nogil:
    """n < WORD bits from bit `first` on, and others above them; reads no byte that holds none of them."""
    cdef uint64_t bits = 0
    cdef size_t i
    for i in range((first % 8 + n + 7) // 8):
        bits |= <uint64_t>keep[first // 8 + i] << 8 * i
    return <uint32_t>(bits >> first % 8)


cdef inline void step_few(const element* x, element* y, uint32_t keep, size_t n, double scale) noexcept nogil:
    """step for n < WORD elements, in a buffer that holds a whole step."""
    cdef element buffer[WORD]
    cdef uint8_t bits[4]
    store_bits32(bits, keep)
    memset(buffer, 0, sizeof(buffer))
    memcpy(buffer, x, n * sizeof(element))
    step(<const element*>buffer, buffer, bits, scale)
    memcpy(y, buffer, n * sizeof(element))


cdef inline size_t up_to_line(const element* y, size_t n) noexcept nogil:
    """How many elements lie before the next cache line: stores across lines cost double. 0 where it does not pay."""
    cdef size_t before = <size_t>(-<uintptr_t>y) % LINE // sizeof(element) % WORD
    return before if n > 32 * WORD and <uintptr_t>y % sizeof(element) == 0 else 0


cdef inline void mask_and_scale(
    const element* x, element* y, const uint8_t* keep, uint64_t first, size_t n, double scale
) noexcept nogil:
    """y = x * scale where the bit of keep, from bit `first` on, is set, else +0.0."""
    cdef size_t head = up_to_line(y, n)
    cdef uint8_t bits[4]
    cdef size_t i
    if head:
        step_few(x, y, few_bits_at(keep, first, head), head, scale)
        x += head
        y += head
        n -= head
        first += head
    if first % 8 == 0:
        for i in range(n // WORD):
            step(x + WORD * i, y + WORD * i, keep + first // 8 + 4 * i, scale)
    else:
        for i in range(n // WORD):
            store_bits32(bits, bits_at(keep, first + WORD * i))
            step(x + WORD * i, y + WORD * i, bits, scale)
    if n % WORD:
        x += n // WORD * WORD
        y += n // WORD * WORD
        first += n // WORD * WORD
        step_few(x, y, few_bits_at(keep, first, n % WORD), n % WORD, scale)


cdef inline bint may_stream(const element* x, const element* y, bint large) noexcept nogil:
    """Return whether streaming stores pay: they save reading the lines of y, if memory is slower than the core."""
    return large and WORDS <= 2 and sizeof(element) >= 4 and x != y


cdef inline element* aligned_within(uint8_t* room, const element* typed) noexcept nogil:
    """Return the first line of ROOM bytes; `typed`: its type only."""
    return <element*>(room + <size_t>(-<uintptr_t>room) % LINE)


cdef inline void mask_and_scale_large(
    const element* x, element* y, const uint8_t* keep, uint64_t first, size_t n, double scale, bint large
) noexcept nogil:
    """mask_and_scale, with streaming stores if y is part of a large array."""
    cdef uint8_t room[ROOM]
    cdef element* lines = aligned_within(room, x)
    cdef size_t done = up_to_line(y, n)
    if not may_stream(x, y, large) or <uintptr_t>(y + done) % LINE:
        mask_and_scale(x, y, keep, first, n, scale)
        return
    mask_and_scale(x, y, keep, first, done, scale)
    while done + GROUP <= n:
        mask_and_scale(x + done, lines, keep, first + done, GROUP, scale)
        store_streaming(y + done, lines, GROUP * sizeof(element))
        done += GROUP
    end_streaming()
    mask_and_scale(x + done, y + done, keep, first + done, n - done, scale)


# ---- bias, dropout and residual in one pass -------------------------------------------------------

ctypedef fused real:
    float
    double


cdef inline void step_bias(
    const real* x, const real* bias, const real* residual, real* y, const uint8_t* keep, double scale
) noexcept nogil:
    """y = residual + ((x + bias) * scale where the bit of keep is set, else +0.0), for WORD elements."""
    cdef size_t i
    cdef f32 factor
    cdef f64 factor_f64
    if real is double:
        factor_f64 = fill_f64(scale)
        for i in range(WORD * sizeof(double) // sizeof(f64)):
            store_f64(<f64*>y + i, load_f64(<f64*>residual + i) + kept_f64(
                (load_f64(<f64*>x + i) + load_f64(<f64*>bias + i)) * factor_f64, keep, i))
    else:
        factor = fill_f32(<float>scale)
        for i in range(WORD * sizeof(float) // sizeof(f32)):
            store_f32(<f32*>y + i, load_f32(<f32*>residual + i) + kept_f32(
                (load_f32(<f32*>x + i) + load_f32(<f32*>bias + i)) * factor, keep, i))


cdef inline void add_masked(
    const real* x, const real* bias, const real* residual, real* y,
    const uint8_t* keep, uint64_t first, size_t n, double scale,
) noexcept nogil:
    """step_bias for any n, with keep bits from bit `first` on."""
    cdef real buffer[4][WORD]
    cdef uint8_t bits[4]
    cdef size_t _step
    cdef size_t rest = n % WORD
    for _step in range(n // WORD):
        store_bits32(bits, bits_at(keep, first))
        step_bias(x, bias, residual, y, bits, scale)
        x += WORD
        bias += WORD
        residual += WORD
        y += WORD
        first += WORD
    if rest:
        memset(buffer, 0, sizeof(buffer))
        memcpy(buffer[0], x, rest * sizeof(real))
        memcpy(buffer[1], bias, rest * sizeof(real))
        memcpy(buffer[2], residual, rest * sizeof(real))
        store_bits32(bits, few_bits_at(keep, first, rest))
        step_bias(<const real*>buffer[0], <const real*>buffer[1], <const real*>buffer[2], buffer[3], bits, scale)
        memcpy(y, buffer[3], rest * sizeof(real))


cdef inline void add_to(double* sums, const real* x, size_t n) noexcept nogil:
    """sums += x; by copies, since neither needs an alignment, which C asks of what it reads by a pointer of its type."""
    cdef double total
    cdef real value
    cdef size_t i
    for i in range(n):
        memcpy(&total, sums + i, sizeof(double))
        memcpy(&value, x + i, sizeof(real))
        total += value
        memcpy(sums + i, &total, sizeof(double))
