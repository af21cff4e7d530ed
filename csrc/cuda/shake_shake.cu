// shake_shake: one image per blockIdx.x, eight elements a thread; the batch norm form sums per image and channel.
#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32, kRows = 8;  // the backward's tile: 32 contiguous elements by 8

// Calls body(i) for this thread's eight elements of an image of n.
template <class F>
__device__ __forceinline__ void each(int64_t n, const F& body) {
  const int64_t first = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 8;
  for (int i = 0; i < 8 && first + i < n; ++i) body(first + i);
}

// Whether eight elements from here are the image's and every pointer takes whole words: a view may start anywhere.
template <class... T>
__device__ __forceinline__ bool whole(const ShakeLaunch& a, int64_t first, const T*... pointers) {
  return first + 8 <= a.image && (aligned(pointers) && ...);
}

template <class T>
__global__ void __launch_bounds__(kThreads) shake_kernel(const ShakeLaunch a) {
  const int64_t first = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 8, at = blockIdx.x * a.image + first;
  const float c = a.coefficient[blockIdx.x * a.per_image], d = 1.0f - c;
  const T *x1 = static_cast<const T*>(a.x1) + at, *x2 = static_cast<const T*>(a.x2) + at;
  const T* residual = static_cast<const T*>(a.residual) + at;
  T* y = static_cast<T*>(a.y1) + at;
  auto combine = [&](T p, T q, T r) { return from_float<T>(to_float(r) + c * to_float(p) + d * to_float(q)); };
  if (whole(a, first, x1, x2, residual, y)) {
    const Eight<T> p = *reinterpret_cast<const Eight<T>*>(x1), q = *reinterpret_cast<const Eight<T>*>(x2);
    const Eight<T> r = *reinterpret_cast<const Eight<T>*>(residual);
    Eight<T> out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out.v[i] = combine(p.v[i], q.v[i], r.v[i]);
    *reinterpret_cast<Eight<T>*>(y) = out;
  } else {
    for (int i = 0; i < 8 && first + i < a.image; ++i) y[i] = combine(x1[i], x2[i], residual[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) shake_backward_kernel(const ShakeLaunch a) {
  const int64_t first = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 8, at = blockIdx.x * a.image + first;
  const float c = a.coefficient[blockIdx.x * a.per_image], d = 1.0f - c;
  const T* grad = static_cast<const T*>(a.x1) + at;
  T *d1 = static_cast<T*>(a.y1) + at, *d2 = static_cast<T*>(a.y2) + at;
  if (whole(a, first, grad, d1, d2)) {
    const Eight<T> g = *reinterpret_cast<const Eight<T>*>(grad);
    Eight<T> out1, out2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out1.v[i] = from_float<T>(c * to_float(g.v[i]));
      out2.v[i] = from_float<T>(d * to_float(g.v[i]));
    }
    *reinterpret_cast<Eight<T>*>(d1) = out1;
    *reinterpret_cast<Eight<T>*>(d2) = out2;
  } else {
    for (int i = 0; i < 8 && first + i < a.image; ++i) {
      d1[i] = from_float<T>(c * to_float(grad[i]));
      d2[i] = from_float<T>(d * to_float(grad[i]));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) shake_bn_kernel(const ShakeBnLaunch a) {
  const int64_t n = int64_t(a.channels) * a.plane, image = blockIdx.x * n;
  const float c = a.coefficient[blockIdx.x * a.per_image], d = 1.0f - c;
  const T *x1 = static_cast<const T*>(a.x1) + image, *x2 = static_cast<const T*>(a.x2) + image;
  const T* residual = static_cast<const T*>(a.residual_or_grad) + image;
  T* y = static_cast<T*>(a.y1) + image;
  each(n, [&](int64_t i) {
    const int channel = a.channels_last ? int(i % a.channels) : int(i / a.plane);
    const float b1 = to_float(x1[i]) * a.scale1[channel] + a.shift1[channel];
    const float b2 = to_float(x2[i]) * a.scale2[channel] + a.shift2[channel];
    y[i] = from_float<T>(to_float(residual[i]) + c * b1 + d * b2);
  });
}

// Sums one value of each of the tile's rows (channels_last) or lanes (planar); the result is in row or lane 0.
__device__ __forceinline__ float reduce_tile(float value, bool over_rows, float (*tile)[kLanes]) {
  if (!over_rows) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
    return value;
  }
  __syncthreads();
  tile[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int row = 0; row < kRows; ++row) sum += tile[row][threadIdx.x];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kRows) shake_bn_backward_kernel(const ShakeBnLaunch a) {
  __shared__ float tile[kRows][kLanes];
  const bool last = a.channels_last;
  const int channel = last ? blockIdx.y * kLanes + threadIdx.x : blockIdx.y * kRows + threadIdx.y;
  const int first = last ? threadIdx.y : threadIdx.x, step = last ? kRows : kLanes;
  const float c = a.coefficient[blockIdx.x * a.per_image];
  const int64_t image = int64_t(blockIdx.x) * a.channels * a.plane;
  const T *grad = static_cast<const T*>(a.residual_or_grad) + image, *x1 = static_cast<const T*>(a.x1) + image;
  const T* x2 = static_cast<const T*>(a.x2) + image;
  T *d1 = static_cast<T*>(a.y1) + image, *d2 = static_cast<T*>(a.y2) + image;
  const bool known = channel < a.channels;
  const float w1 = known ? c * a.scale1[channel] : 0.0f, w2 = known ? (1.0f - c) * a.scale2[channel] : 0.0f;
  float sums[3] = {0.0f, 0.0f, 0.0f};
  for (int p = first; known && p < a.plane; p += step) {
    const int64_t at = last ? int64_t(p) * a.channels + channel : int64_t(channel) * a.plane + p;
    const float g = to_float(grad[at]);
    sums[0] += g;
    sums[1] += g * to_float(x1[at]);
    sums[2] += g * to_float(x2[at]);
    d1[at] = from_float<T>(g * w1);
    d2[at] = from_float<T>(g * w2);
  }
  for (int k = 0; k < 3; ++k) {
    const float sum = reduce_tile(sums[k], last, tile);
    if (known && (last ? threadIdx.y : threadIdx.x) == 0) a.sums[(int64_t(blockIdx.x) * 3 + k) * a.channels + channel] = sum;
  }
}

unsigned pieces(int64_t n) { return unsigned((n + kThreads * 8 - 1) / (kThreads * 8)); }

template <class T>
void launch_typed(const ShakeLaunch& a, bool backward, cudaStream_t stream) {
  const dim3 grid(unsigned(a.batch), pieces(a.image));
  if (backward) {
    shake_backward_kernel<T><<<grid, kThreads, 0, stream>>>(a);
  } else {
    shake_kernel<T><<<grid, kThreads, 0, stream>>>(a);
  }
}

template <class T>
void launch_bn_typed(const ShakeBnLaunch& a, bool backward, cudaStream_t stream) {
  if (backward) {
    const int per_block = a.channels_last ? kLanes : kRows;
    const dim3 grid(unsigned(a.batch), unsigned((a.channels + per_block - 1) / per_block));
    shake_bn_backward_kernel<T><<<grid, dim3(kLanes, kRows), 0, stream>>>(a);
  } else {
    const dim3 grid(unsigned(a.batch), pieces(int64_t(a.channels) * a.plane));
    shake_bn_kernel<T><<<grid, kThreads, 0, stream>>>(a);
  }
}

cudaError_t run(const ShakeLaunch& a, bool backward, cudaStream_t stream) {
  if (a.batch * a.image == 0) return cudaSuccess;
  if (a.dtype == kF32) launch_typed<float>(a, backward, stream);
  if (a.dtype == kBF16) launch_typed<__nv_bfloat16>(a, backward, stream);
  if (a.dtype == kF16) launch_typed<__half>(a, backward, stream);
  return cudaGetLastError();
}

cudaError_t run_bn(const ShakeBnLaunch& a, bool backward, cudaStream_t stream) {
  if (a.batch * a.channels * a.plane == 0) return cudaSuccess;
  if (a.dtype == kF32) launch_bn_typed<float>(a, backward, stream);
  if (a.dtype == kBF16) launch_bn_typed<__nv_bfloat16>(a, backward, stream);
  if (a.dtype == kF16) launch_bn_typed<__half>(a, backward, stream);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_shake(const ShakeLaunch& a, cudaStream_t stream) { return run(a, false, stream); }
cudaError_t launch_shake_backward(const ShakeLaunch& a, cudaStream_t stream) { return run(a, true, stream); }
cudaError_t launch_shake_bn(const ShakeBnLaunch& a, cudaStream_t stream) { return run_bn(a, false, stream); }
cudaError_t launch_shake_bn_backward(const ShakeBnLaunch& a, cudaStream_t stream) { return run_bn(a, true, stream); }

}  // namespace imnet
