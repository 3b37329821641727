/* Fuzz the kernels of every instruction set with libFuzzer; `tools/sanitize.sh fuzz-table` runs this file.
 *
 * cdropout.h allows all of the calls. Each buffer is the end of a separate allocation, so that AddressSanitizer detects
 * every access after the buffer. Up to 63 bytes precede the buffer and give it any alignment. They are poisoned, except
 * those in the same 8 aligned bytes as the start of the buffer, for which AddressSanitizer has no state. All instruction sets must write the same bytes. The kernels that draw a mask must write the same bytes as those
 * that read this mask as bits or bools. */
#include <Python.h>

#include <cdropout.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>

enum { MAX_ISAS = 3, MAX_SIZE = 20000 };
static const char *const NAMES[MAX_ISAS] = {"baseline", "avx2", "avx512"};
static const size_t ITEMSIZES[] = {4, 8, 2, 2}; /* bytes per element of each dtype */
static const cdropout_table *tables[MAX_ISAS];
static int isas;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  Py_Initialize();
  PyObject *dispatch = PyImport_ImportModule("cdropout._core.dispatch");
  PyObject *runnable = dispatch ? PyObject_CallMethod(dispatch, "runnable", NULL) : NULL;
  if (!runnable) return PyErr_Print(), abort(), 1;
  for (; isas < PyTuple_Size(runnable); isas++) {
    char name[100];
    snprintf(name, sizeof name, "cdropout._core._kernels_%s", NAMES[isas]);
    PyObject *module = PyImport_ImportModule(name);
    PyObject *result = module ? PyObject_CallMethod(module, "set_streaming_threshold", "n", (Py_ssize_t)16384) : NULL;
    if (!result) return PyErr_Print(), abort(), 1;
    tables[isas] = PyCapsule_GetPointer(PyObject_GetAttrString(module, "table"), "cdropout._core.table");
  }
  printf("%d instruction sets\n", isas);
  return 0;
}

static const uint8_t *input;
static size_t input_left;

static uint64_t read_number(int bytes) { /* read a number from the fuzzer's input; after its end, read zeros */
  uint64_t number = 0;
  for (; bytes; bytes--) {
    number = number << 8 | (input_left ? *input++ : 0);
    input_left -= input_left != 0;
  }
  return number;
}

static void require(int condition, const char *error) {
  if (!condition) fprintf(stderr, "%s\n", error), abort();
}

typedef struct {
  char *memory, *first;
  size_t size;
} Buffer;
static Buffer buffers[64];
static int buffer_count;

static Buffer new_buffer(size_t size, int random) { /* allocate a buffer of random bytes if `random`, otherwise of zeros */
  size_t offset = read_number(1) % 64;
  Buffer buffer = {malloc(offset + size), NULL, size};
  require(buffer.memory != NULL, "no memory");
  buffer.first = buffer.memory + offset;
  ASAN_POISON_MEMORY_REGION(buffer.memory, offset);
  uint32_t number = random ? (uint32_t)read_number(2) : 0;
  memset(buffer.first, 0, size);
  for (size_t i = 0; random && i < size; i++) buffer.first[i] = (char)((number = number * 1664525 + 1013904223) >> 24);
  return buffers[buffer_count++] = buffer;
}

static cdropout_mask read_mask(void) {
  cdropout_mask mask;
  uint64_t seed = read_number(8), call = read_number(8), p = read_number(8) >> read_number(1) % 64;
  require(tables[0]->mask_init(&mask, seed, call, (double)p / 0x1p64) == 0, "mask_init failed");
  return mask;
}

static void require_agreement(const Buffer *outputs, int isa) {
  require(!memcmp(outputs[isa].first, outputs[0].first, outputs[0].size), "the instruction sets differ");
}

