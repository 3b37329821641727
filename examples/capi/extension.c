/* A C extension that applies a separate mask to each row of a float32 array; row i has call number i. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "cdropout.h" /* after Python.h, which declares what cdropout_import uses */

static const cdropout_table *kernels;

static int apply_rows(const float *x, float *y, size_t rows, size_t columns, double p, uint64_t seed) {
  cdropout_mask mask;
  if (kernels->mask_init(&mask, seed, 0, p) < 0) return -1;
  for (size_t row = 0; row < rows; row++) {
    mask.call = row;
    kernels->apply(CDROPOUT_FLOAT32, 0, x + row * columns, y + row * columns, columns, &mask, 0);
  }
  return 0;
}

static PyObject *dropout_rows(PyObject *self, PyObject *args) {
  PyObject *x_object, *y_object, *result = NULL;
  Py_buffer x, y;
  double p;
  unsigned long long seed;
  int status;
  (void)self;
  if (!PyArg_ParseTuple(args, "OOdK", &x_object, &y_object, &p, &seed)) return NULL;
  if (PyObject_GetBuffer(x_object, &x, PyBUF_ND | PyBUF_FORMAT) < 0) return NULL;
  if (PyObject_GetBuffer(y_object, &y, PyBUF_ND | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) goto release_x;
  if (x.ndim != 2 || y.ndim != 2 || memcmp(x.shape, y.shape, sizeof(Py_ssize_t[2])) || strcmp(x.format, "f") || strcmp(y.format, "f")) {
    PyErr_SetString(PyExc_ValueError, "x and y have to be float32 arrays of one shape with two dimensions");
    goto release_y;
  }
  Py_BEGIN_ALLOW_THREADS
  status = apply_rows(x.buf, y.buf, (size_t)x.shape[0], (size_t)x.shape[1], p, seed);
  Py_END_ALLOW_THREADS
  if (status < 0)
    PyErr_SetString(PyExc_ValueError, "p has to be between 0 and 1");
  else
    result = Py_NewRef(Py_None);
release_y:
  PyBuffer_Release(&y);
release_x:
  PyBuffer_Release(&x);
  return result;
}

static PyMethodDef methods[] = {
    {"dropout_rows", dropout_rows, METH_VARARGS, "dropout_rows(x, y, p, seed): write dropout of each row of x to y."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "extension", .m_methods = methods};

PyMODINIT_FUNC PyInit_extension(void) {
  PyObject *extension = NULL;
  kernels = cdropout_import();
  if (kernels) extension = PyModule_Create(&module);
#ifdef Py_GIL_DISABLED /* otherwise a free-threaded Python enables the GIL */
  if (extension) PyUnstable_Module_SetGIL(extension, Py_MOD_GIL_NOT_USED);
#endif
  return extension;
}
