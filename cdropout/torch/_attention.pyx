"""Attention with dropout in tiles: each tile of weights is used while it is in the cache.

A tile consists of whole rows of the weights of one head. PyTorch computes the matrix products, by functions of its C
interface for compiled programs, which do not need the GIL. The heads are divided among PyTorch's threads. The forward pass
saves two numbers per row. The backward pass computes each tile and draws its part of the mask again.
"""
import ctypes

from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t

import torch

from cdropout cimport CDROPOUT_BOOL, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_axis, cdropout_dtype, cdropout_mask
from cdropout._core.bits cimport pack_bools
from cdropout._core.dispatch cimport kernels, softmax_kernels
from cdropout._core.engine cimport stride_along
from cdropout._core.executor cimport Executor, pool
from cdropout._core.softmax cimport Softmax
from cdropout._core.view cimport MAX_DIMS
from cdropout.torch._draw cimport LazyMask
from cdropout.torch._openmp cimport executor_of_pytorch
from cdropout.torch._openmp import find_functions

cdef enum:
    BOOLS = 1 << 12                   # elements whose bools are packed at a time
    MAX_GAP = 1 << 13                 # maximum number of unneeded bits between two rows that are drawn together
    CHUNK = 1 << 14                   # minimum number of weights per work chunk, if a tile is divided among threads
    LINE = 64                         # alignment of buffers

# The limits of a tile. The tests change them.
TILE = 1 << 17                        # weights of a tile; two tiles fit in the second-level cache
MAX_TILE = 1 << 20                    # weights of a tile, if a tile of TILE would have fewer than MIN_ROWS rows
MIN_ROWS = 128                        # products of fewer rows are slower
CAUSAL_TILES = 8                      # tiles per head if `is_causal`; tiles of fewer rows skip more hidden keys
MIN_CAUSAL_ROWS = 64

# ---- products -----------------------------------------------------------------------------------

ctypedef void* Handle                 # represents a tensor
ctypedef int32_t (*NewTensor)(
    void* data, int64_t ndim, const int64_t* lengths, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, Handle* result
) noexcept nogil
ctypedef int32_t (*DeleteTensor)(Handle tensor) noexcept nogil
ctypedef int32_t (*Product)(Handle out, Handle total, Handle a, Handle b, double beta, double alpha) noexcept nogil


cdef NewTensor new_tensor = NULL
cdef DeleteTensor delete_tensor = NULL
cdef Product addmm = NULL
cdef int32_t FLOAT32 = 0
cdef int32_t FLOAT64 = 0
cdef int32_t CPU = 0


def use_functions(addresses):
    """Use the functions of PyTorch's C interface at these addresses."""
    global new_tensor, delete_tensor, addmm, FLOAT32, FLOAT64, CPU
    new_tensor = <NewTensor><uintptr_t>addresses[0]
    delete_tensor = <DeleteTensor><uintptr_t>addresses[1]
    addmm = <Product><uintptr_t>addresses[2]
    FLOAT32, FLOAT64, CPU = [ctypes.CFUNCTYPE(ctypes.c_int32)(address)() for address in addresses[3:]]


function_addresses = find_functions(
    "aoti_torch_create_tensor_from_blob", "aoti_torch_delete_tensor_object", "aoti_torch_cpu_addmm_out",
    "aoti_torch_dtype_float32", "aoti_torch_dtype_float64", "aoti_torch_device_type_cpu",
)
is_available = all(function_addresses)    # whether `forward` and `backward` can be called
if is_available:
    use_functions(function_addresses)

cdef struct Matrix:                   # the strides are in elements
    char* data
    size_t rows, columns
    int64_t row_stride, column_stride


cdef inline Matrix transpose(Matrix m) noexcept nogil:
    return Matrix(m.data, m.columns, m.rows, m.column_stride, m.row_stride)


