"""The mask stream, version 1: xoroshiro128++ in 8 lanes, seeded by a mask's seed and call number, and drawing of keep bits.

The stream is frozen: no change here may alter the drawn bits, because masks must be the same in all releases.
tests/reference.py implements the same specification in plain Python, and cdropout/stream_v1.json records hashes that both
implementations must reproduce.
"""
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_mask

cdef extern from "simd.h" nogil:
    ctypedef unsigned long long vector "cd_u64"    # a vector of 64-bit lanes; Cython passes operators on to C
    vector load "cd_load"(const void*)
    void store "cd_store"(void*, vector)
    vector zero "cd_zero"()
    bint any_bit "cd_any"(vector)
    int lowest_bit "cd_lowest_bit"(uint64_t)
    void store_bits "cd_store_bits"(void*, vector)
    uint64_t load_bits64 "cd_load_bits64"(const void*)
    void store_bits64 "cd_store_bits64"(void*, uint64_t)

cdef extern from *:
    # These are C constants, because module variables are loaded from memory and are 0 until they are initialized.
    """
    #define CD_GAMMA 0x9E3779B97F4A7C15ull
    #define CD_MIX_1 0xBF58476D1CE4E5B9ull
    #define CD_MIX_2 0x94D049BB133111EBull
    #define CD_CALL 0xD1342543DE82EF95ull
    #define CD_INCREMENT 0xA0761D6478BD642Full
    static const uint64_t CD_LANE_OFFSETS[8] = {
      0, CD_GAMMA, 2 * CD_GAMMA, 3 * CD_GAMMA, 4 * CD_GAMMA, 5 * CD_GAMMA, 6 * CD_GAMMA, 7 * CD_GAMMA,
    };
    enum { CD_VECTORS = 64 / sizeof(cd_u64), CD_PART_VECTORS = CD_VECTORS > 1 ? 2 : 1 };
    enum { CD_PARTS = CD_VECTORS / CD_PART_VECTORS };
    """
    const uint64_t GAMMA "CD_GAMMA"
    const uint64_t MIX_1 "CD_MIX_1"
    const uint64_t MIX_2 "CD_MIX_2"
    const uint64_t CALL "CD_CALL"
    const uint64_t INCREMENT "CD_INCREMENT"
    const uint64_t* LANE_OFFSETS "CD_LANE_OFFSETS"  # for each lane, its seed minus the seed of the first lane
    const int VECTORS "CD_VECTORS"                # vectors per 8 lanes
    const int PART_VECTORS "CD_PART_VECTORS"      # vectors per part of a group; more would not fit in registers
    const int PARTS "CD_PARTS"                    # parts per group

cdef enum:
    LANES = 8
    GROUP = 512                                   # elements per group, 64 per lane
    GROUP_BYTES = 64                              # bytes of packed keep bits per group
    BLOCK = 8192                                  # elements per block of 16 groups, which is seeded once
    ROUNDS = 12                                   # maximum bits of p that are compared with drawn bits; a hash breaks ties

cdef struct Stream:
    uint64_t K, c, tie, T, rest                   # constants of the mask, named as in the specification
    int rounds                                    # R in the specification
    uint64_t group                                # position of the first element of the next group
    vector s0[LANES]                              # states of the 8 generators; only the first VECTORS items are used
    vector s1[LANES]


cdef inline uint64_t mix(uint64_t z) noexcept nogil:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014), which is Stafford's variant 13."""
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return z ^ (z >> 31)


cdef inline vector draw(vector* s0, vector* s1) noexcept nogil:
    """Advance xoroshiro128++ (Blackman and Vigna 2021; constants 17, 49, 21, 28) in each lane. Return the output."""
    cdef vector a = s0[0]
    cdef vector b = s1[0]
    cdef vector r = a + b
    r = ((r << 17) | (r >> 47)) + a
    b ^= a
    s0[0] = ((a << 49) | (a >> 15)) ^ b ^ (b << 21)
    s1[0] = (b << 28) | (b >> 36)
    return r


cdef inline void mix_lanes(vector* z) noexcept nogil:
    """Apply `mix` to each lane of a vector."""
    z[0] = (z[0] ^ (z[0] >> 30)) * MIX_1
    z[0] = (z[0] ^ (z[0] >> 27)) * MIX_2
    z[0] ^= z[0] >> 31


