/* A small extension that hands the table to programs which know nothing of Python. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "programs.h" /* includes cdropout.h, after Python.h, which cdropout_import needs */

static const cdropout_table *kernels;

/* None; or ValueError, if the lengths in bytes are not those that are needed, or a program returned -1. */
static PyObject *result(int right, int status) {
  if (right && status == 0) return Py_NewRef(Py_None);
  PyErr_SetString(PyExc_ValueError, right ? "p has to be between 0 and 1" : "the arrays are not of the lengths that are expected");
  return NULL;
}

static PyObject *layer(PyObject *self, PyObject *args) {
  Py_buffer x, gy, y, gx;
  double p;
  unsigned long long seed;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*y*w*w*dK", &x, &gy, &y, &gx, &p, &seed)) return NULL;
  int status = 0, right = x.len == y.len && x.len == gy.len && x.len == gx.len;
  if (right) status = layer_run(kernels, x.buf, gy.buf, y.buf, gx.buf, (size_t)x.len / sizeof(float), p, seed);
  PyBuffer_Release(&x);
  PyBuffer_Release(&gy);
  PyBuffer_Release(&y);
  PyBuffer_Release(&gx);
  return result(right, status);
}

static PyObject *threads(PyObject *self, PyObject *args) {
  Py_buffer x, y;
  double p;
  unsigned long long seed;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*w*dK", &x, &y, &p, &seed)) return NULL;
  int status = 0, right = x.len == y.len;
  Py_BEGIN_ALLOW_THREADS
  if (right) status = threads_apply(kernels, x.buf, y.buf, (size_t)x.len / sizeof(float), p, seed);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&x);
  PyBuffer_Release(&y);
  return result(right, status);
}

/* images(x, y, images, channels, rows, columns, by_channel, p, seed) */
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
  int right = x.len == y.len && (size_t)x.len == bytes;
  if (right && by_channel) status = images_drop_channels(kernels, x.buf, y.buf, lengths, p, seed);
  if (right && !by_channel) status = images_drop_elements(kernels, x.buf, y.buf, lengths, p, seed);
  PyBuffer_Release(&x);
  PyBuffer_Release(&y);
  return result(right, status);
}

static PyObject *training(PyObject *self, PyObject *args) {
  Py_buffer x, wanted, now, gradient, work;
  double p, loss = 0;
  unsigned long long seed, call;
  cdropout_mask mask;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*y*y*w*w*dKK", &x, &wanted, &now, &gradient, &work, &p, &seed, &call)) return NULL;
  int right = x.len == sizeof(double[SAMPLES][INPUTS]) && wanted.len == sizeof(double[SAMPLES]) && now.len == sizeof(weights) &&
              gradient.len == sizeof(weights) && work.len == sizeof(activations);
  int status = kernels->mask_init(&mask, seed, call, p);
  if (right && status == 0) loss = training_step(kernels, x.buf, wanted.buf, now.buf, gradient.buf, work.buf, &mask);
  PyBuffer_Release(&x);
  PyBuffer_Release(&wanted);
  PyBuffer_Release(&now);
  PyBuffer_Release(&gradient);
  PyBuffer_Release(&work);
  PyObject *none = result(right, status);
  if (none == NULL) return NULL;
  Py_DECREF(none);
  return PyFloat_FromDouble(loss);
}

static PyMethodDef methods[] = {
    {"layer", layer, METH_VARARGS, "layer(x, gy, y, gx, p, seed): forward of x into y, backward of gy into gx."},
    {"images", images, METH_VARARGS,
     "images(x, y, images, channels, rows, columns, by_channel, p, seed): dropout of channels-last x into y."},
    {"threads", threads, METH_VARARGS, "threads(x, y, p, seed): dropout of x into y by many threads."},
    {"training", training, METH_VARARGS, "training(x, wanted, weights, gradient, work, p, seed, call): the loss of one step."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "bridge", .m_methods = methods};

PyMODINIT_FUNC PyInit_bridge(void) {
  PyObject *bridge = NULL;
  kernels = cdropout_import();
  if (kernels) bridge = PyModule_Create(&module);
#ifdef Py_GIL_DISABLED /* otherwise a free-threaded Python would turn the GIL on */
  if (bridge) PyUnstable_Module_SetGIL(bridge, Py_MOD_GIL_NOT_USED);
#endif
  return bridge;
}
