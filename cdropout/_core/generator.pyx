"""Generator, the source of masks, and conversions of the other types of the rng argument."""
import os

cimport cython
from libc.stdint cimport uint64_t

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.arguments cimport as_count, as_seed
from cdropout._core.mask cimport Mask, unseeded_mask, uses_call_number
from cdropout._core.stream cimport GAMMA, mix

cdef uint64_t LAST_CALL = <uint64_t>-1


cdef uint64_t random_seed():
    """Return a seed from the system's entropy."""
    return int.from_bytes(os.urandom(8), "little")


# ---- Generator ----------------------------------------------------------------------------------

cdef int forks = 0                    # number of forks between the import and this process
cdef enum:
    SEEDED = -1                       # used in place of a number of forks if a seed was given


def count_fork():
    """Count a fork, so that unseeded generators get new seeds in the child process."""
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=count_fork)


cdef class Generator:
    """Generator(seed=None)\n--\n
    A source of masks. A mask is determined by p, the seed of the generator and the next call number.

    Parameters
    ----------
    seed : int, optional
        The seed, in [-2**63, 2**64). A negative seed is equivalent to its two's complement. By default, the seed is
        drawn from the system's entropy.

    Attributes
    ----------
    seed : int
        The seed, in [0, 2**64).
    calls : int
        The number of call numbers used so far, which is equal to the next call number.
    state : dict
        The state of the generator. Assign a saved state to restore the generator.

    Raises
    ------
    TypeError
        If seed is not an int.
    ValueError
        If seed is out of range.

    See Also
    --------
    Mask, manual_seed

    Notes
    -----
    Generators are thread-safe: no two masks get the same call number.

    After a fork, a generator without a given seed gets a new seed in the child process. A generator with a given seed
    returns the same masks in both processes.

    **Compatibility Guarantee**

    `Generator` guarantees that a fixed seed and a fixed sequence of calls give the same masks in every release with
    version 1 of the mask stream, on every platform and for any number of threads. The seeds of spawned generators are
    part of this guarantee.

    Examples
    --------
    >>> import cdropout
    >>> rng = cdropout.Generator(seed=7)
    >>> rng.next_mask((2, 3), p=0.5)
    Mask((2, 3), p=0.5, seed=7, call=0)
    >>> rng.next_mask((2, 3), p=0.5)
    Mask((2, 3), p=0.5, seed=7, call=1)
    >>> rng
    Generator(seed=7, calls=2)
    """

    __module__ = "cdropout"

    def __init__(self, seed=None):
        self.reseed(seed)

    cdef reseed(self, seed):
        """Restart with a seed. If `seed` is None, a seed is drawn from the system's entropy."""
        cdef uint64_t value = random_seed() if seed is None else as_seed(seed)
        with cython.critical_section(self):
            self.seed_ = value
            self.calls_ = 0
            self.spawned = 0
            self.forks_at_seeding = forks if seed is None else SEEDED

    cdef reseed_after_fork(self):
        """After a fork, restart an unseeded generator, so that its masks differ from those of the parent process."""
        if self.forks_at_seeding != forks and self.forks_at_seeding != SEEDED:
            self.reseed(None)

    cdef next_id(self, cdropout_mask* mask):
        """Set the seed and the call number of a mask, and advance to the next call number."""
        with cython.critical_section(self):
            self.reseed_after_fork()
            if self.calls_ == LAST_CALL:
                raise OverflowError("this generator has used all 2**64 - 1 call numbers; create one with another seed")
            mask.seed = self.seed_
            mask.call = self.calls_
            self.calls_ += 1

    cdef undo_next_id(self, const cdropout_mask* mask):
        """Undo `next_id` if the call number of `mask` is the last one that was used; otherwise do nothing."""
        with cython.critical_section(self):
            if self.seed_ == mask.seed and self.calls_ == mask.call + 1:
                self.calls_ = mask.call

    def next_mask(self, shape, p, *, broadcast_dims=(), scale=None):
        """Return the next mask.

        Parameters
        ----------
        shape : int or tuple of int
            The shape of the arrays that the mask applies to.
        p : float
            The probability that an element is dropped, in [0, 1].
        broadcast_dims : int or tuple of int, default ()
            The axes along which all elements share one draw.
        scale : float, optional
            The positive number by which kept elements are multiplied; by default ``1 / (1 - p)``.

        Returns
        -------
        Mask
            The mask. If p is 0 or 1 or the mask has no elements, the mask does not depend on random numbers. Then no call
            number is used, and the seed and the call number of the mask are 0.

        Raises
        ------
        TypeError, ValueError
            If `Mask` raises this error for the same arguments.
        ValueError
            If an axis in broadcast_dims does not exist or occurs twice.
        OverflowError
            If all 2**64 - 1 call numbers have been used.

        Notes
        -----
        If an error is raised, the generator does not change.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout as cd
        >>> rng = cd.Generator(seed=7)
        >>> mask = rng.next_mask((2, 3), 0.5)
        >>> mask
        Mask((2, 3), p=0.5, seed=7, call=0)
        >>> x = np.ones((2, 3), np.float32)
        >>> bool((mask.apply(x) == cd.dropout(x, 0.5, rng=7)).all())
        True
        """
        cdef Mask mask = unseeded_mask(shape, p, broadcast_dims, scale)
        if uses_call_number(mask.p, 0 in mask.shape):
            self.next_id(&mask.id)
        return mask

    @property
    def seed(self):
        """The seed, as an int in [0, 2**64)."""
        return self.state["seed"]

    @property
    def calls(self):
        """The number of call numbers used so far, which is equal to the next call number."""
        return self.state["calls"]

    @property
    def state(self):
        """The state as a dict with the keys seed, calls and spawned. Assign a saved state to restore the generator."""
        with cython.critical_section(self):
            self.reseed_after_fork()
            return {"seed": self.seed_, "calls": self.calls_, "spawned": self.spawned}

    @state.setter
    def state(self, state):
        if not isinstance(state, dict) or state.keys() != {"seed", "calls", "spawned"}:
            raise ValueError(f"state has to be a dict with the keys seed, calls and spawned, but got {state!r}")
        self.restore_state(state, SEEDED)

    cdef restore_state(self, state, int forks_at_seeding):
        """Set the state. Pass SEEDED as `forks_at_seeding`, or the generator's own value to keep the generator unseeded."""
        cdef uint64_t seed, calls, spawned
        seed = as_seed(state["seed"])
        calls = as_count(state["calls"], "calls")
        spawned = as_count(state["spawned"], "spawned")
        with cython.critical_section(self):
            self.seed_ = seed
            self.calls_ = calls
            self.spawned = spawned
            self.forks_at_seeding = forks_at_seeding

    def spawn(self, n):
        """Return new generators with different seeds, which are computed from the seed of this generator.

        Parameters
        ----------
        n : int
            The number of new generators.

        Returns
        -------
        list of Generator

        Raises
        ------
        TypeError, ValueError
            If n is not an int, or is negative.
        OverflowError
            If more than 2**64 - 1 generators would be spawned in total.

        Notes
        -----
        The k-th generator, counted from 0 over all calls, has the seed
        ``mix(mix(seed + 2 * GAMMA) + GAMMA * (k + 1))``, where ``mix`` and ``GAMMA`` are those of SplitMix64.

        Examples
        --------
        >>> import cdropout
        >>> a, b = cdropout.Generator(seed=7).spawn(2)
        >>> a.seed == b.seed
        False
        """
        cdef uint64_t first, seed, count
        count = as_count(n, "n")
        with cython.critical_section(self):
            self.reseed_after_fork()
            first = self.spawned
            seed = self.seed_
            if count > LAST_CALL - first:
                raise OverflowError("a generator can spawn at most 2**64 - 1 generators")
            self.spawned += count     # set before the list is built, so that other threads use other seeds
        try:
            return [Generator(mix(mix(seed + 2 * GAMMA) + GAMMA * (first + <uint64_t>k + 1))) for k in range(count)]
        except BaseException:         # the list is incomplete, for example because of a MemoryError
            with cython.critical_section(self):
                if self.seed_ == seed and self.spawned == first + count:
                    self.spawned = first
            raise

    def __reduce__(self):
        return Generator, (self.seed_,), self.state

    def __setstate__(self, state):
        self.state = state

    def __repr__(self):
        return f"Generator(seed={self.seed}, calls={self.calls})"


