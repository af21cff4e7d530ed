// AVX-512 F, BW, VL, DQ, VBMI (Ice Lake and Zen 4 on). The headers come before the pragma, as in kernels_avx2.cpp.
#include "../common/choices.h"
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma,f16c")
#endif

namespace imnet {
namespace {
#include "simd_scalar.inl"

#include "avx512.inl"

#include "augment.inl"
#include "augment_blocks.inl"
#include "elementwise.inl"
#include "philox.inl"
#include "spectral.inl"

const Kernels table = {"avx512", true, augment_blocks, philox, spectral_row, shake, shake_backward, sgd_ema};
}  // namespace
}  // namespace imnet

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace imnet {
const Kernels* kernels_avx512() {
  const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vbmi") && kernels_avx2() != nullptr;
  return ok ? &table : nullptr;
}
}  // namespace imnet
#else
namespace imnet {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace imnet
#endif
