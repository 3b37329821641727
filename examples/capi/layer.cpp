/* A float32 dropout layer in C++17. The layer uses the table without Python and processes an array in chunks, as the threads of a
 * framework do. The flag CDROPOUT_PART_OF_LARGE tells the kernel that the whole array is large. */
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "programs.h"

namespace {

class Dropout {
 public:
  Dropout(const cdropout_table &kernels, double p, std::uint64_t seed) : kernels_(kernels) {
    if (kernels_.mask_init(&next_, seed, 0, p) < 0) throw std::invalid_argument("p has to be between 0 and 1");
  }

  void forward(const float *x, float *y, std::size_t n) {
    last_ = next_; /* backward needs only the mask */
    next_.call++;
    apply(x, y, n);
  }

  void backward(const float *gy, float *gx, std::size_t n) const { apply(gy, gx, n); }

 private:
  static constexpr std::size_t kChunk = 65536;                /* elements */
  static constexpr std::size_t kCache = std::size_t{1} << 24; /* bytes; a larger output does not fit in the cache together with its input */

  void apply(const float *x, float *y, std::size_t n) const {
    const std::uint32_t flags = n * sizeof(float) > kCache ? CDROPOUT_PART_OF_LARGE : 0;
    for (std::size_t start = 0; start < n; start += kChunk)
      kernels_.apply(CDROPOUT_FLOAT32, flags, x + start, y + start, std::min(kChunk, n - start), &last_, start);
  }

  const cdropout_table &kernels_;
  cdropout_mask next_{}, last_{};
};

}  // namespace

int layer_run(const cdropout_table *kernels, const float *x, const float *gy, float *y, float *gx, size_t n, double p, uint64_t seed) try {
  Dropout layer(*kernels, p, seed);
  layer.forward(x, y, n);
  layer.backward(gy, gx, n);
  return 0;
} catch (const std::invalid_argument &) {
  return -1;
}
