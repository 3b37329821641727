"""Functions that mask and scale a step of 32 elements or a range of any length, for each element type."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cdropout._core.bits cimport spread_bits
from cdropout._core.stream cimport GROUP, VECTORS

cdef extern from "simd.h" nogil:
    uint32_t load_bits32 "cd_load_bits32"(const void*)
    void store_bits32 "cd_store_bits32"(void*, uint32_t)
    ctypedef float f32 "cd_f32"                   # vectors of the native width
    ctypedef double f64 "cd_f64"
    f32 load_f32 "cd_load_f32"(const void*)
    f64 load_f64 "cd_load_f64"(const void*)
    void store_f32 "cd_store_f32"(void*, f32)
    void store_f64 "cd_store_f64"(void*, f64)
    f32 fill_f32 "cd_fill_f32"(float)
    f64 fill_f64 "cd_fill_f64"(double)
    f32 kept_f32 "cd_kept_f32"(f32, const uint8_t*, size_t)
    f64 kept_f64 "cd_kept_f64"(f64, const uint8_t*, size_t)
    void store_streaming "cd_store_streaming"(void*, const void*, size_t)
    void end_streaming "cd_end_streaming"()

cdef extern from "half.h" nogil:
    void step_f16 "cd_step_f16"(const void*, void*, const uint8_t*, float)
    void step_bf16 "cd_step_bf16"(const void*, void*, const uint8_t*, float)
    void widen_f16 "cd_widen_f16"(const void*, float*)
    void widen_bf16 "cd_widen_bf16"(const void*, float*)
    void narrow_f16 "cd_narrow_f16"(const float*, void*)
    void narrow_bf16 "cd_narrow_bf16"(const float*, void*)

cdef struct half:                                 # a struct, because Cython treats two ctypedefs of uint16_t as one type
    uint16_t bits

cdef struct bfloat:
    uint16_t bits

cdef struct boolean:                              # used for y only: 1 where an element is kept, otherwise 0
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
    STEP = 32                                     # elements per step
    LINE_BYTES = 64                               # bytes per cache line, and per vector of the widest instruction set
    GROUP_BUFFER_BYTES = 4160                     # bytes of GROUP doubles, plus LINE_BYTES for alignment


cdef inline void step(const element* x, element* y, const uint8_t* keep, double scale) noexcept nogil:
    """Set STEP elements of y to x * scale where the bit in keep (4 bytes) is set, otherwise to +0.0. y may be x.

    If y is of type boolean, set the elements to 1 or 0 instead; then x is not read.
    """
    cdef size_t i
    cdef f32 scale_f32 = fill_f32(<float>scale)
    cdef f64 scale_f64 = fill_f64(scale)
    if element is double:
        for i in range(STEP * sizeof(double) // sizeof(f64)):
            store_f64(<f64*>y + i, kept_f64(load_f64(<f64*>x + i) * scale_f64, keep, i))
    elif element is float:
        for i in range(STEP * sizeof(float) // sizeof(f32)):
            store_f32(<f32*>y + i, kept_f32(load_f32(<f32*>x + i) * scale_f32, keep, i))
    elif element is half:
        step_f16(x, y, keep, <float>scale)
    elif element is bfloat:
        step_bf16(x, y, keep, <float>scale)
    else:
        spread_bits(<uint8_t*>y, keep, STEP)


cdef inline uint32_t bits_at(const uint8_t* keep, uint64_t first) noexcept nogil:
    """Return STEP bits from bit `first` on. Only bytes that contain some of these bits are read."""
    cdef const uint8_t* byte = keep + first // 8
    cdef uint64_t shift = first % 8
    return <uint32_t>((load_bits32(byte) | <uint64_t>byte[(shift + STEP - 1) // 8] << 32) >> shift)


cdef inline uint32_t few_bits_at(const uint8_t* keep, uint64_t first, size_t n) noexcept nogil:
    """Return n < STEP bits from bit `first` on; higher bits are undefined. Only bytes that contain these bits are read."""
    cdef uint64_t bits = 0
    cdef size_t i
    for i in range((first % 8 + n + 7) // 8):
        bits |= <uint64_t>keep[first // 8 + i] << 8 * i
    return <uint32_t>(bits >> first % 8)


cdef inline void step_few(const element* x, element* y, uint32_t keep, size_t n, double scale) noexcept nogil:
    """Apply `step` to n < STEP elements, which are copied to a buffer and back."""
    cdef element buffer[STEP]
    cdef uint8_t bits[4]
    store_bits32(bits, keep)
    memset(buffer, 0, sizeof(buffer))
    memcpy(buffer, x, n * sizeof(element))
    step(<const element*>buffer, buffer, bits, scale)
    memcpy(y, buffer, n * sizeof(element))


cdef inline size_t elements_to_line(const element* y, size_t n) noexcept nogil:
    """Return the number of elements of y before the next cache line, modulo STEP.

    Return 0 if alignment is impossible or would not save time. A store to two cache lines takes twice as long as a store
    to one.
    """
    cdef size_t head = <size_t>(-<uintptr_t>y) % LINE_BYTES // sizeof(element) % STEP
    return head if n > 32 * STEP and <uintptr_t>y % sizeof(element) == 0 else 0


cdef inline void mask_and_scale(
    const element* x, element* y, const uint8_t* keep, uint64_t first, size_t n, double scale
) noexcept nogil:
    """Apply `step` to n elements. The bits of these elements in keep begin at bit `first`. y may be x."""
    cdef size_t head = elements_to_line(y, n)
    cdef uint8_t bits[4]
    cdef size_t i
    if head:
        step_few(x, y, few_bits_at(keep, first, head), head, scale)
        x += head
        y += head
        n -= head
        first += head
    if first % 8 == 0:
        for i in range(n // STEP):
            step(x + STEP * i, y + STEP * i, keep + first // 8 + 4 * i, scale)
    else:
        for i in range(n // STEP):
            store_bits32(bits, bits_at(keep, first + STEP * i))
            step(x + STEP * i, y + STEP * i, bits, scale)
    if n % STEP:
        x += n // STEP * STEP
        y += n // STEP * STEP
        first += n // STEP * STEP
        step_few(x, y, few_bits_at(keep, first, n % STEP), n % STEP, scale)


cdef inline bint may_stream(const element* x, const element* y, bint large) noexcept nogil:
    """Return whether streaming stores save time. They write y without reading it first, so they need less bandwidth."""
    return large and VECTORS <= 2 and sizeof(element) >= 4 and x != y


cdef inline element* aligned_buffer(uint8_t* buffer, const element* typed) noexcept nogil:
    """Return the first address in the buffer that is aligned to a cache line. Only the type of `typed` is used."""
    return <element*>(buffer + <size_t>(-<uintptr_t>buffer) % LINE_BYTES)


cdef inline void mask_and_scale_large(
    const element* x, element* y, const uint8_t* keep, uint64_t first, size_t n, double scale, bint large
) noexcept nogil:
    """Do the same as `mask_and_scale`, but use streaming stores if y is part of a large array and they save time."""
    cdef uint8_t buffer[GROUP_BUFFER_BYTES]
    cdef element* lines = aligned_buffer(buffer, x)
    cdef size_t done = elements_to_line(y, n)
    if not may_stream(x, y, large) or <uintptr_t>(y + done) % LINE_BYTES:
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

ctypedef fused narrow:
    half
    bfloat


cdef inline void widen_step(const narrow* x, float* y) noexcept nogil:
    if narrow is half:
        widen_f16(x, y)
    else:
        widen_bf16(x, y)


cdef inline void add_steps(const narrow* x, const narrow* other, narrow* y) noexcept nogil:
    """Set STEP elements of y to x + other, rounded. y may be x or other."""
    cdef float sums[STEP]
    cdef float terms[STEP]
    cdef int i
    widen_step(x, sums)
    widen_step(other, terms)
    for i in range(STEP):
        sums[i] += terms[i]
    if narrow is half:
        narrow_f16(sums, y)
    else:
        narrow_bf16(sums, y)


cdef inline void step_bias_dropout_add(
    const floating* x, const floating* bias, const floating* residual, floating* y, const uint8_t* keep, double scale
) noexcept nogil:
    """Set STEP elements of y to residual + (x + bias) * scale where the bit in keep is set, otherwise to residual + 0.

    Both sums and the product are rounded to the type of y.
    """
    cdef floating total[STEP]
    cdef size_t i
    cdef f32 scale_f32
    cdef f64 scale_f64
    if floating is half or floating is bfloat:
        add_steps(x, bias, total)
        step(<const floating*>total, total, keep, scale)
        add_steps(residual, <const floating*>total, y)
    elif floating is double:
        scale_f64 = fill_f64(scale)
        for i in range(STEP * sizeof(double) // sizeof(f64)):
            store_f64(<f64*>y + i, load_f64(<f64*>residual + i) + kept_f64(
                (load_f64(<f64*>x + i) + load_f64(<f64*>bias + i)) * scale_f64, keep, i))
    else:
        scale_f32 = fill_f32(<float>scale)
        for i in range(STEP * sizeof(float) // sizeof(f32)):
            store_f32(<f32*>y + i, load_f32(<f32*>residual + i) + kept_f32(
                (load_f32(<f32*>x + i) + load_f32(<f32*>bias + i)) * scale_f32, keep, i))


cdef inline void apply_bias_dropout_add(
    const floating* x, const floating* bias, const floating* residual, floating* y,
    const uint8_t* keep, uint64_t first, size_t n, double scale,
) noexcept nogil:
    """Apply `step_bias_dropout_add` to n elements. The bits of these elements in keep begin at bit `first`."""
    cdef floating buffer[4][STEP]
    cdef uint8_t bits[4]
    cdef size_t _step
    cdef size_t rest = n % STEP
    for _step in range(n // STEP):
        store_bits32(bits, bits_at(keep, first))
        step_bias_dropout_add(x, bias, residual, y, bits, scale)
        x += STEP
        bias += STEP
        residual += STEP
        y += STEP
        first += STEP
    if rest:
        memset(buffer, 0, sizeof(buffer))
        memcpy(buffer[0], x, rest * sizeof(floating))
        memcpy(buffer[1], bias, rest * sizeof(floating))
        memcpy(buffer[2], residual, rest * sizeof(floating))
        store_bits32(bits, few_bits_at(keep, first, rest))
        step_bias_dropout_add(
            <const floating*>buffer[0], <const floating*>buffer[1], <const floating*>buffer[2], buffer[3], bits, scale
        )
        memcpy(y, buffer[3], rest * sizeof(floating))


ctypedef fused real:
    float
    double


cdef inline void add_reals_to(double* sums, const real* x, size_t n) noexcept nogil:
    """Add n elements of x to n sums. Each number is copied with memcpy, because x may be unaligned."""
    cdef double total
    cdef real value
    cdef size_t i
    for i in range(n):
        memcpy(&total, sums + i, sizeof(double))
        memcpy(&value, x + i, sizeof(real))
        total += value
        memcpy(sums + i, &total, sizeof(double))


cdef inline void add_four_rows_to(double* sums, const floating* x, size_t columns) noexcept nogil:
    """Add four contiguous rows of x to the sums, in order. For float and double, each sum is read and written once."""
    cdef double total
    cdef floating value
    cdef size_t i
    if floating is half or floating is bfloat:
        for i in range(4):
            add_to(sums, x + i * columns, columns)
        return
    else:
        for i in range(columns):
            memcpy(&total, sums + i, sizeof(double))
            memcpy(&value, x + i, sizeof(floating))
            total += value
            memcpy(&value, x + columns + i, sizeof(floating))
            total += value
            memcpy(&value, x + 2 * columns + i, sizeof(floating))
            total += value
            memcpy(&value, x + 3 * columns + i, sizeof(floating))
            total += value
            memcpy(sums + i, &total, sizeof(double))


cdef inline void add_to(double* sums, const floating* x, size_t n) noexcept nogil:
    """Add n elements of x to n sums."""
    cdef floating buffer[STEP]
    cdef float values[STEP]
    cdef size_t length
    if floating is half or floating is bfloat:
        while n:
            length = min(n, <size_t>STEP)
            memcpy(buffer, x, length * sizeof(floating))
            widen_step(<const floating*>buffer, values)
            add_reals_to(sums, <const float*>values, length)
            sums += length
            x += length
            n -= length
    else:
        add_reals_to(sums, x, n)
