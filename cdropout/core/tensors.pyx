"""Masks applied to PyTorch's CPU tensors, read by DLPack's C interface; compiled, since small calls are mostly overhead."""
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import torch

from cdropout cimport CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_dtype
from cdropout.core.dispatch cimport kernels
from cdropout.core.draws cimport Draw, raise_unexpected
from cdropout.core.masks cimport shared_strides
from cdropout.core.openmp cimport share_by_openmp, sharers_by_openmp
from cdropout.core.pieces cimport SHORT, apply_span, draw_bools_span, run_box
from cdropout.core.strided cimport MAX_DIMS, Axis, Box, arrange, is_far_from_mask, overlaps_itself

# ---- tensors, seen from C -----------------------------------------------------------------------

cdef enum:
    ON_CPU = 1                        # DLPack's numbers for devices and types
    IEEE_FLOAT = 2
    BRAIN_FLOAT = 4
    BOOL = 6

cdef struct View:                     # DLTensor
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
    int (*read)(void* tensor, View* view) noexcept

cdef object Tensor = torch.Tensor
cdef object Parameter = torch.nn.Parameter
cdef object empty_like = torch.empty_like
cdef object is_grad_enabled = torch.is_grad_enabled
cdef object forward_ad = torch.autograd.forward_ad
# PyTorch says in its private module alone what is active
cdef object transforms_active = torch._C._are_functorch_transforms_active
cdef object active_modes = torch._C._len_torch_dispatch_stack
cdef object tracing_state = torch._C._get_tracing_state
cdef object capsule = Tensor.__dlpack_c_exchange_api__
cdef const Exchange* exchange = <const Exchange*>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
if exchange.major != 1:
    raise ImportError(f"cdropout reads PyTorch's tensors by DLPack 1, but found DLPack {exchange.major}")


cdef cdropout_dtype type_of(const View* view) noexcept nogil:
    """What the kernels call the type; -1 if they do not know it."""
    if view.kind == IEEE_FLOAT and view.lanes == 1:
        if view.bits == 32:
            return CDROPOUT_FLOAT32
        if view.bits == 64:
            return CDROPOUT_FLOAT64
        if view.bits == 16:
            return CDROPOUT_FLOAT16
    return CDROPOUT_BFLOAT16 if view.kind == BRAIN_FLOAT and view.lanes == 1 else <cdropout_dtype>-1


cdef size_t size_of(const View* view) noexcept nogil:
    cdef size_t size = 1
    cdef int i
    for i in range(view.ndim):
        size *= view.shape[i]
    return size


cdef bint contiguous(const View* view) noexcept nogil:
    """Whether C order has no gaps."""
    cdef int64_t step = 1
    cdef int i
    for i in range(view.ndim - 1, -1, -1):
        if view.strides[i] != step and view.shape[i] != 1:
            return False
        step *= view.shape[i]
    return True


cdef bint read(x, View* view):
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
    cdef View view
    return read(x, &view)


def is_ordinary(x):
    """Return whether x is plain and not empty, and no transform, tracer or dispatch mode is active."""
    cdef View view
    return (
        not transforms_active() and not active_modes() and tracing_state() is None
        and read(x, &view) and size_of(&view) != 0
    )


# ---- overlaps -----------------------------------------------------------------------------------


def overlap(shape, strides):
    """Return whether elements at these strides, in elements, may share memory."""
    cdef Box box
    lengths = [(length, stride) for length, stride in zip(shape, strides) if length != 1]
    if 0 in shape or len(lengths) > MAX_DIMS:      # so many elements cannot all have memory of their own
        return 0 not in shape
    box.ndim = len(lengths)
    box.size = 1
    for i, (length, stride) in enumerate(lengths):
        box.axes[i] = Axis(length, 0, stride, 0)
    arrange(&box)
    return overlaps_itself(&box)


# ---- tensors that PyTorch makes -----------------------------------------------------------------


cdef bint is_new(y, View* view, const View* x, uint8_t kind, uint8_t bits):
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


cdef check_new(y, View* view, const View* x, uint8_t kind, uint8_t bits, name):
    """RuntimeError if y, from PyTorch's function of this name, is not as expected: a mode may return anything."""
    if not is_new(y, view, x, kind, bits):
        raise_unexpected(y, name)


# ---- masks on tensors ---------------------------------------------------------------------------


cdef struct Work:
    size_t n, threads
    View x, y                         # the same, where a copy is computed in place
    bint walks
    Box box                           # if it walks
    View keep                         # if the mask itself is wanted


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
    copy = copy_first(x, y, &work, draw)
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


cdef copy_first(x, y, Work* work, Draw draw):
    """Decide how to compute y. Return a copy of x, if the mask is to be applied to one that is then copied to y."""
    cdef bint far
    cdef bint wide = draw.shifts and work.x.bits == 16    # computed in float32 and rounded once
    work.walks = draw.shared or draw.shifts or not contiguous(&work.y)
    if not work.walks:
        if not contiguous(&work.x):   # expanded or sliced: a copy costs less than a walk by strides
            y.copy_(x)
            work.x = work.y
        return None
    if work.n == 0:
        return None
    fill_box(work, draw)
    far = not draw.shared and is_far_from_mask(&work.box)
    if not wide and not far:
        return None
    order = torch.contiguous_format if far else torch.preserve_format
    copy = x.to(torch.float32 if wide else x.dtype, copy=True, memory_format=order)
    check_new(
        copy, &work.y, &work.x, IEEE_FLOAT if wide else work.x.kind, 32 if wide else work.x.bits, "Tensor.to"
    )
    work.x = work.y
    work.walks = draw.shared or draw.shifts or not far
    fill_box(work, draw)
    return copy


cdef run(const Work* work, Draw draw):
    if work.walks and work.n:
        with nogil:
            run_box(&work.box, work.x.data, work.y.data, NULL, &draw.mask, 0, share_by_openmp, work.threads)
    elif work.n < SHORT:
        kernels.apply(type_of(&work.x), work.x.data, work.y.data, work.n, &draw.mask, 0)
    else:
        with nogil:
            apply_span(
                type_of(&work.x), work.x.data, work.y.data, work.n, &draw.mask, 0, share_by_openmp, work.threads
            )
    if draw.keep is not None:
        with nogil:
            draw_bools_span(<uint8_t*>work.keep.data, work.n, &draw.mask, 0, share_by_openmp, work.threads)


def compute_gradient(gy, Draw draw):
    """`compute` for the derivative of a Draw, never in place; None too if the result is to have derivatives itself."""
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return compute(gy, draw.linear())


cdef fill_box(Work* work, Draw draw):
    """Write into the box what is to be done. Axes of length 1 are left out: there are fewer than MAX_DIMS others."""
    cdef const View* x = &work.x
    cdef Box* box = &work.box
    cdef ptrdiff_t size = x.bits // 8
    cdef ptrdiff_t step = 1
    cdef int i
    strides = shared_strides(tuple([x.shape[i] for i in range(x.ndim)]), draw.shared) if draw.shared else None
    box.ndim = 0
    box.dtype = type_of(x)
    box.size = size
    box.scale = draw.mask.scale
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1:
            box.axes[box.ndim] = Axis(
                x.shape[i], size * x.strides[i], size * work.y.strides[i], step if strides is None else strides[i]
            )
            box.ndim += 1
        step *= x.shape[i]
    arrange(box)
    box.shifts, box.shift, box.constant = draw.shifts, draw.shift, draw.constant
