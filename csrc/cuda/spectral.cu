// spectral: a thread per output element holds its phases in registers, folded by the DCT's symmetry; the coefficients are a
// kernel argument, which the hardware keeps in its constant bank.
#include <cmath>

#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 128;

template <int R>
struct Plan {
  static constexpr int kS = R * R, kHalf = kS / 2, kMaxBands = kS;
  float coefficient[kMaxBands][kHalf];
  int16_t band[kMaxBands];      // k of the i-th band computed
  int16_t position[kMaxBands];  // where it goes
  int32_t num_even, num_bands;  // even bands come first
};

template <int R, class In>
__device__ __forceinline__ void load_folded(const SpectralLaunch& a, int64_t e, int& channel, float* sums, float* differences) {
  constexpr int kS = R * R;
  const int64_t w_h = int64_t(a.out_width) * a.out_height;
  int64_t w, h, b;
  if (a.channels_last) {
    channel = int(e % a.channels);
    const int64_t pixel = e / a.channels;
    w = pixel % a.out_width, h = pixel / a.out_width % a.out_height, b = pixel / w_h;
  } else {
    channel = int(e / w_h % a.channels);
    w = e % a.out_width, h = e / a.out_width % a.out_height, b = e / w_h / a.channels;
  }
  const In* base = static_cast<const In*>(a.images) + b * a.stride_b + channel * a.stride_c + h * R * a.stride_h + w * R * a.stride_w;
#pragma unroll
  for (int p = 0; p < kS / 2; ++p) {
    const int q = kS - 1 - p;
    const float first = to_float(base[(p / R) * a.stride_h + (p % R) * a.stride_w]);
    const float second = to_float(base[(q / R) * a.stride_h + (q % R) * a.stride_w]);
    sums[p] = first + second;
    differences[p] = first - second;
  }
}

template <int R, class In, class Out>
__global__ void __launch_bounds__(kThreads) spectral_kernel(const SpectralLaunch a, const Plan<R> plan) {
  constexpr int kHalf = R * R / 2;
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= a.total) return;
  float sums[kHalf], differences[kHalf];
  int channel;
  load_folded<R, In>(a, e, channel, sums, differences);
  Out* out = static_cast<Out*>(a.out) + e;
  auto put = [&](int i, float value) {
    const int64_t at = plan.position[i];
    if (a.scale != nullptr) value = fmaf(value, a.scale[at * a.channels + channel], a.shift[at * a.channels + channel]);
    out[at * a.total] = from_float<Out>(value);
  };
#pragma unroll 2
  for (int i = 0; i < plan.num_even; ++i) {
    float value = 0.0f;
#pragma unroll
    for (int p = 0; p < kHalf; ++p) value = fmaf(plan.coefficient[i][p], sums[p], value);
    put(i, value);
  }
#pragma unroll 2
  for (int i = plan.num_even; i < plan.num_bands; ++i) {
    float value = 0.0f;
#pragma unroll
    for (int p = 0; p < kHalf; ++p) value = fmaf(plan.coefficient[i][p], differences[p], value);
    put(i, value);
  }
}

template <int R>
void add_band(Plan<R>& plan, int k, int position) {
  const int s = R * R, i = plan.num_bands++;
  plan.band[i] = int16_t(k);
  plan.position[i] = int16_t(position);
  for (int p = 0; p < s / 2; ++p) {
    plan.coefficient[i][p] = float(2.0 * std::cos(3.14159265358979323846 * double(k * (2 * p + 1) % (4 * s)) / (2.0 * s)));
  }
}

// At most s bands a launch (duplicates may ask for more): first .. last of the caller's list.
template <int R>
Plan<R> make_plan(const SpectralLaunch& a, int first, int last) {
  Plan<R> plan{};
  for (int i = first; i < last; ++i) {
    if (a.bands[i] % 2 == 0) add_band(plan, a.bands[i], i);
  }
  plan.num_even = plan.num_bands;
  for (int i = first; i < last; ++i) {
    if (a.bands[i] % 2 == 1) add_band(plan, a.bands[i], i);
  }
  return plan;
}

template <int R, class In, class Out>
void launch_all(const SpectralLaunch& a, cudaStream_t stream) {
  const unsigned grid = unsigned((a.total + kThreads - 1) / kThreads);
  for (int first = 0; first < a.num_bands; first += R * R) {
    const int last = first + R * R < a.num_bands ? first + R * R : a.num_bands;
    spectral_kernel<R, In, Out><<<grid, kThreads, 0, stream>>>(a, make_plan<R>(a, first, last));
  }
}

template <int R, class In>
void by_output(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.out_dtype == kF32) return launch_all<R, In, float>(a, stream);
  if (a.out_dtype == kBF16) return launch_all<R, In, __nv_bfloat16>(a, stream);
  launch_all<R, In, __half>(a, stream);
}

template <int R>
void by_input(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.in_dtype == kU8) return by_output<R, uint8_t>(a, stream);
  if (a.in_dtype == kF32) return by_output<R, float>(a, stream);
  if (a.in_dtype == kBF16) return by_output<R, __nv_bfloat16>(a, stream);
  by_output<R, __half>(a, stream);
}

}  // namespace

cudaError_t launch_spectral(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.total == 0 || a.num_bands == 0) return cudaSuccess;
  if (a.r == 2) by_input<2>(a, stream);
  if (a.r == 4) by_input<4>(a, stream);
  if (a.r == 6) by_input<6>(a, stream);
  return cudaGetLastError();
}

}  // namespace imnet
