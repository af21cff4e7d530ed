// Reading and writing one element or eight of fp32, bf16 and fp16; arithmetic is fp32 everywhere.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace imnet {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(uint8_t v) { return float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

// N elements moved as whole words of up to 16 bytes where the pointer allows it.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T v[N];
};
template <class T>
using Eight = Vector<T, 8>;

template <class T, int N = 8>
__device__ __forceinline__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Vector<T, N>) == 0;
}

// N floats rounded to T, two at a time where the hardware packs two.
template <int N>
__device__ __forceinline__ Vector<float, N> rounded(const float (&f)[N], float) {
  Vector<float, N> found;
#pragma unroll
  for (int i = 0; i < N; ++i) found.v[i] = f[i];
  return found;
}
template <int N>
__device__ __forceinline__ Vector<__nv_bfloat16, N> rounded(const float (&f)[N], __nv_bfloat16) {
  Vector<__nv_bfloat16, N> found;
#pragma unroll
  for (int i = 0; i < N; i += 2) reinterpret_cast<__nv_bfloat162*>(found.v)[i / 2] = __floats2bfloat162_rn(f[i], f[i + 1]);
  return found;
}
template <int N>
__device__ __forceinline__ Vector<__half, N> rounded(const float (&f)[N], __half) {
  Vector<__half, N> found;
#pragma unroll
  for (int i = 0; i < N; i += 2) reinterpret_cast<__half2*>(found.v)[i / 2] = __floats2half2_rn(f[i], f[i + 1]);
  return found;
}

// As one word or two where `whole`, else the first `left` of N elements one by one.
template <class T, int N>
__device__ __forceinline__ void put(const Vector<T, N>& values, T* out, bool whole, int left) {
  if (whole) {
    *reinterpret_cast<Vector<T, N>*>(out) = values;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < left) out[i] = values.v[i];
    }
  }
}

}  // namespace imnet
