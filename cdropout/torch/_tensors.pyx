"""Masks applied to PyTorch's CPU tensors, read by DLPack's C interface; compiled, since small calls are mostly overhead."""
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import torch

from cdropout cimport CDROPOUT_BOOL, CDROPOUT_FLOAT32, cdropout_axis
from cdropout.torch._draw cimport Draw, raise_unexpected
from cdropout._core.dtypes cimport ElementType, by_dlpack, types
from cdropout._core.engine cimport Operation, may_be_interrupted, prepare, run_prepared, stride_along, use_mask, use_shift
from cdropout._core.mask cimport broadcast_strides
from cdropout.torch._openmp cimport executor_of_pytorch
from cdropout._core.executor cimport Executor
from cdropout._core.view cimport MAX_DIMS, View, arrange, overlaps_itself

# ---- tensors, seen from C -----------------------------------------------------------------------

cdef enum:
    ON_CPU = 1                        # DLPack's number of the device

cdef struct TensorView:               # DLTensor
    char* data
    int32_t device, device_index, ndim
    uint8_t kind, bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides                  # in elements
    uint64_t offset                   # in bytes

cdef struct Exchange:                 # DLPackExchangeAPI of version 1
    uint32_t major, minor
    void* older
    void* others[3]
    int (*read)(void* tensor, TensorView* view) noexcept

cdef object Tensor = torch.Tensor
cdef object Parameter = torch.nn.Parameter
cdef object empty_like = torch.empty_like
cdef object is_grad_enabled = torch.is_grad_enabled
cdef object forward_ad = torch.autograd.forward_ad
# Only PyTorch's private module reports what is active
cdef object transforms_active = torch._C._are_functorch_transforms_active
cdef object active_modes = torch._C._len_torch_dispatch_stack
cdef object tracing_state = torch._C._get_tracing_state
cdef object capsule = Tensor.__dlpack_c_exchange_api__
cdef const Exchange* exchange = <const Exchange*>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
if exchange.major != 1:
    raise ImportError(f"cdropout reads PyTorch's tensors by DLPack 1, but found DLPack {exchange.major}")


cdef const ElementType* type_of(const TensorView* view) noexcept nogil:
    """Return the type of the elements, which may be bool; NULL if it is not in the table."""
    return by_dlpack(view.kind, view.bits) if view.lanes == 1 else NULL


cdef size_t size_of(const TensorView* view) noexcept nogil:
    cdef size_t size = 1
    cdef int i
    for i in range(view.ndim):
        size *= view.shape[i]
    return size


cdef bint read(x, TensorView* view):
    """Read x into view; return whether x is floats in memory: no subclass or wrapper, nothing lazily negative or zero."""
    cdef const ElementType* kind
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    if exchange.read(<void*>x, view):
        PyErr_Clear()                 # it has no memory, or a type that DLPack does not have
        return False
    view.data += view.offset
    kind = type_of(view)
    return (
        view.device == ON_CPU and kind != NULL and kind.code != CDROPOUT_BOOL and not x.is_neg()
        and (view.data != NULL or size_of(view) == 0)
    )


def is_plain(x):
    """Return whether `compute` takes x."""
    cdef TensorView view
    return read(x, &view)


def is_ordinary(x):
    """Return whether x is plain and not empty, and no transform, tracer or dispatch mode is active."""
    cdef TensorView view
    return (
        not transforms_active() and not active_modes() and tracing_state() is None
        and read(x, &view) and size_of(&view) != 0
    )


# ---- overlaps -----------------------------------------------------------------------------------


def overlap(shape, strides):
    """Return whether elements at these strides, in elements, may share memory."""
    cdef View view
    lengths = [(length, stride) for length, stride in zip(shape, strides) if length != 1]
    if 0 in shape or len(lengths) > MAX_DIMS:      # so many elements cannot all have memory of their own
        return 0 not in shape
    for i, (length, stride) in enumerate(lengths):
        view.axes[i] = cdropout_axis(length, 0, stride, 0)
    view.x = NULL
    view.y = NULL
    view.start = 0
    arrange(&view, len(lengths), view.axes)
    return overlaps_itself(&view, 1)


# ---- tensors that PyTorch makes -----------------------------------------------------------------


