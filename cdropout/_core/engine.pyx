"""The engine executes operations, each of which applies a mask to an array.

A caller describes its arrays and the mask in an `Operation`, and chooses an executor. The engine chooses the kernels, the
work chunks and the number of threads, and decides when to use streaming stores and when to release the GIL.
"""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport SIZE_MAX, int64_t, uint8_t, uint64_t

from cdropout cimport CDROPOUT_BOOL, CDROPOUT_PART_OF_LARGE, cdropout_axis, cdropout_mask
from cdropout._core import dispatch
from cdropout._core.dispatch cimport kernels
from cdropout._core.dtypes cimport types
from cdropout._core.executor cimport Executor, exchange_thread_limit, threads_for
from cdropout._core.view cimport MAX_TILE, BitLayout, View, arrange, choose_tile, count_elements, count_tiles, get_tile

cdef enum:
    MIN_TILE = 1 << 15                # smallest limit of elements per tile; with smaller tiles, more threads save no time

cdef cdropout_mask drop_all           # the mask for p = 1; its scale is 0
cdef size_t streaming_threshold = dispatch.streaming_threshold


cdef bint merge_contiguous(View* view, size_t size, ptrdiff_t itemsize) noexcept nogil:
    """Join all axes if they are in C order without gaps. Return whether they were joined.

    `arrange` would join these axes too, but takes more time.
    """
    cdef int64_t step = 1
    cdef cdropout_axis* axis
    cdef int i
    for i in range(view.ndim - 1, -1, -1):
        axis = &view.axes[i]
        if axis.length != 1 and (axis.mask != step or axis.y != step * itemsize or axis.x != axis.y):
            return False
        step *= axis.length
    view.axes[0] = cdropout_axis(size, itemsize, itemsize, 1)
    view.ndim = 1
    return True


cdef bint has_row_kernel(const Operation* operation) noexcept nogil:
    """Return whether the arranged view has one axis without gaps in x, y and the mask, and a kernel for such rows exists."""
    cdef const cdropout_axis* axis = &operation.view.axes[0]
    cdef ptrdiff_t itemsize = types[<int>operation.dtype].itemsize
    if operation.view.ndim > 1 or operation.bools != NULL or operation.shifts:
        return False
    return axis.length == 1 or axis.x == itemsize and axis.y == itemsize and axis.mask == 1


