"""Masks applied to PyTorch's CPU tensors, read by DLPack's C interface; compiled, since small calls are mostly overhead."""
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import torch

from cdropout cimport CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_axis, cdropout_dtype
from cdropout.core.dispatch cimport kernels
from cdropout.core.draws cimport Draw, raise_unexpected
from cdropout.core.masks cimport shared_strides
from cdropout.core.openmp cimport share_by_openmp, sharers_by_openmp
from cdropout.core.pieces cimport SHORT, ViewCall, apply_span, draw_bools_span, run_view
from cdropout.core.view cimport MAX_DIMS, View, arrange, overlaps_itself

# ---- tensors, seen from C -----------------------------------------------------------------------

cdef enum:
    ON_CPU = 1                        # DLPack's numbers for devices and types
    IEEE_FLOAT = 2
    BRAIN_FLOAT = 4
    BOOL = 6

cdef struct TensorView:                     # DLTensor
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


cdef cdropout_dtype type_of(const TensorView* view) noexcept nogil:
    """What the kernels call the type; -1 if they do not know it."""
    if view.kind == IEEE_FLOAT and view.lanes == 1:
        if view.bits == 32:
            return CDROPOUT_FLOAT32
        if view.bits == 64:
            return CDROPOUT_FLOAT64
        if view.bits == 16:
            return CDROPOUT_FLOAT16
    return CDROPOUT_BFLOAT16 if view.kind == BRAIN_FLOAT and view.lanes == 1 else <cdropout_dtype>-1


cdef size_t size_of(const TensorView* view) noexcept nogil:
    cdef size_t size = 1
    cdef int i
    for i in range(view.ndim):
        size *= view.shape[i]
    return size


cdef bint contiguous(const TensorView* view) noexcept nogil:
    """Whether C order has no gaps."""
    cdef int64_t step = 1
    cdef int i
    for i in range(view.ndim - 1, -1, -1):
        if view.strides[i] != step and view.shape[i] != 1:
            return False
        step *= view.shape[i]
    return True


