/* The kernels under libFuzzer: calls that cdropout.h allows, on every instruction set; tests/sanitize.sh fuzz-table runs it.
 *
 * Each buffer is an allocation of its own, of the very size and at any alignment, so that AddressSanitizer sees each byte
 * outside. All sets have to write the same bytes, and what `apply` writes, `bits` and `apply_bits` have to write too. */
#include <Python.h>

#include <cdropout.h>
#include <stdio.h>

enum { SETS = 3, MOST = 20000 };
static const char *const NAMES[SETS] = {"baseline", "avx2", "avx512"};
static const size_t SIZES[] = {4, 8, 2, 2}; /* bytes an element of each dtype */
static const cdropout_table *tables[SETS];
static int sets;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  Py_Initialize();
  PyObject *dispatch = PyImport_ImportModule("cdropout.core.dispatch");
  PyObject *runnable = dispatch ? PyObject_CallMethod(dispatch, "runnable", NULL) : NULL;
  if (!runnable) return PyErr_Print(), abort(), 1;
  for (; sets < PyTuple_Size(runnable); sets++) {
    char name[100];
    snprintf(name, sizeof name, "cdropout.core._kernels_%s", NAMES[sets]);
    PyObject *module = PyImport_ImportModule(name);
    PyObject *done = module ? PyObject_CallMethod(module, "set_largest_cached", "n", (Py_ssize_t)16384) : NULL;
    if (!done) return PyErr_Print(), abort(), 1;
    tables[sets] = PyCapsule_GetPointer(PyObject_GetAttrString(module, "table"), "cdropout.core.table");
  }
  printf("%d instruction sets\n", sets);
  return 0;
}

static const uint8_t *input;
static size_t input_left;

static uint64_t take(int bytes) { /* a number from the fuzzer's input, of zeros once that is used up */
  uint64_t number = 0;
  for (; bytes; bytes--) {
    number = number << 8 | (input_left ? *input++ : 0);
    input_left -= input_left != 0;
  }
  return number;
}

static void require(int holds, const char *what) {
  if (!holds) fprintf(stderr, "%s\n", what), abort();
}

typedef struct {
  char *memory, *first;
  size_t size;
} Buffer;
static Buffer used[64];
static int buffers;

static Buffer room(size_t size, int content) { /* zeros, or what takes its content from the fuzzer's input */
  size_t offset = take(1) % 64;
  Buffer buffer = {malloc(offset + size), NULL, size};
  require(buffer.memory != NULL, "no memory");
  buffer.first = buffer.memory + offset;
  uint32_t number = content ? (uint32_t)take(2) : 0;
  memset(buffer.first, 0, size);
  for (size_t i = 0; content && i < size; i++) buffer.first[i] = (char)((number = number * 1664525 + 1013904223) >> 24);
  return used[buffers++] = buffer;
}

static cdropout_mask mask_of_input(void) {
  cdropout_mask mask;
  uint64_t seed = take(8), call = take(8), p = take(8) >> take(1) % 64;
  require(tables[0]->mask_init(&mask, seed, call, (double)p / 0x1p64) == 0, "mask_init refused");
  return mask;
}

static void agree(const Buffer *outputs, int set) {
  require(!memcmp(outputs[set].first, outputs[0].first, outputs[0].size), "the instruction sets differ");
}

static void flat(int dtype) { /* apply, apply_bits, bits, bools */
  size_t n = take(2) % MOST >> take(1) % 16, bytes = n * SIZES[dtype];
  cdropout_mask mask = mask_of_input();
  uint64_t start = take(8) >> take(1) % 64, first = take(2) % 9999;
  if (start > UINT64_MAX - MOST) start -= MOST;
  Buffer x = room(bytes, 1), given = room((first + n + 7) / 8, 1), y[SETS], z[SETS], bits[SETS], bools[SETS];
  for (int i = 0; i < sets; i++) {
    y[i] = room(bytes, 0), z[i] = room(bytes, 0), bits[i] = room((n + 7) / 8, 0), bools[i] = room(n, 0);
    tables[i]->bits((uint8_t *)bits[i].first, n, &mask, start);
    tables[i]->bools((uint8_t *)bools[i].first, n, &mask, start);
    tables[i]->apply_bits(dtype, x.first, z[i].first, n, (uint8_t *)bits[i].first, 0, mask.scale);
    require(tables[i]->apply(dtype, x.first, y[i].first, n, &mask, start) == 0, "apply refused");
    require(mask.scale == 0 || !memcmp(y[i].first, z[i].first, bytes), "apply differs from apply_bits of bits");
    for (size_t k = 0; k < n; k++) require(bools[i].first[k] == (bits[i].first[k / 8] >> k % 8 & 1), "bools differ from bits");
    memcpy(z[i].first, x.first, bytes);
    tables[i]->apply(dtype, z[i].first, z[i].first, n, &mask, start);
    require(!memcmp(y[i].first, z[i].first, bytes), "in place differs");
    tables[i]->apply_bits(dtype, x.first, y[i].first, n, (uint8_t *)given.first, first, mask.scale);
    agree(y, i), agree(z, i), agree(bits, i);
  }
}

