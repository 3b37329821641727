"""`bias_dropout_add` and its gradients for contiguous tensors, each in one pass over memory."""
from libc.stddef cimport size_t
from libc.stdint cimport uintptr_t

import torch

from cdropout._core.bias_dropout_add cimport Matrix, choose_tiles, count_sums, run_matrix
from cdropout._core.dtypes cimport ElementType, types
from cdropout._core.engine cimport INTERRUPTIBLE_MIN, RELEASE_GIL_MIN
from cdropout._core.executor cimport Executor
from cdropout.torch._draw cimport LazyMask, raise_unexpected
from cdropout.torch._openmp cimport executor_of_pytorch

cdef object Tensor = torch.Tensor
cdef object empty_like = torch.empty_like
cdef object contiguous_format = torch.contiguous_format
# PyTorch has no public functions that report whether modes are active
cdef object active_function_modes = torch._C._len_torch_function_stack
cdef object active_modes = torch._C._len_torch_dispatch_stack
cdef dict codes = {getattr(torch, types[code].name.decode()): code for code in range(4)}    # the supported types of x


cdef const char* address_of(tensor) except? NULL:
    return <const char*><uintptr_t>tensor.data_ptr()


cdef new_like(x):
    """Return a new contiguous tensor like x. Raise RuntimeError if a mode of PyTorch returns anything else."""
    y = empty_like(x, memory_format=contiguous_format)
    if not active_function_modes() and not active_modes():
        return y
    if not (type(y) is Tensor and y.dtype == x.dtype and y.shape == x.shape and y.is_cpu and y.is_contiguous()) or (
        y.data_ptr() in (0, x.data_ptr())
    ):
        raise_unexpected(y, "empty_like")
    return y


cdef Matrix matrix_of(x, y, size_t columns, LazyMask mask):
    cdef const ElementType* dtype = &types[<int>codes[x.dtype]]
    return Matrix(
        <size_t>x.numel() // columns if columns else 0, columns, 0, dtype.itemsize, dtype.code, address_of(x), NULL, NULL,
        <char*>address_of(y), NULL, &mask.id, mask.start,
    )


cdef int run(const Matrix* matrix, bint interruptible) except -1:
    cdef size_t n = matrix.rows * matrix.columns
    cdef const Executor* executor = executor_of_pytorch()
    cdef size_t max_threads = torch.get_num_threads() if n >= executor.parallel_min else 1
    if n < RELEASE_GIL_MIN:
        return run_matrix(matrix, executor, max_threads, False)
    with nogil:
        return run_matrix(matrix, executor, max_threads, interruptible and executor.checks_signals)


def is_in_c_order(LazyMask mask):
    """Return whether the mask has the strides of C order, which `add_in_one_pass` requires."""
    return mask.strides is None and not mask.broadcast_axes


def add_in_one_pass(x, bias, residual, LazyMask mask):
    """Return residual + dropout(x + bias). Each of the three operations rounds its result.

    The tensors must be supported, contiguous and of one type. residual must have the shape of x. bias must be None, or its
    shape without leading ones must be that of the last axes of x. The mask must be in C order. If a signal handler raises
    an exception, a draw by this call is undone.
    """
    cdef size_t columns = (x if bias is None else bias).numel()
    cdef bint interruptible = x.numel() > INTERRUPTIBLE_MIN
    cdef bint drawn_before = mask.drawn
    y = new_like(x)
    cdef Matrix matrix = matrix_of(x, y, columns, mask)
    matrix.residual = address_of(residual)
    if bias is not None:
        matrix.bias = address_of(bias)
    choose_tiles(&matrix, False)
    mask.draw(interruptible)
    try:
        run(&matrix, interruptible)
    except BaseException:             # a signal handler raised an exception or forked
        if not drawn_before:
            mask.undo_draw()
        raise
    if not drawn_before:
        mask.release()
    return y


def differentiate_in_one_pass(gy, bias_shape, LazyMask mask):
    """Return the gradients with respect to x and bias. gy must meet the conditions for x in `add_in_one_pass`.

    The gradient of bias is summed in float64, in an order that does not depend on the number of threads.
    """
    gx = new_like(gy)
    cdef Matrix matrix = matrix_of(gy, gx, bias_shape.numel(), mask)
    choose_tiles(&matrix, True)
    with torch._C.DisableTorchFunction():    # a TorchFunctionMode must not replace the sums
        sums = torch.zeros((count_sums(&matrix), matrix.columns), dtype=torch.float64, device="cpu")
    matrix.sums = <double*>address_of(sums)
    run(&matrix, matrix.rows * matrix.columns > INTERRUPTIBLE_MIN)
    return gx, sums[0].to(gy.dtype, copy=True).view(bias_shape)
