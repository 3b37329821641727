/* A register as a vector of words or of elements, and what the CPU says of itself: all the C there is.
 *
 * The vector types are GCC's and Clang's, in the native width of the instruction set that this file is compiled for.
 * Another compiler gets "vectors" of one word or one element, and the same code runs.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__) /* clang-cl defines only the latter */
#define CD_HAS_VECTORS 1
#else
#define CD_HAS_VECTORS 0
#endif
#if CD_HAS_VECTORS && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#elif CD_HAS_VECTORS && defined(__AARCH64EL__)
#include <arm_neon.h>
#endif
#if defined(__AVX512VL__) /* 64 against 32: 1.11 to 1.28 x memcpy for float32, p = 0.1 (half the instructions to dispatch) */
#define CD_BYTES 64
#elif defined(__AVX2__)
#define CD_BYTES 32
#else
#define CD_BYTES 16
#endif

/* Packed bits are bytes, least significant bit first, on every machine: only these five know the byte order. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint32_t cd_order32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t cd_order64(uint64_t v) { return __builtin_bswap64(v); }
#else
static inline uint32_t cd_order32(uint32_t v) { return v; }
static inline uint64_t cd_order64(uint64_t v) { return v; }
#endif
static inline uint64_t cd_reverse_bytes64(uint64_t v) {
#if CD_HAS_VECTORS
  return __builtin_bswap64(v);
#else
  v = v >> 8 & 0x00FF00FF00FF00FF | (v & 0x00FF00FF00FF00FF) << 8;
  v = v >> 16 & 0x0000FFFF0000FFFF | (v & 0x0000FFFF0000FFFF) << 16;
  return v >> 32 | v << 32;
#endif
}
static inline uint32_t cd_load_bits32(const void *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return cd_order32(v);
}
static inline uint64_t cd_load_bits64(const void *p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return cd_order64(v);
}
static inline void cd_store_bits32(void *p, uint32_t v) {
  v = cd_order32(v);
  memcpy(p, &v, 4);
}
static inline void cd_store_bits64(void *p, uint64_t v) {
  v = cd_order64(v);
  memcpy(p, &v, 8);
}

#if CD_HAS_VECTORS

#define CD_VECTOR(type, name) typedef type name __attribute__((vector_size(CD_BYTES)))
CD_VECTOR(uint64_t, cd_u64);
CD_VECTOR(uint32_t, cd_u32);
CD_VECTOR(uint16_t, cd_u16);
CD_VECTOR(int16_t, cd_i16);
CD_VECTOR(float, cd_f32);
CD_VECTOR(double, cd_f64);
typedef cd_u64 cd_memory __attribute__((aligned(1), may_alias));

#define CD_LANES(comparison) ((cd_u32)(comparison)) /* all ones where it holds */
#define CD_FILL(type, value) ((type){0} + (value))
static inline cd_u64 cd_load(const void *p) { return *(const cd_memory *)p; }
static inline void cd_store(void *p, cd_u64 v) { *(cd_memory *)p = v; }
static inline cd_u32 cd_load_u32(const void *p) { return (cd_u32)cd_load(p); }
static inline cd_f32 cd_load_f32(const void *p) { return (cd_f32)cd_load(p); }
static inline cd_f64 cd_load_f64(const void *p) { return (cd_f64)cd_load(p); }
static inline void cd_store_u32(void *p, cd_u32 v) { cd_store(p, (cd_u64)v); }
static inline void cd_store_f32(void *p, cd_f32 v) { cd_store(p, (cd_u64)v); }
static inline void cd_store_f64(void *p, cd_f64 v) { cd_store(p, (cd_u64)v); }
static inline cd_f32 cd_select_f32(cd_u32 lanes, cd_f32 v, float other) {
  return (cd_f32)(((cd_u32)v & lanes) | ((cd_u32)CD_FILL(cd_f32, other) & ~lanes));
}
static inline cd_u32 cd_at_least_16(cd_u32 v, int16_t bound) { return (cd_u32)((cd_i16)v > (int16_t)(bound - 1)); }
static inline cd_u32 cd_bits_of(cd_f32 v) { return (cd_u32)v; }
static inline cd_f32 cd_float_of(cd_u32 v) { return (cd_f32)v; }
static inline int cd_lowest_bit(uint64_t v) { return __builtin_ctzll(v); }
static inline void cd_store_bits(void *p, cd_u64 v) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  for (int i = 0; i < CD_BYTES / 8; i++) cd_store_bits64((char *)p + 8 * i, v[i]);
#else
  cd_store(p, v);
