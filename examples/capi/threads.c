/* Dropout with OpenMP: each thread processes different ranges of x. The result does not depend on the number of threads. */
#include "programs.h"

enum { RANGE = 65536 }; /* elements; a multiple of 8192 is fastest, because the generator is seeded every 8192 elements */

int threads_apply(const cdropout_table *kernels, const float *x, float *y, size_t n, double p, uint64_t seed) {
  cdropout_mask mask;
  if (kernels->mask_init(&mask, seed, 0, p) < 0) return -1;
#pragma omp parallel for
  for (ptrdiff_t range = 0; range < (ptrdiff_t)(n / RANGE + 1); range++) {
    size_t start = (size_t)range * RANGE;
    size_t length = n - start < RANGE ? n - start : RANGE;
    kernels->apply(CDROPOUT_FLOAT32, 0, x + start, y + start, length, &mask, start);
  }
  return 0;
}