cdef bint read(x, TensorView* view):
    """See x as plain elements in memory, if it is that: no subclass or wrapper, none lazily negative or zero."""
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    if exchange.read(<void*>x, view):
        PyErr_Clear()                 # it has no memory, or a type that DLPack has not
        return False
    view.data += view.offset
    return (
        view.device == ON_CPU and type_of(view) != <cdropout_dtype>-1 and not x.is_neg()
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
    cdef cdropout_axis axes[MAX_DIMS]
    cdef View view
    lengths = [(length, stride) for length, stride in zip(shape, strides) if length != 1]
    if 0 in shape or len(lengths) > MAX_DIMS:      # so many elements cannot all have memory of their own
        return 0 not in shape
    for i, (length, stride) in enumerate(lengths):
        axes[i] = cdropout_axis(length, 0, stride, 0)
    view.x = NULL
    view.y = NULL
    view.start = 0
    arrange(&view, len(lengths), axes)
    return overlaps_itself(&view, 1)


# ---- tensors that PyTorch makes -----------------------------------------------------------------


cdef bint is_new(y, TensorView* view, const TensorView* x, uint8_t kind, uint8_t bits):
    """Read y into view; return whether it has x's shape, the given type, and memory of its own for each element."""
    cdef int i
    if type(y) is not Tensor:
        return False
    if exchange.read(<void*>y, view):
        PyErr_Clear()
        return False
    view.data += view.offset
    if view.device != ON_CPU or view.kind != kind or view.bits != bits or view.lanes != 1 or view.ndim != x.ndim:
        return False
    for i in range(x.ndim):
        if view.shape[i] != x.shape[i]:
            return False
    if size_of(view) and (view.data == NULL or view.data == x.data):
        return False
    return contiguous(view) or not overlap(y.shape, y.stride())


cdef check_new(y, TensorView* view, const TensorView* x, uint8_t kind, uint8_t bits, name):
    """RuntimeError if y, from PyTorch's function of this name, is not as expected: a mode may return anything."""
    if not is_new(y, view, x, kind, bits):
        raise_unexpected(y, name)


# ---- masks on tensors ---------------------------------------------------------------------------


cdef struct Work:
    size_t n, threads
    TensorView x, y                   # the same, where a copy is computed in place
    bint strided
    TensorView keep                   # if the mask itself is wanted


cpdef compute(x, Draw draw):
    """Apply a mask to x; return the result in the memory order of x, or None if x is not plain.

    Memory is allocated before the mask is drawn. If a signal's handler raises, the draw is undone.
    """
    cdef Work work
    cdef bint given = draw.drawn
    if not read(x, &work.x):
        return None
    work.n = size_of(&work.x)
    work.threads = sharers_by_openmp(work.n) if work.n >= SHORT else 1
    if draw.keep is not None:
        check_new(draw.keep, &work.keep, &work.x, BOOL, 8, "empty")
    if draw.inplace:
        y = x
        work.y = work.x
    else:
        y = empty_like(x)
        check_new(y, &work.y, &work.x, work.x.kind, work.x.bits, "empty_like")
    copy = copy_first(x, &work, draw)
    draw.draw(work.n)
    try:
        run(&work, draw)
        if copy is not None:
            y.copy_(copy)
    except BaseException:             # a signal's handler has raised
        if not given:
            draw.take_back()
        raise
    if not given:
        draw.forget()
    return y


cdef copy_first(x, Work* work, Draw draw):
    """Return a copy of x in float32, if alpha dropout is to be computed in it, and rounded once."""
    work.strided = draw.axes or draw.strides is not None or draw.shifts or not contiguous(&work.x) or not contiguous(&work.y)
    if not draw.shifts or work.x.bits != 16 or work.n == 0:
        return None
    copy = x.to(torch.float32, copy=True, memory_format=torch.preserve_format)
    check_new(copy, &work.y, &work.x, IEEE_FLOAT, 32, "Tensor.to")
    work.x = work.y
    return copy


cdef run(const Work* work, Draw draw):
    if work.strided:
        if work.n:
            run_strided(work, draw)
    elif work.n < SHORT:
        kernels.apply(type_of(&work.x), 0, work.x.data, work.y.data, work.n, &draw.id, draw.start)
    else:
        with nogil:
            apply_span(
                type_of(&work.x), work.x.data, work.y.data, work.n, &draw.id, draw.start, share_by_openmp,
                work.threads,
            )
    if draw.keep is not None:
        with nogil:
            draw_bools_span(<uint8_t*>work.keep.data, work.n, &draw.id, draw.start, share_by_openmp, work.threads)


cdef run_strided(const Work* work, Draw draw):
    """Axes of length 1 are left out: there are fewer than MAX_DIMS others."""
    cdef const TensorView* x = &work.x
    cdef cdropout_axis axes[MAX_DIMS]
    cdef ViewCall call
    cdef ptrdiff_t size = x.bits // 8
    cdef int64_t step = 1
    cdef int64_t stride
    cdef int ndim = 0
    cdef int i
    strides = draw.strides
    if draw.axes:
        strides = shared_strides(tuple([x.shape[i] for i in range(x.ndim)]), draw.axes)
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1:
            stride = step if strides is None else <int64_t><uint64_t>(strides[i] & 0xFFFFFFFFFFFFFFFF)
            axes[ndim] = cdropout_axis(x.shape[i], size * x.strides[i], size * work.y.strides[i], stride)
            ndim += 1
        step *= x.shape[i]
    call.view.x, call.view.y, call.view.start = x.data, work.y.data, draw.start
    call.dtype = type_of(x)
    call.mask, call.bits, call.bools = &draw.id, NULL, NULL
    call.shifts, call.shift, call.constant = draw.shifts, draw.shift, draw.constant
    if work.n < SHORT:
        run_view(&call, ndim, axes, share_by_openmp, 1)
        return
    with nogil:
        run_view(&call, ndim, axes, share_by_openmp, work.threads)


def compute_gradient(gy, Draw draw):
    """`compute` for the derivative of a Draw, never in place; None too if the result is to have derivatives itself."""
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return compute(gy, draw.derivative())