#endif
}

static inline int cd_any(cd_u64 v) {
#if defined(__AVX512VL__)
  return _mm512_test_epi64_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#elif defined(__SSE2__)
  return _mm_movemask_epi8(_mm_cmpeq_epi32((__m128i)v, _mm_setzero_si128())) != 0xFFFF;
#else
  return (v[0] | v[1]) != 0;
#endif
}

/* kept_*(v, keep, i): v where the keep bit of its lane is set, else zero; v is vector number i of the 32 elements
 * whose keep bits, 4 bytes, are at `keep`. A select, since a product would turn a dropped NaN into NaN. */
#if defined(__AVX512VL__)
/* Here GCC 12 needs the intrinsics: it does not find the mask registers by itself. */
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  return _mm512_maskz_mov_ps((__mmask16)(cd_load_bits32(keep) >> 16 * i), v);
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) { return _mm512_maskz_mov_pd(keep[i], v); }
static inline void cd_fill_bit_masks(void) {}
#else
/* Every lane holds the same keep bits, selects its own bit, and is all ones where that is set. */
#if CD_BYTES == 32
#define CD_OWN_32 {1, 2, 4, 8, 16, 32, 64, 128}
#define CD_OWN_64 {1, 1, 2, 2, 4, 4, 8, 8}
#else
#define CD_OWN_32 {1, 2, 4, 8}
#define CD_OWN_64 {1, 1, 2, 2}
#endif
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  cd_u32 own = (cd_u32)CD_OWN_32 << (uint32_t)(i * (CD_BYTES / 4));
  return (cd_f32)((cd_u32)v & CD_LANES((CD_FILL(cd_u32, cd_load_bits32(keep)) & own) == own));
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) {
  cd_u32 own = (cd_u32)CD_OWN_64 << (uint32_t)(i * (CD_BYTES / 8));
  return (cd_f64)((cd_u32)v & CD_LANES((CD_FILL(cd_u32, cd_load_bits32(keep)) & own) == own));
}
/* Two-byte lanes look theirs up, 8 at a time: one instruction, where the above would take three and, on SSE2, seven. */
typedef uint16_t cd_bit_masks __attribute__((vector_size(16)));
static cd_bit_masks cd_bit_masks_16[256];
static inline void cd_fill_bit_masks(void) {
  for (int bits = 0; bits < 256; bits++)
    for (int lane = 0; lane < 8; lane++) cd_bit_masks_16[bits][lane] = (uint16_t)-(bits >> lane & 1);
}
static inline cd_u32 cd_kept_16(cd_u32 v, const uint8_t *keep, size_t i) {
#if CD_BYTES == 32
  return v & (cd_u32)_mm256_set_m128i((__m128i)cd_bit_masks_16[keep[2 * i + 1]], (__m128i)cd_bit_masks_16[keep[2 * i]]);
#else
  return v & (cd_u32)cd_bit_masks_16[keep[i]];
#endif
}
#endif

#else /* no vector types: one word, one element, two halves */

typedef uint64_t cd_u64;
typedef uint32_t cd_u32;
typedef float cd_f32;
typedef double cd_f64;