cdef Handle open_tensor(const Matrix* m, bint is_double) noexcept nogil:
    """Return a handle of a tensor that shares memory with a matrix, or NULL after an error."""
    cdef int64_t[2] lengths = [m.rows, m.columns]
    cdef int64_t[2] strides = [m.row_stride, m.column_stride]
    cdef Handle tensor = NULL
    new_tensor(m.data, 2, lengths, strides, 0, FLOAT64 if is_double else FLOAT32, CPU, 0, &tensor)
    return tensor


cdef bint add_product(
    const Matrix* total, const Matrix* a, const Matrix* b, double beta, double alpha, bint is_double
) noexcept nogil:
    """Set total to beta * total + alpha * a @ b. Return whether this succeeded."""
    cdef Handle[3] tensors = [open_tensor(total, is_double), open_tensor(a, is_double), open_tensor(b, is_double)]
    cdef bint done = tensors[0] != NULL and tensors[1] != NULL and tensors[2] != NULL
    cdef int i
    done = done and addmm(tensors[0], tensors[0], tensors[1], tensors[2], beta, alpha) == 0
    for i in range(3):
        if tensors[i] != NULL:
            delete_tensor(tensors[i])
    return done


# ---- tensors ------------------------------------------------------------------------------------

cdef enum Kind:                       # of attn_mask
    NO_MASK
    BOOLS_MASK
    NUMBERS

cdef struct Operand:                  # a tensor with the axes of `Attention`, rows and columns; data is NULL if it is unused
    char* data
    size_t itemsize, rows, columns
    int64_t strides[MAX_DIMS]         # in elements

cdef struct Attention:
    int ndim                          # number of leading axes
    size_t lengths[MAX_DIMS]          # their lengths
    size_t heads                      # their product
    bint is_double
    size_t itemsize
    Operand query, key, value, attn_mask
    Operand out                       # the output, or its gradient
    Operand gquery, gkey, gvalue
    Operand gmask                     # float64 if attn_mask is broadcast, otherwise of the type of the weights
    bint sums_gmask                   # whether attn_mask is broadcast
    char* sums                        # two numbers per row, in C order
    Kind kind
    bint is_causal
    double scale
    const cdropout_mask* mask
    uint64_t start
    int64_t strides[MAX_DIMS]         # of the mask, along the leading axes, rows and columns
    size_t tile_rows
    char* memory                      # buffers for each work chunk
    size_t tile_bytes, chunk_bytes
    size_t chunks                     # the heads are divided among these work chunks
    const Executor* executor          # divides the rows of a tile among threads if there is one work chunk; otherwise NULL
    size_t max_threads
    bint (*run_head)(const Attention* attention, size_t chunk, size_t head) noexcept nogil
    int failed


cdef int read_operand(Operand* operand, t) except -1:
    """Read a tensor, or None, whose last axes are rows and columns."""
    cdef int axis
    operand.data = NULL
    if t is None:
        return 0
    operand.data = <char*><uintptr_t>t.data_ptr()
    if operand.data == NULL:
        raise RuntimeError("a tensor has no memory")
    operand.itemsize = t.element_size()
    *_, operand.rows, operand.columns = t.shape
    for axis, stride in enumerate(t.stride()):
        operand.strides[axis] = stride
    return 0


cdef uint64_t offset_of(const Attention* attention, const int64_t* strides, size_t head, size_t row) noexcept nogil:
    """Return the offset of a row of a head, modulo 2^64, in a tensor or mask with these strides."""
    cdef uint64_t offset = <uint64_t>strides[attention.ndim] * row
    cdef int axis
    for axis in range(attention.ndim - 1, -1, -1):
        offset += <uint64_t>strides[axis] * (head % attention.lengths[axis])
        head //= attention.lengths[axis]
    return offset


cdef Matrix rows_of(
    const Attention* attention, const Operand* operand, size_t head, size_t first, size_t rows
) noexcept nogil:
    """Return some rows of an operand for one head."""
    cdef int64_t offset = <int64_t>offset_of(attention, operand.strides, head, first)
    return Matrix(
        operand.data + offset * <int64_t>operand.itemsize, rows, operand.columns,
        operand.strides[attention.ndim], operand.strides[attention.ndim + 1],
    )


