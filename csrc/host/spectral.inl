// spectral of one output row. Included once per ISA, which defines V (VL floats), load, store, add, sub, mul and fma.

// One phase of VL elements from element e0 on, loaded one by one; lanes past the row's end are 0.
template <class E>
inline V gather_phase(const SpectralRow& row, const typename E::T* line, int r, int j, int e0) {
  float lane[VL];
  const int C = row.channels;
  int pixel = e0 / C, c = e0 % C;
  for (int t = 0; t < VL; ++t) {
    lane[t] = e0 + t < row.n ? E::get(line[(int64_t(pixel) * r + j) * C + c]) : 0.0f;
    if (++c == C) {
      c = 0;
      ++pixel;
    }
  }
  return load(F32(), lane);
}

constexpr int root(int s) { return s == 4 ? 2 : (s == 16 ? 4 : 6); }

template <class E, int S>
inline void gather_block(const SpectralRow& row, int e0, V* x) {
  constexpr int r = root(S);
  const typename E::T* line = static_cast<const typename E::T*>(row.src);
  for (int i = 0; i < r; ++i, line += row.src_row_stride) {
    for (int j = 0; j < r; ++j) x[i * r + j] = gather_phase<E>(row, line, r, j, e0);
  }
}

template <int S>
inline void load_block(const SpectralRow& row, int e0, V* x) {
  if (row.in_dtype == kU8) {
    gather_block<U8, S>(row, e0, x);
  } else if (row.in_dtype == kF32) {
    gather_block<F32, S>(row, e0, x);
  } else if (row.in_dtype == kBF16) {
    gather_block<BF16, S>(row, e0, x);
  } else {
    gather_block<F16, S>(row, e0, x);
  }
}

// A block of VL elements: its first element, that element's channel, and the number of its lanes that lie in the row.
struct Block {
  int e0, channel, live;
};

inline V normalised(const SpectralPlan& plan, int band, const Block& block, V value) {
  if (!plan.scale_pattern) return value;
  const int64_t at = int64_t(band) * plan.pattern_floats + block.channel;
  return fma(value, load(F32(), plan.scale_pattern + at), load(F32(), plan.shift_pattern + at));
}

template <class E>
inline void put_band(const SpectralPlan& plan, const SpectralRow& row, int band, const Block& block, V value) {
  typename E::T* dst = static_cast<typename E::T*>(row.dst[band]) + block.e0;
  value = normalised(plan, band, block, value);
  if (block.live == VL) return store(E(), dst, value);
  typename E::T lane[VL];
  store(E(), lane, value);
  for (int t = 0; t < block.live; ++t) dst[t] = lane[t];
}

// G bands from the N folded phases of one symmetry class; G independent sums hide the latency of the multiply-adds.
template <int N, int G>
IMNET_INLINE void sum_group(const V* folded, const float* coefficient, V* sum) {
  for (int g = 0; g < G; ++g) sum[g] = mul(folded[0], set1(coefficient[g * N]));
  for (int p = 1; p < N; ++p) {
    for (int g = 0; g < G; ++g) sum[g] = fma(folded[p], set1(coefficient[g * N + p]), sum[g]);
  }
}

template <class E, int N>
inline void put_class(const SpectralPlan& plan, const SpectralRow& row, const V* folded, int num_bands,
                      const float*& coefficient, int& band, const Block& block) {
  constexpr int kGroup = N < 4 ? N : 4;
  V sum[kGroup];
  int left = num_bands;
  for (; left >= kGroup; left -= kGroup, coefficient += kGroup * N) {
    sum_group<N, kGroup>(folded, coefficient, sum);
    for (int g = 0; g < kGroup; ++g) put_band<E>(plan, row, band++, block, sum[g]);
  }
  for (; left > 0; --left, coefficient += N) {
    sum_group<N, 1>(folded, coefficient, sum);
    put_band<E>(plan, row, band++, block, sum[0]);
  }
}

template <class E, int S>
inline void spectral_block(const SpectralPlan& plan, const SpectralRow& row, int e0) {
  constexpr int kHalf = S / 2, kQuarter = S / 4;
  V x[S], sums[kHalf], differences[kHalf], even[kQuarter], odd[kQuarter];
  load_block<S>(row, e0, x);
  for (int p = 0; p < kHalf; ++p) {
    sums[p] = add(x[p], x[S - 1 - p]);
    differences[p] = sub(x[p], x[S - 1 - p]);
  }
  for (int p = 0; p < kQuarter; ++p) {
    even[p] = add(sums[p], sums[kHalf - 1 - p]);
    odd[p] = sub(sums[p], sums[kHalf - 1 - p]);
  }
  const Block block{e0, e0 % row.channels, row.n - e0 < VL ? row.n - e0 : VL};
  const float* coefficient = plan.coefficient;
  int band = 0;
  put_class<E, kQuarter>(plan, row, even, plan.num_bands[0], coefficient, band, block);
  put_class<E, kQuarter>(plan, row, odd, plan.num_bands[1], coefficient, band, block);
  put_class<E, kHalf>(plan, row, differences, plan.num_bands[2], coefficient, band, block);
}

#if defined(IMNET_AVX512)
#include "spectral_pairs.inl"
#endif

template <class E, int S>
inline void spectral_blocks(const SpectralPlan& plan, const SpectralRow& row) {
#if defined(IMNET_AVX512)
  if (plan.shuffle) return spectral_pairs<E, S>(plan, row);
#endif
  int e0 = 0;
  for (; e0 + VL <= row.n; e0 += VL) spectral_block<E, S>(plan, row, e0);
  if (e0 == row.n) return;
  spectral_block<E, S>(plan, row, row.n >= VL ? row.n - VL : e0);  // overlaps the block before, with the same values
}

template <class E>
inline void spectral_typed(const SpectralPlan& plan, const SpectralRow& row) {
  if (plan.s == 4) return spectral_blocks<E, 4>(plan, row);
  if (plan.s == 16) return spectral_blocks<E, 16>(plan, row);
  spectral_blocks<E, 36>(plan, row);
}

void spectral_row(const SpectralPlan& plan, const SpectralRow& row) {
  if (row.out_dtype == kF32) {
    spectral_typed<F32>(plan, row);
  } else if (row.out_dtype == kBF16) {
    spectral_typed<BF16>(plan, row);
  } else {
    spectral_typed<F16>(plan, row);
  }
}
