// augment: a block per piece of one image; eight output elements a thread, written as one or two 16-byte words.
#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 256;

template <int CHANNELS>
__device__ __forceinline__ float element(const AugmentLaunch& a, const Choice& c, const uint8_t* image, int e) {
  const int C = CHANNELS > 0 ? CHANNELS : a.channels;
  const int channel = e % C, pixel = e / C, x = pixel % a.width, y = pixel / a.width;
  const AugmentParams& p = a.params;
  if (p.cutout_px > 0 && unsigned(y - c.y0) < unsigned(p.cutout_px) && unsigned(x - c.x0) < unsigned(p.cutout_px)) return 0.0f;
  int sy = y + c.oy, sx = (c.flip ? a.width - 1 - x : x) + c.ox;
  if (p.reflect) {
    sy = reflect(sy, a.height);
    sx = reflect(sx, a.width);
  }
  const bool inside = unsigned(sy) < unsigned(a.height) && unsigned(sx) < unsigned(a.width);
  const int at = (sy * a.width + sx) * C + channel;
  if (a.per_pixel && !inside) return 0.0f;
  const float u8 = inside ? float(image[at]) : 0.0f;
  // Two roundings, as the reference defines the value: no fused multiply-add.
  return __fadd_rn(__fmul_rn(u8, a.scale[channel]), a.shift[a.per_pixel ? at : channel]);
}

template <class T, int CHANNELS>
__global__ void __launch_bounds__(kThreads) augment_kernel(AugmentLaunch a) {
  __shared__ Choice choice;
  const int64_t row = blockIdx.x;
  const int n = a.height * a.width * a.channels, first = (blockIdx.y * kThreads + threadIdx.x) * 8;
  const int64_t id = a.ids[row];
  const bool known = id >= 0 && id < a.num_stored;  // a captured graph cannot stop for a bad id: it becomes NaN
  if (threadIdx.x == 0) choice = choose(uint64_t(a.names[row]), a.params);
  __syncthreads();
  const uint8_t* image = a.store + (known ? id : 0) * int64_t(n);
  T* out = static_cast<T*>(a.out) + row * n + first;
  Eight<T> values;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int e = first + i;
    values.v[i] = from_float<T>(!known ? __int_as_float(0x7fc00000) : (e < n ? element<CHANNELS>(a, choice, image, e) : 0.0f));
  }
  if (first + 8 <= n && aligned(out)) {
    *reinterpret_cast<Eight<T>*>(out) = values;
  } else {
    for (int i = 0; i < 8 && first + i < n; ++i) out[i] = values.v[i];
  }
}

template <class T>
void launch_typed(const AugmentLaunch& a, cudaStream_t stream) {
  const int n = a.height * a.width * a.channels;
  const dim3 grid(unsigned(a.batch), unsigned((n + kThreads * 8 - 1) / (kThreads * 8)));
  if (a.channels == 3) {
    augment_kernel<T, 3><<<grid, kThreads, 0, stream>>>(a);
  } else if (a.channels == 1) {
    augment_kernel<T, 1><<<grid, kThreads, 0, stream>>>(a);
  } else {
    augment_kernel<T, 0><<<grid, kThreads, 0, stream>>>(a);
  }
}

}  // namespace

cudaError_t launch_augment(const AugmentLaunch& a, cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  if (a.dtype == kF32) {
    launch_typed<float>(a, stream);
  } else if (a.dtype == kBF16) {
    launch_typed<__nv_bfloat16>(a, stream);
  } else {
    launch_typed<__half>(a, stream);
  }
  return cudaGetLastError();
}

}  // namespace imnet
