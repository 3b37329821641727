/* Dropout of channels-last images. The strides of an axis in x and y are given in bytes, and the stride in the mask in elements. */
#include "programs.h"

/* `shape` contains the numbers of images, channels, rows and columns. The mask has this order of axes; in memory, channels are last. */
int images_drop_elements(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed) {
  cdropout_mask mask;
  ptrdiff_t pixel = (ptrdiff_t)(shape[1] * sizeof(float)), row = pixel * (ptrdiff_t)shape[3], image = row * (ptrdiff_t)shape[2];
  int64_t columns = (int64_t)shape[3], plane = columns * (int64_t)shape[2], all = plane * (int64_t)shape[1];
  const cdropout_axis axes[] = {
      {shape[0], image, image, all},
      {shape[1], sizeof(float), sizeof(float), plane},
      {shape[2], row, row, columns},
      {shape[3], pixel, pixel, 1},
  };
  if (kernels->mask_init(&mask, seed, 0, p) < 0) return -1;
  return kernels->apply_strided(CDROPOUT_FLOAT32, 0, x, y, 4, axes, &mask, 0);
}

/* Drop whole channels: all pixels of a channel share one draw, so that their axis has the stride 0 in the mask. */
int images_drop_channels(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed) {
  cdropout_mask mask;
  ptrdiff_t pixel = (ptrdiff_t)(shape[1] * sizeof(float)), image = pixel * (ptrdiff_t)(shape[2] * shape[3]);
  const cdropout_axis axes[] = {
      {shape[0], image, image, (int64_t)shape[1]},
      {shape[1], sizeof(float), sizeof(float), 1},
      {shape[2] * shape[3], pixel, pixel, 0},
  };
  if (kernels->mask_init(&mask, seed, 0, p) < 0) return -1;
  return kernels->apply_strided(CDROPOUT_FLOAT32, 0, x, y, 3, axes, &mask, 0);
}
