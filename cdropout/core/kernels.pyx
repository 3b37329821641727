"""THE KERNELS: draw, mask and scale, fused; built once for each instruction set (see setup.py).

The capsule `table` holds them. No Python object is touched, no memory allocated, no state kept but for one setting:
any number of threads may run any of these.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport ldexp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport SIZE_MAX, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, CDROPOUT_PART_OF_LARGE, CDROPOUT_TABLE_VERSION,
    cdropout_dtype, cdropout_mask, cdropout_plane, cdropout_table,
)
from cdropout.core.bits cimport Writer, load_bits64, spread_bits, store_bits64, write_bits, write_group
from cdropout.core.elements cimport (
    LINE, WORD, add_masked, add_to, bfloat, element, half, mask_and_scale, real, step, up_to_line,
)
from cdropout.core.planes cimport apply_plane
from cdropout.core.stream cimport (
    BLOCK, GROUP, GROUP_BYTES, PARTS, WORDS, Rounds, Stream, begin_part, draw_group, draw_round, end_part, next_group,
    open_stream,
)

cdef enum:
    BLOCK_BYTES = 1024                            # of a block's packed keep bits
    ROOM = 4160                                   # bytes that hold the lines of a GROUP, wherever the first one begins

cdef extern from "simd.h" nogil:
    void store_past_cache "cd_stream"(void*, const void*, size_t)
    void end_stores_past_cache "cd_end_stream"()

cdef size_t largest_cached = SIZE_MAX             # bytes from which an output is stored past the cache


def set_largest_cached(size_t bytes):
    """Say from how many bytes on an output is stored past the cache."""
    global largest_cached
    largest_cached = bytes


cdef inline void apply_and_draw(
    const element* x, element* y, const uint8_t* keep, double scale, Stream* stream, uint8_t* next_keep
) noexcept nogil:
    """mask_and_scale for a GROUP of elements, and meanwhile the next group is drawn: a round, a step, a round, ...

    In turn they take 1.40 times as long as memcpy, woven 1.07: a core does not look far enough ahead to weave them.
    """
    cdef Rounds rounds
    cdef int done = 0
    cdef int part, together, _round
    for part in range(PARTS):
        begin_part(&rounds, stream, part)
        together = min(stream.rounds, GROUP // WORD - done)
        for _round in range(together):
            draw_round(&rounds)
            step(x + WORD * done, y + WORD * done, keep + WORD // 8 * done, scale)
            done += 1
        for _round in range(together, stream.rounds):
            draw_round(&rounds)
        end_part(&rounds, stream, part, next_keep)
    next_group(stream)
    for done in range(done, GROUP // WORD):
        step(x + WORD * done, y + WORD * done, keep + WORD // 8 * done, scale)


cdef inline bint goes_past_cache(const element* x, const element* y, size_t n, bint large) noexcept nogil:
    """Whether to store y past the cache, which saves reading its lines: where memory, not the core, sets the pace."""
    if WORDS > 2 or sizeof(element) < 4 or x == y:
        return False
    return large or n * sizeof(element) >= largest_cached


cdef inline element* aligned_within(uint8_t* room, const element* typed) noexcept nogil:
    """The first line of ROOM bytes; `typed`: its type only."""
    return <element*>(room + <size_t>(-<uintptr_t>room) % LINE)


cdef void apply_stream(
    const element* x, element* y, size_t n, const cdropout_mask* mask, uint64_t start, bint large
) noexcept nogil:
    cdef Stream stream
    cdef uint8_t drawn[GROUP_BYTES]
    cdef uint8_t keep[GROUP_BYTES]                # the bits of the next GROUP elements, as y's lines divide them
    cdef uint64_t first = start % GROUP
    cdef size_t part = min(GROUP - first, n)
    cdef Writer writer                            # what it holds is drawn, but not yet in keep
    cdef uint8_t room[ROOM]
    cdef element* lines = aligned_within(room, x)
    cdef bint past_cache = goes_past_cache(x, y, n, large)
    writer.to, writer.held, writer.count = keep, 0, 0
    open_stream(&stream, mask, start - first)
    draw_group(&stream, drawn)
    if n > part and part >= WORD:                 # let steps end where the lines of y do, not where groups do
        writer.count = (part - up_to_line(y, n)) % WORD
        writer.held = load_bits64(drawn + GROUP_BYTES - 8) >> 32 >> (32 - writer.count)
        part -= writer.count
    mask_and_scale(x, y, drawn, first, part, mask.scale)
    if part == n:
        return
    draw_group(&stream, drawn)
    write_group(&writer, drawn)
    x += part
    y += part
    n -= part
    past_cache = past_cache and <uintptr_t>y % LINE == 0
    while n > GROUP:
        apply_and_draw(x, lines if past_cache else y, keep, mask.scale, &stream, drawn)
        if past_cache:
            store_past_cache(y, lines, GROUP * sizeof(element))
        writer.to = keep
        write_group(&writer, drawn)
        x += GROUP
        y += GROUP
        n -= GROUP
    mask_and_scale(x, y, keep, 0, n, mask.scale)
    if past_cache:
        end_stores_past_cache()


cdef void apply_packed(
    const element* x, element* y, const uint8_t* bits, uint64_t first, size_t n, double scale, bint large
) noexcept nogil:
    """mask_and_scale, past the cache where that pays."""
    cdef uint8_t room[ROOM]
    cdef element* lines = aligned_within(room, x)
    cdef size_t part = up_to_line(y, n)
    if goes_past_cache(x, y, n, large) and <uintptr_t>(y + part) % LINE == 0:
        mask_and_scale(x, y, bits, first, part, scale)
        while part + GROUP <= n:
            mask_and_scale(x + part, lines, bits, first + part, GROUP, scale)
            store_past_cache(y + part, lines, GROUP * sizeof(element))
            part += GROUP
        end_stores_past_cache()
    else:
        part = 0
    mask_and_scale(x + part, y + part, bits, first + part, n - part, scale)


cdef int mask_init(cdropout_mask* mask, uint64_t seed, uint64_t call, double p) noexcept nogil:
    if mask == NULL or not 0 <= p <= 1:
        return -1
    mask.seed = seed
    mask.call = call
    mask.threshold = <uint64_t>ldexp(p, 64) if p < 1 else 0
    mask.scale = 1 / (1 - p) if p < 1 else 0      # nothing is kept: every kernel looks at scale first
    return 0


cdef size_t size_of(cdropout_dtype dtype) noexcept nogil:
    """Bytes an element; 0 for a code that is none."""
    if dtype in (CDROPOUT_FLOAT16, CDROPOUT_BFLOAT16):
        return 2
    return 4 if dtype == CDROPOUT_FLOAT32 else 8 if dtype == CDROPOUT_FLOAT64 else 0


cdef inline bint any_null(const void* a, const void* b, const void* c) noexcept nogil:
    return not (a and b and c)


cdef int apply(
    cdropout_dtype dtype, const void* x, void* y, size_t n, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef bint large = dtype & CDROPOUT_PART_OF_LARGE != 0
    dtype = <cdropout_dtype>(dtype & ~CDROPOUT_PART_OF_LARGE)
    if size_of(dtype) == 0 or n and any_null(x, y, mask):
        return -1
    if n == 0:
        return 0
    if mask.scale == 0:
        memset(y, 0, n * size_of(dtype))
    elif dtype == CDROPOUT_FLOAT32:
        apply_stream(<const float*>x, <float*>y, n, mask, start, large)
    elif dtype == CDROPOUT_FLOAT64:
        apply_stream(<const double*>x, <double*>y, n, mask, start, large)
    elif dtype == CDROPOUT_FLOAT16:
        apply_stream(<const half*>x, <half*>y, n, mask, start, large)
    else:
        apply_stream(<const bfloat*>x, <bfloat*>y, n, mask, start, large)
    return 0


cdef int apply_bits(
    cdropout_dtype dtype, const void* x, void* y, size_t n, const uint8_t* bits, uint64_t bit_start, double scale
) noexcept nogil:
    cdef bint large = dtype & CDROPOUT_PART_OF_LARGE != 0
    dtype = <cdropout_dtype>(dtype & ~CDROPOUT_PART_OF_LARGE)
    if size_of(dtype) == 0 or n and any_null(x, y, bits):
        return -1
    if dtype == CDROPOUT_FLOAT32:
        apply_packed(<const float*>x, <float*>y, bits, bit_start, n, scale, large)
    elif dtype == CDROPOUT_FLOAT64:
        apply_packed(<const double*>x, <double*>y, bits, bit_start, n, scale, large)
    elif dtype == CDROPOUT_FLOAT16:
        apply_packed(<const half*>x, <half*>y, bits, bit_start, n, scale, large)
    else:
        apply_packed(<const bfloat*>x, <bfloat*>y, bits, bit_start, n, scale, large)
    return 0


cdef int bits(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef Stream stream
    cdef Writer writer = Writer(out, 0, 0)
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP           # bits of the group before this are not wanted
    cdef uint64_t count
    if n == 0 or any_null(out, mask, mask):
        return -1 if n else 0
    if mask.scale == 0:
        memset(out, 0, n // 8 + (n % 8 != 0))
        return 0
    open_stream(&stream, mask, start - first)
    while n:
        draw_group(&stream, keep)
        if first == 0 and n >= GROUP:
            write_group(&writer, keep)
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
    return 0


cdef int bools(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef uint8_t packed[BLOCK_BYTES]
    cdef uint8_t end[8]
    cdef size_t part, whole
    if n and any_null(out, mask, mask):
        return -1
    while n:
        part = min(n, <size_t>(BLOCK - start % BLOCK))
        bits(packed, part, mask, start)
        whole = part // 8 * 8
        spread_bits(out, packed, whole)
        if part > whole:
            spread_bits(end, packed + whole // 8, 8)
            memcpy(out + whole, end, part - whole)
        out += part
        n -= part
        start += part
    return 0


cdef int apply_bools(
    cdropout_dtype dtype, const void* x, void* y, const uint8_t* keep, const cdropout_plane* plane, double scale
) noexcept nogil:
    if size_of(dtype) == 0 or plane == NULL or plane.rows and plane.columns and any_null(x, y, keep):
        return -1
    if dtype == CDROPOUT_FLOAT32:
        apply_plane(plane, <const float*>x, <float*>y, keep, scale)
    elif dtype == CDROPOUT_FLOAT64:
        apply_plane(plane, <const double*>x, <double*>y, keep, scale)
    elif dtype == CDROPOUT_FLOAT16:
        apply_plane(plane, <const half*>x, <half*>y, keep, scale)
    else:
        apply_plane(plane, <const bfloat*>x, <bfloat*>y, keep, scale)
    return 0


cdef int apply_channels(
    cdropout_dtype dtype, const void* x, void* y, const cdropout_plane* plane, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    """apply_bools by a mask of one element a row (keep strides 1, 0) or a column (0, 1)."""
    cdef uint8_t keep[BLOCK]
    cdef cdropout_plane part
    cdef const char* source = <const char*>x
    cdef char* target = <char*>y
    cdef bint by_row
    cdef size_t left, n
    if size_of(dtype) == 0 or plane == NULL or plane.keep[0] + plane.keep[1] != 1 or plane.keep[0] * plane.keep[1] != 0:
        return -1
    if plane.rows == 0 or plane.columns == 0 or any_null(x, y, mask):
        return -1 if plane.rows and plane.columns else 0
    part = plane[0]
    by_row = plane.keep[0] == 1
    left = plane.rows if by_row else plane.columns
    while left:
        n = min(left, <size_t>BLOCK)
        bools(keep, n, mask, start)
        if by_row:
            part.rows = n
        else:
            part.columns = n
        apply_bools(dtype, source, target, keep, &part, mask.scale)
        source += <ptrdiff_t>n * plane.x[not by_row]
        target += <ptrdiff_t>n * plane.y[not by_row]
        start += n
        left -= n
    return 0


cdef inline void draw_unless_none(Stream* stream, const cdropout_mask* mask, uint8_t* keep) noexcept nogil:
    """The bits of the next group; p = 1, whose threshold cannot be written, keeps none."""
    if mask.scale == 0:
        memset(keep, 0, GROUP_BYTES)
    else:
        draw_group(stream, keep)


cdef void add_rows(
    const real* x, const real* bias, const real* residual, real* y, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start,
) noexcept nogil:
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP
    cdef size_t _row, part, done
    open_stream(&stream, mask, start - first)
    draw_unless_none(&stream, mask, keep)
    for _row in range(rows):
        done = 0
        while done < columns:
            if first == GROUP:
                draw_unless_none(&stream, mask, keep)
                first = 0
            part = min(columns - done, <size_t>(GROUP - first))
            add_masked(x, bias + done, residual, y, keep, first, part, mask.scale)
            x += part
            residual += part
            y += part
            first += part
            done += part


cdef int bias_dropout_add(
    cdropout_dtype dtype, const void* x, const void* bias, const void* residual, void* y, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef bint some = rows and columns
    if dtype not in (CDROPOUT_FLOAT32, CDROPOUT_FLOAT64) or some and (any_null(x, bias, residual) or not (y and mask)):
        return -1
    if some and dtype == CDROPOUT_FLOAT32:
        add_rows(<const float*>x, <const float*>bias, <const float*>residual, <float*>y, rows, columns, mask, start)
    elif some:
        add_rows(<const double*>x, <const double*>bias, <const double*>residual, <double*>y, rows, columns, mask, start)
    return 0


cdef void sum_rows(
    const real* gy, real* gx, double* gbias, size_t rows, size_t columns, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP
    cdef size_t _row, part, done
    open_stream(&stream, mask, start - first)
    draw_unless_none(&stream, mask, keep)
    for _row in range(rows):
        done = 0
        while done < columns:
            if first == GROUP:
                draw_unless_none(&stream, mask, keep)
                first = 0
            part = min(columns - done, <size_t>(GROUP - first))
            mask_and_scale(gy, gx, keep, first, part, mask.scale)
            add_to(gbias + done, gx, part)
            gy += part
            gx += part
            first += part
            done += part


cdef int bias_dropout_add_backward(
    cdropout_dtype dtype, const void* gy, void* gx, double* gbias, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef bint some = rows and columns
    if dtype not in (CDROPOUT_FLOAT32, CDROPOUT_FLOAT64) or some and (any_null(gy, gx, gbias) or mask == NULL):
        return -1
    if some and dtype == CDROPOUT_FLOAT32:
        sum_rows(<const float*>gy, <float*>gx, gbias, rows, columns, mask, start)
    elif some:
        sum_rows(<const double*>gy, <double*>gx, gbias, rows, columns, mask, start)
    return 0


cdef cdropout_table kernels
kernels.version = CDROPOUT_TABLE_VERSION
kernels.size = sizeof(cdropout_table)
kernels.mask_init = mask_init
kernels.apply = apply
kernels.apply_bits = apply_bits
kernels.apply_bools = apply_bools
kernels.bits = bits
kernels.bools = bools
kernels.bias_dropout_add = bias_dropout_add
kernels.bias_dropout_add_backward = bias_dropout_add_backward
kernels.apply_channels = apply_channels
table = PyCapsule_New(&kernels, "cdropout.core.table", NULL)
