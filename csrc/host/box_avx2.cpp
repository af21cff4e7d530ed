// AVX2 and BMI2 (Haswell and Zen on). Headers first: nothing of theirs may be built for this target.
#include "box.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2")
#endif

namespace imnet {
namespace {

inline __m256i pairs(__m128i a, __m128i b) {
  return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
}

inline __m256i two(int a, int b) { return _mm256_set1_epi32(int(uint32_t(uint16_t(a)) | uint32_t(uint16_t(b)) << 16)); }

template <int kShift>
inline __m128i rounded(__m256i v) {
  v = _mm256_srai_epi32(v, kShift);
  return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

// One pass of the transform over eight vectors; the constants are those of box_base.cpp.
template <int kShift>
inline void pass(__m128i r[8]) {
  const __m256i p04 = pairs(r[0], r[4]), p26 = pairs(r[2], r[6]), p13 = pairs(r[1], r[3]), p57 = pairs(r[5], r[7]);
  const __m256i half = _mm256_set1_epi32(1 << (kShift - 1));
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(p04, two(8192, 8192)), half);
  const __m256i difference = _mm256_add_epi32(_mm256_madd_epi16(p04, two(8192, -8192)), half);
  const __m256i low = _mm256_madd_epi16(p26, two(10703, 4433)), high = _mm256_madd_epi16(p26, two(4433, -10704));
  const __m256i even[4] = {_mm256_add_epi32(sum, low), _mm256_add_epi32(difference, high),
                           _mm256_sub_epi32(difference, high), _mm256_sub_epi32(sum, low)};
  const __m256i odd[4] = {
      _mm256_add_epi32(_mm256_madd_epi16(p13, two(11363, 9633)), _mm256_madd_epi16(p57, two(6437, 2260))),
      _mm256_add_epi32(_mm256_madd_epi16(p13, two(9633, -2259)), _mm256_madd_epi16(p57, two(-11362, -6436))),
      _mm256_add_epi32(_mm256_madd_epi16(p13, two(6437, -11362)), _mm256_madd_epi16(p57, two(2261, 9633))),
      _mm256_add_epi32(_mm256_madd_epi16(p13, two(2260, -6436)), _mm256_madd_epi16(p57, two(9633, -11363)))};
  for (int i = 0; i < 4; ++i) {
    r[i] = rounded<kShift>(_mm256_add_epi32(even[i], odd[i]));
    r[7 - i] = rounded<kShift>(_mm256_sub_epi32(even[i], odd[i]));
  }
}

inline void transpose(__m128i r[8]) {
  __m128i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm_unpacklo_epi16(r[i], r[i + 4]);
    a[2 * i + 1] = _mm_unpackhi_epi16(r[i], r[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    r[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
    r[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
  }
}

void idct8x8(const int16_t* block, uint8_t* out, ptrdiff_t stride) {
  __m128i r[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(block + 8 * i));
  pass<11>(r);
  transpose(r);
  pass<18>(r);
  transpose(r);
  for (int i = 0; i < 8; i += 2) {
    const __m128i bytes = _mm_add_epi8(_mm_packs_epi16(r[i], r[i + 1]), _mm_set1_epi8(-128));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i * stride), bytes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (i + 1) * stride), _mm_srli_si128(bytes, 8));
  }
}

inline __m256i widened(const uint8_t* p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// (2 * constant * v / 2^16 + 1) / 2, which is (constant * v + 2^15) >> 16.
inline __m256i scaled(__m256i v, int constant) {
  const __m256i twice = _mm256_mulhi_epi16(_mm256_add_epi16(v, v), _mm256_set1_epi16(int16_t(constant)));
  return _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
}

inline void store16(uint8_t* p, __m256i v) {
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// Rows are padded: up to 15 pixels beyond n are read and written. Constants beyond 16 bits are split into 2^16 and a rest.
void to_rgb(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* const rgb[3], int32_t n) {
  const __m256i middle = _mm256_set1_epi16(128), half = _mm256_set1_epi32(32768), green = two(-22554, 65536 - 46802);
  for (int32_t i = 0; i < n; i += 16) {
    const __m256i light = widened(y + i);
    const __m256i b = _mm256_sub_epi16(widened(cb + i), middle), r = _mm256_sub_epi16(widened(cr + i), middle);
    const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(b, r), green);
    const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(b, r), green);
    const __m256i rest = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), 16),
                                            _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
    store16(rgb[0] + i, _mm256_add_epi16(_mm256_add_epi16(light, r), scaled(r, 91881 - 65536)));
    store16(rgb[1] + i, _mm256_add_epi16(_mm256_sub_epi16(light, r), rest));
    store16(rgb[2] + i, _mm256_add_epi16(_mm256_add_epi16(light, _mm256_add_epi16(b, b)), scaled(b, 116130 - 131072)));
  }
}

