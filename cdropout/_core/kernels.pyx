"""Kernels: C functions that draw keep bits, mask and scale elements, or do both in one pass.

This file is compiled once per instruction set (see setup.py). The capsule `table` contains a pointer to the table of
kernels. The kernels use no Python objects and change no global variables, so any number of threads may run them at the same
time. Kernels allocate memory only if a tile needs more than SMALL_TILE bits (see tiles.pxd), and free the memory before
they return.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport SIZE_MAX, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_BOOL, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, CDROPOUT_PART_OF_LARGE,
    CDROPOUT_TABLE_VERSION, cdropout_axis, cdropout_dtype, cdropout_mask, cdropout_table,
)
from cdropout._core.bits cimport Writer, load_bits64, spread_bits, store_bits64, write_group
from cdropout._core.select cimport (
    GROUP_BUFFER_BYTES, LINE_BYTES, STEP, add_four_rows_to, add_to, aligned_buffer, apply_bias_dropout_add, bfloat,
    boolean, elements_to_line, end_streaming, floating, half, mask_and_scale, mask_and_scale_large, may_stream, step,
    store_streaming,
)
from cdropout._core.rows cimport Rows, begin_rows, next_row
from cdropout._core.softmax cimport (
    Softmax, SoftmaxTable, backward_f32, backward_f64, forward_f32, forward_f64, recompute_f32, recompute_f64,
)
from cdropout._core.tiles cimport Source, Transform, append_stream, apply_view
from cdropout._core.view cimport MAX_DIMS, View, arrange
from cdropout._core.stream cimport (
    BLOCK, GROUP, GROUP_BYTES, PARTS, PartState, Stream, begin_part, draw_group, draw_round, end_part, next_group,
    open_stream,
)

cdef enum:
    BLOCK_BYTES = 1024                            # bytes of packed keep bits per block

cdef extern from "simd.h" nogil:
    void fill_bit_masks "cd_fill_bit_masks"()

cdef size_t streaming_threshold = SIZE_MAX        # minimum size of y, in bytes, for streaming stores


def set_streaming_threshold(size_t bytes):
    """Set the minimum size, in bytes, of outputs that are written with streaming stores."""
    global streaming_threshold
    streaming_threshold = bytes


cdef inline void apply_and_draw(
    const floating* x, floating* y, const uint8_t* keep, double scale, Stream* stream, uint8_t* next_keep
) noexcept nogil:
    """Mask and scale GROUP elements in steps, and draw the bits of the next group in rounds.

    The steps alternate with the rounds, so that the CPU executes both at the same time. In measurements, the kernel `apply`
    took 1.07 times as long as memcpy. With all rounds before all steps, it took 1.40 times as long as memcpy, because the
    CPU's reorder buffer is too small to overlap steps and rounds.
    """
    cdef PartState state
    cdef int done = 0
    cdef int part, together, _round
    for part in range(PARTS):
        begin_part(&state, stream, part)
        together = min(stream.rounds, GROUP // STEP - done)
        for _round in range(together):
            draw_round(&state)
            step(x + STEP * done, y + STEP * done, keep + STEP // 8 * done, scale)
            done += 1
        for _round in range(together, stream.rounds):
            draw_round(&state)
        end_part(&state, stream, part, next_keep)
    next_group(stream)
    for done in range(done, GROUP // STEP):
        step(x + STEP * done, y + STEP * done, keep + STEP // 8 * done, scale)


cdef void apply_stream(
    const floating* x, floating* y, size_t n, const cdropout_mask* mask, uint64_t start, bint large
) noexcept nogil:
    cdef Stream stream
    cdef uint8_t drawn[GROUP_BYTES]
    cdef uint8_t keep[GROUP_BYTES]                # keep bits of the next GROUP elements of y, which may belong to two groups
    cdef uint64_t first = start % GROUP
    cdef size_t head = min(GROUP - first, n)
    cdef Writer writer                            # holds bits that are drawn but not yet written to keep
    cdef uint8_t buffer[GROUP_BUFFER_BYTES]
    cdef floating* lines = aligned_buffer(buffer, x)
    cdef bint streaming = may_stream(x, y, large)
    writer.to, writer.held, writer.count = keep, 0, 0
    open_stream(&stream, mask, start - first)
    draw_group(&stream, drawn)
    if n > head and head >= STEP:                 # align the steps with the cache lines of y, not with groups
        writer.count = (head - elements_to_line(y, n)) % STEP
        writer.held = load_bits64(drawn + GROUP_BYTES - 8) >> 32 >> (32 - writer.count)
        head -= writer.count
    mask_and_scale(x, y, drawn, first, head, mask.scale)
    if head == n:
        return
    draw_group(&stream, drawn)
    write_group(&writer, drawn)
    x += head
    y += head
    n -= head
    streaming = streaming and <uintptr_t>y % LINE_BYTES == 0
    while n > GROUP:
        apply_and_draw(x, lines if streaming else y, keep, mask.scale, &stream, drawn)
        if streaming:
            store_streaming(y, lines, GROUP * sizeof(floating))
        writer.to = keep
        write_group(&writer, drawn)
        x += GROUP
        y += GROUP
        n -= GROUP
    mask_and_scale(x, y, keep, 0, n, mask.scale)
    if streaming:
        end_streaming()


cdef int mask_init(cdropout_mask* mask, uint64_t seed, uint64_t call, double p) noexcept nogil:
    if mask == NULL or not 0 <= p <= 1:
        return -1
    mask.seed = seed
    mask.call = call
    mask.threshold = <uint64_t>(p * 18446744073709551616.0) if p < 1 else 0
    mask.scale = 1 / (1 - p) if p < 1 else 0      # the scale 0 means p = 1; kernels test the scale before the threshold
    return 0


cdef size_t itemsize_of(cdropout_dtype dtype) noexcept nogil:
    """Return the number of bytes per element, or 0 if dtype is CDROPOUT_BOOL or unknown."""
    if dtype in (CDROPOUT_FLOAT16, CDROPOUT_BFLOAT16):
        return 2
    return 4 if dtype == CDROPOUT_FLOAT32 else 8 if dtype == CDROPOUT_FLOAT64 else 0


cdef inline bint are_known(uint32_t flags) noexcept nogil:
    return flags & ~<uint32_t>CDROPOUT_PART_OF_LARGE == 0


cdef inline bint is_large(uint32_t flags, size_t bytes) noexcept nogil:
    """Return whether an output with these flags and this size in bytes is large enough for streaming stores."""
    return flags & <uint32_t>CDROPOUT_PART_OF_LARGE or bytes >= streaming_threshold


cdef inline bint any_null(const void* a, const void* b, const void* c) noexcept nogil:
    return not (a and b and c)


cdef int apply(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, size_t n, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef bint large = is_large(flags, n * itemsize_of(dtype))
    if itemsize_of(dtype) == 0 or not are_known(flags) or n and any_null(x, y, mask):
        return -1
    if n == 0:
        return 0
    if mask.scale == 0:
        memset(y, 0, n * itemsize_of(dtype))
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
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, size_t n, const uint8_t* bits, uint64_t bit_start,
    double scale
) noexcept nogil:
    cdef bint large = is_large(flags, n * itemsize_of(dtype))
    if itemsize_of(dtype) == 0 or not are_known(flags) or n and any_null(x, y, bits):
        return -1
    if dtype == CDROPOUT_FLOAT32:
        mask_and_scale_large(<const float*>x, <float*>y, bits, bit_start, n, scale, large)
    elif dtype == CDROPOUT_FLOAT64:
        mask_and_scale_large(<const double*>x, <double*>y, bits, bit_start, n, scale, large)
    elif dtype == CDROPOUT_FLOAT16:
        mask_and_scale_large(<const half*>x, <half*>y, bits, bit_start, n, scale, large)
    else:
        mask_and_scale_large(<const bfloat*>x, <bfloat*>y, bits, bit_start, n, scale, large)
    return 0


cdef int bits(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil:
    cdef Writer writer = Writer(out, 0, 0)
    cdef uint8_t last[8]
    if n == 0 or any_null(out, mask, mask):
        return -1 if n else 0
    append_stream(&writer, n, mask, start, NULL)
    store_bits64(last, writer.held)
    memcpy(writer.to, last, (writer.count + 7) // 8)
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


# ---- views ------------------------------------------------------------------------------------------

cdef enum:
    LONG_ROW = 4096                               # minimum elements per row for which one stream per row costs little time


cdef inline void apply_long_rows(
    const View* view, const cdropout_mask* mask, bint large, floating* typed
) noexcept nogil:
    """Apply a mask to a view row by row, with one stream per row. Only the type of `typed` is used."""
    cdef Rows rows
    cdef size_t n = view.axes[view.ndim - 1].length
    begin_rows(&rows, view)
    while True:
        apply_stream(
            <const floating*>(view.x + <ptrdiff_t>rows.x), <floating*>(view.y + <ptrdiff_t>rows.y), n, mask,
            view.start + rows.mask, large,
        )
        if not next_row(&rows):
            return


cdef inline void apply_typed(
    const View* view, const Source* source, const Transform* transform, floating* typed
) noexcept nogil:
    cdef const cdropout_axis* row = &view.axes[view.ndim - 1]
    cdef bint draws = source.mask != NULL and transform.scale != 0 and not transform.has_shift
    cdef bint contiguous = row.x == sizeof(floating) and row.y == sizeof(floating) and row.mask == 1
    if draws and contiguous and (row.length >= LONG_ROW or view.ndim == 1):
        apply_long_rows(view, source.mask, transform.large, typed)
    else:
        apply_view(view, source, transform, typed)


cdef int apply_source(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes, const Source* source,
    uint64_t start, Transform* transform,
) noexcept nogil:
    cdef View view
    cdef size_t bytes = itemsize_of(dtype)
    cdef int i
    if bytes == 0 and dtype != CDROPOUT_BOOL or not are_known(flags) or not 0 <= ndim <= MAX_DIMS or ndim and axes == NULL:
        return -1
    for i in range(ndim):
        if axes[i].length == 0:
            return 0
        bytes *= axes[i].length
    if y == NULL or x == NULL and dtype != CDROPOUT_BOOL:
        return -1
    if source.mask == NULL and source.bits == NULL and source.bools == NULL:
        return -1
    transform.large = is_large(flags, bytes)
    view.x = <const char*>x if dtype != CDROPOUT_BOOL else NULL
    view.y = <char*>y
    view.start = start
    arrange(&view, ndim, axes)
    if dtype == CDROPOUT_FLOAT32:
        apply_typed(&view, source, transform, <float*>y)
    elif dtype == CDROPOUT_FLOAT64:
        apply_typed(&view, source, transform, <double*>y)
    elif dtype == CDROPOUT_FLOAT16:
        apply_typed(&view, source, transform, <half*>y)
    elif dtype == CDROPOUT_BFLOAT16:
        apply_typed(&view, source, transform, <bfloat*>y)
    else:
        apply_view(&view, source, transform, <boolean*>y)
    return 0


cdef int apply_strided(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
    const cdropout_mask* mask, uint64_t start,
) noexcept nogil:
    cdef Source source = Source(mask, NULL, NULL)
    cdef Transform transform = Transform(mask.scale if mask != NULL else 0, False, False, 0, 0)
    return apply_source(dtype, flags, x, y, ndim, axes, &source, start, &transform)


cdef int apply_alpha_strided(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
    const cdropout_mask* mask, uint64_t start, double shift, double constant,
) noexcept nogil:
    cdef Source source = Source(mask, NULL, NULL)
    cdef double scale = mask.scale if mask != NULL else 0
    cdef Transform transform = Transform(scale, False, scale != 0, shift, constant)
    if dtype not in (CDROPOUT_FLOAT32, CDROPOUT_FLOAT64):
        return -1
    return apply_source(dtype, flags, x, y, ndim, axes, &source, start, &transform)


cdef int apply_bits_strided(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
    const uint8_t* bits, uint64_t bit_start, double scale,
) noexcept nogil:
    cdef Source source = Source(NULL, bits, NULL)
    cdef Transform transform = Transform(scale, False, False, 0, 0)
    return apply_source(dtype, flags, x, y, ndim, axes, &source, bit_start, &transform)


cdef int apply_bools_strided(
    cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
    const uint8_t* bools, double scale,
) noexcept nogil:
    cdef Source source = Source(NULL, NULL, bools)
    cdef Transform transform = Transform(scale, False, False, 0, 0)
    return apply_source(dtype, flags, x, y, ndim, axes, &source, 0, &transform)


# ---- bias, dropout and residual in one pass -----------------------------------------------------------


cdef inline void draw_or_clear_group(Stream* stream, const cdropout_mask* mask, uint8_t* keep) noexcept nogil:
    """Draw the bits of the next group, or set the bits to 0 for p = 1, whose threshold 2^64 does not fit in 64 bits."""
    if mask.scale == 0:
        memset(keep, 0, GROUP_BYTES)
    else:
        draw_group(stream, keep)


cdef inline void fill_with_minus_zero(floating* y, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if floating is half or floating is bfloat:
            y[i].bits = 0x8000
        else:
            y[i] = -0.0


cdef void add_rows(
    const floating* x, const floating* bias, const floating* residual, floating* y, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start,
) noexcept nogil:
    """Set the rows of y to residual + dropout(x + bias). If bias is NULL, -0.0 is added instead, which changes no number."""
    cdef Stream stream
    cdef uint8_t keep[GROUP_BYTES]
    cdef floating neutral[GROUP]
    cdef const floating* terms = neutral
    cdef uint64_t first = start % GROUP
    cdef size_t _row, part, done
    if bias == NULL:
        fill_with_minus_zero(neutral, GROUP)
    open_stream(&stream, mask, start - first)
    draw_or_clear_group(&stream, mask, keep)
    for _row in range(rows):
        done = 0
        while done < columns:
            if first == GROUP:
                draw_or_clear_group(&stream, mask, keep)
                first = 0
            part = min(columns - done, <size_t>(GROUP - first))
            if bias != NULL:
                terms = bias + done
            apply_bias_dropout_add(x, terms, residual, y, keep, first, part, mask.scale)
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
    if itemsize_of(dtype) == 0 or some and (any_null(x, residual, y) or mask == NULL):
        return -1
    if not some:
        return 0
    if dtype == CDROPOUT_FLOAT32:
        add_rows(<const float*>x, <const float*>bias, <const float*>residual, <float*>y, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT64:
        add_rows(<const double*>x, <const double*>bias, <const double*>residual, <double*>y, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT16:
        add_rows(<const half*>x, <const half*>bias, <const half*>residual, <half*>y, rows, columns, mask, start)
    else:
        add_rows(<const bfloat*>x, <const bfloat*>bias, <const bfloat*>residual, <bfloat*>y, rows, columns, mask, start)
    return 0


cdef void sum_rows(
    const floating* gy, floating* gx, double* gbias, size_t rows, size_t columns, const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    """Set gx to the masked and scaled gy. Add each block of gx to the column sums in gbias while it is in the cache."""
    cdef size_t left = rows * columns
    cdef size_t column = 0
    cdef size_t block, part
    while left:
        block = min(left, <size_t>(BLOCK - start % BLOCK))
        if mask.scale == 0:
            memset(gx, 0, block * sizeof(floating))
        else:
            apply_stream(gy, gx, block, mask, start, False)
        gy += block
        start += block
        left -= block
        while block:
            if column == 0 and block >= 4 * columns:
                add_four_rows_to(gbias, gx, columns)
                gx += 4 * columns
                block -= 4 * columns
                continue
            part = min(block, columns - column)
            add_to(gbias + column, gx, part)
            gx += part
            block -= part
            column = column + part if column + part < columns else 0


cdef int bias_dropout_add_backward(
    cdropout_dtype dtype, const void* gy, void* gx, double* gbias, size_t rows, size_t columns,
    const cdropout_mask* mask, uint64_t start
) noexcept nogil:
    cdef bint some = rows and columns
    if itemsize_of(dtype) == 0 or some and (any_null(gy, gx, gbias) or mask == NULL):
        return -1
    if not some:
        return 0
    if dtype == CDROPOUT_FLOAT32:
        sum_rows(<const float*>gy, <float*>gx, gbias, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT64:
        sum_rows(<const double*>gy, <double*>gx, gbias, rows, columns, mask, start)
    elif dtype == CDROPOUT_FLOAT16:
        sum_rows(<const half*>gy, <half*>gx, gbias, rows, columns, mask, start)
    else:
        sum_rows(<const bfloat*>gy, <bfloat*>gx, gbias, rows, columns, mask, start)
    return 0


# ---- softmax with dropout ----------------------------------------------------------------------------


cdef void softmax_forward(cdropout_dtype dtype, const Softmax* matrix, void* weights, void* sums) noexcept nogil:
    if dtype == CDROPOUT_FLOAT64:
        forward_f64(matrix, <double*>weights, <double*>sums)
    else:
        forward_f32(matrix, <float*>weights, <float*>sums)


cdef void softmax_recompute(
    cdropout_dtype dtype, const Softmax* matrix, void* weights, const void* sums, void* dropped
) noexcept nogil:
    if dtype == CDROPOUT_FLOAT64:
        recompute_f64(matrix, <double*>weights, <const double*>sums, <double*>dropped)
    else:
        recompute_f32(matrix, <float*>weights, <const float*>sums, <float*>dropped)


cdef void softmax_backward(cdropout_dtype dtype, const Softmax* matrix, const void* weights, void* gradient) noexcept nogil:
    if dtype == CDROPOUT_FLOAT64:
        backward_f64(matrix, <const double*>weights, <double*>gradient)
    else:
        backward_f32(matrix, <const float*>weights, <float*>gradient)


fill_bit_masks()                                  # fill cd_bit_masks_16, if it exists, before the first call of a kernel

cdef cdropout_table kernels
kernels.version = CDROPOUT_TABLE_VERSION
kernels.size = sizeof(cdropout_table)
kernels.mask_init = mask_init
kernels.apply = apply
kernels.apply_bits = apply_bits
kernels.bits = bits
kernels.bools = bools
kernels.bias_dropout_add = bias_dropout_add
kernels.bias_dropout_add_backward = bias_dropout_add_backward
kernels.apply_strided = apply_strided
kernels.apply_bits_strided = apply_bits_strided
kernels.apply_bools_strided = apply_bools_strided
kernels.apply_alpha_strided = apply_alpha_strided
table = PyCapsule_New(&kernels, "cdropout._core.table", NULL)

cdef SoftmaxTable softmax_kernels = SoftmaxTable(softmax_forward, softmax_recompute, softmax_backward)
softmax_table = PyCapsule_New(&softmax_kernels, "cdropout._core.softmax_table", NULL)
