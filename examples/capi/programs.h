/* Programs that use the table without Python; the extension bridge.c calls them.
 *
 * Functions that take p return 0, or -1 if p is not valid. */
#ifndef PROGRAMS_H
#define PROGRAMS_H
#include "cdropout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* layer.cpp: y = forward(x) and gx = backward(gy) of n floats. */
int layer_run(const cdropout_table *kernels, const float *x, const float *gy, float *y, float *gx, size_t n, double p, uint64_t seed);

/* threads.c: y = dropout(x) of n floats with OpenMP threads. */
int threads_apply(const cdropout_table *kernels, const float *x, float *y, size_t n, double p, uint64_t seed);

/* images.c: y = dropout2d(x) and y = dropout(x) of channels-last images. */
int images_drop_channels(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed);
int images_drop_elements(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed);

/* training.c: one training step of a network with two layers; returns the loss. */
enum { SAMPLES = 32, INPUTS = 6, HIDDEN = 40 };
typedef struct {
  double first[INPUTS][HIDDEN], second[HIDDEN];
} weights;
typedef struct {
  double hidden[SAMPLES][HIDDEN], dropped[SAMPLES][HIDDEN];     /* before and after dropout */
  double g_dropped[SAMPLES][HIDDEN], g_hidden[SAMPLES][HIDDEN]; /* the gradients of the loss with respect to `dropped` and `hidden` */
} activations;
double training_step(const cdropout_table *kernels, const double x[SAMPLES][INPUTS], const double targets[SAMPLES], const weights *current,
                     weights *gradient, activations *work, const cdropout_mask *mask);

#ifdef __cplusplus
}
#endif
#endif
