// One function per family: it checks sizes, divides the work over the thread pool and runs the inner loops of kernels().
// Tensors are passed as addresses.
#pragma once
#include <cstdint>
#include <vector>

#include "../common/choices.h"

namespace imnet {

struct AugmentCall {
  uintptr_t store, ids, sample_ids, out, mean_shift;  // mean_shift 0: none
  int64_t num_stored, batch;
  int32_t height, width, channels, dtype;
  std::vector<float> scale, shift;  // per channel
  AugmentParams params;
};
void augment(const AugmentCall& call, int num_threads);

struct SpectralCall {
  uintptr_t images, out;
  int64_t batch;
  int32_t channels, height, width, r, in_dtype, out_dtype;
  bool channels_last;
  std::vector<int32_t> bands;
  std::vector<float> scale, shift;  // (K, C), or empty
};
void spectral(const SpectralCall& call, int num_threads);

struct ShakeCall {
  uintptr_t x1, x2, residual, out;  // forward
  uintptr_t grad, d1, d2;           // backward: the gradient, and the branches' gradients
  int64_t batch, image_elements;
  uintptr_t coefficient;  // fp32, num_coefficients of them: 1 or batch
  int64_t num_coefficients;
  int32_t dtype;
};
void shake_forward(const ShakeCall& call, int num_threads);
void shake_backward(const ShakeCall& call, int num_threads);

struct SgdCall {
  std::vector<uintptr_t> params, grads, momenta, emas;  // the last two may be empty
  std::vector<int64_t> sizes;
  float lr, grad_scale, momentum, weight_decay, ema_weight;
  bool nesterov;
};
void sgd_ema(const SgdCall& call, int num_threads);

}  // namespace imnet
