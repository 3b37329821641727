/* The C interface for C and C++: a mask by value, the kernels, and the table that holds them. Must match cdropout/__init__.pxd. */
#ifndef CDROPOUT_H
#define CDROPOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A mask: which elements are dropped, and the factor of the others. Owned by the caller, plain data.
 * threshold is floor(p * 2^64); scale is 1 / (1 - p). p = 0 is {0, 1.0}; p = 1, which keeps nothing, is {0, 0.0}. */
typedef struct {
  uint64_t seed, call, threshold;
  double scale;
} cdropout_mask;

typedef enum { CDROPOUT_FLOAT32 = 0, CDROPOUT_FLOAT64 = 1 } cdropout_dtype;

#define CDROPOUT_TABLE_VERSION 1

typedef struct {
  uint32_t version; /* CDROPOUT_TABLE_VERSION of the package that runs */
  uint32_t size;    /* bytes of its table: it only ever grows at its end */
  int (*mask_init)(cdropout_mask *mask, uint64_t seed, uint64_t call, double p);
  int (*apply)(cdropout_dtype dtype, const void *x, void *y, size_t n, const cdropout_mask *mask, uint64_t start);
  int (*apply_bits)(cdropout_dtype dtype, const void *x, void *y, size_t n, const uint8_t *bits, uint64_t bit_start, double scale);
  int (*apply_bools)(cdropout_dtype dtype, const void *x, ptrdiff_t x_stride, void *y, ptrdiff_t y_stride, const uint8_t *keep,
                     ptrdiff_t keep_stride, size_t n, double scale);
  void (*bits)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  void (*bools)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
} cdropout_table;

#ifdef __cplusplus
}
#endif
#endif