/* The bytes that rows and columns reach over at these strides, and where among them the first lies. */
static size_t reach(const cdropout_plane *plane, const ptrdiff_t *strides, size_t item, size_t *first) {
  size_t rows = (plane->rows - 1) * (size_t)llabs(strides[0]), columns = (plane->columns - 1) * (size_t)llabs(strides[1]);
  *first = (strides[0] < 0 ? rows : 0) + (strides[1] < 0 ? columns : 0);
  return rows + columns + item;
}

static void planes(int dtype) { /* apply_bools, apply_channels */
  ptrdiff_t size = (ptrdiff_t)SIZES[dtype];
  cdropout_plane plane = {1 + take(1) % 64, 1 + take(1), {0}, {0}, {(int8_t)take(1), (int8_t)take(1)}};
  cdropout_mask mask = mask_of_input();
  uint64_t start = take(2);
  unsigned kind = (unsigned)take(1);
  int by_row = kind & 1, gap = kind & 2 ? 3 : 1;
  if (kind & 4) plane.rows = 1 + take(1) % 7, plane.columns += take(2) % MOST;
  if (kind & 8) plane.columns = 1 + take(1) % 7, plane.rows += take(2) % MOST;
  ptrdiff_t columns = (ptrdiff_t)plane.columns;
  plane.y[0] = (kind & 16 ? -columns : columns) * gap * size;
  plane.y[1] = (kind & 32 ? -size : size) * gap;
  plane.x[0] = kind & 64 ? (int8_t)take(1) : columns * size;
  plane.x[1] = kind & 64 ? (int8_t)take(1) : size;
  if (kind & 128) plane.keep[0] = by_row ? 1 : columns, plane.keep[1] = !by_row;
  size_t x_first, y_first, keep_first, y_size = reach(&plane, plane.y, size, &y_first);
  Buffer x = room(reach(&plane, plane.x, size, &x_first), 1), keep = room(reach(&plane, plane.keep, 1, &keep_first), 1), y[SETS], z[SETS];
  cdropout_plane channels = plane;
  channels.keep[0] = by_row, channels.keep[1] = !by_row;
  for (int i = 0; i < sets; i++) {
    y[i] = room(y_size, 0), z[i] = room(y_size, 0);
    tables[i]->apply_bools(dtype, x.first + x_first, y[i].first + y_first, (uint8_t *)keep.first + keep_first, &plane, mask.scale);
    tables[i]->apply_channels(dtype, x.first + x_first, z[i].first + y_first, &channels, &mask, start);
    agree(y, i), agree(z, i);
  }
}

static void bias(int dtype) { /* bias_dropout_add and its backward; numbers are no NaN: which of two comes out is not said */
  size_t columns = 1 + (take(2) % 3000 >> take(1) % 8), rows = take(2) % (MOST / columns + 2), size = SIZES[dtype],
         bytes = rows * columns * size;
  cdropout_mask mask = mask_of_input();
  uint64_t start = take(2);
  Buffer x = room(bytes, 1), b = room(columns * size, 1), residual = room(bytes, 1), y[SETS], z[SETS], sums[SETS];
  Buffer *const inputs[] = {&x, &b, &residual};
  for (int i = 0; i < 3; i++)
    for (size_t k = size - 1; k < inputs[i]->size; k += size) inputs[i]->first[k] &= 0xBF;
  for (int i = 0; i < sets; i++) {
    y[i] = room(bytes, 0), z[i] = room(bytes, 0), sums[i] = room(columns * 8, 0);
    tables[i]->bias_dropout_add(dtype, x.first, b.first, residual.first, y[i].first, rows, columns, &mask, start);
    tables[i]->bias_dropout_add_backward(dtype, x.first, z[i].first, (double *)sums[i].first, rows, columns, &mask, start);
    agree(y, i), agree(z, i), agree(sums, i);
    Buffer again = room(bytes, 0);
    memcpy(again.first, residual.first, bytes);
    tables[i]->bias_dropout_add(dtype, x.first, b.first, again.first, again.first, rows, columns, &mask, start);
    require(!memcmp(y[i].first, again.first, bytes), "in place of residual differs");
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input = data, input_left = size;
  int which = (int)take(1), dtype = which % 4;
  if (which >> 2 & 1)
    flat(dtype);
  else if (which >> 3 & 1)
    planes(dtype);
  else
    bias(dtype % 2);
  while (buffers) free(used[--buffers].memory);
  return 0;
}
