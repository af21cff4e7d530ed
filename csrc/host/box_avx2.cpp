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

inline __m256i two(int a, int b) { return _mm256_set1_epi32(int(uint32_t(uint16_t(a)) | uint32_t(uint16_t(b)) << 16)); }

template <int kShift>
inline __m256i rounded(__m256i a, __m256i b) {
  return _mm256_packs_epi32(_mm256_srai_epi32(a, kShift), _mm256_srai_epi32(b, kShift));
}

// One pass of the transform, then rows and columns change places. In: vectors 0 and 4, 1 and 5, 2 and 6, 3 and 7, element by
// element side by side. Out: the same vectors, the first of each pair in the low half. Constants are those of box_base.cpp.
template <int kShift>
inline void pass(__m256i p[4]) {
  const __m256i half = _mm256_set1_epi32(1 << (kShift - 1));
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(p[0], two(8192, 8192)), half);
  const __m256i difference = _mm256_add_epi32(_mm256_madd_epi16(p[0], two(8192, -8192)), half);
  const __m256i low = _mm256_madd_epi16(p[2], two(10703, 4433)), high = _mm256_madd_epi16(p[2], two(4433, -10704));
  const __m256i e0 = _mm256_add_epi32(sum, low), e1 = _mm256_add_epi32(difference, high);
  const __m256i e2 = _mm256_sub_epi32(difference, high), e3 = _mm256_sub_epi32(sum, low);
  const auto odd = [&](int x1, int x5, int x3, int x7) {
    return _mm256_add_epi32(_mm256_madd_epi16(p[1], two(x1, x5)), _mm256_madd_epi16(p[3], two(x3, x7)));
  };
  const __m256i o0 = odd(11363, 6437, 9633, 2260), o1 = odd(9633, -11362, -2259, -6436);
  const __m256i o2 = odd(6437, 2261, -11362, 9633), o3 = odd(2260, 9633, -6436, -11363);
  const __m256i r01 = rounded<kShift>(_mm256_add_epi32(e0, o0), _mm256_add_epi32(e1, o1));
  const __m256i r23 = rounded<kShift>(_mm256_add_epi32(e2, o2), _mm256_add_epi32(e3, o3));
  const __m256i r45 = rounded<kShift>(_mm256_sub_epi32(e3, o3), _mm256_sub_epi32(e2, o2));
  const __m256i r67 = rounded<kShift>(_mm256_sub_epi32(e1, o1), _mm256_sub_epi32(e0, o0));
  const __m256i even_low = _mm256_unpacklo_epi16(r01, r23), odd_low = _mm256_unpackhi_epi16(r01, r23);
  const __m256i even_high = _mm256_unpacklo_epi16(r45, r67), odd_high = _mm256_unpackhi_epi16(r45, r67);
  const __m256i a = _mm256_unpacklo_epi16(even_low, odd_low), b = _mm256_unpackhi_epi16(even_low, odd_low);
  const __m256i c = _mm256_unpacklo_epi16(even_high, odd_high), d = _mm256_unpackhi_epi16(even_high, odd_high);
  p[0] = _mm256_unpacklo_epi64(a, c);
  p[1] = _mm256_unpackhi_epi64(a, c);
  p[2] = _mm256_unpacklo_epi64(b, d);
  p[3] = _mm256_unpackhi_epi64(b, d);
}

void idct8x8(const int16_t* block, uint8_t* out, ptrdiff_t stride) {
  __m256i p[4];
  for (int i = 0; i < 2; ++i) {  // rows 2i and 2i + 1 with 4 + 2i and 5 + 2i
    const __m256i upper = _mm256_load_si256(reinterpret_cast<const __m256i*>(block + 16 * i));
    const __m256i lower = _mm256_load_si256(reinterpret_cast<const __m256i*>(block + 16 * i + 32));
    const __m256i left = _mm256_unpacklo_epi16(upper, lower), right = _mm256_unpackhi_epi16(upper, lower);
    p[2 * i] = _mm256_permute2x128_si256(left, right, 0x20);
    p[2 * i + 1] = _mm256_permute2x128_si256(left, right, 0x31);
  }
  pass<11>(p);
  const __m256i side_by_side = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11,
                                                4, 5, 12, 13, 6, 7, 14, 15);
  for (int i = 0; i < 4; ++i) p[i] = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(p[i], 0xD8), side_by_side);
  pass<18>(p);
  for (int i = 0; i < 4; i += 2) {
    const __m256i bytes = _mm256_add_epi8(_mm256_packs_epi16(p[i], p[i + 1]), _mm256_set1_epi8(-128));
    const __m128i upper = _mm256_castsi256_si128(bytes), lower = _mm256_extracti128_si256(bytes, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i * stride), upper);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (i + 1) * stride), _mm_unpackhi_epi64(upper, upper));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (i + 4) * stride), lower);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (i + 5) * stride), _mm_unpackhi_epi64(lower, lower));
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