#define CD_LANES(comparison) (0 - (uint32_t)(comparison))
#define CD_FILL(type, value) ((type)(value))
static inline cd_u64 cd_load(const void *p) { return *(const cd_u64 *)p; }
static inline void cd_store(void *p, cd_u64 v) { *(cd_u64 *)p = v; }
static inline cd_u32 cd_load_u32(const void *p) { return *(const cd_u32 *)p; }
static inline cd_f32 cd_load_f32(const void *p) { return *(const cd_f32 *)p; }
static inline cd_f64 cd_load_f64(const void *p) { return *(const cd_f64 *)p; }
static inline void cd_store_u32(void *p, cd_u32 v) { *(cd_u32 *)p = v; }
static inline void cd_store_f32(void *p, cd_f32 v) { *(cd_f32 *)p = v; }
static inline void cd_store_f64(void *p, cd_f64 v) { *(cd_f64 *)p = v; }
static inline cd_f32 cd_select_f32(cd_u32 lanes, cd_f32 v, float other) { return lanes ? v : other; }
static inline cd_u32 cd_at_least_16(cd_u32 v, uint32_t bound) {
  return ((v & 0xFFFF) >= bound ? 0xFFFF : 0) | (v >> 16 >= bound ? 0xFFFF0000 : 0);
}
static inline cd_u32 cd_bits_of(cd_f32 v) {
  cd_u32 u;
  memcpy(&u, &v, 4);
  return u;
}
static inline cd_f32 cd_float_of(cd_u32 v) {
  cd_f32 f;
  memcpy(&f, &v, 4);
  return f;
}
static inline int cd_lowest_bit(uint64_t v) {
  int i = 0;
  for (; !(v & 1); v >>= 1) i++;
  return i;
}
static inline void cd_store_bits(void *p, cd_u64 v) { cd_store_bits64(p, v); }
static inline int cd_any(cd_u64 v) { return v != 0; }
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  return cd_float_of(cd_bits_of(v) & (0 - (cd_load_bits32(keep) >> i & 1)));
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) {
  uint64_t u;
  memcpy(&u, &v, 8);
  u &= 0 - (uint64_t)(cd_load_bits32(keep) >> i & 1);
  memcpy(&v, &u, 8);
  return v;
}
static inline void cd_fill_bit_masks(void) {}
static inline cd_u32 cd_kept_16(cd_u32 v, const uint8_t *keep, size_t i) {
  uint32_t bits = cd_load_bits32(keep) >> 2 * i;
  return v & ((0 - (bits & 1) & 0xFFFF) | (0 - (bits >> 1 & 1)) << 16);
}
#endif

/* Copy elements of `size` bytes, 2, 4 or 8, from every other place, or to every other place without touching those between.
 * Return how many were copied: none, unless there are instructions for it. */
#if defined(__AVX512VL__)
static inline size_t cd_load_alternate(void *to, const void *x, size_t n, size_t size) {
  size_t i, lanes = 32 / size;
  for (i = 0; i + lanes <= n; i += lanes) {
    const char *from = (const char *)x + 2 * i * size;
    char *here = (char *)to + i * size;
    if (size == 2)
      _mm256_storeu_si256((__m256i *)here, _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi16(0x55555555, from)));
    else if (size == 4)
      _mm256_storeu_si256((__m256i *)here, _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi32(0x5555, from)));
    else
      _mm512_mask_compressstoreu_epi64(here, 0x55, _mm512_maskz_loadu_epi64(0x55, from));
  }
  return i;
}
static inline size_t cd_store_alternate(void *y, const void *from, size_t n, size_t size) {
  size_t i, lanes = 32 / size;
  for (i = 0; i + lanes <= n; i += lanes) {
    char *to = (char *)y + 2 * i * size;
    __m256i v = _mm256_loadu_si256((const __m256i *)((const char *)from + i * size));
    if (size == 2)
      _mm512_mask_storeu_epi16(to, 0x55555555, _mm512_cvtepu16_epi32(v));
    else if (size == 4)
      _mm512_mask_storeu_epi32(to, 0x5555, _mm512_cvtepu32_epi64(v));
    else
      _mm512_mask_storeu_epi64(to, 0x55, _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(v)));
  }
  return i;
}
#else
static inline size_t cd_load_alternate(void *to, const void *x, size_t n, size_t size) {
  size_t i = 0;
#if CD_HAS_VECTORS && defined(__SSE2__)
  for (; size == 4 && i + 4 < n; i += 4) { /* not up to the last one, since what follows it is read */
    const float *from = (const float *)x + 2 * i;
    _mm_storeu_ps((float *)to + i, _mm_shuffle_ps(_mm_loadu_ps(from), _mm_loadu_ps(from + 4), 0x88));
  }
#endif
  (void)to, (void)x, (void)n, (void)size;
  return i;
}
static inline size_t cd_store_alternate(void *y, const void *from, size_t n, size_t size) {
  (void)y, (void)from, (void)n, (void)size;
  return 0;
}
#endif

