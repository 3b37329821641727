"""Masks applied to PyTorch's CPU tensors, read by DLPack's C interface; compiled, since small calls are mostly overhead."""
from threading import local

from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

import torch

from cdropout cimport CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_dtype, cdropout_mask
from cdropout.core.dispatch cimport kernels
from cdropout.core.generators cimport Generator
from cdropout.core.masks cimport shared_strides
from cdropout.core.openmp cimport share_by_openmp, sharers_by_openmp
from cdropout.core.pieces cimport SHORT, apply_span, draw_bools_span, run_box
from cdropout.core.strided cimport MAX_DIMS, Box, arrange, is_far_from_mask

# ---- tensors, seen from C -----------------------------------------------------------------------

cdef enum:
    ON_CPU = 1                        # DLPack's numbers for devices and types
    IEEE_FLOAT = 2
    BRAIN_FLOAT = 4

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


# ---- masks on them ------------------------------------------------------------------------------


def is_plain(x):
    """Whether `compute` takes x."""
    cdef View view
    return read(x, &view)


def is_ordinary(x):
    """Whether x is plain and not empty, and nothing but autograd looks on: no transform, tracer or dispatch mode."""
    cdef View view
    return (
        not transforms_active() and not active_modes() and tracing_state() is None
        and read(x, &view) and size_of(&view) != 0
    )


cpdef compute(x, uint64_t seed, tuple name, bint inplace=False):
    """Return x * scale where the mask keeps, else +0.0, in the memory order of x; None if x is no plain tensor.

    Parameters
    ----------
    x : Tensor
    seed : int
    name : tuple
        (call, p, shared, factor), the rest of what names the mask: the axes along which one draw is shared, and what
        kept elements are multiplied by, or None for 1 / (1 - p).
    inplace : bool
        Write to x.
    """
    cdef cdropout_mask mask
    cdef View source, target
    call, p, shared, factor = name
    name_mask(&mask, seed, call, p, factor)
    if not read(x, &source):
        return None
    y = x if inplace else empty_like(x)
    read(y, &target)
    if shared or not contiguous(&target):
        if not apply_strided(&source, &target, &mask, shared):
            dense = x.clone(memory_format=torch.contiguous_format)
            read(dense, &source)
            apply_dense(&source, &source, &mask)
            y.copy_(dense)
        return y
    if not contiguous(&source):       # expanded or sliced: a copy costs less than a walk by strides
        y.copy_(x)
        source = target
    apply_dense(&source, &target, &mask)
    return y


cdef name_mask(cdropout_mask* mask, uint64_t seed, uint64_t call, double p, factor):
    if kernels.mask_init(mask, seed, call, p):
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if factor is not None and 0 < p < 1:
        mask.scale = factor


cdef apply_dense(const View* x, const View* y, const cdropout_mask* mask):
    cdef size_t n = size_of(x)
    cdef size_t most
    if n < SHORT:
        kernels.apply(type_of(x), 0, x.data, y.data, n, mask, 0)
        return
    most = sharers_by_openmp(n)
    with nogil:
        apply_span(type_of(x), x.data, y.data, n, mask, 0, share_by_openmp, most)


cdef bint apply_strided(const View* x, const View* y, const cdropout_mask* mask, tuple shared) except -1:
    """False if nothing was done, since copies in C order cost less."""
    cdef ptrdiff_t size = x.bits // 8
    cdef ptrdiff_t step = 1
    cdef size_t most = sharers_by_openmp(size_of(x))
    cdef Box box
    cdef int i
    if x.ndim > MAX_DIMS:
        raise ValueError(f"dropout takes at most {MAX_DIMS} dimensions, but got {x.ndim}")
    if size_of(x) == 0:
        return True
    strides = shared_strides(tuple([x.shape[i] for i in range(x.ndim)]), shared) if shared else None
    box.ndim = x.ndim
    box.dtype = type_of(x)
    box.size = size
    box.scale = mask.scale
    for i in range(x.ndim - 1, -1, -1):
        box.axes[i].length = x.shape[i]
        box.axes[i].x = size * x.strides[i]
        box.axes[i].y = size * y.strides[i]
        box.axes[i].keep = step if strides is None else strides[i]
        step *= x.shape[i]
    arrange(&box)
    if not shared and is_far_from_mask(&box):
        return False
    with nogil:
        run_box(&box, x.data, y.data, NULL, mask, 0, share_by_openmp, most)
    return True


def compute_gradient(gy, tuple draw):
    """`compute` with (seed, name, inplace), never in place; None too if the result is to have derivatives itself."""
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return compute(gy, draw[0], draw[1])


def keep_mask(shape, uint64_t seed, tuple name):
    """The mask of `compute` without shared axes, as a tensor of bools."""
    cdef cdropout_mask mask
    cdef View view
    cdef size_t most
    call, p, _shared, factor = name
    name_mask(&mask, seed, call, p, factor)
    keep = torch.empty(shape, dtype=torch.bool, device="cpu")
    exchange.read(<void*>keep, &view)
    most = sharers_by_openmp(size_of(&view))
    with nogil:
        draw_bools_span(<uint8_t*>view.data, size_of(&view), &mask, 0, share_by_openmp, most)
    return keep


# ---- their names --------------------------------------------------------------------------------

SEEDS = 2**63 - 1                     # how many PyTorch's generator can give: randint excludes the upper end


class Cell(local):
    """A tensor of one seed a thread: to make a new one would take longer than the draw."""

    def __init__(self):
        with torch.inference_mode(False):
            seed = torch.empty((), dtype=torch.int64, device="cpu")
        self.draw = seed.random_
        self.address = seed.data_ptr()


cell = Cell()


def draw_seed():
    """Draw a seed from PyTorch's default generator: the number that torch.randint(SEEDS, ()) would give."""
    cdef const uint64_t* seed = <const uint64_t*><uintptr_t>cell.address
    cell.draw(0, SEEDS)
    return seed[0]


def next_name(Generator generator not None):
    """The seed and the call number of a generator's next mask, as ints; the number is used up."""
    cdef cdropout_mask mask
    generator.name_next(&mask)
    return mask.seed, mask.call