cdef void choose_lengths(Operation* operation) noexcept nogil:
    """Choose the lengths of work chunks, so that all threads get about the same amount of work."""
    cdef View* view = &operation.view
    cdef size_t largest = MAX_TILE
    cdef size_t threads
    cdef BitLayout drawn
    cdef int i
    if operation.size <= MIN_TILE:
        for i in range(view.ndim):
            operation.lengths[i] = view.axes[i].length
        return
    if operation.max_threads > 1:
        threads = min(operation.max_threads, exchange_thread_limit(0))
        largest = max(min(largest, operation.size // threads), <size_t>MIN_TILE)
    choose_tile(operation.lengths, &drawn, view, largest)


cdef void prepare(Operation* operation, const Executor* executor, size_t max_threads) noexcept nogil:
    """Decide how to execute the operation. Afterwards, the caller may change the seed and the call number of the mask."""
    cdef View* view = &operation.view
    operation.size = count_elements(view)
    if operation.size == 0:
        return
    if operation.mask == NULL and operation.scale == 0:    # p is 1, so all elements are dropped
        use_mask(operation, &drop_all)
    if not merge_contiguous(view, operation.size, types[<int>operation.dtype].itemsize):
        arrange(view, view.ndim, view.axes)
    operation.executor = executor
    operation.max_threads = threads_for(executor, operation.size, max_threads)
    operation.contiguous = has_row_kernel(operation)
    if operation.contiguous:
        operation.lengths[0] = CHUNK
    else:
        choose_lengths(operation)
    operation.flags = 0
    if operation.size * types[<int>operation.dtype].itemsize >= streaming_threshold:
        operation.flags = CDROPOUT_PART_OF_LARGE


cdef void run_row(const Operation* operation, size_t first) noexcept nogil:
    """Execute the work chunk that begins at element `first` of a contiguous operation."""
    cdef size_t n = min(operation.view.axes[0].length - first, <size_t>CHUNK)
    cdef size_t offset = first * types[<int>operation.dtype].itemsize
    cdef const char* x = operation.view.x + offset
    cdef char* y = operation.view.y + offset
    cdef uint64_t start = operation.view.start + first
    if operation.packs:
        kernels.bits(<uint8_t*>operation.view.y + first // 8, n, operation.mask, start)
    elif operation.dtype == CDROPOUT_BOOL:
        kernels.bools(<uint8_t*>y, n, operation.mask, start)
    elif operation.bits != NULL:
        kernels.apply_bits(operation.dtype, operation.flags, x, y, n, operation.bits, start, operation.scale)
    else:
        kernels.apply(operation.dtype, operation.flags, x, y, n, operation.mask, start)


cdef void run_tile(const Operation* operation, size_t number) noexcept nogil:
    """Execute work chunk `number` of a strided operation, that is, tile `number` of the view."""
    cdef View tile
    get_tile(&tile, &operation.view, operation.lengths, number)
    if operation.bits != NULL:
        kernels.apply_bits_strided(
            operation.dtype, operation.flags, tile.x, tile.y, tile.ndim, tile.axes, operation.bits, tile.start,
            operation.scale,
        )
    elif operation.bools != NULL:
        kernels.apply_bools_strided(
            operation.dtype, operation.flags, tile.x, tile.y, tile.ndim, tile.axes,
            operation.bools + <ptrdiff_t>tile.start, operation.scale,
        )
    elif operation.shifts:
        kernels.apply_alpha_strided(
            operation.dtype, 0, tile.x, tile.y, tile.ndim, tile.axes, operation.mask, tile.start,
            operation.shift, operation.constant,
        )
    else:
        kernels.apply_strided(
            operation.dtype, operation.flags, tile.x, tile.y, tile.ndim, tile.axes, operation.mask, tile.start
        )


cdef void run_chunk(const void* context, size_t number) noexcept nogil:
    cdef const Operation* operation = <const Operation*>context
    if operation.contiguous:
        run_row(operation, number * CHUNK)
    else:
        run_tile(operation, number)


cdef bint may_be_interrupted(const Operation* operation) noexcept nogil:
    """Return whether `run` may check for signals. Short operations end without a check."""
    return operation.size > <size_t>(INTERRUPTIBLE_MIN if operation.contiguous else CHUNK)


cdef int run(const Operation* operation) except -1 nogil:
    """Execute a prepared operation. Return 0, or -1 if an exception was raised, for example by a signal handler."""
    if operation.size == 0:
        return 0
    if operation.contiguous and operation.size <= CHUNK:
        run_row(operation, 0)
        return 0
    return operation.executor.run(
        run_chunk, operation, count_tiles(&operation.view, operation.lengths), operation.max_threads,
        operation.executor.checks_signals and may_be_interrupted(operation),
    )


cdef int run_prepared(const Operation* operation) except -1:
    """Execute a prepared operation, without the GIL if the operation is large enough."""
    if operation.size < RELEASE_GIL_MIN:
        return run(operation)
    with nogil:
        return run(operation)


cdef int apply(Operation* operation, const Executor* executor) except -1:
    """Prepare and execute an operation on as many threads as the executor allows."""
    prepare(operation, executor, SIZE_MAX)
    return run_prepared(operation)


# ---- batches of masks ---------------------------------------------------------------------------

cdef struct Batch:
    const Operation* operation        # the prepared operation for the first part
    size_t masks                      # number of masks
    size_t masks_per_chunk
    InitMask init_mask
    const void* context               # the argument `context` of init_mask


cdef void apply_range(const Batch* batch, size_t first, size_t last) noexcept nogil:
    """Apply each mask with an index in [first, last) to the part of x with the same index."""
    cdef Operation operation = batch.operation[0]    # one copy per range: a copy takes longer than applying a small mask
    cdef size_t nbytes = operation.size * types[<int>operation.dtype].itemsize
    cdef cdropout_mask mask
    cdef size_t i
    operation.mask = &mask
    operation.view.x += first * nbytes
    operation.view.y += first * nbytes
    for i in range(first, last):
        batch.init_mask(&mask, batch.context, i)
        run(&operation)
        operation.view.x += nbytes
        operation.view.y += nbytes


cdef void apply_chunk(const void* context, size_t number) noexcept nogil:
    """Apply the masks of a work chunk of the batch."""
    cdef const Batch* batch = <const Batch*>context
    apply_range(batch, number * batch.masks_per_chunk, min((number + 1) * batch.masks_per_chunk, batch.masks))


cdef void apply_masks(
    Operation* operation, const Executor* executor, size_t masks, InitMask init_mask, const void* context
) noexcept nogil:
    """Apply a different mask to each of `masks` adjacent parts of x.

    Several threads may process small parts at the same time. Large parts are processed one after another, each on several
    threads if it is large enough. `operation` describes the first part, without a mask; `init_mask(&mask, context, i)`
    writes the mask with index i. The executor must not check for signals.
    """
    cdef Batch batch
    cdef size_t size = count_elements(&operation.view)
    cdef bint together = masks > 1 and size < CHUNK
    if masks == 0 or size == 0:
        return
    use_mask(operation, &drop_all)    # a placeholder until init_mask writes the masks
    prepare(operation, executor, 1 if together else SIZE_MAX)
    batch = Batch(operation, masks, CHUNK // size + 1, init_mask, context)
    if together:
        executor.run(
            apply_chunk, &batch, (masks - 1) // batch.masks_per_chunk + 1,
            threads_for(executor, size * masks, SIZE_MAX), False,
        )
    else:
        apply_range(&batch, 0, masks)