static inline void cd_prefetch(const void *p) { /* to the second level of the cache */
#if CD_HAS_VECTORS
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}
/* Parts of 16 or 8 bits of the low bits of a, and for vectors of 64 bytes then of b, one part per lane. */
static inline cd_u64 cd_spread_parts(uint64_t a, uint64_t b, uint64_t bits) {
  (void)b;
#if !CD_HAS_VECTORS
  cd_u64 v = a;
#elif CD_BYTES == 64
  cd_u64 v = (cd_u64){a, a, a, a, b, b, b, b} >> ((cd_u64){0, 1, 2, 3, 0, 1, 2, 3} * bits);
#elif CD_BYTES == 32
  cd_u64 v = (cd_u64){a, a, a, a} >> ((cd_u64){0, 1, 2, 3} * bits);
#else
  cd_u64 v = (cd_u64){a, a} >> ((cd_u64){0, 1} * bits);
#endif
  return v & (((uint64_t)1 << bits) - 1);
}
static inline cd_u64 cd_zero(void) { return CD_FILL(cd_u64, 0); }
static inline cd_f32 cd_fill_f32(float v) { return CD_FILL(cd_f32, v); }
static inline cd_f64 cd_fill_f64(double v) { return CD_FILL(cd_f64, v); }

/* Half types: a 32-bit lane holds two elements. Both are widened where they stand, which needs no shuffle, multiplied as
 * float, rounded to nearest even and put back. */
#if defined(__AVX512VL__)
static inline __m512i cd_round_bf16(cd_f32 v) { /* to the upper 16 bits; what is below them means nothing */
  __m512i u = (__m512i)v;                       /* the product of a NaN ends in 16 zeros: no carry makes it an infinity */
  __m512i last = _mm512_srli_epi32(u, 16);      /* u + 0x7FFF + (last & 1) = u - ~(0x7FFE | (last & 1)) */
  return _mm512_sub_epi32(u, _mm512_ternarylogic_epi32(last, _mm512_set1_epi32(1), _mm512_set1_epi32(0x7FFE), 0x15));
}
static inline void cd_step_bf16(const void *x, void *y, const uint8_t *keep, float scale) {
  cd_u32 v = cd_load_u32(x);
  __m512i low = cd_round_bf16((cd_f32)(v << 16) * scale), high = cd_round_bf16((cd_f32)(v & 0xFFFF0000) * scale);
  const cd_u16 upper = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
                        17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
  _mm512_storeu_si512(y, _mm512_maskz_permutex2var_epi16(cd_load_bits32(keep), low, (__m512i)upper, high));
}
#elif defined(__AVX2__)
static inline void cd_step_bf16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (int i = 0; i < 2; i++) { /* both halves of the lanes are rounded together: up, where their remainders say so */
    cd_u32 v = cd_load_u32((const cd_u32 *)x + i);
    __m256i low = (__m256i)((cd_f32)(v << 16) * scale), high = (__m256i)((cd_f32)(v & 0xFFFF0000) * scale);
    cd_u16 upper = (cd_u16)_mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xAA);
    cd_u16 rest = (cd_u16)_mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
    rest = (cd_u16)_mm256_subs_epu16((__m256i)rest, (__m256i)(~upper & 1)); /* a tie goes up from odd numbers only */
    cd_store_u32((cd_u32 *)y + i, cd_kept_16((cd_u32)(upper + (rest >> 15)), keep, i));
  }
}
#else
static inline cd_u32 cd_round_bf16(cd_f32 v) { /* to the upper 16 bits; what is below them means nothing */
  cd_u32 u = cd_bits_of(v);                    /* the product of a NaN ends in 16 zeros: no carry makes it an infinity */
  return u + 0x7FFF + (u >> 16 & 1);
}
static inline void cd_step_bf16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (size_t i = 0; i < 64 / sizeof(cd_u32); i++) {
    cd_u32 v = cd_load_u32((const cd_u32 *)x + i);
    cd_u32 low = cd_round_bf16(cd_float_of(v << 16) * cd_fill_f32(scale));
    cd_u32 high = cd_round_bf16(cd_float_of(v & 0xFFFF0000) * cd_fill_f32(scale));
    cd_store_u32((cd_u32 *)y + i, cd_kept_16(low >> 16 | (high & 0xFFFF0000), keep, i));
  }
}
#endif

