"""Generator, the source of masks, and what else may be given as rng."""
import os

cimport cython
from libc.stdint cimport uint64_t

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.arguments cimport as_count, as_seed
from cdropout._core.mask cimport Mask, unseeded_mask, uses_call_number
from cdropout._core.stream cimport GAMMA, mix

cdef uint64_t LAST_CALL = <uint64_t>-1


cdef uint64_t entropy():
    return int.from_bytes(os.urandom(8), "little")


# ---- Generator ----------------------------------------------------------------------------------

cdef int forks = 0                    # of which this process is the outcome
cdef enum:
    SEEDED = -1


def count_fork():
    """Lets the unseeded generators of a forked child see that they have to seed themselves anew."""
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=count_fork)


cdef class Generator:
    """Generator(seed=None)\n--\n
    A source of masks; the generator's seed and the next call number determine each mask.

    Parameters
    ----------
    seed : int, optional
        In [-2**63, 2**64); a negative one counts as its two's complement. Without one, the system's entropy is
        asked, and asked again in a forked child. A generator that was given a seed goes on in both processes with
        the same masks.

    Notes
    -----
    Methods may be called from many threads at once; each call number is handed out once.
    """

    __module__ = "cdropout"

    def __init__(self, seed=None):
        self.reseed(seed)

    cdef reseed(self, seed):
        cdef uint64_t value = entropy() if seed is None else as_seed(seed)
        with cython.critical_section(self):
            self.seed_ = value
            self.calls_ = 0
            self.spawned = 0
            self.forks_at_seeding = forks if seed is None else SEEDED

    cdef reseed_after_fork(self):
        """After a fork, an unseeded generator must not repeat its parent's masks."""
        if self.forks_at_seeding != forks and self.forks_at_seeding != SEEDED:
            self.reseed(None)

    cdef next_id(self, cdropout_mask* mask):
        """Write the seed and the next call number into mask, and use the number up."""
        with cython.critical_section(self):
            self.reseed_after_fork()
            if self.calls_ == LAST_CALL:
                raise OverflowError("this generator has handed out all its 2**64 - 1 call numbers; give it another seed")
            mask.seed = self.seed_
            mask.call = self.calls_
            self.calls_ += 1

    cdef undo_next_id(self, const cdropout_mask* mask):
        """Undo next_id after a call was interrupted, unless the next number has been handed out since."""
        with cython.critical_section(self):
            if self.seed_ == mask.seed and self.calls_ == mask.call + 1:
                self.calls_ = mask.call

    def next_mask(self, shape, p, *, broadcast_dims=(), scale=None):
        """Return the next mask.

        Parameters
        ----------
        shape : int or tuple of int
            The shape of the arrays that the mask is for.
        p : float
            The probability that an element is dropped, in [0, 1].
        broadcast_dims : int or tuple of int
            Axes along which one draw is shared: elements that differ only there are kept or dropped together.
        scale : float, optional
            The number that kept elements are multiplied by; by default 1 / (1 - p).

        Returns
        -------
        Mask
            It uses up one call number, and none if nothing is drawn: at p = 0, at p = 1, or without elements. Its seed
            and call are then 0.

        Raises
        ------
        TypeError, ValueError
            As `Mask`; ValueError if broadcast_dims names an axis twice or one that shape does not have.
        OverflowError
            If all 2**64 - 1 call numbers are used up. After any error the generator is as it was.

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
        """How many call numbers were handed out, and so the number of the next one."""
        return self.state["calls"]

    @property
    def state(self):
        """Everything that decides what comes next, as a dict; assign it to go back there."""
        with cython.critical_section(self):
            self.reseed_after_fork()
            return {"seed": self.seed_, "calls": self.calls_, "spawned": self.spawned}

    @state.setter
    def state(self, state):
        if not isinstance(state, dict) or state.keys() != {"seed", "calls", "spawned"}:
            raise ValueError(f"state has to be a dict with the keys seed, calls and spawned, but got {state!r}")
        self.restore_state(state, SEEDED)

    cdef restore_state(self, state, int forks_at_seeding):
        """Set `state`. With the present `forks_at_seeding`, a generator without a seed still seeds itself anew in a forked child."""
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
        """Return a list of `n` new generators, each with a seed of its own that follows from this one's.

        The k-th child over the life of this generator has the seed mix(mix(seed + 2 * GAMMA) + GAMMA * (k + 1)).
        """
        cdef uint64_t first, seed, count
        count = as_count(n, "n")
        with cython.critical_section(self):
            self.reseed_after_fork()
            first = self.spawned
            seed = self.seed_
            if count > LAST_CALL - first:
                raise OverflowError("a generator has 2**64 - 1 children at the most")
            self.spawned += count     # before the children are made: meanwhile another thread may get in
        try:
            return [Generator(mix(mix(seed + 2 * GAMMA) + GAMMA * (first + <uint64_t>k + 1))) for k in range(count)]
        except BaseException:         # no room
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
    """Seed the default generator, which every call without `rng` draws from; return it."""
    default.reseed(as_seed(seed))
    return default


cpdef as_rng(rng):
    """What as_generator takes: a seed becomes a generator, so that no code of rng's runs later. TypeError if it is none."""
    if rng is None or isinstance(rng, Generator):    # before NumPy's: np.random is imported when it is first named
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
    """The generator that as_rng's rng names; from NumPy's, one seed is drawn for a new one."""
    if rng is None:
        return default
    if isinstance(rng, Generator):
        return rng
    if isinstance(rng, np.random.Generator):
        return Generator(rng.integers(1 << 64, dtype=np.uint64))
    return Generator(rng.generate_state(1, np.uint64)[0])


cpdef Generator generator_for(rng, list arrays):
    """as_generator for a call on these arrays; ValueError if the code of a NumPy generator has changed one of them."""
    if rng is None or isinstance(rng, Generator):
        return as_generator(rng)
    before = [layout_of(array) for array in arrays]
    generator = as_generator(rng)
    if [layout_of(array) for array in arrays] != before:
        raise ValueError("an array of this call was changed while a seed was drawn from rng")
    return generator


def next_mask(rng, shape, p, broadcast_dims=()):
    """Return the next mask of what may be given as rng; NumPy's generators give a seed only if something is drawn."""
    cdef Mask mask
    rng = as_rng(rng)
    mask = unseeded_mask(shape, p, broadcast_dims, None)
    if uses_call_number(mask.p, 0 in mask.shape):
        as_generator(rng).next_id(&mask.id)
    return mask


cdef tuple layout_of(array):
    """Return where an array, and the one that it is a view of, lie in memory, and how."""
    base = array.base
    return array.__array_interface__, base.__array_interface__ if isinstance(base, np.ndarray) else None


def own_generator(rng):
    """The generator of a module: None stays None, which is the default generator at the time of each call."""
    rng = as_rng(rng)
    return None if rng is None else as_generator(rng)
