/* The functions that the small extension bridge.c calls: programs that know the table, and nothing of Python. */
#ifndef PROGRAMS_H
#define PROGRAMS_H
#include "cdropout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* layer.cpp: y = forward(x), then gx = backward(gy), of n floats each; 0, or -1 for a bad p. */
int layer_run(const cdropout_table *kernels, const float *x, const float *gy, float *y, float *gx, size_t n, double p, uint64_t seed);

/* threads.c: y = dropout(x) of n floats, by all threads of OpenMP; 0, or -1 for a bad p. */
int threads_apply(const cdropout_table *kernels, const float *x, float *y, size_t n, double p, uint64_t seed);

/* images.c: y = dropout2d(x), and y = dropout(x), of images whose channels are last; 0, or -1 for a bad p. */
int images_drop_channels(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed);
int images_drop_elements(const cdropout_table *kernels, const float *x, float *y, const size_t shape[4], double p, uint64_t seed);

/* training.c: one step of a network of two layers; see there. */
enum { SAMPLES = 32, INPUTS = 6, HIDDEN = 40 };
typedef struct {
  double first[INPUTS][HIDDEN], second[HIDDEN];
} weights;
typedef struct {
  double hidden[SAMPLES][HIDDEN], dropped[SAMPLES][HIDDEN];     /* before and after dropout */
  double g_dropped[SAMPLES][HIDDEN], g_hidden[SAMPLES][HIDDEN]; /* the gradient of the loss with respect to both */
} activations;
double training_step(const cdropout_table *kernels, const double x[SAMPLES][INPUTS], const double wanted[SAMPLES], const weights *now,
                     weights *gradient, activations *work, const cdropout_mask *mask);

#ifdef __cplusplus
}
#endif
#endif