#if defined(__F16C__) && defined(__AVX2__) && CD_HAS_VECTORS
#if defined(__AVX512VL__)
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (int i = 0; i < 2; i++) {
    __m512 v = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x + i));
    v = _mm512_maskz_mul_ps((__mmask16)(cd_load_bits32(keep) >> 16 * i), v, _mm512_set1_ps(scale));
    _mm256_storeu_si256((__m256i *)y + i, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
}
#else
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (int i = 0; i < 4; i++) {
    cd_f32 v = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x + i)) * scale;
    cd_bit_masks rounded = (cd_bit_masks)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); /* straight to memory it takes 2 cycles, not 1 */
    _mm_storeu_si128((__m128i *)y + i, (__m128i)(rounded & cd_bit_masks_16[keep[i]]));
  }
}
#endif
#elif defined(__AARCH64EL__) && CD_HAS_VECTORS
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (int i = 0; i < 8; i++) { /* its conversions, too, keep a NaN's payload and make it quiet */
    cd_f32 v = (cd_f32)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)x + 8 * i))) * scale;
    vst1_u8((uint8_t *)y + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32((float32x4_t)cd_kept_f32(v, keep, i))));
  }
}
#else
#if CD_BYTES == 16 && defined(__SSE2__) && CD_HAS_VECTORS
#define CD_HAS_FAST_F16 1
static inline cd_f32 cd_min_f32(cd_f32 v, float most) { return _mm_min_ps(v, cd_fill_f32(most)); }
static inline cd_f32 cd_max_f32(cd_f32 v, float least) { return _mm_max_ps(v, cd_fill_f32(least)); }
#else
#define CD_HAS_FAST_F16 0
static inline cd_f32 cd_min_f32(cd_f32 v, float most) { return cd_select_f32(CD_LANES(v < most), v, most); }
static inline cd_f32 cd_max_f32(cd_f32 v, float least) { return cd_select_f32(CD_LANES(v > least), v, least); }
#endif
static inline cd_u32 cd_scale_magnitude_f16(cd_u32 magnitude, cd_f32 scale) {      /* finite, in bits 13 to 27, to bits 0 to 15 */
  cd_f32 v = cd_float_of(magnitude) * 0x1p112f * scale;                            /* the first product is exact */
  cd_u32 u = cd_bits_of(cd_min_f32(v, 0x1p16f));                                   /* 2^16 becomes infinity below */
  cd_u32 exponent = cd_bits_of(cd_max_f32(cd_float_of(u & 0x7F800000), 0x1p-14f)); /* 2^-14: subnormals' too */
  cd_u32 aligner = exponent + (13 << 23);                                          /* its last bit is the result's last */
  cd_u32 digits = cd_bits_of(cd_float_of(u) + cd_float_of(aligner)) - aligner;     /* rounded by the sum */
  return digits + ((exponent - (113u << 23)) >> 13);
}
static inline cd_u32 cd_scale_f16(cd_u32 v, cd_f32 scale, uint32_t invalid) {
  cd_u32 low = cd_scale_magnitude_f16((v & 0x7FFF) << 13, scale);
  cd_u32 high = cd_scale_magnitude_f16(v >> 3 & 0x0FFFE000, scale);
  cd_u32 finite = low | high << 16;
  cd_u32 special = cd_at_least_16(v & 0x7FFF7FFF, 0x7C00); /* infinity and NaN stay what they are, but for ... */
  cd_u32 nan = cd_at_least_16(v & 0x7FFF7FFF, 0x7C01);
  cd_u32 quiet = (nan & 0x02000200) | (~nan & invalid); /* ... the quiet bit, and infinity times 0 */
  return (finite & ~special) | ((v | quiet) & special) | (v & 0x80008000);
}
#if CD_HAS_FAST_F16
__attribute__((noinline, cold, unused)) static void cd_step_any_f16(const void *x, void *y, const uint8_t *keep, float scale) {
#else
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
#endif
  for (size_t i = 0; i < 64 / sizeof(cd_u32); i++) {
    cd_u32 v = cd_scale_f16(cd_load_u32((const cd_u32 *)x + i), cd_fill_f32(scale), scale == 0 ? 0x82008200 : 0);
    cd_store_u32((cd_u32 *)y + i, cd_kept_16(v, keep, i));
  }
}
#if CD_HAS_FAST_F16
/* In half the instructions, what lies below 2^16 / scale: none is an infinity or a NaN, nor becomes one but by rounding up. */
static inline cd_u32 cd_scale_one_f16(cd_u32 magnitudes, int widen, cd_f32 factor) {
  cd_f32 v = (cd_f32)_mm_madd_epi16((__m128i)magnitudes, _mm_set1_epi32(widen)) * factor;      /* one half of each lane, times 4 */
  cd_u32 exponent = cd_bits_of(cd_max_f32(cd_float_of(cd_bits_of(v) & 0x7F800000), 0x1p-12f)); /* as above */
  cd_f32 sum = v + cd_float_of(exponent + (13 << 23));                      /* rounded; its lower 16 bits are the digits */
  return (cd_u32)_mm_madd_epi16((__m128i)sum, _mm_set1_epi32(8 << 16 | 1)); /* and the exponent, modulo 64, goes above them */
}
static inline int16_t cd_too_large_f16(float scale) { /* the least magnitude that is not scaled so: 2^16 / scale, or less */
  int exponent = (int)(cd_bits_of(cd_fill_f32(scale))[0] >> 23) - 126; /* scale < 2^exponent; large if negative or NaN */
  return (int16_t)(exponent < -64 || exponent > 13 ? 0 : 0x7C00 - ((exponent > 0 ? exponent : 0) << 10));
}
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  const cd_u32 *from = (const cd_u32 *)x;
  cd_i16 most = {0};
  for (int i = 0; i < 4; i++) most = (cd_i16)_mm_max_epi16((__m128i)most, (__m128i)(cd_load_u32(from + i) & 0x7FFF7FFF));
  if (_mm_movemask_epi8((__m128i)(most >= cd_too_large_f16(scale)))) {
    cd_step_any_f16(x, y, keep, scale);
    return;
  }
  for (int i = 0; i < 4; i++) {
    cd_u32 v = cd_load_u32(from + i), magnitudes = v & 0x7FFF7FFF;
    cd_u32 low = cd_scale_one_f16(magnitudes, 1 << 13, cd_fill_f32(scale * 0x1p114f));
    cd_u32 high = cd_scale_one_f16(magnitudes, 1 << 29, cd_fill_f32(scale * 0x1p114f));
    cd_store_u32((cd_u32 *)y + i, cd_kept_16((low & 0xFFFF) | high << 16 | (v & 0x80008000), keep, i));
  }
}
#endif
#endif

