/* The loops of test_guard_pages.py: call the kernels on buffers of many lengths and alignments next to inaccessible pages.
 *
 * Sanitizers do not check masked vector loads and streaming stores, so memory protection checks them. A buffer ends where an
 * inaccessible page begins or, in a second pass, begins where one ends. An access outside is a segmentation fault. Only the
 * output is `offset` bytes away from that page; the bytes next to it have a known value, so that a wrong store is detected. */
#define _DEFAULT_SOURCE
#include <cdropout.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_LENGTH = 2100, OFFSETS = 64, EDGE = 64, GROUP = 512, KNOWN = 0xA5 };
enum { X, Y, RESIDUAL, BIAS, KEEP, AXES, MASKS, BUFFERS };
static const size_t SIZES[] = {4, 8, 2, 2, 1}; /* bytes per element of each dtype */

static const cdropout_table *table;
static char *low[BUFFERS], *high[BUFFERS];
static struct { /* the current call; the signal handler reads it */
  const char *kernel;
  int dtype, at_end;
  size_t n, rows, columns, offset;
  uint64_t start;
} volatile now;
static long long calls;

static char *place(int buffer, size_t bytes) { /* return the address of a buffer of this size */
  size_t distance = buffer == Y ? now.offset : 0;
  return now.at_end ? high[buffer] - bytes - distance : low[buffer] + distance;
}

static void report(const char *what) {
  char text[300];
  int size =
      snprintf(text, sizeof text, "%s: %s, dtype %d, %zu elements, %zu x %zu, start %llu, y %zu bytes from the %s\n", what, now.kernel,
               now.dtype, now.n, now.rows, now.columns, (unsigned long long)now.start, now.offset, now.at_end ? "end" : "beginning");
  if (write(2, text, size) != size) _exit(3);
}

static void on_fault(int number) {
  report("an inaccessible page was accessed");
  signal(number, SIG_DFL);
  raise(number);
}

/* The bytes next to the output have the known value before a call, and must have it afterwards. */
static char *edge_below, *edge_above;
static size_t below, above;

