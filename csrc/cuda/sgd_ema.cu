// sgd_ema: one launch over every parameter, through a table of addresses; a block per chunk of some parameter.
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 256;  // not tuned: no other size was timed on a GPU

template <bool kMomenta, bool kEmas>
__global__ void __launch_bounds__(kThreads) sgd_ema_kernel(const SgdLaunch a) {
  if (*a.skip != 0.0f) return;
  const int64_t tensor = a.chunks[2 * int64_t(blockIdx.x)], first = a.chunks[2 * int64_t(blockIdx.x) + 1];
  auto address = [&](int row) { return reinterpret_cast<float*>(a.table[row * a.num_tensors + tensor]); };
  float* __restrict__ p = address(0);
  const float* __restrict__ g = address(1);
  float* __restrict__ m = address(2);
  float* __restrict__ e = address(3);
  const int64_t size = a.table[4 * a.num_tensors + tensor], end = first + a.chunk < size ? first + a.chunk : size;
  const float lr = *a.lr, scale = *a.grad_scale;
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
    const float w = p[i], grad = g[i] * scale + w * a.weight_decay;
    float step = grad;
    if (kMomenta) {
      const float velocity = m[i] * a.momentum + grad;
      m[i] = velocity;
      step = a.nesterov ? grad + velocity * a.momentum : velocity;
    }
    const float updated = w - step * lr;
    p[i] = updated;
    if (kEmas) e[i] += (updated - e[i]) * a.ema_weight;
  }
}

}  // namespace

cudaError_t launch_sgd_ema(const SgdLaunch& a, cudaStream_t stream) {
  if (a.num_chunks == 0) return cudaSuccess;
  const unsigned grid = unsigned(a.num_chunks);
  if (a.has_momenta && a.has_emas) sgd_ema_kernel<true, true><<<grid, kThreads, 0, stream>>>(a);
  if (a.has_momenta && !a.has_emas) sgd_ema_kernel<true, false><<<grid, kThreads, 0, stream>>>(a);
  if (!a.has_momenta && a.has_emas) sgd_ema_kernel<false, true><<<grid, kThreads, 0, stream>>>(a);
  if (!a.has_momenta && !a.has_emas) sgd_ema_kernel<false, false><<<grid, kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace imnet
