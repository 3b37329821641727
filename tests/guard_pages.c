/* Every kernel on buffers of every length and place, between pages that nobody may touch: the loops of test_guard_pages.py.
 *
 * Sanitizers do not see what masked vector loads and streaming stores touch; the CPU does. Buffers end where an inaccessible
 * page begins or, in a second turn, begin where one ends, and an access outside is a segmentation fault. The output alone
 * lies `offset` bytes from that page; what is next to it has a known value, in which a wrong store shows. */
#define _DEFAULT_SOURCE
#include <cdropout.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST = 2100, OFFSETS = 64, EDGE = 64, GROUP = 512, KNOWN = 0xA5 };
enum { X, Y, RESIDUAL, BIAS, KEEP, NAMES, BUFFERS };
static const size_t SIZES[] = {4, 8, 2, 2}; /* bytes an element of each dtype */

static const cdropout_table *table;
static char *low[BUFFERS], *high[BUFFERS];
static struct { /* the call that is made; a fault's handler reads it */
  const char *kernel;
  int dtype, at_end;
  size_t n, rows, columns, offset;
  uint64_t start;
} volatile now;
static long long calls;

static char *room(int buffer, size_t bytes) {
  size_t away = buffer == Y ? now.offset : 0;
  return now.at_end ? high[buffer] - bytes - away : low[buffer] + away;
}

static void tell(const char *what) {
  char text[300];
  int size =
      snprintf(text, sizeof text, "%s: %s, dtype %d, %zu elements, %zu x %zu, start %llu, y %zu bytes from the %s\n", what, now.kernel,
               now.dtype, now.n, now.rows, now.columns, (unsigned long long)now.start, now.offset, now.at_end ? "end" : "beginning");
  if (write(2, text, size) != size) _exit(3);
}

static void on_fault(int number) {
  tell("a page outside was touched");
  signal(number, SIG_DFL);
  raise(number);
}

/* Give the bytes around the output the known value, make the call, and see whether they still have it. */
static char *edge_below, *edge_above;
static size_t below, above;

static char *output(size_t bytes) {
  char *y = room(Y, bytes);
  below = y - low[Y] < EDGE ? y - low[Y] : EDGE;
  above = high[Y] - (y + bytes) < EDGE ? high[Y] - (y + bytes) : EDGE;
  edge_below = y - below;
  edge_above = y + bytes;
  memset(edge_below, KNOWN, below);
  memset(edge_above, KNOWN, above);
  return y;
}

static void done(void) {
  static const unsigned char known[EDGE] = {[0 ... EDGE - 1] = KNOWN};
  calls++;
  if (memcmp(edge_below, known, below) || memcmp(edge_above, known, above)) {
    tell("a byte beside the output was written");
    _exit(2);
  }
}

#define CALL(name, ...) (now.kernel = #name, table->name(__VA_ARGS__), done())

static void apply(const cdropout_mask *mask, const cdropout_mask *halves) {
  size_t bytes = now.n * SIZES[now.dtype];
  char *x = room(X, bytes), *y = output(bytes);
  CALL(apply, now.dtype, x, y, now.n, mask, now.start);
  CALL(apply, now.dtype, y, y, now.n, halves, now.start);
  uint8_t *bits = (uint8_t *)room(KEEP, (now.start + now.n + 7) / 8);
  CALL(apply_bits, now.dtype, x, y, now.n, bits, now.start, 2.0);
  CALL(apply_bits, now.dtype, y, y, now.n, bits, now.start, 2.0);
}

static void draw(const cdropout_mask *mask) {
  CALL(bits, (uint8_t *)output((now.n + 7) / 8), now.n, mask, now.start);
  CALL(bools, (uint8_t *)output(now.n), now.n, mask, now.start);
}

/* Where the first of rows x columns items lies, for these steps in items; the steps in bytes go to the plane. */
static char *field(int buffer, size_t size, ptrdiff_t by_row, ptrdiff_t by_column, ptrdiff_t *strides) {
  ptrdiff_t steps[] = {by_row, by_column}, reach = 0, before = 0;
  size_t lengths[] = {now.rows, now.columns};
  for (int i = 0; i < 2; i++) {
    ptrdiff_t far = lengths[i] ? (ptrdiff_t)(lengths[i] - 1) * steps[i] : 0;
    reach += far < 0 ? -far : far;
    before += far < 0 ? -far : 0;
    strides[i] = steps[i] * (ptrdiff_t)size;
  }
  size_t bytes = now.rows && now.columns ? (size_t)(reach + 1) * size : 0;
  return (buffer == Y ? output(bytes) : room(buffer, bytes)) + before * size;
}

static void apply_plane(const ptrdiff_t steps[6]) {
  size_t size = SIZES[now.dtype];
  cdropout_plane plane = {now.rows, now.columns, {0}, {0}, {0}};
  char *x = field(X, size, steps[0], steps[1], plane.x), *y = field(Y, size, steps[2], steps[3], plane.y);
  uint8_t *keep = (uint8_t *)field(KEEP, 1, steps[4], steps[5], plane.keep);
  CALL(apply_bools, now.dtype, x, y, keep, &plane, 2.0);
}

