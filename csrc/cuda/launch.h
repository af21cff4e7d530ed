// The launchers: pointers, sizes and a stream; no torch header, so that every .cu compiles in seconds.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/choices.h"

namespace imnet {

struct AugmentLaunch {
  const uint8_t* store;        // (N, H, W, C)
  const int64_t *ids, *names;  // (B,)
  const float *scale, *shift;  // (C,), or shift (H, W, C) where per_pixel
  void* out;                   // (B, H, W, C)
  int64_t num_stored, batch;
  int32_t height, width, channels, per_pixel, dtype;
  AugmentParams params;
};
cudaError_t launch_augment(const AugmentLaunch& a, cudaStream_t stream);

struct SpectralLaunch {
  const void* images;
  void* out;  // (K, total)
  const float *scale, *shift;  // (K, C), or null
  const int32_t* bands;        // host, K of them
  int64_t total;               // elements of one band
  int64_t stride_b, stride_c, stride_h, stride_w;
  int32_t num_bands, r, channels, out_height, out_width, channels_last, in_dtype, out_dtype;
};
cudaError_t launch_spectral(const SpectralLaunch& a, cudaStream_t stream);

struct ShakeLaunch {
  const void *x1, *x2, *residual;  // backward: x1 is the gradient
  void *y1, *y2;                   // forward: y1; backward: both branches' gradients
  const float* coefficient;        // one, or one per image (stride 1)
  int64_t batch, image;            // images, elements of one
  int32_t per_image, dtype;
};
cudaError_t launch_shake(const ShakeLaunch& a, cudaStream_t stream);
cudaError_t launch_shake_backward(const ShakeLaunch& a, cudaStream_t stream);

struct SgdLaunch {
  const int64_t* table;   // (5, T): addresses of p, g, m, e, and sizes
  const int64_t* chunks;  // (N, 2): tensor, first element
  const float *lr, *grad_scale, *skip;
  int64_t num_chunks, num_tensors;
  int32_t chunk, has_momenta, has_emas, nesterov;
  float momentum, weight_decay, ema_weight;
};
cudaError_t launch_sgd_ema(const SgdLaunch& a, cudaStream_t stream);

}  // namespace imnet
