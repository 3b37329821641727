"""Masks that are drawn from generators of PyTorch or of this package.

This module is compiled to reduce the overhead of small calls.
"""
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

# PyTorch has no public functions that report whether a backward pass runs and which modes are active
cdef object backward_pass = torch._C._current_graph_task_id      # -1 if no backward pass runs in this thread
cdef object active_mode = torch._C._get_dispatch_mode
cdef object is_compiling = torch.compiler.is_compiling
cdef object Modes = torch._C._TorchDispatchModeKey
cdef object Tensor = torch.Tensor
cdef tuple TRACING_MODES = (Modes.PROXY, Modes.FUNCTIONAL, Modes.FAKE)

SEED_LIMIT = 2**63 - 1                # exclusive upper bound of seeds; the largest bound that torch.randint accepts
FORMS = "scale", "keep", "alpha", "alpha_gradient"


cdef raise_unexpected(y, name):
    if isinstance(y, Tensor):
        found = f"a {type(y).__name__} of shape {tuple(y.shape)}, strides {y.stride()} and {y.dtype} on {y.device}"
    else:
        found = f"an object of type {type(y).__name__}"
    raise RuntimeError(
        f"torch.{name} returned {found}, which dropout cannot use; a TorchFunctionMode or a "
        "TorchDispatchMode may have changed it"
    )


@contextmanager
def without_modes():
    """Disable all function modes, dispatch modes and transforms of torch.func within the block."""
    with torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch(), _disable_current_modes():
        yield


# ---- generators ---------------------------------------------------------------------------------


class SeedBuffer(local):
    """A tensor for one seed. Each thread reuses its tensor, since creating a tensor takes longer than drawing a seed."""

    def __init__(self):
        with without_modes(), torch.inference_mode(False):
            seed = torch.empty((), dtype=torch.int64, device="cpu")
            self.draw = seed.random_
            self.address = seed.data_ptr()


seed_buffer = SeedBuffer()


cdef uint64_t draw_seed(generator) except? 0:
    """Draw a seed from a PyTorch generator and return it; None stands for PyTorch's default generator.

    The seed is the number that torch.randint(SEED_LIMIT, (), generator=generator) would return.
    """
    if generator is not None:
        return torch.randint(SEED_LIMIT, (), generator=generator, device="cpu").item()
    address = seed_buffer.address
    seed_buffer.draw(0, SEED_LIMIT)
    return (<const uint64_t*><uintptr_t>address)[0]


class Replayed(local):
    """The generators that `checkpoint_context` has restored in this thread for the second run of a function."""

    generators = ()


replayed = Replayed()


cpdef check_generator(generator):
    """Raise TypeError unless `generator` is None, a torch.Generator or a cdropout.Generator."""
    if not (generator is None or isinstance(generator, (torch.Generator, Generator))):
        raise TypeError(
            f"generator has to be None, a torch.Generator or a cdropout.Generator, but got {type(generator).__name__}"
        )


cdef check_source(generator):
    """Raise an error if no mask can be drawn from an explicit generator at present.

    Raises
    ------
    RuntimeError
        During a backward pass, unless the generator is PyTorch's default generator or `checkpoint_context` has restored it.
        A checkpoint must draw the same mask as in its first run, but it restores only PyTorch's default generator.
    NotImplementedError
        If the generator is a cdropout.Generator and the call is traced. The seed would become a constant of the graph.
    """
    if backward_pass() != -1 and generator is not torch.default_generator:
        if not any([generator is other for other in replayed.generators]):
            raise RuntimeError(
                "generator= cannot be drawn from during a backward pass, where a checkpoint needs the mask of its first "
                "run: use checkpoint(..., use_reentrant=False, context_fn=cdropout.torch.checkpoint_context(generator)); "
                "otherwise draw from PyTorch's default generator"
            )
    if isinstance(generator, Generator) and (
        is_compiling() or any([active_mode(key) is not None for key in TRACING_MODES])
    ):
        raise NotImplementedError(
            "a cdropout.Generator cannot be used while traced, as its seed would become a constant of the graph: "
            "use a torch.Generator, or PyTorch's default generator"
        )


@cython.binding(True)                 # torch.compile warns about functions without binding
def draw_from(generator):
    """Draw the next mask from an explicit generator. Return the seed, as a tensor, and the call number of the mask.

    Both numbers are returned as int64, which is the type of numbers in operators of PyTorch.

    Raises
    ------
    TypeError, RuntimeError, NotImplementedError
        See `check_generator` and `check_source`.
    """
    cdef cdropout_mask mask
    check_generator(generator)
    check_source(generator)
    if not isinstance(generator, Generator):
        return torch.randint(SEED_LIMIT, (), generator=generator, device="cpu"), 0
    (<Generator>generator).next_id(&mask)
    return torch.tensor(<int64_t>mask.seed, device="cpu"), <int64_t>mask.call


def state_of(generator):
    """Return the state of a generator, for `set_state` and `restore`. None stands for PyTorch's default generator."""
    if isinstance(generator, Generator):
        return generator.state
    return (torch.default_generator if generator is None else generator).get_state()


def set_state(generator, state):
    """Set a generator to a state from `state_of`. A cdropout.Generator that the user did not seed remains unseeded."""
    if isinstance(generator, Generator):
        (<Generator>generator).restore_state(state, (<Generator>generator).forks_at_seeding)
    else:
        (torch.default_generator if generator is None else generator).set_state(state)


def restore(generator, before, after):
    """Set the state of a generator to `before` if its current state is `after`; otherwise do nothing."""
    with without_modes():
        now = state_of(generator)
        if now == after if isinstance(generator, Generator) else torch.equal(now, after):
            set_state(generator, before)


