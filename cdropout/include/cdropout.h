/* The C interface for C and C++: a mask by value, the kernels, and the table that holds them. Must match cdropout/__init__.pxd.
 *
 * Include Python.h first, and cdropout_import() at the end of this file gets the table. Without Python.h the table is what
 * somebody hands over: the capsule "cdropout.core.table", attribute `table` of the module cdropout.core.dispatch, points to it. */
#ifndef CDROPOUT_H
#define CDROPOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A mask: which elements are dropped, and the factor of the others. Owned by the caller, plain data.
 * threshold is floor(p * 2^64); scale is 1 / (1 - p), or another factor. A scale of 0, as of p = 1, keeps nothing; a
 * threshold of 0 drops nothing. */
typedef struct {
  uint64_t seed, call, threshold;
  double scale;
} cdropout_mask;

typedef enum {
  CDROPOUT_FLOAT32 = 0,
  CDROPOUT_FLOAT64 = 1,
  CDROPOUT_FLOAT16 = 2,
  CDROPOUT_BFLOAT16 = 3,
  CDROPOUT_BOOL = 4,
  /* Added to one of these, in apply and apply_bits: y is part of an array that does not fit the cache, so store it past it. For
   * an y that does not fit by itself they do so anyway. The bytes are the same. */
  CDROPOUT_PART_OF_LARGE = 256
} cdropout_dtype;

/* One axis of x, of y and of a mask: its length, the bytes from one element to the next in x and in y, and the elements of the
 * mask. A stride of 0 in the mask shares one draw along the axis. */
typedef struct {
  size_t length;
  ptrdiff_t x, y;
  int64_t mask;
} cdropout_axis;

/* The table only ever grows at its end, and each time its version with it: a program runs with the version that it was
 * compiled for and with all later ones. */
#define CDROPOUT_TABLE_VERSION 1

/* What holds for all kernels:
 *
 * - None touches Python, allocates, locks or keeps state. Any thread may call any of them at any time, with or without the
 *   GIL, on ranges that lie apart: `start` says where in the mask a range begins, so that each thread can take its own.
 * - n, rows, columns, start and bit_start count elements; strides count bytes. Positions in a mask are 64-bit numbers: after
 *   the last, 2^64 - 1, comes 0. Packed bits are bytes, least significant bit first.
 * - What is read and what is written is the same array or lies apart; a part of both is undefined. Elements, bits and bytes
 *   may lie at any address; a mask, a plane and the doubles of gbias lie where C would put them.
 * - 0 is returned, or -1 for a dtype that is not taken and for a null pointer; then nothing has been written. For 0 elements
 *   the pointers are not looked at, but for that to a plane.
 * - A dropped element is +0.0, whatever x is there. A kept one is x * scale, rounded once; the half types go by float32, to
 *   which the scale is rounded too. */
typedef struct {
  uint32_t version; /* CDROPOUT_TABLE_VERSION of the package that runs */
  uint32_t size;    /* bytes of its table */
  /* The mask of a seed and a call number, of all 64 bits each. -1 too for a p that is not in [0, 1]. */
  int (*mask_init)(cdropout_mask *mask, uint64_t seed, uint64_t call, double p);
  /* y = x * scale where the mask keeps, else +0.0: dropout's forward and, with the same mask, its backward. */
  int (*apply)(cdropout_dtype dtype, const void *x, void *y, size_t n, const cdropout_mask *mask, uint64_t start);
  /* The same with given keep bits, from bit number bit_start on, */
  int (*apply_bits)(cdropout_dtype dtype, const void *x, void *y, size_t n, const uint8_t *bits, uint64_t bit_start, double scale);
  /* What the mask keeps, as packed bits (n / 8 bytes, rounded up; the last is filled up with 0) and as n bytes of 0 or 1. */
  int (*bits)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  int (*bools)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  /* y = residual + (x + bias) * scale where the mask keeps, else residual + 0; float32 and float64, rows without gaps. bias has
   * `columns` elements, the same for every row; y may be x or residual. */
  int (*bias_dropout_add)(cdropout_dtype dtype, const void *x, const void *bias, const void *residual, void *y, size_t rows, size_t columns,
                          const cdropout_mask *mask, uint64_t start);
  /* gx = gy * scale where kept, else +0.0; the sum of gx over the rows is added to the `columns` doubles of gbias. */
  int (*bias_dropout_add_backward)(cdropout_dtype dtype, const void *gy, void *gx, double *gbias, size_t rows, size_t columns,
                                   const cdropout_mask *mask, uint64_t start);
  /* apply, apply_bits, and the same with bytes that are not 0 where an element is kept, for arrays at any strides: up to 64 axes,
   * in any order. start is the position in the mask (bit_start: in the bits; bools: the address) of the element at x and y.
   * The axes' stride `mask` counts elements of the mask, bits or bytes. For CDROPOUT_BOOL y is 1 where an element is kept and
   * otherwise 0, and x is not read. */
  int (*apply_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                       const cdropout_mask *mask, uint64_t start);
  int (*apply_bits_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                            const uint8_t *bits, uint64_t bit_start, double scale);
  int (*apply_bools_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                             const uint8_t *bools, double scale);
  /* Alpha dropout of float32 and float64: y = x * scale + shift, each operation rounded, where the mask keeps, else constant. If the
   * mask's scale is 0, y is +0.0. */
  int (*apply_alpha_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                             const cdropout_mask *mask, uint64_t start, double shift, double constant);
} cdropout_table;

#ifdef __cplusplus
}
#endif
#endif

#if defined(Py_PYTHON_H) && !defined(CDROPOUT_IMPORT)
#define CDROPOUT_IMPORT
/* The table of the installed package, good until the process ends; NULL with ImportError set if there is none, or one that is
 * older than this header. Needs the GIL: call it once, when your module is imported. */
static inline const cdropout_table *cdropout_import(void) {
  const char *name = "cdropout.core.table";
  PyObject *capsule, *dispatch = PyImport_ImportModule("cdropout.core.dispatch");
  const cdropout_table *table = NULL;
  if (dispatch == NULL) return NULL;
  capsule = PyObject_GetAttrString(dispatch, "table");
  Py_DECREF(dispatch);
  if (PyCapsule_IsValid(capsule, name)) table = (const cdropout_table *)PyCapsule_GetPointer(capsule, name);
  Py_XDECREF(capsule); /* the table is static data of a module, and those are never unloaded */
  if (table == NULL) {
    PyErr_Format(PyExc_ImportError, "cdropout.core.dispatch.table has to be a capsule named %s", name);
    return NULL;
  }
  if (table->version < CDROPOUT_TABLE_VERSION || table->size < sizeof(cdropout_table)) {
    PyErr_Format(PyExc_ImportError,
                 "this was compiled for version %u of cdropout's table (%u bytes), but the installed cdropout has version %u (%u bytes)",
                 (unsigned)CDROPOUT_TABLE_VERSION, (unsigned)sizeof(cdropout_table), (unsigned)table->version, (unsigned)table->size);
    return NULL;
  }
  return table;
}
#endif