cdef Generator default = Generator()
default_generator = default


def manual_seed(seed):
    """Seed the default generator, which is used by calls without `rng`.

    Parameters
    ----------
    seed : int
        The seed, in [-2**63, 2**64).

    Returns
    -------
    Generator
        The default generator.

    Raises
    ------
    TypeError, ValueError
        If seed is not an int, or is out of range.

    Examples
    --------
    >>> import cdropout
    >>> cdropout.manual_seed(7)
    Generator(seed=7, calls=0)
    """
    default.reseed(as_seed(seed))
    return default


cpdef as_rng(rng):
    """Return rng, or a new Generator if rng is a seed. Raise TypeError if rng is of an unsupported type."""
    if rng is None or isinstance(rng, Generator):    # tested first, so that np.random is imported only if needed
        return rng
    if isinstance(rng, (np.random.Generator, np.random.SeedSequence)):
        return rng
    try:
        return Generator(rng)
    except TypeError:
        raise TypeError(
            "rng has to be None, a cdropout.Generator, a numpy.random.Generator or SeedSequence, or an int, "
            f"but got {type(rng).__name__}"
        ) from None


cdef Generator as_generator(rng):
    """Return rng, which must be a result of `as_rng`, as a Generator. None stands for the default generator.

    For a NumPy generator or a SeedSequence, return a new Generator with a seed that rng returns.
    """
    if rng is None:
        return default
    if isinstance(rng, Generator):
        return rng
    if isinstance(rng, np.random.Generator):
        return Generator(rng.integers(1 << 64, dtype=np.uint64))
    return Generator(rng.generate_state(1, np.uint64)[0])


cpdef Generator generator_for(rng, list arrays):
    """Return `as_generator(rng)`. Raise ValueError if the methods of rng changed the memory layout of an array."""
    if rng is None or isinstance(rng, Generator):
        return as_generator(rng)
    before = [layout_of(array) for array in arrays]
    generator = as_generator(rng)
    if [layout_of(array) for array in arrays] != before:
        raise ValueError("an array of this call was changed while a seed was drawn from rng")
    return generator


def next_mask(rng, shape, p, broadcast_dims=()):
    """Return the next mask of rng. A seed is drawn from a NumPy generator only if the mask depends on random numbers."""
    cdef Mask mask
    rng = as_rng(rng)
    mask = unseeded_mask(shape, p, broadcast_dims, None)
    if uses_call_number(mask.p, 0 in mask.shape):
        as_generator(rng).next_id(&mask.id)
    return mask


cdef tuple layout_of(array):
    """Return the memory layouts of an array and of its base; the latter is None if the base is not an ndarray."""
    base = array.base
    return array.__array_interface__, base.__array_interface__ if isinstance(base, np.ndarray) else None


def own_generator(rng):
    """Return rng as a Generator for a module, or None if rng is None. With None, the module uses the default generator."""
    rng = as_rng(rng)
    return None if rng is None else as_generator(rng)
