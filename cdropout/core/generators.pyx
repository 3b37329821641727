"""Generator, the source of masks, and the checks of p, flags, seed and call."""
import operator
import os

cimport cython
from cpython.float cimport PyFloat_CheckExact
from libc.stdint cimport uint64_t

import numpy as np

from cdropout cimport cdropout_mask
from cdropout.core.stream cimport GAMMA, mix

cdef uint64_t LAST_CALL = <uint64_t>-1


# ---- numbers from Python ------------------------------------------------------------------------


cdef double as_probability(object p) except -1:
    cdef double value
    if PyFloat_CheckExact(p):
        value = p
    else:
        numeric = getattr(getattr(p, "dtype", None), "kind", "f") not in "bcmMSUO"
        scalar = getattr(p, "ndim", 0) == 0
        if isinstance(p, bool) or not (hasattr(p, "__float__") and numeric and scalar):
            raise TypeError(f"p has to be a number between 0 and 1, but got {type(p).__name__}")
        try:
            value = float(p)
        except OverflowError:         # an int beyond the floats is beyond 1 too
            value = float("inf")
    if not 0 <= value <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return value


def check_probability(p):
    """Return p as a float; ValueError or TypeError if it is no probability."""
    return as_probability(p)


cdef bint as_numpy_flag(object value, name) except -1:
    """Do the part of `as_flag` that is not for bool itself."""
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} has to be a bool, but got {type(value).__name__}")


def check_flag(value, name):
    """Raise a TypeError, with the argument's name, if value is neither a bool nor a numpy.bool_."""
    as_flag(value, name)


cdef object as_index(object value, name):
    """value as a Python int; TypeError for a float, a bool, a str."""
    if not isinstance(value, (bool, np.bool_)):    # NumPy 1's has an __index__
        try:
            return operator.index(value)
        except TypeError:
            pass                      # arrays have __index__, but not all can
    raise TypeError(f"{name} has to be an int, but got {type(value).__name__}")


cdef uint64_t as_seed(object seed) except? 0:
    seed = as_index(seed, "seed")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed has to be in [-2**63, 2**64), but got {seed}")
    return seed & 0xFFFFFFFFFFFFFFFF


cdef uint64_t as_count(object value, name) except? 0:
    value = as_index(value, name)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} has to be in [0, 2**64), but got {value}")
    return value


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
    """Hands out one call number a mask: with its seed, that names the mask.

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

    def __init__(self, seed=None):
        self.restart(seed)

    cdef restart(self, seed):
        cdef uint64_t value = entropy() if seed is None else as_seed(seed)
        with cython.critical_section(self):
            self.seed_ = value
            self.calls_ = 0
            self.spawned = 0
            self.born = forks if seed is None else SEEDED

    cdef refresh(self):
        """After a fork, an unseeded generator must not repeat its parent's masks."""
        if self.born != forks and self.born != SEEDED:
            self.restart(None)

    cdef name_next(self, cdropout_mask* mask):
        """Write the seed and the next call number into mask, and count it."""
        with cython.critical_section(self):
            self.refresh()
            if self.calls_ == LAST_CALL:
                raise OverflowError("this generator has handed out all its 2**64 - 1 call numbers; give it another seed")
            mask.seed = self.seed_
            mask.call = self.calls_
            self.calls_ += 1

    cdef take_back(self, const cdropout_mask* mask):
        """Undo name_next for a call that was interrupted, unless the next number has been handed out since."""
        with cython.critical_section(self):
            if self.seed_ == mask.seed and self.calls_ == mask.call + 1:
                self.calls_ = mask.call

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
            self.refresh()
            return {"seed": self.seed_, "calls": self.calls_, "spawned": self.spawned}

    @state.setter
    def state(self, state):
        if not isinstance(state, dict) or state.keys() != {"seed", "calls", "spawned"}:
            raise ValueError(f"state has to be a dict with the keys seed, calls and spawned, but got {state!r}")
        self.go_back(state, SEEDED)

    cdef go_back(self, state, int born):
        """Set `state`. With the present `born`, a generator without a seed still seeds itself anew in a forked child."""
        cdef uint64_t seed, calls, spawned
        seed = as_seed(state["seed"])
        calls = as_count(state["calls"], "calls")
        spawned = as_count(state["spawned"], "spawned")
        with cython.critical_section(self):
            self.seed_ = seed
            self.calls_ = calls
            self.spawned = spawned
            self.born = born

    def spawn(self, n):
        """Return a list of `n` new generators, each with a seed of its own that follows from this one's.

        The k-th child over the life of this generator has the seed mix(mix(seed + 2 * GAMMA) + GAMMA * (k + 1)).
        """
        cdef uint64_t first, seed, count
        count = as_count(n, "n")
        with cython.critical_section(self):
            self.refresh()
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
    default.restart(as_seed(seed))
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


cpdef Generator ask(rng, list arrays):
    """as_generator for a call on these arrays; ValueError if the code of a NumPy generator has changed one of them."""
    if rng is None or isinstance(rng, Generator):
        return as_generator(rng)
    before = [layout_of(array) for array in arrays]
    generator = as_generator(rng)
    if [layout_of(array) for array in arrays] != before:
        raise ValueError("an array of this call was changed while a seed was drawn from rng")
    return generator


cdef tuple layout_of(array):
    """Return where an array, and the one that it is a view of, lie in memory, and how."""
    base = array.base
    return array.__array_interface__, base.__array_interface__ if isinstance(base, np.ndarray) else None


def own_generator(rng):
    """The generator of a module: None stays None, which is the default generator at the time of each call."""
    rng = as_rng(rng)
    return None if rng is None else as_generator(rng)
