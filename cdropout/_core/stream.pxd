"""THE GENERATOR: xoroshiro128++ in 8 lanes, how a mask seeds it, and the Bernoulli bits made from it (stream version 1).

Frozen: every constant here is part of the promise that a mask never changes. tests/reference.py states the same in
plain Python, and cdropout/stream_v1.json holds both to recorded hashes.
"""
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_mask

cdef extern from "simd.h" nogil:
    ctypedef unsigned long long word "cd_word"    # a vector: Cython writes the operators, C does the rest
    word load "cd_load"(const void*)
    void store "cd_store"(void*, word)
    word zero "cd_zero"()
    bint any_bit "cd_any"(word)
    int lowest_bit "cd_lowest_bit"(uint64_t)
    void store_bits "cd_store_bits"(void*, word)
    uint64_t load_bits64 "cd_load_bits64"(const void*)
    void store_bits64 "cd_store_bits64"(void*, uint64_t)

cdef extern from *:
    # constants of C: module variables would be loaded from memory, and would be zero until the import is over
    """
    #define CD_GAMMA 0x9E3779B97F4A7C15ull
    #define CD_MIX_1 0xBF58476D1CE4E5B9ull
    #define CD_MIX_2 0x94D049BB133111EBull
    #define CD_CALL 0xD1342543DE82EF95ull
    #define CD_INCREMENT 0xA0761D6478BD642Full
    static const uint64_t CD_STEPS[8] = {
      0, CD_GAMMA, 2 * CD_GAMMA, 3 * CD_GAMMA, 4 * CD_GAMMA, 5 * CD_GAMMA, 6 * CD_GAMMA, 7 * CD_GAMMA,
    };
    enum { CD_WORDS = 64 / sizeof(cd_word), CD_PART = CD_WORDS > 1 ? 2 : 1, CD_PARTS = CD_WORDS / CD_PART };
    """
    const uint64_t GAMMA "CD_GAMMA"
    const uint64_t MIX_1 "CD_MIX_1"
    const uint64_t MIX_2 "CD_MIX_2"
    const uint64_t CALL "CD_CALL"
    const uint64_t INCREMENT "CD_INCREMENT"
    const uint64_t* STEPS "CD_STEPS"              # from the first lane's seed to each lane's
    const int WORDS "CD_WORDS"                    # vectors that hold the 8 lanes
    const int PART "CD_PART"                      # of them that are drawn together: more would not fit the registers
    const int PARTS "CD_PARTS"

cdef enum:
    LANES = 8
    GROUP = 512                                   # elements: 64 a lane
    GROUP_BYTES = 64                              # of packed keep bits
    BLOCK = 8192                                  # elements: 16 groups between two seedings
    ROUNDS = 12                                   # bits of p that are drawn; a hash decides past them

cdef struct Stream:
    uint64_t K, c, tie, T, rest                   # one mask: the letters are the specification's
    int rounds                                    # R
    uint64_t group                                # the first element of the group that is drawn next
    word s0[LANES]                                # 8 generators of 128 bits; the first WORDS of each array are used
    word s1[LANES]


cdef inline uint64_t mix(uint64_t z) noexcept nogil:
    """splitmix64's finaliser (Steele, Lea and Flood 2014, variant 13 of Stafford)."""
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return z ^ (z >> 31)


cdef inline word draw(word* s0, word* s1) noexcept nogil:
    """One step of xoroshiro128++ (Blackman and Vigna 2021; 17, 49, 21, 28) in every lane of a vector."""
    cdef word a = s0[0]
    cdef word b = s1[0]
    cdef word r = a + b
    r = ((r << 17) | (r >> 47)) + a
    b ^= a
    s0[0] = ((a << 49) | (a >> 15)) ^ b ^ (b << 21)
    s1[0] = (b << 28) | (b >> 36)
    return r


cdef inline void mix_lanes(word* z) noexcept nogil:
    """mix in every lane of a vector."""
    z[0] = (z[0] ^ (z[0] >> 30)) * MIX_1
    z[0] = (z[0] ^ (z[0] >> 27)) * MIX_2
    z[0] ^= z[0] >> 31


