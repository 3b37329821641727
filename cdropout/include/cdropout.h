/* The C interface for C and C++: cdropout_mask, and the table of kernels. Must match cdropout/__init__.pxd.
 *
 * Where Python.h is included first, cdropout_import() returns the table. Without Python.h this header works alone: a program
 * gets the table as a pointer, which is what cdropout.get_table() returns in Python, as an int. */
#ifndef CDROPOUT_H
#define CDROPOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A mask: which elements are dropped, and the scale of the others. The caller owns it.
 * threshold is floor(p * 2^64), and scale is 1 / (1 - p) or another number. With a scale of 0, as for p = 1, nothing is kept;
 * with a threshold of 0 everything is. */
typedef struct {
  uint64_t seed, call, threshold;
  double scale;
} cdropout_mask;

typedef enum {
  CDROPOUT_FLOAT32 = 0,
  CDROPOUT_FLOAT64 = 1,
  CDROPOUT_FLOAT16 = 2,
  CDROPOUT_BFLOAT16 = 3,
  CDROPOUT_BOOL = 4 /* only for apply_strided, apply_bits_strided and apply_bools_strided: see there */
} cdropout_dtype;

/* Flags are added up; 0 means none. */
typedef enum {
  /* y is part of an array that does not fit in the cache, so it is written with streaming stores. The kernels write a y that does
   * not fit in the cache by itself in this way without the flag. The result is the same. */
  CDROPOUT_PART_OF_LARGE = 1
} cdropout_flags;

/* One axis of x, y and a mask: its length, the bytes from one index to the next in x and in y, and the elements of the mask (or
 * bits, or bytes) from one index to the next. A stride may be negative. Where the stride of the mask is 0, one draw is shared along the axis. */
typedef struct {
  size_t length;
  ptrdiff_t x, y;
  int64_t mask;
} cdropout_axis;

/* The table only grows at its end, and its version grows with it: a program runs with the version that it was compiled for and
 * with all later ones. */
#define CDROPOUT_TABLE_VERSION 1

/* All kernels follow these rules:
 *
 * - A kernel does not call Python, lock or keep state. Any thread may call any kernel at any time, with or without the GIL, if no
 *   two calls write the same memory. `start` is the position in the mask of the first element, so that each thread can take a
 *   range of its own.
 * - Most kernels allocate no memory. The strided ones may allocate up to 257 KiB during a call on more than 2^18 elements; if there
 *   is no memory, the call takes longer.
 * - n, rows, columns, start and bit_start count elements; the strides of x and y count bytes. Positions in a mask are 64-bit
 *   numbers: after the last, 2^64 - 1, comes 0. Packed bits are bytes, least significant bit first.
 * - Input and output must be identical or must not overlap, and no two elements of y may overlap. Elements, bits and bytes need
 *   no alignment; masks, axes and the doubles of gbias need that of their C types.
 * - A kernel returns 0. It returns -1 and writes nothing if a dtype or a flag is unknown or not supported, a pointer is NULL or ndim is not in [0, 64].
 *   If there are no elements, every pointer but the one to the axes may be NULL.
 * - A dropped element is +0.0, whatever x holds. A kept one is x * scale, rounded once; the half types are computed in float32, to
 *   which the scale is rounded too. */
typedef struct {
  uint32_t version; /* CDROPOUT_TABLE_VERSION of the installed package */
  uint32_t size;    /* bytes of its table */
  /* Fill in the mask of a seed and a call number, of 64 bits each. Returns -1 too if p is not in [0, 1]. */
  int (*mask_init)(cdropout_mask *mask, uint64_t seed, uint64_t call, double p);
  /* y = x * scale where the mask keeps, otherwise +0.0: the forward pass and, with the same mask, the backward pass. */
  int (*apply)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, size_t n, const cdropout_mask *mask, uint64_t start);
  /* The same with packed bits, from bit number bit_start on, in place of a mask: an element is kept if its bit is 1. */
  int (*apply_bits)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, size_t n, const uint8_t *bits, uint64_t bit_start,
                    double scale);
  /* Write which elements the mask keeps: as packed bits (n / 8 bytes, rounded up; the rest of the last byte is 0), and as n bytes
   * of 0 or 1. */
  int (*bits)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  int (*bools)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  /* y = residual + (x + bias) * scale where the mask keeps, otherwise residual + 0; float32 and float64, rows without gaps. bias has
   * `columns` elements, the same for every row; y may be x or residual. */
  int (*bias_dropout_add)(cdropout_dtype dtype, const void *x, const void *bias, const void *residual, void *y, size_t rows, size_t columns,
                          const cdropout_mask *mask, uint64_t start);
  /* gx = gy * scale where kept, otherwise +0.0; the sum of gx over the rows is added to the `columns` doubles of gbias. */
  int (*bias_dropout_add_backward)(cdropout_dtype dtype, const void *gy, void *gx, double *gbias, size_t rows, size_t columns,
                                   const cdropout_mask *mask, uint64_t start);
  /* The same for arrays with any strides: ndim axes, from 0 to 64, in any order. x and y point to the elements with index 0 along
   * every axis, and start is the position of that element in the mask. apply_bits_strided takes packed bits, where positions are
   * numbers of bits. apply_bools_strided takes bytes, where bools points to the byte of that element; an element is kept if its
   * byte is not 0. All bits or bytes from the first to the last one may be read, also those of no element. A call needs 100 KB of
   * stack.
   *
   * If dtype is CDROPOUT_BOOL, y gets one byte per element: 1 where an element is kept, otherwise 0. Then x and the strides of x
   * are not read, x may be NULL, and scale is not used. */
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

#if !defined(CDROPOUT_IMPORT) && !defined(Py_PYTHON_H)
#undef cdropout_import
#define cdropout_import() include_Python_h_before_cdropout_h /* is not declared: an error if it is used */
#elif !defined(CDROPOUT_IMPORT)
#define CDROPOUT_IMPORT
#undef cdropout_import
/* Return the table of the installed package, which is valid until the process ends. Return NULL with ImportError set if there is
 * none, or if it is older than this header. Needs the GIL: call it once, when your module is imported. */
static inline const cdropout_table *cdropout_import(void) {
  const char *name = "cdropout._core.table";
  PyObject *capsule, *dispatch = PyImport_ImportModule("cdropout._core.dispatch");
  const cdropout_table *table = NULL;
  if (dispatch == NULL) return NULL;
  capsule = PyObject_GetAttrString(dispatch, "table");
  Py_DECREF(dispatch);
  if (PyCapsule_IsValid(capsule, name)) table = (const cdropout_table *)PyCapsule_GetPointer(capsule, name);
  Py_XDECREF(capsule); /* the table is static data of a module, and those are never unloaded */
  if (table == NULL) {
    PyErr_Format(PyExc_ImportError, "cdropout._core.dispatch.table has to be a capsule named %s", name);
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
