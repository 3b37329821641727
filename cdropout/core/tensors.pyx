"""Masks applied to PyTorch's CPU tensors, read by DLPack's C interface; compiled, since small calls are mostly overhead."""
from threading import local

cimport cython
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

import numpy as np
import torch

from cdropout cimport CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_dtype, cdropout_mask
from cdropout.core.dispatch cimport kernels
from cdropout.core.generators cimport Generator
from cdropout.core.masks cimport shared_strides
from cdropout.core.masks import alpha_terms
from cdropout.core.openmp cimport share_by_openmp, sharers_by_openmp
from cdropout.core.pieces cimport PIECE, SHORT, apply_span, draw_bools_span, run_box
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
cdef object backward_pass = torch._C._current_graph_task_id      # -1 if none is running in this thread
cdef object active_mode = torch._C._get_dispatch_mode
cdef object is_compiling = torch.compiler.is_compiling
cdef object Modes = torch._C._TorchDispatchModeKey
cdef tuple TRACERS = (Modes.PROXY, Modes.FUNCTIONAL, Modes.FAKE)
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


cdef raise_unexpected(y, name):
    if isinstance(y, Tensor):
        found = f"a {type(y).__name__} of shape {tuple(y.shape)}, strides {y.stride()} and {y.dtype} on {y.device}"
    else:
        found = f"an object of type {type(y).__name__}"
    raise RuntimeError(
        f"torch.{name} returned {found}, which dropout cannot use as its memory; a TorchFunctionMode or a "
        "TorchDispatchMode may have changed it"
    )


# ---- which mask ---------------------------------------------------------------------------------

SEEDS = 2**63 - 1                     # how many PyTorch's generator can give: randint excludes the upper end


class Cell(local):
    """A tensor of one seed per thread: to make a new one would take longer than the draw."""

    def __init__(self):
        with torch.inference_mode(False):
            seed = torch.empty((), dtype=torch.int64, device="cpu")
        if type(seed) is not Tensor or seed.dtype != torch.int64 or seed.device.type != "cpu" or seed.dim():
            raise_unexpected(seed, "empty")
        self.draw = seed.random_
        self.address = seed.data_ptr()


cell = Cell()


cdef uint64_t draw_seed(generator) except? 0:
    """Draw a seed from a PyTorch generator: the number that torch.randint(SEEDS, ()) would give."""
    if generator is not None:
        return torch.randint(SEEDS, (), generator=generator, device="cpu").item()
    address = cell.address
    cell.draw(0, SEEDS)
    return (<const uint64_t*><uintptr_t>address)[0]


class Replayed(local):
    """The generators that a checkpoint has restored in this thread, to draw the masks of its first run again."""

    generators = ()


replayed = Replayed()


cdef check_source(generator):
    """RuntimeError or NotImplementedError unless a mask can be drawn here from a generator that the caller chose.

    During a backward pass, a checkpoint would get another mask than in its first run. A checkpoint restores PyTorch's
    default generator itself, and others within `checkpoint_context`. The seed of a cdropout.Generator would become a
    constant of a graph.
    """
    if backward_pass() != -1 and generator is not torch.default_generator:
        if not any([generator is other for other in replayed.generators]):
            raise RuntimeError(
                "generator= cannot be drawn from during a backward pass, where a checkpoint needs the mask of its first "
                "run: use checkpoint(..., use_reentrant=False, context_fn=cdropout.torch.checkpoint_context(generator)), "
                "or PyTorch's default generator"
            )
    if isinstance(generator, Generator) and (is_compiling() or any([active_mode(key) is not None for key in TRACERS])):
        raise NotImplementedError(
            "a cdropout.Generator cannot be used while traced, as its seed would become a constant of the graph: "
            "use a torch.Generator, or PyTorch's default generator"
        )