static void fuzz_contiguous(int dtype) { /* test apply, apply_bits, bits and bools */
  size_t n = read_number(2) % MAX_SIZE >> read_number(1) % 16, bytes = n * ITEMSIZES[dtype];
  cdropout_mask mask = read_mask();
  uint64_t start = read_number(8) >> read_number(1) % 64, first_bit = read_number(2) % 9999;
  uint32_t flags = first_bit & 1 ? CDROPOUT_PART_OF_LARGE : 0;
  if (start > UINT64_MAX - MAX_SIZE) start -= MAX_SIZE;
  Buffer x = new_buffer(bytes, 1), given = new_buffer((first_bit + n + 7) / 8, 1), y[MAX_ISAS], z[MAX_ISAS], bits[MAX_ISAS],
         bools[MAX_ISAS];
  for (int i = 0; i < isas; i++) {
    y[i] = new_buffer(bytes, 0), z[i] = new_buffer(bytes, 0), bits[i] = new_buffer((n + 7) / 8, 0), bools[i] = new_buffer(n, 0);
    tables[i]->bits((uint8_t *)bits[i].first, n, &mask, start);
    tables[i]->bools((uint8_t *)bools[i].first, n, &mask, start);
    tables[i]->apply_bits(dtype, flags, x.first, z[i].first, n, (uint8_t *)bits[i].first, 0, mask.scale);
    require(tables[i]->apply(dtype, flags, x.first, y[i].first, n, &mask, start) == 0, "apply failed");
    require(mask.scale == 0 || !memcmp(y[i].first, z[i].first, bytes), "apply differs from apply_bits of bits");
    for (size_t k = 0; k < n; k++) require(bools[i].first[k] == (bits[i].first[k / 8] >> k % 8 & 1), "bools differ from bits");
    memcpy(z[i].first, x.first, bytes);
    tables[i]->apply(dtype, flags, z[i].first, z[i].first, n, &mask, start);
    require(!memcmp(y[i].first, z[i].first, bytes), "in place differs");
    tables[i]->apply_bits(dtype, flags, x.first, y[i].first, n, (uint8_t *)given.first, first_bit, mask.scale);
    require_agreement(y, i), require_agreement(z, i), require_agreement(bits, i);
  }
}

enum { AXES = 5 };
typedef struct {
  int ndim;
  size_t size;
  cdropout_axis axes[AXES];
} View;

/* Set the strides of an array or a mask. Gaps, signs and the order of axes are random. Elements do not overlap. */
static void choose_strides(ptrdiff_t *strides, const View *view, ptrdiff_t stride) {
  int left[AXES], n = view->ndim;
  for (int i = 0; i < n; i++) left[i] = i;
  for (; n; n--) {
    int which = (int)read_number(1), axis = left[which % n], gap = which >> 3 & 3;
    left[which % n] = left[n - 1];
    strides[axis] = which & 128 ? -stride : stride;
    if (gap == 3) stride += stride / 2 + 1, strides[axis] = which & 128 ? -stride : stride;
    stride *= (ptrdiff_t)view->axes[axis].length;
  }
}

/* Return the distance between the lowest and the highest element of a view, in the unit of the strides. Set *first to the
 * distance from the lowest element to the first one. */
static size_t extent_of(const View *view, const ptrdiff_t *strides, size_t *first) {
  size_t extent = 0;
  *first = 0;
  for (int i = 0; i < view->ndim; i++) {
    size_t length = (view->axes[i].length - 1) * (size_t)llabs(strides[i]);
    extent += length;
    if (strides[i] < 0) *first += length;
  }
  return extent;
}

static View read_view(void) {
  View view = {(int)read_number(1) % (AXES + 1), 1, {{0, 0, 0, 0}}};
  size_t max_size = read_number(1) % 16 ? MAX_SIZE : 20 * MAX_SIZE; /* some views are larger than a tile */
  for (int i = 0; i < view.ndim; i++) {
    size_t length = 1 + (read_number(2) >> read_number(1) % 16);
    if (length * view.size > max_size) length = max_size / view.size;
    view.size *= view.axes[i].length = length;
  }
  return view;
}

