/* The functions of softmax.h for one type of the weights. Define two macros before each inclusion of this file: CD_REAL is
 * the type, and CD_VECTOR_OF(name) appends the suffix of the type to a name. */
#define CD_V CD_VECTOR_OF(cd)
#define CD_LENGTH (sizeof(CD_V) / sizeof(CD_REAL)) /* elements per vector */
#define CD_LOAD(p, i) CD_VECTOR_OF(cd_load)((p) + (i) * CD_LENGTH)
#define CD_STORE(p, i, v) CD_VECTOR_OF(cd_store)((p) + (i) * CD_LENGTH, v)
#define CD_KEPT(v, keep, i) CD_VECTOR_OF(cd_kept)(v, keep, i)
#define CD_ALL(value) CD_VECTOR_OF(cd_fill)((CD_REAL)(value))
#define CD_FOR_VECTORS(i) for (size_t i = 0; i < CD_STEP / CD_LENGTH; i++)

/* Copy n elements to a buffer of one step. The other elements are set to `rest`. */
static inline void CD_VECTOR_OF(cd_copy_rest)(CD_REAL *buffer, const CD_REAL *x, size_t n, double rest) {
  CD_FOR_VECTORS(i) CD_STORE(buffer, i, CD_ALL(rest));
  memcpy(buffer, x, n * sizeof(CD_REAL));
}
static inline double CD_VECTOR_OF(cd_largest_lane)(const CD_V *lanes) {
  CD_REAL values[CD_STEP];
  CD_FOR_VECTORS(i) CD_STORE(values, i, lanes[i]);
  for (int n = CD_STEP / 2; n; n /= 2)
    for (int i = 0; i < n; i++) values[i] = values[i] > values[i + n] ? values[i] : values[i + n];
  return values[0];
}
static inline double CD_VECTOR_OF(cd_sum_of_lanes)(const CD_V *lanes) {
  CD_REAL values[CD_STEP];
  CD_FOR_VECTORS(i) CD_STORE(values, i, lanes[i]);
  for (int n = CD_STEP / 2; n; n /= 2)
    for (int i = 0; i < n; i++) values[i] += values[i + n];
  return values[0];
}

static inline double CD_VECTOR_OF(cd_row_max)(const CD_REAL *x, size_t n) { /* NaN is ignored */
  CD_REAL rest[CD_STEP];
  CD_V lanes[CD_STEP / CD_LENGTH];
  size_t done;
  CD_FOR_VECTORS(i) lanes[i] = CD_ALL(-INFINITY);
  for (done = 0; done + CD_STEP <= n; done += CD_STEP) CD_FOR_VECTORS(i) lanes[i] = CD_VECTOR_OF(cd_larger)(CD_LOAD(x + done, i), lanes[i]);
  CD_VECTOR_OF(cd_copy_rest)(rest, x + done, n - done, -INFINITY);
  CD_FOR_VECTORS(i) lanes[i] = CD_VECTOR_OF(cd_larger)(CD_LOAD(rest, i), lanes[i]);
  return CD_VECTOR_OF(cd_largest_lane)(lanes);
}
/* Set a step of x to exp(x - a - b), and add the step to the lanes. */
static inline void CD_VECTOR_OF(cd_exp_step)(CD_REAL *x, CD_V a, CD_V b, CD_V *lanes) {
  CD_FOR_VECTORS(i) {
    CD_V y = CD_VECTOR_OF(cd_exp)(CD_LOAD(x, i) - a - b);
    CD_STORE(x, i, y);
    lanes[i] += y;
  }
}
static inline double CD_VECTOR_OF(cd_row_exp)(CD_REAL *x, size_t n, double a, double b) { /* return the sum */
  CD_REAL rest[CD_STEP];
  CD_V lanes[CD_STEP / CD_LENGTH];
  double total = 0;
  size_t done = 0;
  while (done < n) {
    size_t end = n - done < CD_SUM_LENGTH ? n : done + CD_SUM_LENGTH;
    CD_FOR_VECTORS(i) lanes[i] = CD_ALL(0);
    for (; done + CD_STEP <= end; done += CD_STEP) CD_VECTOR_OF(cd_exp_step)(x + done, CD_ALL(a), CD_ALL(b), lanes);
    if (done < end) {
      CD_VECTOR_OF(cd_copy_rest)(rest, x + done, n - done, -INFINITY);
      CD_VECTOR_OF(cd_exp_step)(rest, CD_ALL(a), CD_ALL(b), lanes);
      memcpy(x + done, rest, (n - done) * sizeof(CD_REAL));
      done = n;
    }
    total += CD_VECTOR_OF(cd_sum_of_lanes)(lanes);
  }
  return total;
}
/* Set n elements of y to x * scale where the keep bit is set, otherwise to 0. y may be x. */
static inline void CD_VECTOR_OF(cd_row_drop)(const CD_REAL *x, CD_REAL *y, size_t n, double scale, const cd_softmax *matrix, size_t row) {
  CD_REAL rest[CD_STEP];
  CD_V factor = CD_ALL(scale);
  uint8_t keep[4];
  size_t done;
  for (done = 0; done + CD_STEP <= n; done += CD_STEP) {
    cd_load_keep(keep, matrix, row, done, CD_STEP);
    CD_FOR_VECTORS(i) CD_STORE(y + done, i, CD_KEPT(CD_LOAD(x + done, i) * factor, keep, i));
  }
  if (done < n) {
    CD_VECTOR_OF(cd_copy_rest)(rest, x + done, n - done, 0);
    cd_load_keep(keep, matrix, row, done, n - done);
    CD_FOR_VECTORS(i) CD_STORE(rest, i, CD_KEPT(CD_LOAD(rest, i) * factor, keep, i));
    memcpy(y + done, rest, (n - done) * sizeof(CD_REAL));
  }
}

