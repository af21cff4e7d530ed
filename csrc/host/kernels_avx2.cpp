// AVX2, FMA and F16C (Haswell and Zen on). The headers come before the pragma: none of their code may be built for this target.
#include "../common/choices.h"
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace imnet {
namespace {
#include "simd_scalar.inl"

typedef __m256 V;
constexpr int VL = 8;

inline V set1(float v) { return _mm256_set1_ps(v); }
inline V zero() { return _mm256_setzero_ps(); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }

typedef __m256i U;
constexpr int UL = 4;
inline U set1_u(uint32_t v) { return _mm256_set1_epi64x(v); }
inline U load_u(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_u(uint64_t* p, U v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline U and_u(U a, U b) { return _mm256_and_si256(a, b); }
inline U xor_u(U a, U b) { return _mm256_xor_si256(a, b); }
inline U high_u(U a) { return _mm256_srli_epi64(a, 32); }
inline U mul32(U a, U b) { return _mm256_mul_epu32(a, b); }

inline V load(F32, const float* p) { return _mm256_loadu_ps(p); }
inline V load(BF16, const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline V load(F16, const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline V load(U8, const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline void store(F32, float* p, V v) { _mm256_storeu_ps(p, v); }
inline void store(BF16, uint16_t* p, V v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(F16, uint16_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline void reverse16(const uint8_t* src, uint8_t* dst, __m128i order) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm_shuffle_epi8(v, order));
}
#define IMNET_REVERSE16 1

#include "augment.inl"
#include "elementwise.inl"
#include "philox.inl"
#include "spectral.inl"

const Kernels table = {"avx2", false, augment_image, philox, spectral_row, shake, shake_backward, sgd_ema};
}  // namespace
}  // namespace imnet

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace imnet {
const Kernels* kernels_avx2() {
  const bool ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return ok ? &table : nullptr;
}
}  // namespace imnet
#else
namespace imnet {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace imnet
#endif