cdef state_after(before):
    """Return the state that a PyTorch generator in the state `before` has after one seed was drawn from it."""
    with without_modes():
        copy = torch.Generator()
        copy.set_state(before)
        draw_seed(copy)
        return copy.get_state()


# ---- masks --------------------------------------------------------------------------------------


cdef class LazyMask:
    """A mask, which need not be drawn before it is applied, and the options of the call that applies it.

    `apply_mask` draws the seed and the call number after it has allocated memory, so that a failed allocation leaves the
    generator unchanged.

    Parameters
    ----------
    p : float
    broadcast_axes : tuple of int
    form : str
        The result for an element x. "scale": x * scale if kept, with the scale of the mask, else +0.0. "keep": x if kept,
        else +0.0. "alpha": a * x + b if kept, else c, where `alpha_terms` returns (a, b, c). "alpha_gradient": a * x if
        kept, else +0.0. If p is 1, the result is +0.0 in each form.
    inplace : bool
        If true, `apply_mask` writes to its input.
    generator : None, torch.Generator or Generator
        The source of the mask. None stands for PyTorch's default generator.
    """

    def __init__(self, double p, tuple broadcast_axes, str form, bint inplace=False, generator=None):
        if kernels.mask_init(&self.id, 0, 0, p):
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if generator is not None:
            check_generator(generator)
        self.p, self.broadcast_axes, self.inplace, self.generator = p, broadcast_axes, inplace, generator
        self.set_form(form)

    cdef set_form(self, str form):
        if form not in FORMS:
            raise ValueError(f"form has to be one of {FORMS}, but got {form!r}")
        self.form = form
        if form != "scale" and 0 < self.p < 1:
            self.id.scale, self.shift, self.constant = (1, 0, 0) if form == "keep" else alpha_terms(self.p)
            self.shifts = form == "alpha"

    cdef draw(self, bint interruptible):
        """Draw the seed and call number unless p is 1 or they are already drawn.

        If `interruptible` is false, `undo_draw` cannot restore a PyTorch generator.
        """
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

    cdef undo_draw(self):
        """Undo `draw` if the generator was not used after `draw`."""
        if self.p != 1 and isinstance(self.generator, Generator):
            (<Generator>self.generator).undo_next_id(&self.id)
        elif self.before is not None:
            restore(self.generator, self.before, state_after(self.before))

    cdef release(self):
        """Delete the references that are needed only until the mask has been applied once."""
        self.before = self.keep = self.generator = None

    cdef LazyMask copy(self):
        """Return a copy that has neither a generator nor `keep`, and is applied out of place."""
        cdef LazyMask mask = LazyMask.__new__(LazyMask)
        mask.id, mask.start, mask.strides, mask.drawn = self.id, self.start, self.strides, self.drawn
        mask.p, mask.broadcast_axes, mask.form = self.p, self.broadcast_axes, self.form
        mask.shifts, mask.shift, mask.constant = self.shifts, self.shift, self.constant
        return mask

    def out_of_place(self):
        """Return a copy that has the same generator and is applied out of place."""
        cdef LazyMask mask = self.copy()
        mask.generator = self.generator
        return mask

    cpdef LazyMask derivative(self):
        """Return this mask in the form of the derivative, which is linear. The returned mask is applied out of place."""
        cdef LazyMask mask
        if not self.shifts and not self.inplace:
            return self
        mask = self.copy()
        mask.shifts = False
        mask.form = derivative_of(self.form)
        return mask

    def with_call(self, int64_t call):
        """Return a copy with this call number, for an operator that takes the seed of the mask as a tensor."""
        cdef LazyMask mask = self.copy()
        mask.id.call = call
        return mask

    def with_batch_axis(self, bint shared):
        """Return a copy with a new first axis, which is a broadcast axis if `shared` is true.

        For a given mask, `shared` must be true.
        """
        cdef LazyMask mask = self.copy()
        if self.strides is not None:
            mask.strides = (0, *self.strides)
        else:
            mask.broadcast_axes = (0,) * shared + tuple([axis + 1 for axis in self.broadcast_axes])
        return mask

    def dropout_arguments(self):
        """Return the arguments of cdropout::dropout that follow x and the seed. The call number becomes int64."""
        return <int64_t>self.id.call, self.p, list(self.broadcast_axes), self.form

    def apply_mask_arguments(self, tuple shape):
        """Return the arguments of cdropout::apply_mask that follow x. `shape` is that of x; uint64 numbers become int64."""
        strides = self.strides if self.strides is not None else broadcast_strides(shape, self.broadcast_axes)
        return (
            <int64_t>self.id.seed, <int64_t>self.id.call, <int64_t>self.start, strides, self.p, self.id.scale, self.shifts
        )


@cython.binding(True)
def derivative_of(form):
    """Return the form of the derivative of dropout in the given form."""
    return "alpha_gradient" if form == "alpha" else form


def given_mask(Mask given, str form, bint inplace=False):
    """Return a LazyMask for a Mask. If 0 < p < 1, forms other than "scale" replace the scale of the Mask."""
    cdef LazyMask mask = LazyMask.__new__(LazyMask)
    mask.id, mask.start, mask.strides, mask.p = given.id, given.start_, given.strides_, given.p
    mask.broadcast_axes, mask.inplace, mask.drawn = (), inplace, True
    mask.set_form(form)
    return mask


def seeded_mask(uint64_t seed, int64_t call, double p, tuple broadcast_axes, str form, bint inplace=False):
    """Return a LazyMask that is drawn already, with this seed and the call number from `draw_from`."""
    cdef LazyMask mask = LazyMask(p, broadcast_axes, form, inplace)
    mask.id.seed, mask.id.call, mask.drawn = seed, call, True
    return mask
