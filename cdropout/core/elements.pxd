"""What is done to the elements of each type: mask and scale, 32 of them at a time, in vectors as wide as a register."""
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "simd.h" nogil:
    ctypedef float f32 "cd_f32"                   # vectors; cd_u32 holds two half-size elements in each lane
    ctypedef double f64 "cd_f64"
    ctypedef unsigned int u32 "cd_u32"
    f32 load_f32 "cd_load_f32"(const void*)
    f64 load_f64 "cd_load_f64"(const void*)
    u32 load_u32 "cd_load_u32"(const void*)
    void store_f32 "cd_store_f32"(void*, f32)
    void store_f64 "cd_store_f64"(void*, f64)
    void store_u32 "cd_store_u32"(void*, u32)
    f32 fill_f32 "cd_fill_f32"(float)
    f64 fill_f64 "cd_fill_f64"(double)
    u32 scale_f16 "cd_scale_f16"(u32, f32)
    u32 scale_bf16 "cd_scale_bf16"(u32, f32)
    f32 kept_f32 "cd_kept_f32"(f32, const uint8_t*, size_t)
    f64 kept_f64 "cd_kept_f64"(f64, const uint8_t*, size_t)
    u32 kept_16 "cd_kept_16"(u32, const uint8_t*, size_t)

cdef struct half:                                 # structs, since Cython would take two ctypedefs of one type for one
    uint16_t bits

cdef struct bfloat:
    uint16_t bits

ctypedef fused element:
    float
    double
    half
    bfloat

cdef enum:
    WORD = 32                                     # elements that one step takes, and 4 bytes of keep bits


cdef inline void mask_and_scale(const element* x, element* y, const uint8_t* keep, size_t n, double scale) noexcept nogil:
    """y = x * scale where the bit of keep is set, else +0.0; n a multiple of WORD. y is x, or lies apart."""
    cdef size_t i, j
    cdef f32 factor = fill_f32(<float>scale)
    cdef f64 factor_f64 = fill_f64(scale)
    for i in range(n // WORD):
        if element is float:
            for j in range(WORD * sizeof(float) // sizeof(f32)):
                store_f32(<f32*>y + j, kept_f32(load_f32(<f32*>x + j) * factor, keep, j))
        elif element is double:
            for j in range(WORD * sizeof(double) // sizeof(f64)):
                store_f64(<f64*>y + j, kept_f64(load_f64(<f64*>x + j) * factor_f64, keep, j))
        elif element is half:
            for j in range(WORD * sizeof(half) // sizeof(u32)):
                store_u32(<u32*>y + j, kept_16(scale_f16(load_u32(<u32*>x + j), factor), keep, j))
        else:
            for j in range(WORD * sizeof(bfloat) // sizeof(u32)):
                store_u32(<u32*>y + j, kept_16(scale_bf16(load_u32(<u32*>x + j), factor), keep, j))
        x += WORD
        y += WORD
        keep += WORD // 8


cdef inline void mask_and_scale_any(const element* x, element* y, const uint8_t* keep, size_t n, double scale) noexcept nogil:
    """mask_and_scale for any n; reads the 4 bytes of keep that the last element's bit is in."""
    cdef size_t whole = n // WORD * WORD
    cdef size_t rest = n - whole
    cdef element end[WORD]                        # the last elements, padded to a whole step
    mask_and_scale(x, y, keep, whole, scale)
    if rest:
        memset(end, 0, sizeof(end))
        memcpy(end, x + whole, rest * sizeof(element))
        mask_and_scale(<const element*>end, end, keep + whole // 8, WORD, scale)
        memcpy(y + whole, end, rest * sizeof(element))
