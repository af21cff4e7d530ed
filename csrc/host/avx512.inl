// Shared by the AVX-512 translation units: vectors of 16 floats, their loads and stores. Included once per unit.

typedef __m512 V;
constexpr int VL = 16;
#define IMNET_AVX512 1

inline V set1(float v) { return _mm512_set1_ps(v); }
inline V zero() { return _mm512_setzero_ps(); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

typedef __m512i U;
constexpr int UL = 8;
inline U set1_u(uint32_t v) { return _mm512_set1_epi64(v); }
inline U load_u(const uint64_t* p) { return _mm512_loadu_si512(p); }
inline void store_u(uint64_t* p, U v) { _mm512_storeu_si512(p, v); }
inline U and_u(U a, U b) { return _mm512_and_si512(a, b); }
inline U xor_u(U a, U b) { return _mm512_xor_si512(a, b); }
inline U high_u(U a) { return _mm512_srli_epi64(a, 32); }
inline U mul32(U a, U b) { return _mm512_mul_epu32(a, b); }

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

#if defined(IMNET_NATIVE_BF16)
// Two vectors rounded to bf16, x in the low half. Unlike store() this treats subnormal numbers as 0: callers must make sure
// that there are none or that they do not matter.
inline __m512i two_bf16(V x, V y) { return (__m512i)_mm512_cvtne2ps_pbh(y, x); }
#else
// Rounds to nearest even. A NaN's payload is truncated, which could make it an infinity: callers must not pass NaN.
inline __m512i round_bf16(V v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  return _mm512_add_epi32(bits, _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000)));
}
inline __m512i two_bf16(V x, V y) {
  const __m512i high_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                               27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(round_bf16(x), high_halves, round_bf16(y));
}
#endif

// store_wide writes two vectors one after the other, x first; store_two writes x to a and y to b.
inline void store_wide(F32, float* p, V x, V y) {
  _mm512_storeu_ps(p, x);
  _mm512_storeu_ps(p + VL, y);
}
inline void store_wide(F16, uint16_t* p, V x, V y) {
  store(F16(), p, x);
  store(F16(), p + VL, y);
}
inline void store_wide(BF16, uint16_t* p, V x, V y) { _mm512_storeu_si512(p, two_bf16(x, y)); }

inline void store_two(F32, float* a, float* b, V x, V y) {
  _mm512_storeu_ps(a, x);
  _mm512_storeu_ps(b, y);
}
inline void store_two(F16, uint16_t* a, uint16_t* b, V x, V y) {
  store(F16(), a, x);
  store(F16(), b, y);
}
inline void store_two(BF16, uint16_t* a, uint16_t* b, V x, V y) {
  const __m512i both = two_bf16(x, y);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(a), _mm512_castsi512_si256(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(b), _mm512_extracti64x4_epi64(both, 1));
}

inline void reverse16(const uint8_t* src, uint8_t* dst, __m128i order) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm_shuffle_epi8(v, order));
}
#define IMNET_REVERSE16 1
