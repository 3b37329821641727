/* A training step in C: loss = mean of (second . dropout(tanh(first . x)) - targets)^2, and its gradient. */
#include <math.h>
#include <string.h>

#include "programs.h"

static double forward(const cdropout_table *kernels, const double x[SAMPLES][INPUTS], const double targets[SAMPLES], const weights *current,
                      activations *work, const cdropout_mask *mask, double error[SAMPLES]) {
  double loss = 0;
  for (int s = 0; s < SAMPLES; s++) {
    for (int h = 0; h < HIDDEN; h++) {
      double sum = 0;
      for (int i = 0; i < INPUTS; i++) sum += x[s][i] * current->first[i][h];
      work->hidden[s][h] = tanh(sum);
    }
  }
  kernels->apply(CDROPOUT_FLOAT64, 0, work->hidden, work->dropped, SAMPLES * HIDDEN, mask, 0);
  for (int s = 0; s < SAMPLES; s++) {
    error[s] = -targets[s];
    for (int h = 0; h < HIDDEN; h++) error[s] += work->dropped[s][h] * current->second[h];
    loss += error[s] * error[s] / SAMPLES;
  }
  return loss;
}

double training_step(const cdropout_table *kernels, const double x[SAMPLES][INPUTS], const double targets[SAMPLES], const weights *current,
                     weights *gradient, activations *work, const cdropout_mask *mask) {
  double error[SAMPLES];
  double loss = forward(kernels, x, targets, current, work, mask, error);
  memset(gradient, 0, sizeof *gradient);
  for (int s = 0; s < SAMPLES; s++) {
    for (int h = 0; h < HIDDEN; h++) {
      work->g_dropped[s][h] = 2 * error[s] / SAMPLES * current->second[h];
      gradient->second[h] += 2 * error[s] / SAMPLES * work->dropped[s][h];
    }
  }
  /* The derivative of dropout applies the same mask to the gradient. The mask was not stored, so that this call draws it again. */
  kernels->apply(CDROPOUT_FLOAT64, 0, work->g_dropped, work->g_hidden, SAMPLES * HIDDEN, mask, 0);
  for (int s = 0; s < SAMPLES; s++) {
    for (int h = 0; h < HIDDEN; h++) {
      double slope = 1 - work->hidden[s][h] * work->hidden[s][h];
      for (int i = 0; i < INPUTS; i++) gradient->first[i][h] += work->g_hidden[s][h] * slope * x[s][i];
    }
  }
  return loss;
}
