"""The kernels on arrays of any size: cut into pieces, which threads share, and between which signals are answered."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport SIZE_MAX, uint8_t, uint32_t, uint64_t

from cdropout cimport (
    CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, CDROPOUT_PART_OF_LARGE, cdropout_axis, cdropout_dtype, cdropout_mask,
)
from cdropout.core import dispatch
from cdropout.core.dispatch cimport kernels
from cdropout.core.threads cimport Share, exchange_number, share
from cdropout.core.view cimport TILE, Drawn, View, arrange, choose_tile, count_elements, count_tiles, take_tile

cdef enum:
    SHARED = 1 << 19                  # elements from which waking a second thread pays
    SMALLEST_TILE = 1 << 15           # elements of an array, or of a thread's part of it, that are not cut into tiles

cdef size_t largest_cached = dispatch.largest_cached


cdef size_t size_of(cdropout_dtype dtype) noexcept nogil:
    """Bytes an element."""
    return 4 if dtype == CDROPOUT_FLOAT32 else 8 if dtype == CDROPOUT_FLOAT64 else 2


cdef size_t sharers(size_t n) noexcept nogil:
    """How many of the pool's threads may share a call on n elements."""
    return SIZE_MAX if n >= SHARED else 1


cdef uint32_t flags_of(size_t bytes) noexcept nogil:
    """Return the flags with which a part of so many bytes of output is stored as the whole would be."""
    return CDROPOUT_PART_OF_LARGE if bytes >= largest_cached else 0


# ---- elements in a row --------------------------------------------------------------------------

cdef struct Span:
    void (*run)(const Span* span, size_t first, size_t n) noexcept nogil
    size_t n
    cdropout_dtype dtype
    const char* x
    char* y
    const cdropout_mask* mask         # with what follows, or
    uint64_t start                    # where x begins in the mask
    const uint8_t* bits               # with
    double scale


cdef void apply_part(const Span* span, size_t first, size_t n) noexcept nogil:
    cdef size_t at = first * size_of(span.dtype)
    cdef uint32_t flags = flags_of(span.n * size_of(span.dtype))
    if span.bits == NULL:
        kernels.apply(span.dtype, flags, span.x + at, span.y + at, n, span.mask, span.start + first)
    else:
        kernels.apply_bits(span.dtype, flags, span.x + at, span.y + at, n, span.bits, first, span.scale)


cdef void draw_bits_part(const Span* span, size_t first, size_t n) noexcept nogil:
    kernels.bits(<uint8_t*>span.y + first // 8, n, span.mask, span.start + first)


cdef void draw_bools_part(const Span* span, size_t first, size_t n) noexcept nogil:
    kernels.bools(<uint8_t*>span.y + first, n, span.mask, span.start + first)


cdef void run_piece(const void* call, size_t piece) noexcept nogil:
    cdef const Span* span = <const Span*>call
    span.run(span, piece * PIECE, min(span.n - piece * PIECE, <size_t>PIECE))


cdef int run_span(const Span* span, Share how, size_t most) except -1 nogil:
    return how(run_piece, span, span.n // PIECE + (span.n % PIECE != 0), most)


cdef int apply_span(
    cdropout_dtype dtype, const char* x, char* y, size_t n, const cdropout_mask* mask, uint64_t start,
    Share how, size_t most,
) except -1 nogil:
    """y = x * scale where the mask keeps, else +0.0, on at most `most` threads, which `how` brings to it."""
    cdef Span span = Span(apply_part, n, dtype, x, y, mask, start, NULL, 0)
    return run_span(&span, how, most)


cdef int apply_bits_span(
    cdropout_dtype dtype, const char* x, char* y, size_t n, const uint8_t* bits, double scale
) except -1 nogil:
    """y = x * scale where the packed bit is set, else +0.0."""
    cdef Span span = Span(apply_part, n, dtype, x, y, NULL, 0, bits, scale)
    return run_span(&span, share, sharers(n))


cdef int draw_bits_span(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) except -1 nogil:
    """Fill out with n keep bits, least significant first."""
    cdef Span span = Span(draw_bits_part, n, CDROPOUT_FLOAT32, NULL, <char*>out, mask, start, NULL, 0)
    return run_span(&span, share, sharers(n))


cdef int draw_bools_span(
    uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start, Share how, size_t most
) except -1 nogil:
    """Fill out with 1 where the mask keeps, else 0."""
    cdef Span span = Span(draw_bools_part, n, CDROPOUT_FLOAT32, NULL, <char*>out, mask, start, NULL, 0)
    return run_span(&span, how, most)


# ---- elements at any strides --------------------------------------------------------------------

cdef void run_tile(const void* call, size_t number) noexcept nogil:
    cdef const ViewCall* all = <const ViewCall*>call
    cdef View tile
    take_tile(&tile, &all.view, all.lengths, number)
    if all.mask != NULL and all.shifts:
        kernels.apply_alpha_strided(
            all.dtype, 0, tile.x, tile.y, tile.ndim, tile.axes, all.mask, tile.start, all.shift, all.constant,
        )
    elif all.mask != NULL:
        kernels.apply_strided(all.dtype, all.flags, tile.x, tile.y, tile.ndim, tile.axes, all.mask, tile.start)
    elif all.bits != NULL:
        kernels.apply_bits_strided(
            all.dtype, all.flags, tile.x, tile.y, tile.ndim, tile.axes, all.bits, tile.start, all.scale,
        )
    else:
        kernels.apply_bools_strided(
            all.dtype, all.flags, tile.x, tile.y, tile.ndim, tile.axes, all.bools + <ptrdiff_t>tile.start, all.scale,
        )


cdef int run_view(ViewCall* call, int ndim, const cdropout_axis* axes, Share how, size_t most) except -1 nogil:
    """Apply a mask, bits or bools at any strides, on at most `most` threads, which `how` brings to it."""
    cdef Drawn drawn
    cdef size_t tile = TILE
    cdef size_t n, threads
    cdef int i
    arrange(&call.view, ndim, axes)
    n = count_elements(&call.view)
    if n <= SMALLEST_TILE:
        for i in range(call.view.ndim):
            call.lengths[i] = call.view.axes[i].length
    else:
        threads = min(most, exchange_number(0)) if most > 1 else 1
        if threads > 1:
            tile = max(min(tile, n // threads), <size_t>SMALLEST_TILE)
        choose_tile(call.lengths, &drawn, &call.view, tile)
    call.flags = 0
    if n * size_of(call.dtype) >= largest_cached:
        call.flags = CDROPOUT_PART_OF_LARGE
    return how(run_tile, call, count_tiles(&call.view, call.lengths), most)
