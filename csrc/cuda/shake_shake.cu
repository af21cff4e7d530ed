// shake_shake: one image per blockIdx.x, eight elements a thread.
#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 256;  // not tuned: no other size was timed on a GPU

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

cudaError_t run(const ShakeLaunch& a, bool backward, cudaStream_t stream) {
  if (a.batch * a.image == 0) return cudaSuccess;
  if (a.dtype == kF32) launch_typed<float>(a, backward, stream);
  if (a.dtype == kBF16) launch_typed<__nv_bfloat16>(a, backward, stream);
  if (a.dtype == kF16) launch_typed<__half>(a, backward, stream);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_shake(const ShakeLaunch& a, cudaStream_t stream) { return run(a, false, stream); }
cudaError_t launch_shake_backward(const ShakeLaunch& a, cudaStream_t stream) { return run(a, true, stream); }

}  // namespace imnet