int32_t dequantised(int16_t* block, const int16_t* quant) {
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < 64; i += 16) {
    auto* place = reinterpret_cast<__m256i*>(block + i);
    const __m256i value = _mm256_load_si256(place), by = _mm256_load_si256(reinterpret_cast<const __m256i*>(quant + i));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_abs_epi16(value), by));
    _mm256_store_si256(place, _mm256_mullo_epi16(value, by));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

inline __m128i eight(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }

// Weighted and rounded sums in the 64-bit lanes.
inline __m128i weighted(__m128i sums, __m128i weight) {
  return _mm_srli_epi64(_mm_add_epi64(_mm_mul_epu32(sums, weight), _mm_set1_epi64x(1 << 21)), 22);
}

// Rows are padded: up to 7 bytes beyond a span are read and masked out. Writes one byte beyond the last pixel.
void across3(const uint8_t* const rows[], const BoxSpan* spans, int32_t size, uint8_t* out) {
  const __m128i order = _mm_setr_epi8(0, 8, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1), zero = _mm_setzero_si128();
  for (int32_t i = 0; i < size; ++i, out += 3) {
    __m128i red_green = zero, blue = zero;
    const uint8_t *r = rows[0] + spans[i].first, *g = rows[1] + spans[i].first, *b = rows[2] + spans[i].first;
    int32_t k = 0;
    for (; k < spans[i].count - 7; k += 8) {
      red_green = _mm_add_epi64(red_green, _mm_sad_epu8(_mm_unpacklo_epi64(eight(r + k), eight(g + k)), zero));
      blue = _mm_add_epi64(blue, _mm_sad_epu8(eight(b + k), zero));
    }
    if (k < spans[i].count) {
      const __m128i mask = _mm_set1_epi64x(int64_t(~uint64_t(0) >> (64 - 8 * (spans[i].count - k))));
      const __m128i both = _mm_unpacklo_epi64(eight(r + k), eight(g + k));
      red_green = _mm_add_epi64(red_green, _mm_sad_epu8(_mm_and_si128(both, mask), zero));
      blue = _mm_add_epi64(blue, _mm_sad_epu8(_mm_and_si128(eight(b + k), mask), zero));
    }
    const __m128i weight = _mm_set1_epi64x(spans[i].weight);
    const __m128i all = _mm_or_si128(weighted(red_green, weight), _mm_slli_epi64(weighted(blue, weight), 8));
    const int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(all, order));
    __builtin_memcpy(out, &pixel, 4);
  }
}

void across(const uint8_t* const rows[], int32_t channels, const BoxSpan* spans, int32_t size, uint8_t* out) {
  if (channels == 3) return across3(rows, spans, size, out);
  for (int32_t i = 0; i < size; ++i) {
    uint32_t sum = 0;
    for (int32_t k = 0; k < spans[i].count; ++k) sum += rows[0][spans[i].first + k];
    out[i] = uint8_t((sum * uint32_t(spans[i].weight) + (1u << 21)) >> 22);
  }
}

#include "box_pixels.inl"

const BoxKernels table = {"avx2", decode, wide2, wide2_high2, to_rgb, across, down};
}  // namespace
}  // namespace imnet

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace imnet {
const BoxKernels* box_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") ? &table : nullptr;
}
}  // namespace imnet
#else
namespace imnet {
const BoxKernels* box_avx2() { return nullptr; }
}  // namespace imnet
#endif
