/* Softmax with dropout of the rows of a matrix, and its gradient, for attention.
 *
 * The sums over a row are computed in 32 lanes, in the same order for each width of vectors.
 */
#pragma once
#include <math.h>
#include "simd.h"

/* Return the larger number of each pair, or b if one of them is NaN. */
static inline cd_f32 cd_larger_f32(cd_f32 a, cd_f32 b) {
#if CD_HAS_VECTORS && defined(__AVX512VL__)
  return _mm512_max_ps(a, b);
#elif CD_HAS_VECTORS && defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif CD_HAS_VECTORS && defined(__SSE2__)
  return _mm_max_ps(a, b);
#elif CD_HAS_VECTORS
  cd_u32 lanes = (cd_u32)(a > b);
  return (cd_f32)(((cd_u32)a & lanes) | ((cd_u32)b & ~lanes));
#else
  return a > b ? a : b;
#endif
}
static inline cd_f64 cd_larger_f64(cd_f64 a, cd_f64 b) {
#if CD_HAS_VECTORS && defined(__AVX512VL__)
  return _mm512_max_pd(a, b);
#elif CD_HAS_VECTORS && defined(__AVX2__)
  return _mm256_max_pd(a, b);
#elif CD_HAS_VECTORS && defined(__SSE2__)
  return _mm_max_pd(a, b);
#elif CD_HAS_VECTORS
  cd_u64 lanes = (cd_u64)(a > b);
  return (cd_f64)(((cd_u64)a & lanes) | ((cd_u64)b & ~lanes));
#else
  return a > b ? a : b;
#endif
}

/* Return a * b + c. If the instruction set has such an instruction, the result is rounded once. */
static inline cd_f32 cd_mul_add_f32(cd_f32 a, cd_f32 b, cd_f32 c) {
#if CD_HAS_VECTORS && defined(__AVX512VL__)
  return _mm512_fmadd_ps(a, b, c);
#elif CD_HAS_VECTORS && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
static inline cd_f64 cd_mul_add_f64(cd_f64 a, cd_f64 b, cd_f64 c) {
#if CD_HAS_VECTORS && defined(__AVX512VL__)
  return _mm512_fmadd_pd(a, b, c);
#elif CD_HAS_VECTORS && defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

/* Return exp(x) with an error of at most 2 units in the last place, 1 if x > 0, or 0 if exp(x) would be subnormal. NaN is kept.
 *
 * x is n * log(2) + r, where n is an integer and |r| < 0.35, so that exp(x) is 2^n times the Taylor polynomial of exp(r). The
 * addition of 1.5 * 2^23 (or 2^52) rounds x / log(2) to an integer, which is in the lowest bits of the sum. log(2) is split in
 * two numbers; the product of n and the first one is exact. */
static inline cd_f32 cd_exp_f32(cd_f32 x) {
  static const float terms[] = {1 / 5040.0f, 1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
  cd_f32 shift = CD_FILL(cd_f32, 12582912.0f), y = CD_FILL(cd_f32, terms[0]);
  x = cd_float_of(cd_bits_of(x) & ~CD_LANES(x > CD_FILL(cd_f32, 0)));
  cd_f32 sum = cd_mul_add_f32(x, CD_FILL(cd_f32, 1.44269504f), shift), n = sum - shift;
  cd_f32 r = cd_mul_add_f32(n, CD_FILL(cd_f32, -0.693359375f), x);
  cd_u32 tiny = CD_LANES(x < CD_FILL(cd_f32, -87.0f));
  r = cd_mul_add_f32(n, CD_FILL(cd_f32, 2.12194440e-4f), r);
  for (int i = 1; i < 8; i++) y = cd_mul_add_f32(y, r, CD_FILL(cd_f32, terms[i]));
  y *= cd_float_of((cd_bits_of(sum) + 127) << 23); /* 2^n */
  return cd_float_of(cd_bits_of(y) & ~tiny);
}
static inline cd_u64 cd_less_f64(cd_f64 a, cd_f64 b) { /* return all ones in lanes where a < b */
#if CD_HAS_VECTORS
  return (cd_u64)(a < b);
#else
  return 0 - (uint64_t)(a < b);
#endif
}
static inline cd_f64 cd_clear_f64(cd_f64 v, cd_u64 lanes) { /* return v, with 0 in these lanes */
  cd_u64 bits;
  memcpy(&bits, &v, sizeof bits);
  bits &= ~lanes;
  memcpy(&v, &bits, sizeof v);
  return v;
}
static inline cd_f64 cd_exp_f64(cd_f64 x) {
  static const double terms[] = {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
                                 1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       0.5,          1,           1};
  cd_f64 shift = CD_FILL(cd_f64, 6755399441055744.0), y = CD_FILL(cd_f64, terms[0]), power;
  cd_u64 bits;
  x = cd_clear_f64(x, cd_less_f64(CD_FILL(cd_f64, 0), x));
  cd_f64 sum = cd_mul_add_f64(x, CD_FILL(cd_f64, 1.4426950408889634), shift), n = sum - shift;
  cd_f64 r = cd_mul_add_f64(n, CD_FILL(cd_f64, -0.693145751953125), x);
  r = cd_mul_add_f64(n, CD_FILL(cd_f64, -1.42860682030941723212e-6), r);
  for (int i = 1; i < 14; i++) y = cd_mul_add_f64(y, r, CD_FILL(cd_f64, terms[i]));
  memcpy(&bits, &sum, sizeof bits);
  bits = (bits + 1023) << 52; /* 2^n */
  memcpy(&power, &bits, sizeof power);
  return cd_clear_f64(y * power, cd_less_f64(x, CD_FILL(cd_f64, -708.0)));
}

#define CD_STEP 32              /* elements per step */
#define CD_SUM_LENGTH (1 << 12) /* a sum over more elements is split, so that it has few rounding errors */

/* The rows `begin` to `end` - 1 of a matrix of weights. The keep bit of column c in row r has the index r * bits_per_row + c.
 * Row r sees the columns 0, ..., visible - 1 + r; the other weights are 0. */
typedef struct {
  size_t begin, end, columns, visible;
  const uint8_t *bits;
  size_t bits_per_row;
  double scale;
} cd_softmax;

static inline size_t cd_visible(const cd_softmax *matrix, size_t row) {
  return matrix->visible + row < matrix->columns ? matrix->visible + row : matrix->columns;
}
/* Copy n <= 32 keep bits to 4 bytes. Only bytes that contain these bits are read. */
static inline void cd_load_keep(uint8_t *keep, const cd_softmax *matrix, size_t row, size_t column, size_t n) {
  size_t first = row * matrix->bits_per_row + column, shift = first % 8, bytes = (shift + n + 7) / 8;
  const uint8_t *from = matrix->bits + first / 8;
  uint64_t bits = 0;
  if (n == CD_STEP)
    bits = cd_load_bits32(from) | (uint64_t)from[bytes - 1] << 32;
  else
    for (size_t i = 0; i < bytes; i++) bits |= (uint64_t)from[i] << 8 * i;
  cd_store_bits32(keep, (uint32_t)(bits >> shift));
}

#define CD_REAL float
#define CD_VECTOR_OF(name) name##_f32
#include "softmax_rows.h"
#define CD_REAL double
#define CD_VECTOR_OF(name) name##_f64
#include "softmax_rows.h"
