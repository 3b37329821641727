"""Draws of masks from generators, PyTorch's or this package's; compiled, since small calls are mostly overhead."""
from contextlib import contextmanager
from threading import local

cimport cython
from libc.stdint cimport int64_t, uint64_t, uintptr_t

import torch
from torch.utils._python_dispatch import _disable_current_modes

from cdropout cimport cdropout_mask
from cdropout._core.dispatch cimport kernels
from cdropout._core.generator cimport Generator
from cdropout._core.mask cimport Mask, broadcast_strides
from cdropout._core.mask import alpha_terms

# Only PyTorch's private module reports what is active
cdef object backward_pass = torch._C._current_graph_task_id      # -1 if none is running in this thread
cdef object active_mode = torch._C._get_dispatch_mode
cdef object is_compiling = torch.compiler.is_compiling
cdef object Modes = torch._C._TorchDispatchModeKey
cdef object Tensor = torch.Tensor
cdef tuple TRACERS = (Modes.PROXY, Modes.FUNCTIONAL, Modes.FAKE)

SEEDS = 2**63 - 1                     # how many PyTorch's generator can give: randint excludes the upper end


cdef raise_unexpected(y, name):
    if isinstance(y, Tensor):
        found = f"a {type(y).__name__} of shape {tuple(y.shape)}, strides {y.stride()} and {y.dtype} on {y.device}"
    else:
        found = f"an object of type {type(y).__name__}"
    raise RuntimeError(
        f"torch.{name} returned {found}, which dropout cannot use as its memory; a TorchFunctionMode or a "
        "TorchDispatchMode may have changed it"
    )


@contextmanager
def undisturbed():
    """Disable all function modes, dispatch modes and transforms of torch.func within the block."""
    with torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch(), _disable_current_modes():
        yield


class Cell(local):
    """A tensor of one seed per thread, since making a new one takes longer than the draw."""

    def __init__(self):
        with undisturbed(), torch.inference_mode(False):
            seed = torch.empty((), dtype=torch.int64, device="cpu")
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


cpdef check_generator(generator):
    """Raise a TypeError unless a mask can be drawn from generator."""
    if not (generator is None or isinstance(generator, (torch.Generator, Generator))):
        raise TypeError(
            f"generator has to be None, a torch.Generator or a cdropout.Generator, but got {type(generator).__name__}"
        )


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
                "run: use checkpoint(..., use_reentrant=False, context_fn=cdropout.torch.checkpoint_context(generator)); "
                "otherwise draw from PyTorch's default generator"
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
    TypeError, RuntimeError, NotImplementedError
        See `check_generator` and `check_source`.
    """
    cdef cdropout_mask mask
    check_generator(generator)
    check_source(generator)
    if not isinstance(generator, Generator):
        return torch.randint(SEEDS, (), generator=generator, device="cpu"), 0
    (<Generator>generator).next_id(&mask)
    return torch.tensor(<int64_t>mask.seed, device="cpu"), mask.call


def state_of(generator):
    """Return the state of a generator, for `restore`; None is PyTorch's default generator."""
    if isinstance(generator, Generator):
        return generator.state
    return (torch.default_generator if generator is None else generator).get_state()


def set_state(generator, state):
    """Set a generator to what `state_of` returned; one that was never seeded stays unseeded."""
    if isinstance(generator, Generator):
        (<Generator>generator).restore_state(state, (<Generator>generator).forks_at_seeding)
    else:
        (torch.default_generator if generator is None else generator).set_state(state)


def restore(generator, before, after):
    """Set a generator back from the state `after` to the state `before`, unless it is no longer in `after`."""
    with undisturbed():
        now = state_of(generator)
        if now == after if isinstance(generator, Generator) else torch.equal(now, after):
            set_state(generator, before)


cdef state_after(before):
    """Return the state of a PyTorch generator after the draw of one seed in the state `before`."""
    with undisturbed():
        copy = torch.Generator()
        copy.set_state(before)
        draw_seed(copy)
        return copy.get_state()


FORMS = "scale", "keep", "alpha", "alpha_gradient"


