/* Steps of 32 elements for float16 and bfloat16: multiply by the scale and set dropped elements to 0; convert to float and back.
 *
 * Unless the CPU has instructions that convert the type, a 32-bit lane holds two elements, and each of them is converted to
 * float in its lane, without a shuffle. All products are rounded to nearest even.
 */
#pragma once
#include "simd.h"

#if defined(__AVX512VL__)
static inline __m512i cd_round_bf16(cd_f32 v) { /* the result is in the upper 16 bits; the lower ones are undefined */
  __m512i u = (__m512i)v;                       /* a NaN ends in 16 zeros, so no carry can turn the NaN into an infinity */
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
  for (int i = 0; i < 2; i++) { /* round both elements of each lane together */
    cd_u32 v = cd_load_u32((const cd_u32 *)x + i);
    __m256i low = (__m256i)((cd_f32)(v << 16) * scale), high = (__m256i)((cd_f32)(v & 0xFFFF0000) * scale);
    cd_u16 upper = (cd_u16)_mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xAA);
    cd_u16 rest = (cd_u16)_mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
    rest = (cd_u16)_mm256_subs_epu16((__m256i)rest, (__m256i)(~upper & 1)); /* a tie is rounded up from an odd number only */
    cd_store_u32((cd_u32 *)y + i, cd_kept_16((cd_u32)(upper + (rest >> 15)), keep, i));
  }
}
#else
static inline cd_u32 cd_round_bf16(cd_f32 v) { /* the result is in the upper 16 bits; the lower ones are undefined */
  cd_u32 u = cd_bits_of(v);                    /* a NaN ends in 16 zeros, so no carry can turn the NaN into an infinity */
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
    /* masked after the conversion, because a conversion to memory takes 2 cycles instead of 1 */
    cd_bit_masks rounded = (cd_bit_masks)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)y + i, (__m128i)(rounded & cd_bit_masks_16[keep[i]]));
  }
}
#endif
#elif defined(__AARCH64EL__) && CD_HAS_VECTORS
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  for (int i = 0; i < 8; i++) { /* these conversions keep the payload of a NaN and make the NaN quiet */
    cd_f32 v = (cd_f32)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)x + 8 * i))) * scale;
    vst1_u8((uint8_t *)y + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32((float32x4_t)cd_kept_f32(v, keep, i))));
  }
}
#else
#if CD_BYTES == 16 && defined(__SSE2__) && CD_HAS_VECTORS
#define CD_HAS_FAST_F16 1
static inline cd_f32 cd_min_f32(cd_f32 v, float bound) { return _mm_min_ps(v, cd_fill_f32(bound)); }
static inline cd_f32 cd_max_f32(cd_f32 v, float bound) { return _mm_max_ps(v, cd_fill_f32(bound)); }
#else
#define CD_HAS_FAST_F16 0
static inline cd_f32 cd_min_f32(cd_f32 v, float bound) { return cd_select_f32(CD_LANES(v < bound), v, bound); }
static inline cd_f32 cd_max_f32(cd_f32 v, float bound) { return cd_select_f32(CD_LANES(v > bound), v, bound); }
#endif
static inline cd_u32 cd_scale_magnitude_f16(cd_u32 magnitude, cd_f32 scale) {      /* input: bits 13 to 27, finite; output: bits 0 to 15 */
  cd_f32 v = cd_float_of(magnitude) * 0x1p112f * scale;                            /* the first product is exact */
  cd_u32 u = cd_bits_of(cd_min_f32(v, 0x1p16f));                                   /* 2^16 becomes infinity below */
  cd_u32 exponent = cd_bits_of(cd_max_f32(cd_float_of(u & 0x7F800000), 0x1p-14f)); /* at least 2^-14, the exponent of subnormals */
  cd_u32 rounder = exponent + (13 << 23);                                          /* adding this rounds to the precision of the result */
  cd_u32 digits = cd_bits_of(cd_float_of(u) + cd_float_of(rounder)) - rounder;     /* this addition rounds */
  return digits + ((exponent - (113u << 23)) >> 13);
}
static inline cd_u32 cd_scale_f16(cd_u32 v, cd_f32 scale, uint32_t invalid) {
  cd_u32 low = cd_scale_magnitude_f16((v & 0x7FFF) << 13, scale);
  cd_u32 high = cd_scale_magnitude_f16(v >> 3 & 0x0FFFE000, scale);
  cd_u32 finite = low | high << 16;
  cd_u32 special = cd_at_least_16(v & 0x7FFF7FFF, 0x7C00); /* infinity and NaN, which are not multiplied */
  cd_u32 nan = cd_at_least_16(v & 0x7FFF7FFF, 0x7C01);
  cd_u32 quiet = (nan & 0x02000200) | (~nan & invalid); /* NaN becomes quiet, and infinity times 0 becomes NaN */
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
/* This function needs half as many instructions as cd_scale_f16. All magnitudes must be below 2^16 / scale: then no product is NaN, and
 * every product is below 2^16 before it is rounded. */
static inline cd_u32 cd_scale_fast_f16(cd_u32 magnitudes, int multiplier, cd_f32 scale) {
  cd_f32 v = (cd_f32)_mm_madd_epi16((__m128i)magnitudes, _mm_set1_epi32(multiplier)) * scale;  /* one element per lane, times 4 */
  cd_u32 exponent = cd_bits_of(cd_max_f32(cd_float_of(cd_bits_of(v) & 0x7F800000), 0x1p-12f)); /* as in cd_scale_magnitude_f16 */
  cd_f32 sum = v + cd_float_of(exponent + (13 << 23));                      /* this addition rounds; the lower 16 bits are the digits */
  return (cd_u32)_mm_madd_epi16((__m128i)sum, _mm_set1_epi32(8 << 16 | 1)); /* the exponent, modulo 64, is added above the digits */
}
static inline int16_t cd_fast_limit_f16(float scale) { /* the magnitude from which cd_step_any_f16 is used; <= 2^16 / scale */
  int exponent = (int)(cd_bits_of(cd_fill_f32(scale))[0] >> 23) - 126; /* scale < 2^exponent */
  return (int16_t)(exponent < -64 || exponent > 13 ? 0 : 0x7C00 - ((exponent > 0 ? exponent : 0) << 10));
}
static inline void cd_step_f16(const void *x, void *y, const uint8_t *keep, float scale) {
  const cd_u32 *from = (const cd_u32 *)x;
  cd_i16 largest = {0};
  for (int i = 0; i < 4; i++) largest = (cd_i16)_mm_max_epi16((__m128i)largest, (__m128i)(cd_load_u32(from + i) & 0x7FFF7FFF));
  if (_mm_movemask_epi8((__m128i)(largest >= cd_fast_limit_f16(scale)))) {
    cd_step_any_f16(x, y, keep, scale);
    return;
  }
  for (int i = 0; i < 4; i++) {
    cd_u32 v = cd_load_u32(from + i), magnitudes = v & 0x7FFF7FFF;
    cd_u32 low = cd_scale_fast_f16(magnitudes, 1 << 13, cd_fill_f32(scale * 0x1p114f));
    cd_u32 high = cd_scale_fast_f16(magnitudes, 1 << 29, cd_fill_f32(scale * 0x1p114f));
    cd_store_u32((cd_u32 *)y + i, cd_kept_16((low & 0xFFFF) | high << 16 | (v & 0x80008000), keep, i));
  }
}
#endif
#endif

/* Conversions to float are exact; conversions from float round to the nearest number. */
static inline void cd_widen_bf16(const void *x, float *y) {
  for (int i = 0; i < 32; i++) {
    uint16_t v;
    memcpy(&v, (const char *)x + 2 * i, 2);
    uint32_t u = (uint32_t)v << 16;
    memcpy(y + i, &u, 4);
  }
}
static inline void cd_narrow_bf16(const float *x, void *y) { /* a NaN must end in 16 zeros, like a NaN computed from widened numbers */
  for (int i = 0; i < 32; i++) {
    uint32_t u;
    memcpy(&u, x + i, 4);
    uint16_t v = (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
    memcpy((char *)y + 2 * i, &v, 2);
  }
}
#if defined(__F16C__) && defined(__AVX2__) && CD_HAS_VECTORS
static inline void cd_widen_f16(const void *x, float *y) {
  for (int i = 0; i < 4; i++) _mm256_storeu_ps(y + 8 * i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x + i)));
}
static inline void cd_narrow_f16(const float *x, void *y) {
  for (int i = 0; i < 4; i++) _mm_storeu_si128((__m128i *)y + i, _mm256_cvtps_ph(_mm256_loadu_ps(x + 8 * i), _MM_FROUND_TO_NEAREST_INT));
}
#else
static inline void cd_widen_f16(const void *x, float *y) {
  for (int i = 0; i < 32; i++) {
    uint16_t v;
    memcpy(&v, (const char *)x + 2 * i, 2);
    uint32_t magnitude = v & 0x7FFFu, u = magnitude << 13;
    float f;
    memcpy(&f, &u, 4);
    f *= 0x1p112f; /* corrects the exponent; the product is exact */
    memcpy(&u, &f, 4);
    u |= (magnitude >= 0x7C00 ? 0x7F800000 : 0) | (uint32_t)(v & 0x8000u) << 16;
    memcpy(y + i, &u, 4);
  }
}
static inline void cd_narrow_f16(const float *x, void *y) { /* rounds in the same way as cd_scale_magnitude_f16 */
  for (int i = 0; i < 32; i++) {
    uint32_t u, top, digits;
    memcpy(&u, x + i, 4);
    uint32_t magnitude = u & 0x7FFFFFFF, finite = magnitude < 0x47800000 ? magnitude : 0x47800000; /* 2^16 becomes infinity */
    uint32_t exponent = (finite & 0x7F800000) > 0x38800000 ? finite & 0x7F800000 : 0x38800000;     /* at least 2^-14 */
    float f, rounder;
    top = exponent + (13 << 23);
    memcpy(&f, &finite, 4);
    memcpy(&rounder, &top, 4);
    f += rounder; /* this addition rounds */
    memcpy(&digits, &f, 4);
    uint32_t v = digits - top + ((exponent - (113u << 23)) >> 13);
    v = magnitude > 0x7F800000 ? 0x7E00 | (magnitude >> 13 & 0x3FF) : v;
    uint16_t result = (uint16_t)(v | (u >> 16 & 0x8000));
    memcpy((char *)y + 2 * i, &result, 2);
  }
}
#endif
