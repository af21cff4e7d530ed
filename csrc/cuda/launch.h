// The launchers' interface: pointers, sizes and a stream. It includes no torch header, so that every .cu compiles in seconds.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/choices.h"

namespace imnet {

struct AugmentLaunch {
  const uint8_t* store;        // (N, H, W, C)
  const int64_t *ids, *names;  // (B,): positions in the store, and the sample ids that draws depend on
  const float *scale, *shift;  // (C,); shift is (H, W, C) if per_pixel
  void* out;                   // (B, H, W, C)
  int64_t num_stored, batch;
  int32_t height, width, channels, per_pixel, dtype;
  AugmentParams params;
};
cudaError_t launch_augment(const AugmentLaunch& a, cudaStream_t stream);

}  // namespace imnet