# ---- softmax of a tile --------------------------------------------------------------------------

cdef enum Operation:
    FORWARD
    RECOMPUTE
    BACKWARD

cdef struct Tile:
    const Attention* attention
    Operation operation
    Softmax matrix
    size_t rows, chunk_rows
    char* weights                     # (rows, columns), in C order
    char* other                       # the dropped weights or their gradient, or NULL
    char* sums
    uint8_t* bits
    uint64_t start                    # position of the first weight in the mask
    int64_t row_stride, stride        # of the mask
    bint together                     # whether the bits of adjacent rows are drawn together


cdef void draw_row(uint8_t* bits, size_t n, const cdropout_mask* mask, uint64_t start, int64_t stride) noexcept nogil:
    """Draw the keep bits of a row of any stride. The number of bits that are written is rounded up to a multiple of 8."""
    cdef uint8_t bools[BOOLS]
    cdef cdropout_axis axis
    cdef size_t part
    while n:
        part = min(n, <size_t>BOOLS)
        axis = cdropout_axis(part, 0, 1, stride)
        kernels.apply_strided(CDROPOUT_BOOL, 0, NULL, bools, 1, &axis, mask, start)
        pack_bools(bits, bools, (part + 7) // 8 * 8)
        bits += part // 8
        start += <uint64_t>stride * part
        n -= part


cdef void draw_rows(const Tile* tile, size_t first, size_t rows) noexcept nogil:
    """Draw the keep bits of some rows; `first` is a multiple of 8."""
    cdef const cdropout_mask* mask = tile.attention.mask
    cdef uint8_t* bits = tile.bits + tile.matrix.bits_per_row * first // 8
    cdef uint64_t start = tile.start + <uint64_t>tile.row_stride * first
    cdef size_t _row
    if tile.together:
        kernels.bits(bits, tile.matrix.bits_per_row * (rows - 1) + tile.matrix.columns, mask, start)
        return
    for _row in range(rows):
        if tile.stride == 1:
            kernels.bits(bits, tile.matrix.columns, mask, start)
        else:
            draw_row(bits, tile.matrix.columns, mask, start, tile.stride)
        bits += tile.matrix.bits_per_row // 8
        start += <uint64_t>tile.row_stride


cdef void run_rows(const void* context, size_t chunk) noexcept nogil:
    cdef const Tile* tile = <const Tile*>context
    cdef cdropout_dtype dtype = CDROPOUT_FLOAT64 if tile.attention.is_double else CDROPOUT_FLOAT32
    cdef Softmax matrix = tile.matrix
    matrix.begin = tile.chunk_rows * chunk
    matrix.end = min(matrix.begin + tile.chunk_rows, tile.rows)
    if tile.operation != BACKWARD:
        draw_rows(tile, matrix.begin, matrix.end - matrix.begin)
    if tile.operation == FORWARD:
        softmax_kernels.forward(dtype, &matrix, tile.weights, tile.sums)
    elif tile.operation == RECOMPUTE:
        softmax_kernels.recompute(dtype, &matrix, tile.weights, tile.sums, tile.other)
    else:
        softmax_kernels.backward(dtype, &matrix, tile.weights, tile.other)


cdef void run_tile(Tile* tile, Operation operation) noexcept nogil:
    cdef const Attention* attention = tile.attention
    tile.operation = operation
    if attention.executor == NULL:
        tile.chunk_rows = tile.rows
        run_rows(tile, 0)
        return
    tile.chunk_rows = (CHUNK // tile.matrix.columns + 8) // 8 * 8
    attention.executor.run(
        run_rows, tile, (tile.rows + tile.chunk_rows - 1) // tile.chunk_rows, attention.max_threads, False
    )


# ---- heads --------------------------------------------------------------------------------------


ctypedef fused real:
    float
    double

ctypedef fused total_type:
    float
    double


cdef void add_numbers(real* weights, const Matrix* m) noexcept nogil:
    """Add the numbers of a matrix to weights in C order."""
    cdef const real* row = <const real*>m.data
    cdef size_t _row, i
    for _row in range(m.rows):
        if m.column_stride == 1:      # a separate loop, which the compiler vectorizes
            for i in range(m.columns):
                weights[i] += row[i]
        else:
            for i in range(m.columns):
                weights[i] += row[<int64_t>i * m.column_stride]
        weights += m.columns
        row += m.row_stride


cdef void hide(real* weights, const Matrix* m) noexcept nogil:
    """Set weights in C order to -inf where the matrix of bools is False."""
    cdef const uint8_t* row = <const uint8_t*>m.data
    cdef size_t _row, i
    for _row in range(m.rows):
        for i in range(m.columns):
            weights[i] = weights[i] if row[<int64_t>i * m.column_stride] else -INFINITY
        weights += m.columns
        row += m.row_stride


cdef void add_gradient(const real* gradient, total_type* total, const Matrix* m) noexcept nogil:
    """Add the gradient, in C order, to the numbers of a matrix, in which strides may be 0."""
    cdef size_t _row, i
    for _row in range(m.rows):
        for i in range(m.columns):
            total[<int64_t>i * m.column_stride] += gradient[i]
        gradient += m.columns
        total += m.row_stride


cdef bint open_tile(
    const Attention* a, Tile* tile, size_t chunk, size_t head, size_t first, Matrix* weights
) noexcept nogil:
    """Prepare the tile that begins at row `first` of a head, and compute its scores. Return whether this succeeded."""
    cdef Softmax* matrix = &tile.matrix
    cdef size_t rows = min(a.tile_rows, a.query.rows - first)
    cdef size_t columns = min(first + rows, a.key.rows) if a.is_causal else a.key.rows
    cdef char* memory = a.memory + a.chunk_bytes * chunk
    cdef Matrix query = rows_of(a, &a.query, head, first, rows)
    cdef Matrix key = rows_of(a, &a.key, head, 0, columns)
    cdef Matrix attn_mask
    cdef uint64_t gap
    tile.attention = a
    tile.rows = rows
    tile.weights, tile.other = memory, memory + a.tile_bytes
    tile.bits = <uint8_t*>memory + 2 * a.tile_bytes
    tile.sums = a.sums + (head * a.query.rows + first) * 2 * a.itemsize
    tile.start = a.start + offset_of(a, a.strides, head, first)
    tile.row_stride, tile.stride = a.strides[a.ndim], a.strides[a.ndim + 1]
    gap = <uint64_t>tile.row_stride - columns
    tile.together = tile.stride == 1 and gap <= MAX_GAP
    matrix.columns, matrix.scale = columns, a.mask.scale
    matrix.visible = first + 1 if a.is_causal else columns
    matrix.bits = tile.bits
    matrix.bits_per_row = <size_t>tile.row_stride if tile.together else (columns + 63) // 64 * 64
    weights[0] = Matrix(tile.weights, rows, columns, columns, 1)
    key = transpose(key)
    if not add_product(weights, &query, &key, 0, a.scale, a.is_double):
        return False
    if a.kind == NO_MASK:
        return True
    attn_mask = rows_of(a, &a.attn_mask, head, first, rows)
    if a.kind == BOOLS_MASK and a.is_double:
        hide(<double*>tile.weights, &attn_mask)
    elif a.kind == BOOLS_MASK:
        hide(<float*>tile.weights, &attn_mask)
    elif a.is_double:
        add_numbers(<double*>tile.weights, &attn_mask)
    else:
        add_numbers(<float*>tile.weights, &attn_mask)
    return True


cdef bint forward_head(const Attention* a, size_t chunk, size_t head) noexcept nogil:
    cdef Tile tile
    cdef Matrix weights, value, out
    cdef size_t i, first
    for i in range((a.query.rows + a.tile_rows - 1) // a.tile_rows):
        first = i * a.tile_rows
        if not open_tile(a, &tile, chunk, head, first, &weights):
            return False
        run_tile(&tile, FORWARD)
        value = rows_of(a, &a.value, head, 0, weights.columns)
        out = rows_of(a, &a.out, head, first, weights.rows)
        if not add_product(&out, &weights, &value, 0, 1, a.is_double):
            return False
    return True


cdef bint backward_tile(const Attention* a, size_t chunk, size_t head, size_t first, double beta) noexcept nogil:
    cdef Tile tile
    cdef Matrix weights, gradient, transposed, gy, other, total
    if not open_tile(a, &tile, chunk, head, first, &weights):
        return False
    gradient = Matrix(tile.other, weights.rows, weights.columns, weights.columns, 1)
    transposed = transpose(gradient)
    gy = rows_of(a, &a.out, head, first, weights.rows)
    if a.gvalue.data == NULL:
        tile.other = NULL
    run_tile(&tile, RECOMPUTE)
    tile.other = gradient.data
    if a.gvalue.data != NULL:
        total = rows_of(a, &a.gvalue, head, 0, weights.columns)
        if not add_product(&total, &transposed, &gy, beta, 1, a.is_double):
            return False
    if a.gquery.data == NULL and a.gkey.data == NULL and a.gmask.data == NULL:
        return True
    other = rows_of(a, &a.value, head, 0, weights.columns)
    other = transpose(other)
    if not add_product(&gradient, &gy, &other, 0, 1, a.is_double):
        return False
    run_tile(&tile, BACKWARD)
    if a.gmask.data != NULL:
        total = rows_of(a, &a.gmask, head, first, weights.rows)
        if a.is_double:
            add_gradient(<const double*>gradient.data, <double*>total.data, &total)
        elif a.sums_gmask:
            add_gradient(<const float*>gradient.data, <double*>total.data, &total)
        else:
            add_gradient(<const float*>gradient.data, <float*>total.data, &total)
    if a.gquery.data != NULL:
        total = rows_of(a, &a.gquery, head, first, weights.rows)
        other = rows_of(a, &a.key, head, 0, weights.columns)
        if not add_product(&total, &gradient, &other, 0, a.scale, a.is_double):
            return False
    if a.gkey.data != NULL:
        total = rows_of(a, &a.gkey, head, 0, weights.columns)
        other = rows_of(a, &a.query, head, first, weights.rows)
        if not add_product(&total, &transposed, &other, beta, a.scale, a.is_double):
            return False
    return True


cdef bint backward_head(const Attention* a, size_t chunk, size_t head) noexcept nogil:
    cdef size_t tiles = (a.query.rows + a.tile_rows - 1) // a.tile_rows
    cdef size_t i
    for i in range(tiles):            # begin with the last rows, which see the most keys: this tile overwrites the gradients
        if not backward_tile(a, chunk, head, (tiles - 1 - i) * a.tile_rows, 0 if i == 0 else 1):
            return False
    return True


cdef void run_heads(const void* context, size_t chunk) noexcept nogil:
    cdef Attention* a = <Attention*>context
    cdef size_t head
    for head in range(a.heads * chunk // a.chunks, a.heads * (chunk + 1) // a.chunks):
        if a.failed or not a.run_head(a, chunk, head):
            a.failed = True
            return


cdef int open_attention(
    Attention* a, query, key, value, attn_mask, out, sums, LazyMask mask, uint64_t start, tuple strides, bint is_causal,
    double scale,
) except -1:
    cdef int axis
    a.ndim = query.dim() - 2
    a.heads = 1
    for axis in range(a.ndim):
        a.lengths[axis] = query.shape[axis]
        a.heads *= a.lengths[axis]
    a.is_double = query.dtype is torch.float64
    a.itemsize = 8 if a.is_double else 4
    read_operand(&a.query, query)
    read_operand(&a.key, key)
    read_operand(&a.value, value)
    read_operand(&a.attn_mask, attn_mask)
    read_operand(&a.out, out)
    a.kind = NO_MASK if attn_mask is None else BOOLS_MASK if attn_mask.dtype is torch.bool else NUMBERS
    a.sums = <char*><uintptr_t>sums.data_ptr()
    a.mask, a.start = &mask.id, start
    for axis in range(a.ndim + 2):
        a.strides[axis] = stride_along(axis, strides, 0)
    a.is_causal, a.scale = is_causal, scale
    a.gquery.data = a.gkey.data = a.gvalue.data = a.gmask.data = NULL
    a.sums_gmask = a.failed = False
    return 0


cdef int run(Attention* a, bint serial) except -1:
    """Divide the heads among threads. If `serial` is true or threads outnumber the heads, divide the rows of each tile."""
    cdef size_t rows = a.query.rows
    cdef size_t size
    cdef const Executor* executor = executor_of_pytorch()
    if a.is_causal:
        rows = min(rows, max(rows // <size_t>CAUSAL_TILES, <size_t>MIN_CAUSAL_ROWS))
    size = max(<size_t>TILE, min(<size_t>MIN_ROWS * a.key.rows, <size_t>MAX_TILE))
    a.tile_rows = max(min(rows, size // a.key.rows), <size_t>1)
    a.max_threads = torch.get_num_threads()
    a.chunks, a.executor = 1, executor
    if not serial and executor != pool and a.heads >= a.max_threads:
        a.chunks, a.executor = min(a.max_threads, a.heads), NULL
    size = (a.key.rows + 63) // 64 * 64
    if a.strides[a.ndim + 1] == 1 and a.strides[a.ndim] <= <int64_t>(a.key.rows + MAX_GAP):
        size = max(size, <size_t>max(a.strides[a.ndim], <int64_t>0))
    size = (a.tile_rows * size + 63) // 64 * 8
    a.tile_bytes = (a.tile_rows * a.key.rows * a.itemsize + LINE - 1) // LINE * LINE
    a.chunk_bytes = 2 * a.tile_bytes + (size + LINE - 1) // LINE * LINE
    memory = torch.empty(a.chunk_bytes * a.chunks, dtype=torch.uint8, device="cpu")
    a.memory = <char*><uintptr_t>memory.data_ptr()
    with nogil:
        if a.chunks == 1:
            run_heads(a, 0)
        else:
            executor.run(run_heads, a, a.chunks, a.max_threads, False)
    if a.failed:
        raise RuntimeError("PyTorch cannot compute a product of matrices; its error is printed on the standard error")
    return 0


def forward(
    query, key, value, attn_mask, out, sums, LazyMask mask, uint64_t start, tuple strides, bint is_causal, double scale
):
    """Compute attention with dropout; write the output to `out` and two numbers per row to `sums`, which is contiguous.

    The tensors must have the same leading axes and the type float32 or float64; attn_mask is None, or of this type or bools.
    The mask must be drawn. `start` is the position of the first weight in the mask, which has the given strides.
    """
    cdef Attention a
    open_attention(&a, query, key, value, attn_mask, out, sums, mask, start, strides, is_causal, scale)
    a.run_head = forward_head
    run(&a, False)


def backward(
    query, key, value, attn_mask, gy, sums, gquery, gkey, gvalue, gmask, LazyMask mask, uint64_t start, tuple strides,
    bint is_causal, double scale,
):
    """Compute the gradients that are not None from the gradient `gy` and the `sums` of `forward`.

    gmask has the leading axes of the other tensors and contains zeros. It is float64 if attn_mask was broadcast.
    """
    cdef Attention a
    open_attention(&a, query, key, value, attn_mask, gy, sums, mask, start, strides, is_causal, scale)
    read_operand(&a.gquery, gquery)
    read_operand(&a.gkey, gkey)
    read_operand(&a.gvalue, gvalue)
    read_operand(&a.gmask, gmask)
    a.sums_gmask = gmask is not None and 0 in gmask.stride()
    a.run_head = backward_head
    run(&a, a.sums_gmask)
