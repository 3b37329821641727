"""Generator and the checks of p, seed and call, for core/masks.pyx."""
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef double as_probability(object p) except -1
cdef object as_index(object value, name)
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
    cdef take_back(self, const cdropout_mask* mask)

cdef as_rng(rng)
cdef Generator as_generator(rng)
