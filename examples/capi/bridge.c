/* An extension that passes the table to the programs in programs.h, which do not use Python. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "programs.h" /* includes cdropout.h, which must follow Python.h */

static const cdropout_table *kernels;

/* Return None. If `valid` is 0 or `status` is -1, set a ValueError and return NULL instead. */
static PyObject *result(int valid, int status) {
  if (valid && status == 0) return Py_NewRef(Py_None);
  PyErr_SetString(PyExc_ValueError, valid ? "p has to be between 0 and 1" : "the arrays have the wrong lengths");
  return NULL;
}

static PyObject *layer(PyObject *self, PyObject *args) {
  Py_buffer x, gy, y, gx;
  double p;
  unsigned long long seed;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*y*w*w*dK", &x, &gy, &y, &gx, &p, &seed)) return NULL;
  int status = 0, valid = x.len == y.len && x.len == gy.len && x.len == gx.len;
  if (valid) status = layer_run(kernels, x.buf, gy.buf, y.buf, gx.buf, (size_t)x.len / sizeof(float), p, seed);
  PyBuffer_Release(&x);
  PyBuffer_Release(&gy);
  PyBuffer_Release(&y);
  PyBuffer_Release(&gx);
  return result(valid, status);
}

static PyObject *threads(PyObject *self, PyObject *args) {
  Py_buffer x, y;
  double p;
  unsigned long long seed;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*w*dK", &x, &y, &p, &seed)) return NULL;
  int status = 0, valid = x.len == y.len;
  Py_BEGIN_ALLOW_THREADS
  if (valid) status = threads_apply(kernels, x.buf, y.buf, (size_t)x.len / sizeof(float), p, seed);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&x);
  PyBuffer_Release(&y);
  return result(valid, status);
}

/* The arguments are (x, y, images, channels, rows, columns, by_channel, p, seed). */
static PyObject *images(PyObject *self, PyObject *args) {
  Py_buffer x, y;
  Py_ssize_t shape[4];
  size_t lengths[4], bytes = sizeof(float);
  int by_channel, status = 0;
  double p;
  unsigned long long seed;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*w*nnnnpdK", &x, &y, &shape[0], &shape[1], &shape[2], &shape[3], &by_channel, &p, &seed)) return NULL;
  for (int i = 0; i < 4; i++) bytes *= lengths[i] = (size_t)shape[i];
  int valid = x.len == y.len && (size_t)x.len == bytes;
  if (valid && by_channel) status = images_drop_channels(kernels, x.buf, y.buf, lengths, p, seed);
  if (valid && !by_channel) status = images_drop_elements(kernels, x.buf, y.buf, lengths, p, seed);
  PyBuffer_Release(&x);
  PyBuffer_Release(&y);
  return result(valid, status);
}

static PyObject *training(PyObject *self, PyObject *args) {
  Py_buffer x, targets, current, gradient, work;
  double p, loss = 0;
  unsigned long long seed, call;
  cdropout_mask mask;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*y*y*w*w*dKK", &x, &targets, &current, &gradient, &work, &p, &seed, &call)) return NULL;
  int valid = x.len == sizeof(double[SAMPLES][INPUTS]) && targets.len == sizeof(double[SAMPLES]) && current.len == sizeof(weights) &&
              gradient.len == sizeof(weights) && work.len == sizeof(activations);
  int status = kernels->mask_init(&mask, seed, call, p);
  if (valid && status == 0) loss = training_step(kernels, x.buf, targets.buf, current.buf, gradient.buf, work.buf, &mask);
  PyBuffer_Release(&x);
  PyBuffer_Release(&targets);
  PyBuffer_Release(&current);
  PyBuffer_Release(&gradient);
  PyBuffer_Release(&work);
  PyObject *none = result(valid, status);
  if (none == NULL) return NULL;
  Py_DECREF(none);
  return PyFloat_FromDouble(loss);
}

static PyMethodDef methods[] = {
    {"layer", layer, METH_VARARGS, "layer(x, gy, y, gx, p, seed): write forward of x to y, and backward of gy to gx."},
    {"images", images, METH_VARARGS,
     "images(x, y, images, channels, rows, columns, by_channel, p, seed): write dropout of channels-last x to y."},
    {"threads", threads, METH_VARARGS, "threads(x, y, p, seed): write dropout of x to y with several threads."},
    {"training", training, METH_VARARGS, "training(x, targets, weights, gradient, work, p, seed, call): return the loss of one step."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "bridge", .m_methods = methods};

PyMODINIT_FUNC PyInit_bridge(void) {
  PyObject *bridge = NULL;
  kernels = cdropout_import();
  if (kernels) bridge = PyModule_Create(&module);
#ifdef Py_GIL_DISABLED /* otherwise a free-threaded Python enables the GIL */
  if (bridge) PyUnstable_Module_SetGIL(bridge, Py_MOD_GIL_NOT_USED);
#endif
  return bridge;
}
