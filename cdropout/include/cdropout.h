/* The C interface for C and C++: cdropout_mask and the table of kernels. The declarations must match cdropout/__init__.pxd.
 *
 * If Python.h is included before this header, cdropout_import() returns the table. A program without Python.h can receive
 * the address of the table, an int, from the Python function cdropout.get_table(). The table is in an extension module of the
 * package. Therefore a C program is either called from Python, or embeds Python. */
#ifndef CDROPOUT_H
#define CDROPOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A mask determines which elements are dropped, and the scale of the other elements. The caller owns the struct. mask_init
 * sets these values:
 *
 *   p           threshold        scale        elements
 *   0           0                1            all are kept
 *   1           0                0            all are dropped
 *   otherwise   floor(p * 2^64)  1 / (1 - p)  each is dropped with probability threshold / 2^64
 *
 * The caller may set another scale. If it is 0, all elements are dropped, with any threshold. */
typedef struct {
  uint64_t seed, call, threshold;
  double scale;
} cdropout_mask;

typedef enum {
  CDROPOUT_FLOAT32 = 0,
  CDROPOUT_FLOAT64 = 1,
  CDROPOUT_FLOAT16 = 2,
  CDROPOUT_BFLOAT16 = 3,
  CDROPOUT_BOOL = 4 /* only for apply_strided, apply_bits_strided and apply_bools_strided, as described there */
} cdropout_dtype;

/* The argument `flags` is a sum of these values, or 0. */
typedef enum {
  /* y is part of an array that does not fit in the cache. A kernel then uses streaming stores if they save time. The flag is
   * not needed if y alone does not fit in the cache. The flag never changes the result. */
  CDROPOUT_PART_OF_LARGE = 1
} cdropout_flags;

/* One axis of x, y and a mask: the length, the strides of x and y in bytes, and the stride of the mask in elements. If packed bits
 * or bools replace the mask, `mask` is the stride in bits or in bytes. A stride may be negative. If the stride of the mask is 0, all
 * elements along the axis share one draw. */
typedef struct {
  size_t length;
  ptrdiff_t x, y;
  int64_t mask;
} cdropout_axis;

/* Later versions of the table only add functions at its end. A program works with the version that it was compiled for and with
 * all later versions. */
#define CDROPOUT_TABLE_VERSION 1

/* All kernels follow these rules:
 *
 * - A kernel does not call Python, does not lock and has no state that a call changes. Any thread may call any kernel at any
 *   time, with or without the GIL, if no call writes memory that another call uses at the same time. `start` is the position
 *   in the mask of the first element, so several threads can apply one mask to different ranges.
 * - Most kernels allocate no memory. A strided kernel may allocate up to 257 KiB during a call; if the allocation fails, the
 *   call takes longer.
 * - n, rows, columns, start and bit_start are numbers of elements; the strides of x and y are numbers of bytes. Positions in a mask
 *   are 64-bit numbers, which wrap around after 2^64 - 1. Packed bits are bytes, least significant bit first.
 * - Input and output must be identical or must not overlap, and the elements of y must not overlap each other. Elements, bits and
 *   bytes need no alignment; masks, axes and the doubles of gbias need the alignment of their C types.
 * - A kernel returns 0 on success. It returns -1 and writes nothing if a dtype or a flag is unknown or not supported, a
 *   pointer is NULL, or ndim is not in [0, 64], except as described below. If there are no elements, every pointer except
 *   the one to the axes may be NULL.
 * - Unless its comment below says otherwise, a kernel writes +0.0 for a dropped element, for any value of x, and x * scale
 *   for a kept element. For float64, the product is computed in float64. For the other types, the scale is rounded to
 *   float32 and the product is computed in float32. For float16 and bfloat16, the product is then rounded to that type.
 * - A scale must not be negative, infinite or NaN, also after it is rounded to float32. Kernels do not check this. */