cdef inline void seed_block(Stream* stream, uint64_t block) noexcept nogil:
    cdef uint64_t first = stream.K + GAMMA * (LANES * block + 1)
    cdef int v
    for v in range(VECTORS):
        stream.s0[v] = load(LANE_OFFSETS + v * (LANES // VECTORS)) + first
        mix_lanes(&stream.s0[v])
        stream.s1[v] = stream.s0[v] + stream.c
        mix_lanes(&stream.s1[v])


cdef inline void open_stream(Stream* stream, const cdropout_mask* mask, uint64_t group) noexcept nogil:
    """Prepare to draw the bits from position `group` on.

    `group` must be a multiple of GROUP. The drawn bits are correct only for p < 1.
    """
    cdef uint64_t key = mix(mask.seed + GAMMA)
    cdef uint64_t _step
    cdef int v
    stream.K = mix(key ^ mask.call * CALL)
    stream.c = key + mask.call + INCREMENT
    if stream.c == 0:
        stream.c = 1
    stream.tie = mix(stream.K + stream.c)
    stream.T = mask.threshold
    stream.rest = mask.threshold << ROUNDS
    stream.rounds = ROUNDS
    if mask.threshold and mask.threshold << (ROUNDS - 1) == 0:    # T needs fewer rounds: stop after its lowest set bit
        stream.rounds = 64 - lowest_bit(mask.threshold)
    stream.group = group
    seed_block(stream, group // BLOCK)
    for _step in range(group % BLOCK // GROUP * <uint64_t>stream.rounds):
        for v in range(VECTORS):
            draw(&stream.s0[v], &stream.s1[v])


cdef inline uint64_t ties_dropped(const Stream* stream, uint64_t undecided, uint64_t first) noexcept nogil:
    """Return the bits of the undecided elements that the hash drops. Bit 0 is for the element at position `first`."""
    cdef uint64_t dropped = 0
    cdef uint64_t i
    while undecided:
        i = <uint64_t>lowest_bit(undecided)
        undecided &= undecided - 1
        if mix(stream.tie + GAMMA * (first + i + 1)) < stream.rest:
            dropped |= <uint64_t>1 << i
    return dropped


cdef struct PartState:                            # the state while the keep bits of a part are drawn
    vector s0[2]
    vector s1[2]
    vector dropped[2]
    vector undecided[2]
    uint64_t T                                    # the highest bit of T is compared next


cdef inline void drop_ties(const Stream* stream, const PartState* state, int first, uint8_t* keep) noexcept nogil:
    """Clear the keep bits of undecided elements that the hash drops. The part begins at vector `first` of the group."""
    cdef uint64_t ties[LANES]
    cdef int v, lane
    for v in range(PART_VECTORS):
        store(ties + (first + v) * (LANES // VECTORS), state.undecided[v])
    for lane in range(first * (LANES // VECTORS), (first + PART_VECTORS) * (LANES // VECTORS)):
        if ties[lane]:
            ties[lane] = ties_dropped(stream, ties[lane], stream.group + 64 * <uint64_t>lane)
            store_bits64(keep + 8 * lane, load_bits64(keep + 8 * lane) & ~ties[lane])


cdef inline void begin_part(PartState* state, const Stream* stream, int part) noexcept nogil:
    """Load the states of the generators for one part of the next group, in which all elements are still undecided."""
    cdef int first = part * PART_VECTORS
    cdef int v
    state.T = stream.T
    for v in range(PART_VECTORS):
        state.s0[v] = stream.s0[first + v]
        state.s1[v] = stream.s1[first + v]
        state.dropped[v] = zero()
        state.undecided[v] = ~zero()


cdef inline void draw_round(PartState* state) noexcept nogil:
    """Compare the next bit of each uniform random number with the next bit of p."""
    cdef vector r
    cdef int v
    for v in range(PART_VECTORS):
        r = draw(&state.s0[v], &state.s1[v])
        if state.T >> 63:
            state.dropped[v] |= state.undecided[v] & ~r
            state.undecided[v] &= r
        else:
            state.undecided[v] &= ~r
    state.T <<= 1


cdef inline void end_part(const PartState* state, Stream* stream, int part, uint8_t* keep) noexcept nogil:
    """Store the states of the generators for one part, and write the keep bits of this part to the bytes of the group."""
    cdef vector undecided = zero()
    cdef int first = part * PART_VECTORS
    cdef int v
    for v in range(PART_VECTORS):
        stream.s0[first + v] = state.s0[v]
        stream.s1[first + v] = state.s1[v]
        undecided |= state.undecided[v]
        store_bits(keep + GROUP_BYTES // VECTORS * (first + v), ~state.dropped[v])
    if stream.rest and any_bit(undecided):
        drop_ties(stream, state, first, keep)


cdef inline void next_group(Stream* stream) noexcept nogil:
    stream.group += GROUP
    if stream.group % BLOCK == 0:
        seed_block(stream, stream.group // BLOCK)


cdef inline void draw_group(Stream* stream, uint8_t* keep) noexcept nogil:
    """Draw the 512 keep bits of the next group, packed into 64 bytes."""
    cdef PartState state
    cdef int part, _round
    for part in range(PARTS):
        begin_part(&state, stream, part)
        for _round in range(stream.rounds):
            draw_round(&state)
        end_part(&state, stream, part, keep)
    next_group(stream)