static void apply_channels(const cdropout_mask *mask, int by_row) {
  ptrdiff_t columns = now.columns;
  cdropout_plane plane = {now.rows, now.columns, {0}, {0}, {by_row, !by_row}};
  char *x = field(X, SIZES[now.dtype], columns, 1, plane.x), *y = field(Y, SIZES[now.dtype], columns, 1, plane.y);
  CALL(apply_channels, now.dtype, x, y, &plane, mask, now.start);
}

static void add_bias(const cdropout_mask *mask) {
  size_t rows = now.rows, columns = now.columns, size = SIZES[now.dtype], bytes = rows * columns * size;
  char *x = room(X, bytes), *y = output(bytes);
  CALL(bias_dropout_add, now.dtype, x, room(BIAS, columns * size), room(RESIDUAL, bytes), y, rows, columns, mask, now.start);
  CALL(bias_dropout_add_backward, now.dtype, x, y, (double *)room(BIAS, columns * 8), rows, columns, mask, now.start);
}

static void planes(const cdropout_mask *mask) {
  ptrdiff_t rows = now.rows, columns = now.columns;
  const ptrdiff_t kinds[][6] = {
      /* from row to row and column to column, in items: of x, of y, of the bools */
      {columns, 1, columns, 1, columns, 1},     /* dense: decisions of their own, */
      {columns, 1, columns, 1, 1, 0},           /* one a row, */
      {columns, 1, columns, 1, 0, 1},           /* one a column */
      {columns, -1, -columns, 1, -columns, -1}, /* backwards */
      {0, 1, 3 * columns, 3, -2 * columns, -2}, /* gaps */
      {1, rows, 1, rows, 1, rows},              /* turned */
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) apply_plane(kinds[i]);
  apply_channels(mask, 1);
  apply_channels(mask, 0);
  if (now.dtype <= CDROPOUT_FLOAT64) add_bias(mask);
}

/* Everything for one length and offset; planes, which are slower, for one in `every` of them, the types in turn. */
static void all_kernels(const cdropout_mask *masks, int every) {
  now.rows = now.columns = 0;
  draw(&masks[0]);
  for (now.dtype = 0; now.dtype < 4; now.dtype++) {
    apply(&masks[0], &masks[1]);
    if (now.offset == 0) apply(&masks[2], &masks[2]);
    if ((now.n + now.offset + now.dtype) % every == 0) {
      now.columns = 1 + (7 * now.n + 31 * now.offset) % 97, now.rows = now.n / now.columns;
      if ((now.n + now.offset / 16) % 4 == 0) now.columns = now.n, now.rows = 1;
      planes(&masks[0]);
    }
  }
}

/* Steps outside by one byte: above the output, below it, or next to it. */
static void step_outside(const cdropout_mask *mask, int where) {
  now.at_end = where != -2;
  now.n = 17, now.offset = where == -3 ? 5 : 0;
  char *y = output(now.n);
  CALL(bools, (uint8_t *)y - (where == -2), now.n + 1, mask, 0);
}

/* Makes all calls in one of `sparse` places, or with every = 0 only those that may store past the cache, or with every < 0 a
 * wrong one, to show that it is noticed; returns the number of calls, or -1 if there is no memory. */
long long run(const cdropout_table *kernels, int every, int sparse) {
  static const double PROBABILITIES[] = {0.3, 0.5, 1.0};
  size_t page = sysconf(_SC_PAGESIZE), size = (3 * 8 * MOST + OFFSETS + EDGE + page - 1) / page * page;
  for (int i = 0; i < BUFFERS; i++) {
    char *memory = mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) || mprotect(memory + page + size, page, PROT_NONE)) return -1;
    low[i] = memory + page;
    high[i] = low[i] + size;
    memset(low[i], 1, size); /* floats, packed bits, bools */
  }
  table = kernels;
  signal(SIGSEGV, on_fault);
  signal(SIGBUS, on_fault); /* macOS's word for it */
  for (now.at_end = 0; now.at_end < 2; now.at_end++) {
    now.offset = 0;
    cdropout_mask *masks = (cdropout_mask *)room(NAMES, sizeof *masks * 3);
    for (int i = 0; i < 3; i++) table->mask_init(&masks[i], 1, 2, PROBABILITIES[i]);
    if (every < 0) step_outside(masks, every);
    for (now.n = 0; now.n <= MOST; now.n++)
      for (now.offset = 0; now.offset < OFFSETS; now.offset++) {
        if ((now.n + now.offset + now.n / 16) % sparse) continue;
        now.start = (37 * now.n + now.offset) % GROUP; /* every place in a lane, too */
        if (every)
          all_kernels(masks, every);
        else
          for (now.dtype = 0; now.dtype < 2; now.dtype++) apply(&masks[0], &masks[1]);
      }
  }
  return calls;
}