static void fuzz_strided(int dtype) { /* test the strided kernels; dtype may be CDROPOUT_BOOL */
  ptrdiff_t itemsize = dtype == CDROPOUT_BOOL ? 1 : (ptrdiff_t)ITEMSIZES[dtype], x_strides[AXES], y_strides[AXES], mask_strides[AXES];
  View view = read_view();
  cdropout_mask mask = read_mask();
  uint64_t start = read_number(8) >> read_number(1) % 64;
  int kind = (int)read_number(1), flags = kind & 1 ? CDROPOUT_PART_OF_LARGE : 0;
  choose_strides(y_strides, &view, itemsize);
  choose_strides(x_strides, &view, itemsize);
  choose_strides(mask_strides, &view, 1);
  int in_place = kind >> 1 & 1, broadcast = kind >> 3;
  for (int i = 0; i < view.ndim; i++) {
    if (broadcast >> i & 1) mask_strides[i] = 0;
    view.axes[i].y = y_strides[i], view.axes[i].mask = mask_strides[i];
    view.axes[i].x = in_place ? y_strides[i] : x_strides[i];
  }
  size_t x_first, y_first, keep_first, n = extent_of(&view, mask_strides, &keep_first) + 1;
  size_t x_size = extent_of(&view, x_strides, &x_first) + itemsize, y_size = extent_of(&view, y_strides, &y_first) + itemsize;
  size_t bit = read_number(1) % 20;
  Buffer x = in_place ? new_buffer(y_size, 1) : new_buffer(x_size, 1), y[MAX_ISAS], z[MAX_ISAS], bits[MAX_ISAS], bools[MAX_ISAS];
  if (in_place) x_first = y_first;
  for (int i = 0; i < isas; i++) {
    y[i] = new_buffer(y_size, 0), z[i] = new_buffer(y_size, 0), bits[i] = new_buffer((bit + n + 7) / 8, 0), bools[i] = new_buffer(n, 0);
    char *from = dtype == CDROPOUT_BOOL ? NULL : x.first + x_first, *to = y[i].first + y_first, *other = z[i].first + y_first;
    tables[i]->bools((uint8_t *)bools[i].first, n, &mask, start - keep_first);
    for (size_t k = 0; k < n; k++) bits[i].first[(bit + k) / 8] |= (char)(bools[i].first[k] << (bit + k) % 8);
    int status = tables[i]->apply_strided(dtype, flags, from, to, view.ndim, view.axes, &mask, start);
    require(status == 0, "apply_strided failed");
    status = tables[i]->apply_bits_strided(dtype, flags, from, other, view.ndim, view.axes, (uint8_t *)bits[i].first, bit + keep_first,
                                           mask.scale);
    require(status == 0 && !memcmp(y[i].first, z[i].first, y_size), "apply_bits_strided differs from apply_strided");
    memset(z[i].first, 0, y_size);
    uint8_t *bool_ = (uint8_t *)bools[i].first + keep_first;
    tables[i]->apply_bools_strided(dtype, flags, from, other, view.ndim, view.axes, bool_, mask.scale);
    require(!memcmp(y[i].first, z[i].first, y_size), "apply_bools_strided differs from apply_strided");
    if (in_place && dtype != CDROPOUT_BOOL) { /* y and z begin as copies of x; the gaps between elements must not change */
      memcpy(z[i].first, x.first, y_size);
      memcpy(y[i].first, x.first, y_size);
      tables[i]->apply_strided(dtype, flags, from, to, view.ndim, view.axes, &mask, start);
      tables[i]->apply_strided(dtype, flags, other, other, view.ndim, view.axes, &mask, start);
      require(!memcmp(y[i].first, z[i].first, y_size), "in place differs");
    }
    require_agreement(y, i), require_agreement(z, i);
  }
}

/* Test bias_dropout_add and its backward pass, without NaN, because the sum of two NaNs may have the bits of either. */
static void fuzz_bias(int dtype) {
  size_t columns = 1 + (read_number(2) % 3000 >> read_number(1) % 8), rows = read_number(2) % (MAX_SIZE / columns + 2),
         itemsize = ITEMSIZES[dtype], bytes = rows * columns * itemsize;
  cdropout_mask mask = read_mask();
  uint64_t start = read_number(2);
  Buffer x = new_buffer(bytes, 1), b = new_buffer(columns * itemsize, 1), residual = new_buffer(bytes, 1), y[MAX_ISAS], z[MAX_ISAS],
         sums[MAX_ISAS];
  Buffer *const inputs[] = {&x, &b, &residual};
  for (int i = 0; i < 3; i++)
    for (size_t k = itemsize - 1; k < inputs[i]->size; k += itemsize) inputs[i]->first[k] &= 0xBF;
  for (int i = 0; i < isas; i++) {
    y[i] = new_buffer(bytes, 0), z[i] = new_buffer(bytes, 0), sums[i] = new_buffer(columns * 8, 0);
    tables[i]->bias_dropout_add(dtype, x.first, b.first, residual.first, y[i].first, rows, columns, &mask, start);
    tables[i]->bias_dropout_add_backward(dtype, x.first, z[i].first, (double *)sums[i].first, rows, columns, &mask, start);
    require_agreement(y, i), require_agreement(z, i), require_agreement(sums, i);
    Buffer again = new_buffer(bytes, 0);
    memcpy(again.first, residual.first, bytes);
    tables[i]->bias_dropout_add(dtype, x.first, b.first, again.first, again.first, rows, columns, &mask, start);
    require(!memcmp(y[i].first, again.first, bytes), "in place of residual differs");
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input = data, input_left = size;
  int which = (int)read_number(1), dtype = which % 4;
  if (which >> 2 & 1)
    fuzz_contiguous(dtype);
  else if (which >> 3 & 1)
    fuzz_strided(which >> 4 & 3 ? dtype : CDROPOUT_BOOL);
  else
    fuzz_bias(dtype);
  while (buffer_count) free(buffers[--buffer_count].memory);
  return 0;
}