/* Stores past the cache, of whole lines, which need not be read first: `to` is a multiple of 64. */
#if defined(__SSE2__) && CD_HAS_VECTORS
#define CD_STREAMS 1
#else
#define CD_STREAMS 0
#endif
static inline void cd_store_streaming(void *to, const void *from, size_t bytes) {
#if CD_STREAMS
  for (size_t i = 0; i < bytes / CD_BYTES; i++) {
    cd_u64 v = cd_load((const cd_memory *)from + i);
#if CD_BYTES == 64
    _mm512_stream_si512((__m512i *)to + i, (__m512i)v);
#elif CD_BYTES == 32
    _mm256_stream_si256((__m256i *)to + i, (__m256i)v);
#else
    _mm_stream_si128((__m128i *)to + i, (__m128i)v);
#endif
  }
#else
  memcpy(to, from, bytes);
#endif
}
static inline void cd_end_streaming(void) { /* other stores, and so other threads, wait for them */
#if CD_STREAMS
  _mm_sfence();
#endif
}

/* What the CPU has and its system saves (see NEEDED in dispatch.pyx): ECX of CPUID's leaf 1, EBX of its leaf 7, and XCR0.
 * All are 0 on another CPU. The compilers' own __builtin_cpu_supports does not link with clang-cl, and is 0 with Zig. */
