"""Generator, and conversions of the rng argument, for the other compiled modules."""
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef class Generator:
    cdef uint64_t seed_
    cdef uint64_t calls_
    cdef uint64_t spawned
    cdef int forks_at_seeding         # the value of forks when the seed was drawn from entropy; SEEDED if a seed was given

    cdef reseed(self, seed)
    cdef reseed_after_fork(self)
    cdef next_id(self, cdropout_mask* mask)
    cdef restore_state(self, state, int forks_at_seeding)
    cdef undo_next_id(self, const cdropout_mask* mask)

cpdef as_rng(rng)
cdef Generator as_generator(rng)
cpdef Generator generator_for(rng, list arrays)
