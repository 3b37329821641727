/* The kernels under libFuzzer: calls that cdropout.h allows, on every instruction set; tools/sanitize.sh fuzz-table runs it.
 *
 * Each buffer is an allocation of its own, of the exact size and at any alignment, so that AddressSanitizer finds each access
 * outside. All sets have to write the same bytes, and the kernels that take bits or bools the same as those that draw. */
#include <Python.h>

#include <cdropout.h>
#include <stdio.h>

enum { SETS = 3, MOST = 20000 };
static const char *const NAMES[SETS] = {"baseline", "avx2", "avx512"};
static const size_t SIZES[] = {4, 8, 2, 2}; /* bytes per element of each dtype */
static const cdropout_table *tables[SETS];
static int sets;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  Py_Initialize();
  PyObject *dispatch = PyImport_ImportModule("cdropout._core.dispatch");
  PyObject *runnable = dispatch ? PyObject_CallMethod(dispatch, "runnable", NULL) : NULL;
  if (!runnable) return PyErr_Print(), abort(), 1;
  for (; sets < PyTuple_Size(runnable); sets++) {
    char name[100];
    snprintf(name, sizeof name, "cdropout._core._kernels_%s", NAMES[sets]);
    PyObject *module = PyImport_ImportModule(name);
    PyObject *done = module ? PyObject_CallMethod(module, "set_streaming_threshold", "n", (Py_ssize_t)16384) : NULL;
    if (!done) return PyErr_Print(), abort(), 1;
    tables[sets] = PyCapsule_GetPointer(PyObject_GetAttrString(module, "table"), "cdropout._core.table");
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
  uint32_t flags = first & 1 ? CDROPOUT_PART_OF_LARGE : 0;
  if (start > UINT64_MAX - MOST) start -= MOST;
  Buffer x = room(bytes, 1), given = room((first + n + 7) / 8, 1), y[SETS], z[SETS], bits[SETS], bools[SETS];
  for (int i = 0; i < sets; i++) {
    y[i] = room(bytes, 0), z[i] = room(bytes, 0), bits[i] = room((n + 7) / 8, 0), bools[i] = room(n, 0);
    tables[i]->bits((uint8_t *)bits[i].first, n, &mask, start);
    tables[i]->bools((uint8_t *)bools[i].first, n, &mask, start);
    tables[i]->apply_bits(dtype, flags, x.first, z[i].first, n, (uint8_t *)bits[i].first, 0, mask.scale);
    require(tables[i]->apply(dtype, flags, x.first, y[i].first, n, &mask, start) == 0, "apply refused");
    require(mask.scale == 0 || !memcmp(y[i].first, z[i].first, bytes), "apply differs from apply_bits of bits");
    for (size_t k = 0; k < n; k++) require(bools[i].first[k] == (bits[i].first[k / 8] >> k % 8 & 1), "bools differ from bits");
    memcpy(z[i].first, x.first, bytes);
    tables[i]->apply(dtype, flags, z[i].first, z[i].first, n, &mask, start);
    require(!memcmp(y[i].first, z[i].first, bytes), "in place differs");
    tables[i]->apply_bits(dtype, flags, x.first, y[i].first, n, (uint8_t *)given.first, first, mask.scale);
    agree(y, i), agree(z, i), agree(bits, i);
  }
}

enum { AXES = 5 };
typedef struct {
  int ndim;
  size_t size;
  cdropout_axis axes[AXES];
} View;

/* Fill in the strides of y, or of a mask in elements, in a random order of the axes, with gaps and signs; no two elements overlap. */
static void choose_strides(ptrdiff_t *strides, const View *view, ptrdiff_t item) {
  int left[AXES], n = view->ndim;
  for (int i = 0; i < n; i++) left[i] = i;
  for (; n; n--) {
    int which = (int)take(1), axis = left[which % n], gap = which >> 3 & 3;
    left[which % n] = left[n - 1];
    strides[axis] = which & 128 ? -item : item;
    if (gap == 3) item += item / 2 + 1, strides[axis] = which & 128 ? -item : item;
    item *= (ptrdiff_t)view->axes[axis].length;
  }
}

