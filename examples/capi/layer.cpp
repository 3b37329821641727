/* A float32 layer in C++17, as a framework would have it: it holds a reference to the table, and knows nothing of Python. */
#include <stdexcept>

#include "programs.h"

namespace {

class Dropout {
 public:
  Dropout(const cdropout_table &kernels, double p, std::uint64_t seed) : kernels_(kernels) {
    if (kernels_.mask_init(&next_, seed, 0, p) < 0) throw std::invalid_argument("p has to be between 0 and 1");
  }

  void forward(const float *x, float *y, std::size_t n) {
    last_ = next_; /* all that backward needs */
    next_.call++;
    kernels_.apply(CDROPOUT_FLOAT32, x, y, n, &last_, 0);
  }

  void backward(const float *gy, float *gx, std::size_t n) const { kernels_.apply(CDROPOUT_FLOAT32, gy, gx, n, &last_, 0); }

 private:
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
