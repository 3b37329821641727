/* Loops for test_guard_pages.py that call the kernels on buffers of many sizes and alignments next to inaccessible pages.
 *
 * Sanitizers do not check masked vector loads and streaming stores; memory protection does. In the first pass, each buffer
 * begins where an inaccessible page ends; in the second pass, each buffer ends where an inaccessible page begins. An access
 * to such a page causes a segmentation fault. The output, unlike other buffers, is `offset` bytes away from the page. The
 * bytes on both sides of the output have a known value, so that a wrong store to these bytes is detected too. */
#define _DEFAULT_SOURCE
#include <cdropout.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_LENGTH = 2100, OFFSETS = 64, EDGE = 64, GROUP = 512, KNOWN = 0xA5 };
enum { X, Y, RESIDUAL, BIAS, KEEP, AXES, MASKS, BUFFERS };
static const size_t ITEMSIZES[] = {4, 8, 2, 2, 1}; /* bytes per element of each dtype */

static const cdropout_table *table;
static char *low[BUFFERS], *high[BUFFERS];
static struct { /* the current call, which the signal handler reports */
  const char *kernel;
  int dtype, at_end;
  size_t n, rows, columns, offset;
  uint64_t start;
} volatile current;
static long long calls;

static char *buffer_of(int buffer, size_t bytes) { /* return the address of a buffer of this size */
  size_t distance = buffer == Y ? current.offset : 0;
  return current.at_end ? high[buffer] - bytes - distance : low[buffer] + distance;
}

static void report(const char *error) {
  char text[300];
  int size = snprintf(text, sizeof text, "%s: %s, dtype %d, %zu elements, %zu x %zu, start %llu, y %zu bytes from the %s\n", error,
                      current.kernel, current.dtype, current.n, current.rows, current.columns, (unsigned long long)current.start,
                      current.offset, current.at_end ? "end" : "beginning");
  if (write(2, text, size) != size) _exit(3);
}

static void on_fault(int number) {
  report("an inaccessible page was accessed");
  signal(number, SIG_DFL);
  raise(number);
}

/* The bytes next to the output are set to KNOWN before a call and must be unchanged after it. */
static char *edge_below, *edge_above;
static size_t below, above;

static char *output(size_t bytes) {
  char *y = buffer_of(Y, bytes);
  below = y - low[Y] < EDGE ? y - low[Y] : EDGE;
  above = high[Y] - (y + bytes) < EDGE ? high[Y] - (y + bytes) : EDGE;
  edge_below = y - below;
  edge_above = y + bytes;
  memset(edge_below, KNOWN, below);
  memset(edge_above, KNOWN, above);
  return y;
}

static void check_edges(void) {
  static const unsigned char known[EDGE] = {[0 ... EDGE - 1] = KNOWN};
  calls++;
  if (memcmp(edge_below, known, below) || memcmp(edge_above, known, above)) {
    report("a byte next to the output was written");
    _exit(2);
  }
}

#define CALL(name, ...) (current.kernel = #name, table->name(__VA_ARGS__), check_edges())

static void apply(const cdropout_mask *mask, const cdropout_mask *in_place) {
  size_t bytes = current.n * ITEMSIZES[current.dtype];
  char *x = buffer_of(X, bytes), *y = output(bytes);
  CALL(apply, current.dtype, 0, x, y, current.n, mask, current.start);
  CALL(apply, current.dtype, 0, y, y, current.n, in_place, current.start);
  uint8_t *bits = (uint8_t *)buffer_of(KEEP, (current.start + current.n + 7) / 8);
  CALL(apply_bits, current.dtype, 0, x, y, current.n, bits, current.start, 2.0);
  CALL(apply_bits, current.dtype, 0, y, y, current.n, bits, current.start, 2.0);
}

static void draw(const cdropout_mask *mask) {
  CALL(bits, (uint8_t *)output((current.n + 7) / 8), current.n, mask, current.start);
  CALL(bools, (uint8_t *)output(current.n), current.n, mask, current.start);
}

/* Return the number of items from the lowest to the highest address of a view with these steps. Set *before to the position
 * of the view's first item among these items. */
static size_t extent(const ptrdiff_t steps[2], size_t *before) {
  size_t lengths[] = {current.rows, current.columns}, total = 1;
  *before = 0;
  if (current.rows == 0 || current.columns == 0) return 0;
  for (int i = 0; i < 2; i++) {
    size_t distance = (lengths[i] - 1) * (size_t)(steps[i] < 0 ? -steps[i] : steps[i]);
    total += distance;
    if (steps[i] < 0) *before += distance;
  }
  return total;
}

static char *view_in(int buffer, size_t itemsize, const ptrdiff_t steps[2]) { /* return the address of the first item */
  size_t before, bytes = extent(steps, &before) * itemsize;
  return (buffer == Y ? output(bytes) : buffer_of(buffer, bytes)) + before * itemsize;
}

typedef struct { /* distances, in items, between rows and between columns */
  ptrdiff_t x[2], y[2], mask[2];
} Steps;

static void apply_view(const cdropout_mask *mask, const Steps *steps) {
  ptrdiff_t itemsize = ITEMSIZES[current.dtype];
  cdropout_axis *axes = (cdropout_axis *)buffer_of(AXES, 2 * sizeof *axes);
  for (int i = 0; i < 2; i++)
    axes[i] = (cdropout_axis){i ? current.columns : current.rows, steps->x[i] * itemsize, steps->y[i] * itemsize, steps->mask[i]};
  char *x = current.dtype == CDROPOUT_BOOL ? NULL : view_in(X, itemsize, steps->x), *y = view_in(Y, itemsize, steps->y);
  CALL(apply_strided, current.dtype, 0, x, y, 2, axes, mask, current.start);
  size_t before, first = current.start % 8, bytes = (first + extent(steps->mask, &before) + 7) / 8;
  uint8_t *bits = (uint8_t *)buffer_of(KEEP, bytes);
  CALL(apply_bits_strided, current.dtype, 0, x, y, 2, axes, bits, first + before, 2.0);
  uint8_t *bools = (uint8_t *)view_in(KEEP, 1, steps->mask);
  CALL(apply_bools_strided, current.dtype, 0, x, y, 2, axes, bools, 2.0);
  if (current.dtype <= CDROPOUT_FLOAT64) CALL(apply_alpha_strided, current.dtype, 0, x, y, 2, axes, mask, current.start, 0.5, -1.0);
}

