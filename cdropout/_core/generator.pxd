"""Generator, for the modules above."""
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef class Generator:
    cdef uint64_t seed_
    cdef uint64_t calls_
    cdef uint64_t spawned
    cdef int born                     # the number of forks at the time of seeding; SEEDED once a seed was given

    cdef restart(self, seed)
    cdef refresh(self)
    cdef next_id(self, cdropout_mask* mask)
    cdef go_back(self, state, int born)
    cdef take_back(self, const cdropout_mask* mask)

cpdef as_rng(rng)
cdef Generator as_generator(rng)
cpdef Generator ask(rng, list arrays)