cdef inline void seed_block(Stream* stream, uint64_t block) noexcept nogil:
    cdef uint64_t first = stream.K + GAMMA * (LANES * block + 1)
    cdef int v
    for v in range(WORDS):
        stream.s0[v] = load(STEPS + v * (LANES // WORDS)) + first
        mix_lanes(&stream.s0[v])
        stream.s1[v] = stream.s0[v] + stream.c
        mix_lanes(&stream.s1[v])


cdef inline void open_stream(Stream* stream, const cdropout_mask* mask, uint64_t group) noexcept nogil:
    """Make ready to draw the group that begins at element `group`, a multiple of GROUP; 0 < p < 1."""
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
    if mask.threshold and mask.threshold << (ROUNDS - 1) == 0:    # T ends within fewer bits: stop at its lowest
        stream.rounds = 64 - lowest_bit(mask.threshold)
    stream.group = group
    seed_block(stream, group // BLOCK)
    for _step in range(group % BLOCK // GROUP * <uint64_t>stream.rounds):
        for v in range(WORDS):
            draw(&stream.s0[v], &stream.s1[v])


cdef inline uint64_t ties_dropped(const Stream* stream, uint64_t undecided, uint64_t first) noexcept nogil:
    """Of the 64 elements from `first` on, those that the drawn bits left undecided and the hash drops."""
    cdef uint64_t dropped = 0
    cdef uint64_t i
    while undecided:
        i = <uint64_t>lowest_bit(undecided)
        undecided &= undecided - 1
        if mix(stream.tie + GAMMA * (first + i + 1)) < stream.rest:
            dropped |= <uint64_t>1 << i
    return dropped


cdef struct Rounds:                               # part of a group on its way: the lanes, and what its elements have come to
    word s0[2]
    word s1[2]
    word dropped[2]
    word undecided[2]
    uint64_t T                                    # the bit of p to compare with next is the highest


cdef inline void drop_ties(const Stream* stream, const Rounds* rounds, int first, uint8_t* keep) noexcept nogil:
    cdef uint64_t left[LANES]
    cdef int v, lane
    for v in range(PART):
        store(left + (first + v) * (LANES // WORDS), rounds.undecided[v])
    for lane in range(first * (LANES // WORDS), (first + PART) * (LANES // WORDS)):
        if left[lane]:
            left[lane] = ties_dropped(stream, left[lane], stream.group + 64 * <uint64_t>lane)
            store_bits64(keep + 8 * lane, load_bits64(keep + 8 * lane) & ~left[lane])


cdef inline void begin_part(Rounds* rounds, const Stream* stream, int part) noexcept nogil:
    """Begin with the lanes of one part of the next group."""
    cdef int first = part * PART
    cdef int v
    rounds.T = stream.T
    for v in range(PART):
        rounds.s0[v] = stream.s0[first + v]
        rounds.s1[v] = stream.s1[first + v]
        rounds.dropped[v] = zero()
        rounds.undecided[v] = ~zero()


cdef inline void draw_round(Rounds* rounds) noexcept nogil:
    """Compare one more bit of the part's uniform numbers with that of p."""
    cdef word r
    cdef int v
    for v in range(PART):
        r = draw(&rounds.s0[v], &rounds.s1[v])
        if rounds.T >> 63:
            rounds.dropped[v] |= rounds.undecided[v] & ~r
            rounds.undecided[v] &= r
        else:
            rounds.undecided[v] &= ~r
    rounds.T <<= 1


cdef inline void end_part(const Rounds* rounds, Stream* stream, int part, uint8_t* keep) noexcept nogil:
    """Write the part's keep bits to where they stand in the group's 64 bytes."""
    cdef word left = zero()
    cdef int first = part * PART
    cdef int v
    for v in range(PART):
        stream.s0[first + v] = rounds.s0[v]
        stream.s1[first + v] = rounds.s1[v]
        left |= rounds.undecided[v]
        store_bits(keep + GROUP_BYTES // WORDS * (first + v), ~rounds.dropped[v])
    if stream.rest and any_bit(left):
        drop_ties(stream, rounds, first, keep)


cdef inline void next_group(Stream* stream) noexcept nogil:
    stream.group += GROUP
    if stream.group % BLOCK == 0:
        seed_block(stream, stream.group // BLOCK)


cdef inline void draw_group(Stream* stream, uint8_t* keep) noexcept nogil:
    """The 512 keep bits of the next group, packed into 64 bytes."""
    cdef Rounds rounds
    cdef int part, _round
    for part in range(PARTS):
        begin_part(&rounds, stream, part)
        for _round in range(stream.rounds):
            draw_round(&rounds)
        end_part(&rounds, stream, part, keep)
    next_group(stream)
