// Rounding fp32 to fp32, bf16 or fp16 and writing one or several elements; all arithmetic is fp32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace imnet {

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

// N elements that are moved as words of up to 16 bytes if the pointer is aligned().
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T v[N];
};
template <class T, int N>
__device__ __forceinline__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Vector<T, N>) == 0;
}

__device__ __forceinline__ __nv_bfloat162 paired(float a, float b, __nv_bfloat16) { return __floats2bfloat162_rn(a, b); }
__device__ __forceinline__ __half2 paired(float a, float b, __half) { return __floats2half2_rn(a, b); }

// N floats (N even) rounded to T; for 16-bit types in pairs, as the hardware converts them.
template <class T, int N>
__device__ __forceinline__ Vector<T, N> rounded(const float (&f)[N]) {
  Vector<T, N> found;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    if constexpr (sizeof(T) == 4) {
      found.v[i] = f[i], found.v[i + 1] = f[i + 1];
    } else {
      using Pair = decltype(paired(0.0f, 0.0f, T()));
      reinterpret_cast<Pair*>(found.v)[i / 2] = paired(f[i], f[i + 1], T());
    }
  }
  return found;
}

// Writes all N elements in words if `whole`, else the first `left` of them one by one.
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
