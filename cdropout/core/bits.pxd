"""Packed bits, least significant first: appended to others, and turned into bytes and back."""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "simd.h" nogil:
    uint64_t load_bits64 "cd_load_bits64"(const void*)
    void store_bits64 "cd_store_bits64"(void*, uint64_t)

cdef struct Writer:                               # packed bits on their way to memory
    uint8_t* to
    uint64_t held                                 # those that do not fill a word yet
    uint64_t count                                # how many, under 64


cdef inline void write_bits(Writer* writer, uint64_t word, uint64_t count) noexcept nogil:
    """Append the lowest `count` bits of word, 1 to 64."""
    word &= ~<uint64_t>0 >> (64 - count)
    writer.held |= word << writer.count
    if writer.count + count < 64:
        writer.count += count
        return
    store_bits64(writer.to, writer.held)
    writer.to += 8
    writer.held = word >> 1 >> (63 - writer.count)    # a shift by 64 is undefined
    writer.count += count - 64


cdef inline void write_group(Writer* writer, const uint8_t* bits) noexcept nogil:
    """Append the 512 bits of a group."""
    cdef uint64_t held = writer.held
    cdef uint64_t word
    cdef int i
    if writer.count == 0:
        memcpy(writer.to, bits, 64)
    else:
        for i in range(8):
            word = load_bits64(bits + 8 * i)
            store_bits64(writer.to + 8 * i, held | word << writer.count)
            held = word >> (64 - writer.count)
        writer.held = held
    writer.to += 64


cdef inline void spread_bits(uint8_t* out, const uint8_t* bits, size_t n) noexcept nogil:
    """A byte of 0 or 1 for each of n bits, n a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):                       # each byte looks at its own bit; adding 127 carries any to the top
        lanes = bits[i] * <uint64_t>0x0101010101010101 & <uint64_t>0x8040201008040201
        store_bits64(out + 8 * i, (lanes + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7 & <uint64_t>0x0101010101010101)


cdef inline void pack_bools(uint8_t* bits, const uint8_t* bools, size_t n) noexcept nogil:
    """The bits of n bytes, 0 where they are 0; n a multiple of 8."""
    cdef uint64_t lanes
    cdef size_t i
    for i in range(n // 8):                       # adding 127 carries any bit of a byte to its highest, ...
        lanes = load_bits64(bools + 8 * i)
        lanes = (lanes | (lanes & <uint64_t>0x7F7F7F7F7F7F7F7F) + <uint64_t>0x7F7F7F7F7F7F7F7F) >> 7
        lanes &= <uint64_t>0x0101010101010101     # ... and the product gathers the 8 in one byte
        bits[i] = <uint8_t>(lanes * <uint64_t>0x0102040810204080 >> 56)