typedef struct {
  uint32_t leaf1, leaf7;
  uint64_t xcr0;
} cd_cpu;
#if CD_HAS_VECTORS && (defined(__x86_64__) || defined(__i386__))
static inline uint32_t cd_cpuid(uint32_t leaf, uint32_t *b, uint32_t *c) { /* returns EAX */
  uint32_t a, d;
  __asm__ volatile("cpuid" : "=a"(a), "=b"(*b), "=c"(*c), "=d"(d) : "0"(leaf), "2"(0));
  return a;
}
static inline cd_cpu cd_probe_cpu(void) {
  cd_cpu cpu = {0, 0, 0};
  uint32_t b, c, low, high;
  if (cd_cpuid(0, &b, &c) < 7) return cpu; /* the highest leaf */
  cd_cpuid(1, &b, &cpu.leaf1);
  cd_cpuid(7, &cpu.leaf7, &c);
  if (cpu.leaf1 >> 27 & 1) { /* OSXSAVE: the system has enabled XGETBV */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    cpu.xcr0 = (uint64_t)high << 32 | low;
  }
#if defined(__APPLE__)
  cpu.xcr0 |= 0xE0; /* macOS enables the registers of AVX-512 in a thread that first uses them */
#endif
  return cpu;
}
#else
static inline cd_cpu cd_probe_cpu(void) { return (cd_cpu){0, 0, 0}; }
#endif

/* The compiler, for `cdropout info`. */
#define CD_TEXT(number) CD_TEXT_OF(number)
#define CD_TEXT_OF(number) #number
#if defined(__clang__)
#define CD_COMPILER "Clang " CD_TEXT(__clang_major__) "." CD_TEXT(__clang_minor__) "." CD_TEXT(__clang_patchlevel__)
#elif defined(__GNUC__)
#define CD_COMPILER "GCC " CD_TEXT(__GNUC__) "." CD_TEXT(__GNUC_MINOR__) "." CD_TEXT(__GNUC_PATCHLEVEL__)
#elif defined(_MSC_VER)
#define CD_COMPILER "MSVC " CD_TEXT(_MSC_VER)
#else
#define CD_COMPILER "an unknown compiler"
#endif
