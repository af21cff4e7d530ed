// spectral, one output row. Included once per ISA; needs V, VL, load, store, add, sub, fma.

// One phase of VL elements from element e0 on, one by one; lanes past the row's end are 0.
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

#if defined(IMNET_WINDOW_SHUFFLE)
// uint8 with one or three channels: every phase of a block lies inside 128 bytes of each input row.
template <int S>
inline void shuffle_block(const SpectralPlan& plan, const SpectralRow& row, int e0, V* x) {
  constexpr int r = root(S);
  const int C = row.channels;
  const uint8_t* window = static_cast<const uint8_t*>(row.src) + int64_t(e0 / C) * r * C;
  const uint8_t* offsets = plan.shuffle + (e0 % C) * r * 16;
  const uint8_t* end = static_cast<const uint8_t*>(row.src_end);
  for (int i = 0; i < r; ++i, window += row.src_row_stride) {
    uint8_t copy[128];
    const uint8_t* from = window;
    if (end - window < 128) {  // near the end of the tensor: read only what is there
      __builtin_memset(copy, 0, sizeof copy);
      __builtin_memcpy(copy, window, size_t(end - window));
      from = copy;
    }
    for (int j = 0; j < r; ++j) x[i * r + j] = gather_window(from, offsets + j * 16);
  }
}
#endif

template <int S>
inline void load_block(const SpectralPlan& plan, const SpectralRow& row, int e0, V* x) {
#if defined(IMNET_WINDOW_SHUFFLE)
  if (plan.shuffle) return shuffle_block<S>(plan, row, e0, x);
#endif
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

// Where a block lies: its first element, that element's channel, and how many of its lanes are inside the row.
struct Block {
  int e0, channel, live;
};

template <class E>
inline void put_band(const SpectralPlan& plan, const SpectralRow& row, int band, const Block& block, V value) {
  typename E::T* dst = static_cast<typename E::T*>(row.dst[band]) + block.e0;
  if (plan.scale_pattern) {
    const int64_t at = int64_t(band) * plan.pattern_floats + block.channel;
    value = fma(value, load(F32(), plan.scale_pattern + at), load(F32(), plan.shift_pattern + at));
  }
  if (block.live == VL) return store(E(), dst, value);
  typename E::T lane[VL];
  store(E(), lane, value);
  for (int t = 0; t < block.live; ++t) dst[t] = lane[t];
}

// Four bands at a time over the N folded phases of one symmetry class; N is constant, so that the products unroll.
template <class E, int N>
inline void put_class(const SpectralPlan& plan, const SpectralRow& row, const V* folded, int num_bands,
                      const float*& coefficient, int& band, const Block& block) {
  for (int done = 0; done < num_bands; done += 4, coefficient += 4 * N) {
    V a = zero(), b = zero(), c = zero(), d = zero();
    for (int p = 0; p < N; ++p) {
      a = fma(folded[p], set1(coefficient[4 * p]), a);
      b = fma(folded[p], set1(coefficient[4 * p + 1]), b);
      c = fma(folded[p], set1(coefficient[4 * p + 2]), c);
      d = fma(folded[p], set1(coefficient[4 * p + 3]), d);
    }
    put_band<E>(plan, row, band++, block, a);
    if (done + 1 < num_bands) put_band<E>(plan, row, band++, block, b);
    if (done + 2 < num_bands) put_band<E>(plan, row, band++, block, c);
    if (done + 3 < num_bands) put_band<E>(plan, row, band++, block, d);
  }
}

template <class E, int S>
inline void spectral_block(const SpectralPlan& plan, const SpectralRow& row, int e0) {
  constexpr int kHalf = S / 2, kQuarter = S / 4;
  V x[S], sums[kHalf], differences[kHalf], even[kQuarter], odd[kQuarter];
  load_block<S>(plan, row, e0, x);
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

template <class E, int S>
inline void spectral_blocks(const SpectralPlan& plan, const SpectralRow& row) {
  int e0 = 0;
  for (; e0 + VL <= row.n; e0 += VL) spectral_block<E, S>(plan, row, e0);
  if (e0 == row.n) return;
  spectral_block<E, S>(plan, row, row.n >= VL ? row.n - VL : e0);  // overlapping: the same values twice
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