@cython.binding(True)                 # torch.compile warns of functions without
def draw_from(generator):
    """Draw the seed, as a tensor, and the call number of the next mask from a generator that the caller chose.

    Raises
    ------
    RuntimeError, NotImplementedError
        See `check_source`.
    """
    cdef cdropout_mask mask
    check_source(generator)
    if not isinstance(generator, Generator):
        return torch.randint(SEEDS, (), generator=generator, device="cpu"), 0
    (<Generator>generator).name_next(&mask)
    return torch.tensor(<int64_t>mask.seed, device="cpu"), mask.call


def state_of(generator):
    """Return the state of a generator, for `restore`; None is PyTorch's default generator."""
    if isinstance(generator, Generator):
        return generator.state
    return (torch.default_generator if generator is None else generator).get_state()


def restore(generator, before, after):
    """Set a generator back from the state `after` to the state `before`, unless it is no longer in `after`."""
    now = state_of(generator)
    if isinstance(generator, Generator):
        if now == after:
            generator.state = before
    elif np.array_equal(now.numpy(), after.numpy()):
        (torch.default_generator if generator is None else generator).set_state(before)


FORMS = "scale", "keep", "alpha", "alpha_gradient"


def linear(tuple name):
    """Return a name, (call, p, shared, form), with the form of the derivative."""
    return (*name[:-1], "alpha_gradient") if name[-1] == "alpha" else name


@cython.final
cdef class Draw:
    """The mask of one call. `compute` draws its seed and call number, after it has allocated memory.

    Parameters
    ----------
    p : float
    shared : tuple of int
        The axes along which one draw is shared.
    form : str
        What becomes of an element x. "scale": x / (1 - p) if kept, else +0.0. "keep": x if kept, else +0.0. "alpha":
        a * x + b if kept, else c, of `alpha_terms`. "alpha_gradient": a * x if kept, else +0.0. At p = 1, +0.0 in any form.
    inplace : bool
        Whether `compute` writes to its input.
    generator : None, torch.Generator or Generator
        None is PyTorch's default generator.
    """
    cdef cdropout_mask mask
    cdef double p
    cdef double shift, constant
    cdef bint shifts, inplace, drawn
    cdef tuple shared
    cdef str form
    cdef object generator
    cdef tuple states                 # of PyTorch's generator, before and after the draw of a large call
    cdef public object keep           # a tensor of bools that `compute` fills too, and then forgets

    def __init__(self, double p, tuple shared, str form, bint inplace=False, generator=None):
        if kernels.mask_init(&self.mask, 0, 0, p):
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p, self.shared, self.form, self.inplace, self.generator = p, shared, form, inplace, generator
        if form not in FORMS:
            raise ValueError(f"form has to be one of {FORMS}, but got {form!r}")
        if form != "scale" and 0 < p < 1:
            self.mask.scale, self.shift, self.constant = (1, 0, 0) if form == "keep" else alpha_terms(p)
            self.shifts = form == "alpha"

    cdef draw(self, size_t n):
        """Draw seed and call number, for n elements, unless this was done; p = 1 draws nothing."""
        if self.drawn:
            return
        if self.p != 1:
            if self.generator is not None:
                check_source(self.generator)
            if isinstance(self.generator, Generator):
                (<Generator>self.generator).name_next(&self.mask)
            elif n > PIECE:           # calls of one work chunk cannot be interrupted
                before = state_of(self.generator)
                self.mask.seed = draw_seed(self.generator)
                self.states = before, state_of(self.generator)
            else:
                self.mask.seed = draw_seed(self.generator)
        self.drawn = True

    cdef take_back(self):
        """Undo `draw`, unless something was drawn from the generator since."""
        if self.p != 1 and isinstance(self.generator, Generator):
            (<Generator>self.generator).take_back(&self.mask)
        elif self.states is not None:
            restore(self.generator, *self.states)

    cdef forget(self):
        self.states = self.keep = self.generator = None

    cdef Draw linear(self):
        """Return the mask of the derivative, which is drawn already."""
        return drawn(*self.numbers()) if self.shifts or self.inplace else self

    def numbers(self):
        """Return the seed and the rest of what determines the derivative's mask; draw them if need be."""
        self.draw(0)
        return self.mask.seed, linear((self.mask.call, self.p, self.shared, self.form))


