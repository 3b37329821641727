"""THE KERNELS: draw, mask and scale, fused; built once for each instruction set (see setup.py).

The capsule `table` holds them. No Python object is touched, no memory allocated, no state kept: any number of threads
may run any of these.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport ldexp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, CDROPOUT_TABLE_VERSION,
    cdropout_dtype, cdropout_mask, cdropout_plane, cdropout_table,
)
from cdropout.core.bits cimport Writer, load_bits64, pack_bools, spread_bits, store_bits64, write_bits, write_group
from cdropout.core.elements cimport WORD, add_masked, bfloat, element, half, mask_and_scale, real, step, up_to_line
from cdropout.core.stream cimport (
    BLOCK, GROUP, GROUP_BYTES, WORDS, Rounds, Stream, begin_group, draw_group, draw_round, end_group, open_stream,
)

cdef enum:
    BLOCK_BYTES = 1024                            # of a block's packed keep bits
    MOST_WOVEN = 2                                # vectors of lanes: 4 of them, of SSE2, leave no registers for the elements


cdef inline void apply_and_draw(
    const element* x, element* y, const uint8_t* keep, double scale, Stream* stream, uint8_t* next_keep
) noexcept nogil:
    """mask_and_scale for a GROUP of elements, and meanwhile the next group is drawn: a round, a step, a round, ...

    In turn they take 1.40 times as long as memcpy, woven 1.07: a core does not look far enough ahead to weave them.
    """
    cdef Rounds rounds
    cdef int j
    begin_group(&rounds, stream)
    for j in range(stream.rounds):
        draw_round(&rounds)
        step(x + WORD * j, y + WORD * j, keep + WORD // 8 * j, scale)
    for j in range(stream.rounds, GROUP // WORD):
        step(x + WORD * j, y + WORD * j, keep + WORD // 8 * j, scale)
    end_group(&rounds, stream, next_keep)


cdef void apply_stream(const element* x, element* y, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef Stream stream
    cdef uint8_t drawn[GROUP_BYTES]
    cdef uint8_t keep[GROUP_BYTES]                # the bits of the next GROUP elements, as y's lines divide them
    cdef uint64_t first = start % GROUP
    cdef size_t part = min(GROUP - first, n)
    cdef Writer writer                            # what it holds is drawn, but not yet in keep
    writer.to = keep
    writer.held = writer.count = 0
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
    while n > GROUP:
        if WORDS <= MOST_WOVEN:
            apply_and_draw(x, y, keep, mask.scale, &stream, drawn)
        else:
            mask_and_scale(x, y, keep, 0, GROUP, mask.scale)
            draw_group(&stream, drawn)
        writer.to = keep
        write_group(&writer, drawn)
        x += GROUP
        y += GROUP
        n -= GROUP
    mask_and_scale(x, y, keep, 0, n, mask.scale)


cdef int mask_init(cdropout_mask* mask, uint64_t seed, uint64_t call, double p) noexcept nogil:
    if not 0 <= p <= 1:
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


cdef int apply(
    cdropout_dtype dtype, const void* x, void* y, size_t n, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    if size_of(dtype) == 0:
        return -1
    if mask.scale == 0:
        memset(y, 0, n * size_of(dtype))
    elif dtype == CDROPOUT_FLOAT32:
        apply_stream(<const float*>x, <float*>y, n, mask, start)
    elif dtype == CDROPOUT_FLOAT64:
        apply_stream(<const double*>x, <double*>y, n, mask, start)
    elif dtype == CDROPOUT_FLOAT16:
        apply_stream(<const half*>x, <half*>y, n, mask, start)
    else:
        apply_stream(<const bfloat*>x, <bfloat*>y, n, mask, start)
    return 0


cdef int apply_bits(
    cdropout_dtype dtype, const void* x, void* y, size_t n, const uint8_t* bits, uint64_t bit_start, double scale
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT32:
        mask_and_scale(<const float*>x, <float*>y, bits, bit_start, n, scale)
    elif dtype == CDROPOUT_FLOAT64:
        mask_and_scale(<const double*>x, <double*>y, bits, bit_start, n, scale)
    elif dtype == CDROPOUT_FLOAT16:
        mask_and_scale(<const half*>x, <half*>y, bits, bit_start, n, scale)
    elif dtype == CDROPOUT_BFLOAT16:
        mask_and_scale(<const bfloat*>x, <bfloat*>y, bits, bit_start, n, scale)
    else:
        return -1
    return 0


cdef inline void gather(element* to, const char* x, ptrdiff_t stride, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(to + i, x + <ptrdiff_t>i * stride, sizeof(element))


cdef inline void scatter(char* y, ptrdiff_t stride, const element* elements, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(y + <ptrdiff_t>i * stride, elements + i, sizeof(element))


cdef inline void gather_bits(uint8_t* bits, const uint8_t* keep, ptrdiff_t stride, size_t n) noexcept nogil:
    """The packed bits of 1 <= n <= GROUP bytes: 0 where they are 0."""
    cdef uint8_t bools[GROUP]
    cdef size_t i
    cdef size_t bytes = (n + 7) // 8
    if stride == 1 and n % 8 == 0:
        pack_bools(bits, keep, n)
    elif stride == 0:
        memset(bits, -<int>(keep[0] != 0), GROUP_BYTES)
    else:
        memset(bools + 8 * bytes - 8, 0, 8)
        for i in range(n):
            bools[i] = keep[<ptrdiff_t>i * stride]
        pack_bools(bits, bools, 8 * bytes)


cdef inline void apply_part(
    const cdropout_plane* plane, const char* x, char* y, const uint8_t* bits, size_t n, double scale, element* buffer
) noexcept nogil:
    """Part of a row, n <= GROUP; buffer holds GROUP elements, for those that do not lie side by side."""
    cdef const element* source = <const element*>x
    cdef element* target = <element*>y
    if plane.x[1] != sizeof(element) and n > 1:
        gather(buffer, x, plane.x[1], n)
        source = buffer
    if plane.y[1] != sizeof(element) and n > 1:
        target = buffer
    mask_and_scale(source, target, bits, 0, n, scale)
    if target != <element*>y:
        scatter(y, plane.y[1], <const element*>target, n)


cdef void apply_rows(
    const cdropout_plane* plane, const char* x, char* y, const uint8_t* keep, double scale, element* typed
) noexcept nogil:
    """Columns in parts of at most GROUP, so that rows which share their keep bits pack them once; `typed`: its type only."""
    cdef element buffer[GROUP]
    cdef uint8_t bits[GROUP_BYTES]
    cdef size_t first, row, n
    for first in range(0, plane.columns, 512):    # GROUP: Cython loops in C by a literal step only
        n = min(plane.columns - first, <size_t>GROUP)
        for row in range(plane.rows):
            if row == 0 or plane.keep[0] != 0:
                gather_bits(bits, keep + <ptrdiff_t>row * plane.keep[0], plane.keep[1], n)
            apply_part(plane, x + <ptrdiff_t>row * plane.x[0], y + <ptrdiff_t>row * plane.y[0], bits, n, scale, buffer)
        x += GROUP * plane.x[1]
        y += GROUP * plane.y[1]
        keep += GROUP * plane.keep[1]


cdef bint is_dense(const cdropout_plane* plane, ptrdiff_t size) noexcept nogil:
    """Whether the rows of x, and of y, lie side by side without gaps."""
    cdef ptrdiff_t row = <ptrdiff_t>plane.columns * size
    return plane.x[1] == size and plane.y[1] == size and plane.x[0] == row and plane.y[0] == row


cdef void apply_dense(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    """All rows as one: their bits are strung together, so that short rows cost no more than long ones."""
    cdef uint8_t bits[3 * GROUP_BYTES]
    cdef uint8_t row_bits[GROUP_BYTES]
    cdef uint64_t skip = -up_to_line(y, plane.rows * plane.columns) % WORD    # bits of no element: y's lines end steps
    cdef size_t row, first, n, i
    cdef Writer writer
    writer.to = bits
    writer.held = 0
    writer.count = skip
    for row in range(plane.rows):
        for first in range(0, plane.columns, 512):
            n = min(plane.columns - first, <size_t>GROUP)
            if row == 0 or plane.keep[0] != 0 or plane.columns > GROUP:
                gather_bits(
                    row_bits, keep + <ptrdiff_t>row * plane.keep[0] + <ptrdiff_t>first * plane.keep[1], plane.keep[1], n,
                )
            for i in range(0, n, 64):
                write_bits(&writer, load_bits64(row_bits + i // 8), min(n - i, <size_t>64))
            if writer.to >= bits + GROUP_BYTES:
                mask_and_scale(x, y, bits, skip, GROUP - skip, scale)
                x += GROUP - skip
                y += GROUP - skip
                skip = 0
                memcpy(bits, bits + GROUP_BYTES, GROUP_BYTES)
                writer.to -= GROUP_BYTES
    store_bits64(writer.to, writer.held)
    mask_and_scale(x, y, bits, skip, 8 * <size_t>(writer.to - bits) + writer.count - skip, scale)


cdef inline void apply_plane(
    const cdropout_plane* plane, const element* x, element* y, const uint8_t* keep, double scale
) noexcept nogil:
    if is_dense(plane, sizeof(element)):
        apply_dense(plane, x, y, keep, scale)
    else:
        apply_rows(plane, <const char*>x, <char*>y, keep, scale, y)


cdef int apply_bools(
    cdropout_dtype dtype, const void* x, void* y, const uint8_t* keep, const cdropout_plane* plane, double scale
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT32:
        apply_plane(plane, <const float*>x, <float*>y, keep, scale)
    elif dtype == CDROPOUT_FLOAT64:
        apply_plane(plane, <const double*>x, <double*>y, keep, scale)
    elif dtype == CDROPOUT_FLOAT16:
        apply_plane(plane, <const half*>x, <half*>y, keep, scale)
    elif dtype == CDROPOUT_BFLOAT16:
        apply_plane(plane, <const bfloat*>x, <bfloat*>y, keep, scale)
    else:
        return -1
    return 0


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


cdef void bools(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef uint8_t packed[BLOCK_BYTES]
    cdef uint8_t end[8]
    cdef size_t part, whole
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
    if dtype == CDROPOUT_FLOAT32:
        add_rows(<const float*>x, <const float*>bias, <const float*>residual, <float*>y, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT64:
        add_rows(<const double*>x, <const double*>bias, <const double*>residual, <double*>y, rows, columns, mask, start)
    else:
        return -1
    return 0


cdef void sum_rows(
    const real* gy, real* gx, double* gbias, size_t rows, size_t columns, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef uint64_t first = start % GROUP
    cdef size_t _row, part, done, i
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
            for i in range(part):
                gbias[done + i] += gx[i]
            gy += part
            gx += part
            first += part
            done += part


cdef int bias_dropout_add_backward(
    cdropout_dtype dtype, const void* gy, void* gx, double* gbias, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT32:
        sum_rows(<const float*>gy, <float*>gx, gbias, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT64:
        sum_rows(<const double*>gy, <double*>gx, gbias, rows, columns, mask, start)
    else:
        return -1
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
table = PyCapsule_New(&kernels, "cdropout.core.table", NULL)