typedef struct {
  uint32_t version; /* CDROPOUT_TABLE_VERSION of the installed package */
  uint32_t size;    /* size of the table in bytes */
  /* Initialize a mask from a seed, a call number and p. The function also returns -1 if p is not in [0, 1]. */
  int (*mask_init)(cdropout_mask *mask, uint64_t seed, uint64_t call, double p);
  /* y = x * scale where the mask keeps an element, otherwise +0.0. The backward pass is the same function with the same mask. */
  int (*apply)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, size_t n, const cdropout_mask *mask, uint64_t start);
  /* The same as apply, with packed bits instead of a mask. Element i is kept if the bit at position bit_start + i is 1. Use
   * mask.scale of mask_init as the scale: 1 / (1 - p) is infinite for p = 1. */
  int (*apply_bits)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, size_t n, const uint8_t *bits, uint64_t bit_start,
                    double scale);
  /* Write 1 where the mask keeps an element, otherwise 0. `bits` writes packed bits (n / 8 bytes, rounded up; the unused
   * bits are 0), and `bools` writes n bytes. */
  int (*bits)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  int (*bools)(uint8_t *out, size_t n, const cdropout_mask *mask, uint64_t start);
  /* y = residual + (x + bias) * scale where the mask keeps an element, otherwise residual + 0. The results of the three operations
   * are rounded to the type. The rows have no gaps. bias has `columns` elements and is added to every row; it may be NULL, and then
   * nothing is added. y may be x or residual. */
  int (*bias_dropout_add)(cdropout_dtype dtype, const void *x, const void *bias, const void *residual, void *y, size_t rows, size_t columns,
                          const cdropout_mask *mask, uint64_t start);
  /* gx = gy * scale where the mask keeps an element, otherwise +0.0. The sum of gx over the rows is added to the `columns` doubles
   * of gbias. */
  int (*bias_dropout_add_backward)(cdropout_dtype dtype, const void *gy, void *gx, double *gbias, size_t rows, size_t columns,
                                   const cdropout_mask *mask, uint64_t start);
  /* The same as apply and apply_bits for arrays with any strides and 0 to 64 axes, in any order. x and y point to the
   * elements with index 0 along every axis, also if a stride is negative. For this element, start is the position in the
   * mask, bit_start is the position in the packed bits, and bools points to the byte. In apply_bools_strided, an element is
   * kept if its byte is not 0. All bits or bytes from the first to the last element may be read, including those between
   * elements. A call uses up to 100 KB of stack.
   *
   * If dtype is CDROPOUT_BOOL, y gets one byte per element: 1 where an element is kept, otherwise 0. Then x and the strides of x
   * are not read, x may be NULL, and the argument scale is not used. */
  int (*apply_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                       const cdropout_mask *mask, uint64_t start);
  int (*apply_bits_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                            const uint8_t *bits, uint64_t bit_start, double scale);
  int (*apply_bools_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                             const uint8_t *bools, double scale);
  /* Alpha dropout, for float32 and float64 only: y = x * scale + shift where the mask keeps an element, otherwise y = constant.
   * The product and the sum are rounded separately. If the scale of the mask is 0, y = +0.0. */
  int (*apply_alpha_strided)(cdropout_dtype dtype, uint32_t flags, const void *x, void *y, int ndim, const cdropout_axis *axes,
                             const cdropout_mask *mask, uint64_t start, double shift, double constant);
} cdropout_table;

#ifdef __cplusplus
}
#endif
#endif

#if !defined(CDROPOUT_IMPORT) && !defined(Py_PYTHON_H)
#undef cdropout_import
#define cdropout_import() include_Python_h_before_cdropout_h /* not declared, so that a call does not compile */
#elif !defined(CDROPOUT_IMPORT)
#define CDROPOUT_IMPORT
#undef cdropout_import
/* Return the table of the installed package, which is valid until the process ends. If the package is not installed, or is
 * older than this header, return NULL and set ImportError. If the import of the package fails for another reason, return
 * NULL and set the exception of the import. The caller must hold the GIL. Call this function once, at the import of a
 * module. */
static inline const cdropout_table *cdropout_import(void) {
  const char *name = "cdropout._core.table";
  PyObject *capsule, *dispatch = PyImport_ImportModule("cdropout._core.dispatch");
  const cdropout_table *table = NULL;
  if (dispatch == NULL) return NULL;
  capsule = PyObject_GetAttrString(dispatch, "table");
  Py_DECREF(dispatch);
  if (PyCapsule_IsValid(capsule, name)) table = (const cdropout_table *)PyCapsule_GetPointer(capsule, name);
  Py_XDECREF(capsule); /* the table is static data of an extension module, which is never unloaded */
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
