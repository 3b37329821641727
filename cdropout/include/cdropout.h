/* The C interface for C and C++: a mask by value, the kernels, and the table that holds them. Must match cdropout/__init__.pxd.
 *
 * The table travels in a capsule: PyCapsule_Import cannot be used for it, but PyCapsule_GetPointer(table, "cdropout.core.table")
 * with `table` the attribute of that name of the module cdropout.core.dispatch gives a `const cdropout_table *`. */
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

typedef enum { CDROPOUT_FLOAT32 = 0, CDROPOUT_FLOAT64 = 1, CDROPOUT_FLOAT16 = 2, CDROPOUT_BFLOAT16 = 3 } cdropout_dtype;

/* Rows and columns of elements, and of bytes that say which are kept, at any strides: [0] from row to row, [1] from column
 * to column, in bytes. A stride of 0 in keep shares one decision, as between the elements of a channel. */
typedef struct {
  size_t rows, columns;
  ptrdiff_t x[2], y[2], keep[2];
} cdropout_plane;

#define CDROPOUT_TABLE_VERSION 1

/* No function touches Python, allocates, or keeps state: any thread may call any of them at any time. x and y are the same
 * array or lie apart; none needs an alignment. n counts elements, start and bit_start too: where the range lies in the mask,
 * or in bits. Packed bits are bytes, least significant bit first. -1 is returned for a dtype that is not taken, and by
 * mask_init for a p that is not in [0, 1]; nothing is written then. Else 0 is returned. */
typedef struct {
  uint32_t version; /* CDROPOUT_TABLE_VERSION of the package that runs */
  uint32_t size;    /* bytes of its table: it only ever grows at its end */
  /* The mask of a seed and a call number. */
  int (*mask_init)(cdropout_mask *mask, uint64_t seed, uint64_t call, double p);
  /* y = x * scale where the mask keeps, else +0.0: dropout's forward and its backward. */
  int (*apply)(cdropout_dtype dtype, const void *x, void *y, size_t n, const cdropout_mask *mask, uint64_t start);
  /* The same with given keep bits, */
  int (*apply_bits)(cdropout_dtype dtype, const void *x, void *y, size_t n, const uint8_t *bits, uint64_t bit_start, double scale);
  /* and with bytes that are not 0 where an element is kept, at any strides. */
  int (*apply_bools)(cdropout_dtype dtype, const void *x, void *y, const uint8_t *keep, const cdropout_plane *plane, double scale);
  /* What the mask keeps, as packed bits (the last byte filled up with 0) and as bytes of 0 or 1. */
  void (*bits)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  void (*bools)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  /* y = residual + (x + bias) * scale where the mask keeps, else residual + 0; float32 and float64. bias has `columns` elements,
   * the same for every row; y may be x or residual. */
  int (*bias_dropout_add)(cdropout_dtype dtype, const void *x, const void *bias, const void *residual, void *y, size_t rows,
                          size_t columns, const cdropout_mask *mask, uint64_t start);
  /* gx = gy * scale where kept, else +0.0; the sum of gx over the rows is added to gbias. */
  int (*bias_dropout_add_backward)(cdropout_dtype dtype, const void *gy, void *gx, double *gbias, size_t rows, size_t columns,
                                   const cdropout_mask *mask, uint64_t start);
  /* apply with one decision for a whole row (plane->keep = {1, 0}: channels first) or a whole column ({0, 1}: channels last):
   * plane->keep counts elements of the mask here. -1 for other strides. */
  int (*apply_channels)(cdropout_dtype dtype, const void *x, void *y, const cdropout_plane *plane, const cdropout_mask *mask,
                        uint64_t start);
} cdropout_table;

#ifdef __cplusplus
}
#endif
#endif