cdef class Draw:
    """The mask of one call, given or still to be drawn, and what it makes of the elements.

    `compute` draws the seed and the call number, after it has allocated memory.

    Parameters
    ----------
    p : float
    axes : tuple of int
        The axes along which one draw is shared.
    form : str
        What becomes of an element x. "scale": x / (1 - p) if kept, else +0.0. "keep": x if kept, else +0.0. "alpha":
        a * x + b if kept, else c, of `alpha_terms`. "alpha_gradient": a * x if kept, else +0.0. At p = 1, +0.0 in any form.
    inplace : bool
        Whether `compute` writes to its input.
    generator : None, torch.Generator or Generator
        None is PyTorch's default generator.
    """

    def __init__(self, double p, tuple axes, str form, bint inplace=False, generator=None):
        if kernels.mask_init(&self.id, 0, 0, p):
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if generator is not None:
            check_generator(generator)
        self.p, self.axes, self.inplace, self.generator = p, axes, inplace, generator
        self.set_form(form)

    cdef set_form(self, str form):
        if form not in FORMS:
            raise ValueError(f"form has to be one of {FORMS}, but got {form!r}")
        self.form = form
        if form != "scale" and 0 < self.p < 1:
            self.id.scale, self.shift, self.constant = (1, 0, 0) if form == "keep" else alpha_terms(self.p)
            self.shifts = form == "alpha"

    cdef draw(self, bint interruptible):
        """Draw seed and call number, unless this was done; p = 1 draws nothing. `interruptible`: take_back may follow."""
        if self.drawn:
            return
        if self.p != 1:
            if self.generator is not None:
                check_source(self.generator)
            if isinstance(self.generator, Generator):
                (<Generator>self.generator).next_id(&self.id)
            else:
                if interruptible:
                    self.before = state_of(self.generator)
                self.id.seed = draw_seed(self.generator)
        self.drawn = True

    cdef take_back(self):
        """Undo `draw`, unless something was drawn from the generator since."""
        if self.p != 1 and isinstance(self.generator, Generator):
            (<Generator>self.generator).undo_next_id(&self.id)
        elif self.before is not None:
            restore(self.generator, self.before, state_after(self.before))

    cdef forget(self):
        self.before = self.keep = self.generator = None

    cdef Draw copy(self):
        """Return a copy that is not in place and has no generator."""
        cdef Draw draw = Draw.__new__(Draw)
        draw.id, draw.start, draw.strides, draw.drawn = self.id, self.start, self.strides, self.drawn
        draw.p, draw.axes, draw.form = self.p, self.axes, self.form
        draw.shifts, draw.shift, draw.constant = self.shifts, self.shift, self.constant
        return draw

    def out_of_place(self):
        """Return the same draw, with its generator, but not in place."""
        cdef Draw draw = self.copy()
        draw.generator = self.generator
        return draw

    cpdef Draw derivative(self):
        """Return the draw of the derivative, which has the same mask and adds nothing."""
        cdef Draw draw
        if not self.shifts and not self.inplace:
            return self
        draw = self.copy()
        draw.shifts = False
        draw.form = derivative_of(self.form)
        return draw

    def with_call(self, uint64_t call):
        """Return the same draw with a call number; its seed is a tensor."""
        cdef Draw draw = self.copy()
        draw.id.call = call
        return draw

    def batched(self, bint one_mask):
        """Return the draw with an axis before the others: one mask for all along it, or one mask over it too."""
        cdef Draw draw = self.copy()
        if self.strides is not None:
            draw.strides = (0, *self.strides)
        else:
            draw.axes = (0,) * one_mask + tuple([axis + 1 for axis in self.axes])
        return draw

    def constants(self):
        """Return the operator's arguments after the seed, which is a tensor."""
        return self.id.call, self.p, list(self.axes), self.form

    def numbers(self, tuple shape):
        """Return the arguments of the operator for a known mask, for an input of this shape; 64-bit numbers are signed."""
        strides = self.strides if self.strides is not None else broadcast_strides(shape, self.axes)
        return (
            <int64_t>self.id.seed, <int64_t>self.id.call, <int64_t>self.start, strides, self.p, self.id.scale, self.shifts
        )


@cython.binding(True)
def derivative_of(form):
    """Return the form of the derivative."""
    return "alpha_gradient" if form == "alpha" else form


def known(Mask mask, str form, bint inplace=False):
    """Return a Draw of a given mask; the form "scale" applies the mask's scale, and "alpha" replaces it."""
    cdef Draw draw = Draw.__new__(Draw)
    draw.id, draw.start, draw.strides, draw.p = mask.id, mask.start_, mask.strides_, mask.p
    draw.axes, draw.inplace, draw.drawn = (), inplace, True
    draw.set_form(form)
    return draw


def seeded(uint64_t seed, uint64_t call, double p, tuple axes, str form):
    """Return a Draw of known numbers."""
    cdef Draw draw = Draw(p, axes, form)
    draw.id.seed, draw.id.call, draw.drawn = seed, call, True
    return draw
