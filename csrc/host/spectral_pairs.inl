// spectral from uint8 on AVX-512: a byte shuffle brings two phases of 16 elements into the 16-bit halves of 32-bit lanes,
// where the DCT's symmetric sums and differences are exact integers. Only the folded phases are multiplied, in fp32.

// Both 16-bit halves of every lane as floats, times 2^16, which the plan's coefficients undo with a factor 2^-16.
IMNET_INLINE void split_halves(__m512i pair, V& low, V& high) {
  low = _mm512_cvtepi32_ps(_mm512_slli_epi32(pair, 16));
  high = _mm512_cvtepi32_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000u))));
}

// The 128 bytes of one input row that hold a block's phases; unless WIDE, the first 64 suffice.
struct Window {
  __m512i first, second;
};

template <bool WIDE>
IMNET_INLINE Window load_window(const uint8_t* p, const uint8_t* end) {
  if (__builtin_expect(end - p >= (WIDE ? 128 : 64), 1)) {
    const __m512i first = _mm512_loadu_si512(p);
    return {first, WIDE ? _mm512_loadu_si512(p + 64) : first};
  }
  const int64_t left = end - p;  // near the end of the tensor: read only up to it
  const __mmask64 first = left >= 64 ? ~0ull : (1ull << left) - 1;
  const __mmask64 second = left <= 64 ? 0 : (1ull << (left - 64)) - 1;
  const __m512i low = _mm512_maskz_loadu_epi8(first, p);
  return {low, WIDE ? _mm512_maskz_loadu_epi8(second, p + 64) : low};
}

template <bool WIDE>
IMNET_INLINE __m512i phase_pair(const Window& window, const uint8_t* offsets) {
  const __mmask64 low_bytes = 0x5555555555555555ull;
  const __m512i index = _mm512_loadu_si512(offsets);
  if (WIDE) return _mm512_maskz_permutex2var_epi8(low_bytes, window.first, index, window.second);
  return _mm512_maskz_permutexvar_epi8(low_bytes, index, window.first);
}

// A block of 16 elements: its first element, and that element's pixel and channel.
struct Place {
  int e0, pixel, channel;
};

// Folds phases 2 q and 2 q + 1 with their mirror images s - 1 - p to sums[q] and differences[q]. From the middle on, the two
// 16-bit halves are exchanged, so that the second fold can also add whole vectors.
template <int S, bool WIDE>
IMNET_INLINE void fold_pairs(const SpectralPlan& plan, const SpectralRow& row, const Place& at, __m512i* sums,
                       __m512i* differences) {
  constexpr int r = root(S), kPerRow = r / 2, kPairs = S / 4;
  const uint8_t* top = static_cast<const uint8_t*>(row.src) + int64_t(at.pixel) * r * row.channels;
  const uint8_t* bottom = top + (r - 1) * row.src_row_stride;
  const uint8_t* end = static_cast<const uint8_t*>(row.src_end);
  const uint8_t* offsets = plan.shuffle + at.channel * r * 64;
  for (int i = 0; i < r / 2; ++i, top += row.src_row_stride, bottom -= row.src_row_stride) {
    const Window upper = load_window<WIDE>(top, end), lower = load_window<WIDE>(bottom, end);
    for (int j = 0; j < kPerRow; ++j) {
      const int q = i * kPerRow + j, swapped = q > kPairs - 1 - q;
      const __m512i a = phase_pair<WIDE>(upper, offsets + (2 * j + swapped) * 64);
      const __m512i b = phase_pair<WIDE>(lower, offsets + (2 * (kPerRow - 1 - j) + 1 - swapped) * 64);
      sums[q] = _mm512_add_epi16(a, b);
      differences[q] = _mm512_sub_epi16(a, b);
    }
  }
}

// Folds the sums a second time. Cosines of even k are symmetric or antisymmetric about the middle of the first half, too:
// bands with k % 4 == 0 need only the sums of these pairs (even), those with k % 4 == 2 only their differences (odd).
template <int PAIRS>
IMNET_INLINE void fold_sums(const __m512i* sums, V* even, V* odd) {
  for (int q = 0; q < PAIRS / 2; ++q) {
    split_halves(_mm512_add_epi16(sums[q], sums[PAIRS - 1 - q]), even[2 * q], even[2 * q + 1]);
    split_halves(_mm512_sub_epi16(sums[q], sums[PAIRS - 1 - q]), odd[2 * q], odd[2 * q + 1]);
  }
  if (PAIRS % 2) {  // the middle pair folds onto itself
    V low, high;
    split_halves(sums[PAIRS / 2], low, high);
    even[PAIRS - 1] = add(low, high);
    odd[PAIRS - 1] = sub(low, high);
  }
}

// Converts the differences of the first fold, which the bands with odd k need; these have no second symmetry.
template <int PAIRS>
IMNET_INLINE void split_differences(const __m512i* differences, V* once) {
  for (int q = 0; q < PAIRS; ++q) {
    const int swapped = q > PAIRS - 1 - q;
    split_halves(differences[q], once[2 * q + swapped], once[2 * q + 1 - swapped]);
  }
}

