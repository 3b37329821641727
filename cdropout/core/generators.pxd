"""Generator and the checks of p, flags, seed and call, for the modules above."""
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef double as_probability(object p) except -1
cdef object as_index(object value, name)
cdef bint as_numpy_flag(object value, name) except -1


cdef inline bint as_flag(object value, name) except -1:
    """Return a bool argument; TypeError, with its name, if it is neither a bool nor a numpy.bool_."""
    if value is True:
        return True
    if value is False:
        return False
    return as_numpy_flag(value, name)


cdef uint64_t as_seed(object seed) except? 0
cdef uint64_t as_count(object value, name) except? 0

cdef class Generator:
    cdef uint64_t seed_
    cdef uint64_t calls_
    cdef uint64_t spawned
    cdef int born                     # the number of forks at the time of seeding; SEEDED once a seed was given

    cdef restart(self, seed)
    cdef refresh(self)
    cdef name_next(self, cdropout_mask* mask)
    cdef go_back(self, state, int born)
    cdef take_back(self, const cdropout_mask* mask)

cpdef as_rng(rng)
cdef Generator as_generator(rng)
cpdef Generator ask(rng, list arrays)