/* Return how many items of `strides` a view reaches over less one, and in *first how many of them come before its first element. */
static size_t reach(const View *view, const ptrdiff_t *strides, size_t *first) {
  size_t all = 0;
  *first = 0;
  for (int i = 0; i < view->ndim; i++) {
    size_t far = (view->axes[i].length - 1) * (size_t)llabs(strides[i]);
    all += far;
    if (strides[i] < 0) *first += far;
  }
  return all;
}

static View view_of_input(void) {
  View view = {(int)take(1) % (AXES + 1), 1, {{0, 0, 0, 0}}};
  size_t most = take(1) % 16 ? MOST : 20 * MOST; /* more than a tile holds */
  for (int i = 0; i < view.ndim; i++) {
    size_t length = 1 + (take(2) >> take(1) % 16);
    if (length * view.size > most) length = most / view.size;
    view.size *= view.axes[i].length = length;
  }
  return view;
}

static void views(int dtype) { /* the strided kernels: all types and CDROPOUT_BOOL */
  ptrdiff_t size = dtype == CDROPOUT_BOOL ? 1 : (ptrdiff_t)SIZES[dtype], x_strides[AXES], y_strides[AXES], steps[AXES];
  View view = view_of_input();
  cdropout_mask mask = mask_of_input();
  uint64_t start = take(8) >> take(1) % 64;
  int kind = (int)take(1), flags = kind & 1 ? CDROPOUT_PART_OF_LARGE : 0;
  choose_strides(y_strides, &view, size);
  choose_strides(x_strides, &view, size);
  choose_strides(steps, &view, 1);
  int in_place = kind >> 1 & 1, shared = kind >> 3;
  for (int i = 0; i < view.ndim; i++) {
    if (shared >> i & 1) steps[i] = 0;
    view.axes[i].y = y_strides[i], view.axes[i].mask = steps[i];
    view.axes[i].x = in_place ? y_strides[i] : x_strides[i];
  }
  size_t x_first, y_first, keep_first, n = reach(&view, steps, &keep_first) + 1;
  size_t x_size = reach(&view, x_strides, &x_first) + size, y_size = reach(&view, y_strides, &y_first) + size;
  size_t bit = take(1) % 20;
  Buffer x = in_place ? room(y_size, 1) : room(x_size, 1), y[SETS], z[SETS], bits[SETS], bools[SETS];
  if (in_place) x_first = y_first;
  for (int i = 0; i < sets; i++) {
    y[i] = room(y_size, 0), z[i] = room(y_size, 0), bits[i] = room((bit + n + 7) / 8, 0), bools[i] = room(n, 0);
    char *from = dtype == CDROPOUT_BOOL ? NULL : x.first + x_first, *to = y[i].first + y_first, *other = z[i].first + y_first;
    tables[i]->bools((uint8_t *)bools[i].first, n, &mask, start - keep_first);
    for (size_t k = 0; k < n; k++) bits[i].first[(bit + k) / 8] |= (char)(bools[i].first[k] << (bit + k) % 8);
    int done = tables[i]->apply_strided(dtype, flags, from, to, view.ndim, view.axes, &mask, start);
    require(done == 0, "apply_strided refused");
    done = tables[i]->apply_bits_strided(dtype, flags, from, other, view.ndim, view.axes, (uint8_t *)bits[i].first, bit + keep_first,
                                         mask.scale);
    require(done == 0 && !memcmp(y[i].first, z[i].first, y_size), "apply_bits_strided differs from apply_strided");
    memset(z[i].first, 0, y_size);
    uint8_t *bool_ = (uint8_t *)bools[i].first + keep_first;
    tables[i]->apply_bools_strided(dtype, flags, from, other, view.ndim, view.axes, bool_, mask.scale);
    require(!memcmp(y[i].first, z[i].first, y_size), "apply_bools_strided differs from apply_strided");
    if (in_place && dtype != CDROPOUT_BOOL) { /* gaps hold what they held */
      memcpy(z[i].first, x.first, y_size);
      memcpy(y[i].first, x.first, y_size);
      tables[i]->apply_strided(dtype, flags, from, to, view.ndim, view.axes, &mask, start);
      tables[i]->apply_strided(dtype, flags, other, other, view.ndim, view.axes, &mask, start);
      require(!memcmp(y[i].first, z[i].first, y_size), "in place differs");
    }
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
    views(which >> 4 & 3 ? dtype : CDROPOUT_BOOL);
  else
    bias(dtype % 2);
  while (buffers) free(used[--buffers].memory);
  return 0;
}