/* Set the weights, which contain scores, to dropout(softmax(scores)); if all scores of a row are -inf, its weights are 0. Write
 * two numbers per row to sums: the logarithm of the sum of exp(scores - largest), and largest; or 0 and 0 for a row of -inf. */
static inline void CD_VECTOR_OF(cd_softmax_forward)(const cd_softmax *matrix, CD_REAL *weights, CD_REAL *sums) {
  for (size_t row = matrix->begin; row < matrix->end; row++) {
    CD_REAL *w = weights + row * matrix->columns;
    size_t n = cd_visible(matrix, row);
    double largest = CD_VECTOR_OF(cd_row_max)(w, n), total;
    if (largest == -INFINITY) largest = 0;
    total = CD_VECTOR_OF(cd_row_exp)(w, n, largest, 0);
    if (total == 0) total = 1;
    sums[2 * row] = (CD_REAL)log(total);
    sums[2 * row + 1] = (CD_REAL)largest;
    CD_VECTOR_OF(cd_row_drop)(w, w, n, matrix->scale / total, matrix, row);
    memset(w + n, 0, (matrix->columns - n) * sizeof(CD_REAL));
  }
}
/* Set the weights, which contain scores, to softmax(scores), computed from the sums. Unless `dropped` is NULL, set it to
 * dropout(weights). */
static inline void CD_VECTOR_OF(cd_softmax_recompute)(const cd_softmax *matrix, CD_REAL *weights, const CD_REAL *sums, CD_REAL *dropped) {
  for (size_t row = matrix->begin; row < matrix->end; row++) {
    CD_REAL *w = weights + row * matrix->columns;
    size_t n = cd_visible(matrix, row), hidden = (matrix->columns - n) * sizeof(CD_REAL);
    CD_VECTOR_OF(cd_row_exp)(w, n, sums[2 * row + 1], sums[2 * row]);
    memset(w + n, 0, hidden);
    if (!dropped) continue;
    CD_VECTOR_OF(cd_row_drop)(w, dropped + row * matrix->columns, n, matrix->scale, matrix, row);
    memset(dropped + row * matrix->columns + n, 0, hidden);
  }
}
/* Set `gradient`, the gradient with respect to dropout(weights), to the gradient with respect to the scores: that is
 * weights * (g - sum of weights * g), where g = dropout(gradient). */
static inline void CD_VECTOR_OF(cd_softmax_backward)(const cd_softmax *matrix, const CD_REAL *weights, CD_REAL *gradient) {
  CD_REAL rest[2][CD_STEP];
  CD_V lanes[CD_STEP / CD_LENGTH];
  for (size_t row = matrix->begin; row < matrix->end; row++) {
    const CD_REAL *w = weights + row * matrix->columns;
    CD_REAL *g = gradient + row * matrix->columns;
    size_t n = cd_visible(matrix, row), done = 0;
    double total = 0;
    CD_VECTOR_OF(cd_row_drop)(g, g, n, matrix->scale, matrix, row);
    memset(g + n, 0, (matrix->columns - n) * sizeof(CD_REAL));
    while (done < n) {
      size_t end = n - done < CD_SUM_LENGTH ? n : done + CD_SUM_LENGTH;
      CD_FOR_VECTORS(i) lanes[i] = CD_ALL(0);
      for (; done + CD_STEP <= end; done += CD_STEP) CD_FOR_VECTORS(i) lanes[i] += CD_LOAD(w + done, i) * CD_LOAD(g + done, i);
      if (done < end) {
        CD_VECTOR_OF(cd_copy_rest)(rest[0], w + done, n - done, 0);
        CD_VECTOR_OF(cd_copy_rest)(rest[1], g + done, n - done, 0);
        CD_FOR_VECTORS(i) lanes[i] += CD_LOAD(rest[0], i) * CD_LOAD(rest[1], i);
        done = n;
      }
      total += CD_VECTOR_OF(cd_sum_of_lanes)(lanes);
    }
    for (done = 0; done + CD_STEP <= n; done += CD_STEP)
      CD_FOR_VECTORS(i) CD_STORE(g + done, i, (CD_LOAD(g + done, i) - CD_ALL(total)) * CD_LOAD(w + done, i));
    for (; done < n; done++) g[done] = (g[done] - (CD_REAL)total) * w[done];
  }
}
#undef CD_REAL
#undef CD_VECTOR_OF
#undef CD_V
#undef CD_LENGTH
#undef CD_LOAD
#undef CD_STORE
#undef CD_KEPT
#undef CD_ALL
#undef CD_FOR_VECTORS
