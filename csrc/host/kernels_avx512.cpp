// AVX-512 F, BW, VL, DQ, VBMI (Ice Lake and Zen 4 on). Headers first: nothing of theirs may be built for this target.
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

typedef __m512 V;
constexpr int VL = 16;
#define IMNET_WINDOW_SHUFFLE 1

inline V set1(float v) { return _mm512_set1_ps(v); }
inline V zero() { return _mm512_setzero_ps(); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

inline V load(F32, const float* p) { return _mm512_loadu_ps(p); }
inline V load(BF16, const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline V load(F16, const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline V load(U8, const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline void store(F32, float* p, V v) { _mm512_storeu_ps(p, v); }
inline void store(BF16, uint16_t* p, V v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}
inline void store(F16, uint16_t* p, V v) {
  const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

// 16 bytes at the given offsets inside the 128 bytes at p.
inline V gather_window(const uint8_t* p, const uint8_t* offsets) {
  const __m512i index = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
  const __m512i picked = _mm512_permutex2var_epi8(_mm512_loadu_si512(p), index, _mm512_loadu_si512(p + 64));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(picked)));
}

inline void reverse16(const uint8_t* src, uint8_t* dst, __m128i order) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm_shuffle_epi8(v, order));
}
#define IMNET_REVERSE16 1

#include "augment.inl"
#include "elementwise.inl"
#include "spectral.inl"

const Kernels table = {"avx512", augment_image, spectral_row, shake, shake_backward, shake_bn, shake_bn_backward, sgd_ema};
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