static char *output(size_t bytes) {
  char *y = place(Y, bytes);
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

#define CALL(name, ...) (now.kernel = #name, table->name(__VA_ARGS__), check_edges())

static void apply(const cdropout_mask *mask, const cdropout_mask *halves) {
  size_t bytes = now.n * SIZES[now.dtype];
  char *x = place(X, bytes), *y = output(bytes);
  CALL(apply, now.dtype, 0, x, y, now.n, mask, now.start);
  CALL(apply, now.dtype, 0, y, y, now.n, halves, now.start);
  uint8_t *bits = (uint8_t *)place(KEEP, (now.start + now.n + 7) / 8);
  CALL(apply_bits, now.dtype, 0, x, y, now.n, bits, now.start, 2.0);
  CALL(apply_bits, now.dtype, 0, y, y, now.n, bits, now.start, 2.0);
}

static void draw(const cdropout_mask *mask) {
  CALL(bits, (uint8_t *)output((now.n + 7) / 8), now.n, mask, now.start);
  CALL(bools, (uint8_t *)output(now.n), now.n, mask, now.start);
}

/* Return the extent of a view of rows x columns with these steps, and the distance of its first item from the lowest one. */
static size_t extent(const ptrdiff_t steps[2], size_t *before) {
  size_t lengths[] = {now.rows, now.columns}, all = 1;
  *before = 0;
  if (now.rows == 0 || now.columns == 0) return 0;
  for (int i = 0; i < 2; i++) {
    size_t far = (lengths[i] - 1) * (size_t)(steps[i] < 0 ? -steps[i] : steps[i]);
    all += far;
    if (steps[i] < 0) *before += far;
  }
  return all;
}

static char *place_view(int buffer, size_t size, const ptrdiff_t steps[2]) { /* return the address of the first item */
  size_t before, bytes = extent(steps, &before) * size;
  return (buffer == Y ? output(bytes) : place(buffer, bytes)) + before * size;
}

typedef struct { /* items per row and per column */
  ptrdiff_t x[2], y[2], mask[2];
} Steps;

static void apply_view(const cdropout_mask *mask, const Steps *steps) {
  ptrdiff_t size = SIZES[now.dtype];
  cdropout_axis *axes = (cdropout_axis *)place(AXES, 2 * sizeof *axes);
  for (int i = 0; i < 2; i++) axes[i] = (cdropout_axis){i ? now.columns : now.rows, steps->x[i] * size, steps->y[i] * size, steps->mask[i]};
  char *x = now.dtype == CDROPOUT_BOOL ? NULL : place_view(X, size, steps->x), *y = place_view(Y, size, steps->y);
  CALL(apply_strided, now.dtype, 0, x, y, 2, axes, mask, now.start);
  size_t before, first = now.start % 8, bytes = (first + extent(steps->mask, &before) + 7) / 8;
  uint8_t *bits = (uint8_t *)place(KEEP, bytes);
  CALL(apply_bits_strided, now.dtype, 0, x, y, 2, axes, bits, first + before, 2.0);
  uint8_t *bools = (uint8_t *)place_view(KEEP, 1, steps->mask);
  CALL(apply_bools_strided, now.dtype, 0, x, y, 2, axes, bools, 2.0);
  if (now.dtype <= CDROPOUT_FLOAT64) CALL(apply_alpha_strided, now.dtype, 0, x, y, 2, axes, mask, now.start, 0.5, -1.0);
}

static void add_bias(const cdropout_mask *mask) {
  size_t rows = now.rows, columns = now.columns, size = SIZES[now.dtype], bytes = rows * columns * size;
  char *x = place(X, bytes), *y = output(bytes);
  CALL(bias_dropout_add, now.dtype, x, place(BIAS, columns * size), place(RESIDUAL, bytes), y, rows, columns, mask, now.start);
  CALL(bias_dropout_add_backward, now.dtype, x, y, (double *)place(BIAS, columns * 8), rows, columns, mask, now.start);
}

static void views(const cdropout_mask *mask) {
  ptrdiff_t rows = now.rows, columns = now.columns;
  const Steps kinds[] = {
      {{columns, 1}, {columns, 1}, {columns, 1}},     /* C order */
      {{columns, 1}, {columns, 1}, {1, 0}},           /* one draw per row */
      {{columns, 1}, {columns, 1}, {0, 1}},           /* one draw per column */
      {{columns, -1}, {-columns, 1}, {-columns, -1}}, /* backwards */
      {{0, 1}, {3 * columns, 3}, {-2 * columns, -2}}, /* gaps */
      {{1, rows}, {1, rows}, {columns, 1}},           /* Fortran order */
      {{columns, 1}, {1, rows}, {columns + 7, 1}},    /* from C to Fortran order, with a window of a mask */
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) apply_view(mask, &kinds[i]);
}

/* Make all calls for one length and offset. Views, which are slower, are called for one in `every` of them per type. */
static void all_kernels(const cdropout_mask *masks, int every) {
  now.rows = now.columns = 0;
  draw(&masks[0]);
  for (now.dtype = 0; now.dtype <= CDROPOUT_BOOL; now.dtype++) {
    if (now.dtype != CDROPOUT_BOOL) apply(&masks[0], &masks[1]);
    if (now.dtype != CDROPOUT_BOOL && now.offset == 0) apply(&masks[2], &masks[2]);
    if ((now.n + now.offset + now.dtype) % every == 0) {
      now.columns = 1 + (7 * now.n + 31 * now.offset) % 97, now.rows = now.n / now.columns;
      if ((now.n + now.offset / 16) % 4 == 0) now.columns = now.n, now.rows = 1;
      views(&masks[0]);
      if (now.dtype <= CDROPOUT_FLOAT64) add_bias(&masks[0]);
    }
  }
}

/* Write one byte outside: above the output, below it, or next to it. */
static void write_outside(const cdropout_mask *mask, int where) {
  now.at_end = where != -2;
  now.n = 17, now.offset = where == -3 ? 5 : 0;
  char *y = output(now.n);
  CALL(bools, (uint8_t *)y - (where == -2), now.n + 1, mask, 0);
}

/* Make the calls for one in `sparse` positions of the buffers; return their number, or -1 if memory cannot be allocated.
 *
 * every = 0: only calls that may use streaming stores. every < 0: one wrong call, to show that it is detected. */
long long run(const cdropout_table *kernels, int every, int sparse) {
  static const double PROBABILITIES[] = {0.3, 0.5, 1.0};
  size_t page = sysconf(_SC_PAGESIZE), size = (3 * 8 * MAX_LENGTH + OFFSETS + EDGE + page - 1) / page * page;
  for (int i = 0; i < BUFFERS; i++) {
    char *memory = mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) || mprotect(memory + page + size, page, PROT_NONE)) return -1;
    low[i] = memory + page;
    high[i] = low[i] + size;
    memset(low[i], 1, size); /* floats, packed bits, bools */
  }
  table = kernels;
  signal(SIGSEGV, on_fault);
  signal(SIGBUS, on_fault); /* raised on macOS instead */
  for (now.at_end = 0; now.at_end < 2; now.at_end++) {
    now.offset = 0;
    cdropout_mask *masks = (cdropout_mask *)place(MASKS, sizeof *masks * 3);
    for (int i = 0; i < 3; i++) table->mask_init(&masks[i], 1, 2, PROBABILITIES[i]);
    if (every < 0) write_outside(masks, every);
    for (now.n = 0; now.n <= MAX_LENGTH; now.n++)
      for (now.offset = 0; now.offset < OFFSETS; now.offset++) {
        if ((now.n + now.offset + now.n / 16) % sparse) continue;
        now.start = (37 * now.n + now.offset) % GROUP; /* covers all positions in a lane */
        if (every)
          all_kernels(masks, every);
        else
          for (now.dtype = 0; now.dtype < 2; now.dtype++) {
            const Steps row = {{0, 1}, {0, 1}, {0, 0}};
            now.rows = 1, now.columns = now.n;
            apply(&masks[0], &masks[1]);
            apply_view(&masks[0], &row);
          }
      }
  }
  return calls;
}