static void add_bias(const cdropout_mask *mask) {
  size_t rows = current.rows, columns = current.columns, itemsize = ITEMSIZES[current.dtype], bytes = rows * columns * itemsize;
  char *x = buffer_of(X, bytes), *y = output(bytes);
  CALL(bias_dropout_add, current.dtype, x, buffer_of(BIAS, columns * itemsize), buffer_of(RESIDUAL, bytes), y, rows, columns, mask,
       current.start);
  CALL(bias_dropout_add_backward, current.dtype, x, y, (double *)buffer_of(BIAS, columns * 8), rows, columns, mask, current.start);
}

static void views(const cdropout_mask *mask) {
  ptrdiff_t rows = current.rows, columns = current.columns;
  const Steps kinds[] = {
      {{columns, 1}, {columns, 1}, {columns, 1}},     /* C order */
      {{columns, 1}, {columns, 1}, {1, 0}},           /* one draw per row */
      {{columns, 1}, {columns, 1}, {0, 1}},           /* one draw per column */
      {{columns, -1}, {-columns, 1}, {-columns, -1}}, /* backwards */
      {{0, 1}, {3 * columns, 3}, {-2 * columns, -2}}, /* gaps */
      {{1, rows}, {1, rows}, {columns, 1}},           /* Fortran order */
      {{columns, 1}, {1, rows}, {columns + 7, 1}},    /* C to Fortran order; part of a larger mask */
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) apply_view(mask, &kinds[i]);
}

/* Call the kernels for the current length and offset. Strided kernels and kernels with a bias take longer. They are
 * therefore called only for a fraction 1 / every of the combinations of length, offset and dtype. */
static void all_kernels(const cdropout_mask *masks, int every) {
  current.rows = current.columns = 0;
  draw(&masks[0]);
  for (current.dtype = 0; current.dtype <= CDROPOUT_BOOL; current.dtype++) {
    if (current.dtype != CDROPOUT_BOOL) apply(&masks[0], &masks[1]);
    if (current.dtype != CDROPOUT_BOOL && current.offset == 0) apply(&masks[2], &masks[2]);
    if ((current.n + current.offset + current.dtype) % every == 0) {
      current.columns = 1 + (7 * current.n + 31 * current.offset) % 97, current.rows = current.n / current.columns;
      if ((current.n + current.offset / 16) % 4 == 0) current.columns = current.n, current.rows = 1;
      views(&masks[0]);
      if (current.dtype != CDROPOUT_BOOL) add_bias(&masks[0]);
    }
  }
}

/* Write one byte outside the output: to the page above the output if `where` is -1, to the page below the output if it
 * is -2, or to the byte above the output if it is -3. */
static void write_outside(const cdropout_mask *mask, int where) {
  current.at_end = where != -2;
  current.n = 17, current.offset = where == -3 ? 5 : 0;
  char *y = output(current.n);
  CALL(bools, (uint8_t *)y - (where == -2), current.n + 1, mask, 0);
}

/* Make the calls for a fraction 1 / sparse of the combinations of length and offset. Return the number of calls, or -1 if
 * mmap or mprotect fails.
 *
 * If every = 0, call only kernels that may use streaming stores. If every < 0, first write one byte outside the output. */
long long run(const cdropout_table *kernels, int every, int sparse) {
  static const double PROBABILITIES[] = {0.3, 0.5, 1.0};
  size_t page = sysconf(_SC_PAGESIZE), size = (3 * 8 * MAX_LENGTH + OFFSETS + EDGE + page - 1) / page * page;
  for (int i = 0; i < BUFFERS; i++) {
    char *memory = mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) || mprotect(memory + page + size, page, PROT_NONE)) return -1;
    low[i] = memory + page;
    high[i] = low[i] + size;
    memset(low[i], 1, size); /* these bytes are valid floats, packed bits and bools */
  }
  table = kernels;
  signal(SIGSEGV, on_fault);
  signal(SIGBUS, on_fault); /* macOS raises SIGBUS instead of SIGSEGV */
  for (current.at_end = 0; current.at_end < 2; current.at_end++) {
    current.offset = 0;
    cdropout_mask *masks = (cdropout_mask *)buffer_of(MASKS, sizeof *masks * 3);
    for (int i = 0; i < 3; i++) table->mask_init(&masks[i], 1, 2, PROBABILITIES[i]);
    if (every < 0) write_outside(masks, every);
    for (current.n = 0; current.n <= MAX_LENGTH; current.n++)
      for (current.offset = 0; current.offset < OFFSETS; current.offset++) {
        if ((current.n + current.offset + current.n / 16) % sparse) continue;
        current.start = (37 * current.n + current.offset) % GROUP; /* all positions in a group occur */
        if (every)
          all_kernels(masks, every);
        else
          for (current.dtype = 0; current.dtype < 2; current.dtype++) {
            const Steps row = {{0, 1}, {0, 1}, {0, 0}};
            current.rows = 1, current.columns = current.n;
            apply(&masks[0], &masks[1]);
            apply_view(&masks[0], &row);
          }
      }
  }
  return calls;
}
