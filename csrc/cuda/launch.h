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

}  // namespace imnet