def drawn(uint64_t seed, tuple name):
    """Return a Draw of known numbers; name is (call, p, shared, form)."""
    cdef Draw draw
    call, p, shared, form = name
    draw = Draw(p, shared, form)
    draw.mask.seed = seed
    draw.mask.call = call
    draw.drawn = True
    return draw


# ---- masks on tensors ---------------------------------------------------------------------------


cpdef compute(x, Draw draw):
    """Apply a mask to x; return the result in the memory order of x, or None if x is not plain.

    Memory is allocated before the mask is drawn. If a signal's handler raises, the draw is undone.
    """
    cdef View source, target, bools
    cdef Box box
    cdef size_t n, threads
    cdef bint given = draw.drawn
    cdef bint wide, walk
    copy = None
    if not read(x, &source):
        return None
    n = size_of(&source)
    if draw.inplace:
        y = x
        target = source
    else:
        y = empty_like(x)
        check_new(y, &target, &source, source.kind, source.bits, "empty_like")
    if draw.keep is not None:
        check_new(draw.keep, &bools, &source, BOOL, 8, "empty")
    walk = draw.shared or draw.shifts or not contiguous(&target)
    if walk and n:
        wide = draw.shifts and source.bits == 16    # computed in float32 and rounded once
        fill_box(&box, &source, &target, draw)
        if wide or (not draw.shared and is_far_from_mask(&box)):
            copy = x.to(torch.float32 if wide else x.dtype, copy=True, memory_format=torch.contiguous_format)
            check_new(
                copy, &target, &source, IEEE_FLOAT if wide else source.kind, 32 if wide else source.bits, "Tensor.to"
            )
            source = target
            walk = draw.shared or draw.shifts
            fill_box(&box, &source, &target, draw)
    elif not contiguous(&source):     # expanded or sliced: a copy costs less than a walk by strides
        y.copy_(x)
        source = target
    threads = sharers_by_openmp(n) if n >= SHORT else 1
    draw.draw(n)
    try:
        if not walk:
            apply_dense(&source, &target, n, &draw.mask, threads)
        elif n:
            with nogil:
                run_box(&box, source.data, target.data, NULL, &draw.mask, 0, share_by_openmp, threads)
        if copy is not None:
            y.copy_(copy)
        if draw.keep is not None:
            with nogil:
                draw_bools_span(<uint8_t*>bools.data, n, &draw.mask, 0, share_by_openmp, threads)
    except BaseException:             # a signal's handler has raised
        if not given:
            draw.take_back()
        raise
    if not given:
        draw.forget()
    return y


def compute_gradient(gy, Draw draw):
    """`compute` for the derivative of a Draw, never in place; None too if the result is to have derivatives itself."""
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return compute(gy, draw.linear())


cdef apply_dense(const View* x, const View* y, size_t n, const cdropout_mask* mask, size_t threads):
    if n < SHORT:
        kernels.apply(type_of(x), x.data, y.data, n, mask, 0)
        return
    with nogil:
        apply_span(type_of(x), x.data, y.data, n, mask, 0, share_by_openmp, threads)


cdef fill_box(Box* box, const View* x, const View* y, Draw draw):
    """Write into box what is to be done. Axes of length 1 are left out: there are fewer than MAX_DIMS others."""
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
                x.shape[i], size * x.strides[i], size * y.strides[i], step if strides is None else strides[i]
            )
            box.ndim += 1
        step *= x.shape[i]
    arrange(box)
    box.shifts, box.shift, box.constant = draw.shifts, draw.shift, draw.constant