cdef bint is_new(y, TensorView* view, const TensorView* x, const ElementType* kind):
    """Read y into view; return whether it has x's shape, the given type, and memory of its own for each element."""
    cdef int64_t step = 1
    cdef bint dense = True
    cdef int i
    if type(y) is not Tensor:
        return False
    if exchange.read(<void*>y, view):
        PyErr_Clear()
        return False
    view.data += view.offset
    if view.device != ON_CPU or type_of(view) != kind or view.ndim != x.ndim:
        return False
    for i in range(x.ndim - 1, -1, -1):
        if view.shape[i] != x.shape[i]:
            return False
        dense = dense and (view.strides[i] == step or view.shape[i] == 1)
        step *= view.shape[i]
    if size_of(view) and (view.data == NULL or view.data == x.data):
        return False
    return dense or not overlap(y.shape, y.stride())


cdef check_new(y, TensorView* view, const TensorView* x, const ElementType* kind, name):
    """RuntimeError if y, from PyTorch's function of this name, is not as expected: a mode may return anything."""
    if not is_new(y, view, x, kind):
        raise_unexpected(y, name)


# ---- masks on tensors ---------------------------------------------------------------------------


cdef fill_view(View* view, const TensorView* x, const TensorView* y, uint64_t start, tuple strides):
    """Describe x and y, with the mask's strides (None: those of C order).

    Axes of length 1 are left out: where there are elements, there are fewer than MAX_DIMS others.
    """
    cdef ptrdiff_t itemsize = x.bits // 8
    cdef int64_t step = 1
    cdef int axis = 0
    cdef int i
    if size_of(x) == 0:
        view.ndim, view.axes[0].length = 1, 0
        return
    for i in range(x.ndim):
        axis += x.shape[i] != 1
    view.x, view.y, view.start, view.ndim = x.data, y.data, start, axis
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1:
            axis -= 1
            view.axes[axis] = cdropout_axis(
                x.shape[i], itemsize * x.strides[i], itemsize * y.strides[i], stride_along(i, strides, step)
            )
        step *= x.shape[i]


cdef tuple mask_strides(const TensorView* x, Draw draw):
    """Return the mask's strides along the axes of x; None are those of C order."""
    cdef int i
    if draw.axes:
        return broadcast_strides(tuple([x.shape[i] for i in range(x.ndim)]), draw.axes)
    return draw.strides


cpdef compute(x, Draw draw):
    """Apply a mask to x; return the result in the memory order of x, or None if x is not plain.

    Memory is allocated before the mask is drawn. If a signal's handler raises, the draw is undone.
    """
    cdef Operation operation, drawing
    cdef TensorView source, target, keep
    cdef const Executor* executor
    cdef size_t max_threads
    cdef bint given = draw.drawn
    if not read(x, &source):
        return None
    if draw.keep is not None:
        check_new(draw.keep, &keep, &source, &types[<int>CDROPOUT_BOOL], "empty")
        fill_view(&drawing.view, &keep, &keep, draw.start, None)
        drawing.dtype = CDROPOUT_BOOL
    if draw.inplace:
        y = x
        target = source
    else:
        y = empty_like(x)
        check_new(y, &target, &source, type_of(&source), "empty_like")
    copy = copy_first(x, &source, draw)
    if copy is not None:
        target = source
    fill_view(&operation.view, &source, &target, draw.start, mask_strides(&source, draw))
    operation.dtype = type_of(&source).code
    use_mask(&operation, &draw.id)
    if draw.shifts:
        use_shift(&operation, draw.shift, draw.constant)
    executor = executor_of_pytorch()
    max_threads = torch.get_num_threads() if size_of(&source) >= executor.parallel_min else 1
    prepare(&operation, executor, max_threads)
    draw.draw(may_be_interrupted(&operation))
    try:
        run_prepared(&operation)
        if draw.keep is not None:
            use_mask(&drawing, &draw.id)
            prepare(&drawing, executor, max_threads)
            run_prepared(&drawing)
        if copy is not None:
            y.copy_(copy)
    except BaseException:             # a signal's handler has raised
        if not given:
            draw.take_back()
        raise
    if not given:
        draw.forget()
    return y


cdef copy_first(x, TensorView* source, Draw draw):
    """Return a copy of x in float32, read into source, if alpha dropout is computed in it and rounded once; else None."""
    if not draw.shifts or type_of(source).itemsize >= 4 or size_of(source) == 0:
        return None
    cdef TensorView wide
    copy = x.to(torch.float32, copy=True, memory_format=torch.preserve_format)
    check_new(copy, &wide, source, &types[<int>CDROPOUT_FLOAT32], "Tensor.to")
    source[0] = wide
    return copy


def compute_gradient(gy, Draw draw):
    """`compute` for the derivative of a Draw, never in place; None too if the result is to have derivatives itself."""
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return compute(gy, draw.derivative())