template <class E, int G>
IMNET_INLINE void put_whole(const SpectralPlan& plan, const SpectralRow& row, int band, const Place& at, V* value) {
  void* const* dst = row.dst + band;
  if (plan.scale_pattern) {
    const float* scale = plan.scale_pattern + int64_t(band) * plan.pattern_floats + at.channel;
    const float* shift = plan.shift_pattern + int64_t(band) * plan.pattern_floats + at.channel;
    for (int g = 0; g < G; ++g, scale += plan.pattern_floats, shift += plan.pattern_floats) {
      value[g] = fma(value[g], load(F32(), scale), load(F32(), shift));
    }
  }
  typedef typename E::T T;
  for (int g = 0; g + 1 < G; g += 2) {
    T* first = static_cast<T*>(dst[g]);
    T* second = static_cast<T*>(dst[g + 1]);
    store_two(E(), first + at.e0, second + at.e0, value[g], value[g + 1]);
  }
  if (G % 2) store(E(), static_cast<T*>(dst[G - 1]) + at.e0, value[G - 1]);
}

// All bands, in plan order: their counts are compile-time constants here, and bands are rounded in pairs.
template <class E, int S>
IMNET_INLINE void put_all(const SpectralPlan& plan, const SpectralRow& row, const Place& at, const __m512i* sums,
                    const __m512i* differences) {
  constexpr int kPairs = S / 4, kOdd = 2 * kPairs, kFirst = kOdd == 18 ? 10 : kOdd;
  V even[kPairs], odd[kPairs], value[kOdd];
  fold_sums<kPairs>(sums, even, odd);
  sum_group<kPairs, kPairs>(even, plan.coefficient, value);
  sum_group<kPairs, kPairs>(odd, plan.coefficient + kPairs * kPairs, value + kPairs);
  put_whole<E, kOdd>(plan, row, 0, at, value);
  V once[kOdd];
  split_differences<kPairs>(differences, once);
  const float* coefficient = plan.coefficient + 2 * kPairs * kPairs;
  sum_group<kOdd, kFirst>(once, coefficient, value);
  put_whole<E, kFirst>(plan, row, kOdd, at, value);
  if (kFirst == kOdd) return;
  sum_group<kOdd, kOdd - kFirst>(once, coefficient + kFirst * kOdd, value);
  put_whole<E, kOdd - kFirst>(plan, row, kOdd + kFirst, at, value);
}

template <class E, int N>
IMNET_INLINE void put_chosen(const SpectralPlan& plan, const SpectralRow& row, const Place& at, const V* folded,
                       int num_bands, const float*& coefficient, int& band) {
  V value[4];
  int left = num_bands;
  for (; left >= 4; left -= 4, band += 4, coefficient += 4 * N) {
    sum_group<N, 4>(folded, coefficient, value);
    put_whole<E, 4>(plan, row, band, at, value);
  }
  for (; left > 0; --left, ++band, coefficient += N) {
    sum_group<N, 1>(folded, coefficient, value);
    put_whole<E, 1>(plan, row, band, at, value);
  }
}

template <class E, int S>
IMNET_INLINE void put_some(const SpectralPlan& plan, const SpectralRow& row, const Place& at, const __m512i* sums,
                     const __m512i* differences) {
  constexpr int kPairs = S / 4;
  const float* coefficient = plan.coefficient;
  int band = 0;
  V even[kPairs], odd[kPairs], once[2 * kPairs];
  if (plan.num_bands[0] + plan.num_bands[1] > 0) {
    fold_sums<kPairs>(sums, even, odd);
    put_chosen<E, kPairs>(plan, row, at, even, plan.num_bands[0], coefficient, band);
    put_chosen<E, kPairs>(plan, row, at, odd, plan.num_bands[1], coefficient, band);
  }
  if (plan.num_bands[2] == 0) return;
  split_differences<kPairs>(differences, once);
  put_chosen<E, 2 * kPairs>(plan, row, at, once, plan.num_bands[2], coefficient, band);
}

template <class E, int S, bool ALL>
IMNET_INLINE void pair_block(const SpectralPlan& plan, const SpectralRow& row, const Place& at) {
  __m512i sums[S / 4], differences[S / 4];
  fold_pairs<S, (S > 4)>(plan, row, at, sums, differences);  // for s = 4, 64 bytes hold the phases of 16 elements up to C = 4
  if (ALL) return put_all<E, S>(plan, row, at, sums, differences);
  put_some<E, S>(plan, row, at, sums, differences);
}

template <class E, int S, bool ALL>
inline void pair_blocks(const SpectralPlan& plan, const SpectralRow& row) {
  const int C = row.channels, pixels = VL / C, channels = VL % C;
  Place at{0, 0, 0};
  for (; at.e0 + VL <= row.n; at.e0 += VL) {
    pair_block<E, S, ALL>(plan, row, at);
    at.pixel += pixels;
    at.channel += channels;
    if (at.channel >= C) at.channel -= C, ++at.pixel;
  }
  if (at.e0 == row.n) return;
  const int e0 = row.n - VL;  // overlaps the block before, with the same values
  pair_block<E, S, ALL>(plan, row, Place{e0, e0 / C, e0 % C});
}

template <class E, int S>
inline void spectral_pairs(const SpectralPlan& plan, const SpectralRow& row) {
  constexpr int kQuarter = S / 4;
  const bool all = plan.num_bands[0] == kQuarter && plan.num_bands[1] == kQuarter && plan.num_bands[2] == S / 2;
  (all ? pair_blocks<E, S, true> : pair_blocks<E, S, false>)(plan, row);
}
