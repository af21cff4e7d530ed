// AVX-512 with the hardware's rounding to bf16 (Cooper Lake, Zen 4, Sapphire Rapids on), used by augment and spectral.
#include "../common/choices.h"
#include "kernels.h"

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#include <immintrin.h>

#include <cstdint>

#define IMNET_NATIVE_BF16 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16,avx2,fma,f16c")
#endif

namespace imnet {
namespace {
#include "simd_scalar.inl"

#include "avx512.inl"

#include "augment.inl"
#include "augment_blocks.inl"
#include "spectral.inl"
}  // namespace
}  // namespace imnet

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace imnet {
const Kernels* kernels_avx512bf16() {
  if (!__builtin_cpu_supports("avx512bf16") || kernels_avx512() == nullptr) return nullptr;
  static const Kernels table = [] {
    Kernels with = *kernels_avx512();
    with.name = "avx512bf16";
    with.augment = augment_blocks;
    with.spectral_row = spectral_row;
    return with;
  }();
  return &table;
}
}  // namespace imnet
#else
namespace imnet {
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace imnet
#endif
