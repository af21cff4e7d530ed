// spectral, one output row. Included once per ISA; needs V, VL, load, store, add, sub, fma.

constexpr int kMaxPhases = 36;

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

template <class E>
inline void gather_block(const SpectralPlan& plan, const SpectralRow& row, int e0, V* x) {
  const typename E::T* line = static_cast<const typename E::T*>(row.src);
  for (int i = 0; i < plan.r; ++i, line += row.src_row_stride) {
    for (int j = 0; j < plan.r; ++j) x[i * plan.r + j] = gather_phase<E>(row, line, plan.r, j, e0);
  }
}

#if defined(IMNET_WINDOW_SHUFFLE)
// uint8 with one or three channels: every phase of a block lies inside 128 bytes of each input row.
inline void shuffle_block(const SpectralPlan& plan, const SpectralRow& row, int e0, V* x) {
  const int C = row.channels, r = plan.r;
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

inline void load_block(const SpectralPlan& plan, const SpectralRow& row, int e0, V* x) {
#if defined(IMNET_WINDOW_SHUFFLE)
  if (plan.shuffle) return shuffle_block(plan, row, e0, x);
#endif
  if (row.in_dtype == kU8) {
    gather_block<U8>(plan, row, e0, x);
  } else if (row.in_dtype == kF32) {
    gather_block<F32>(plan, row, e0, x);
  } else if (row.in_dtype == kBF16) {
    gather_block<BF16>(plan, row, e0, x);
  } else {
    gather_block<F16>(plan, row, e0, x);
  }
}

template <class E>
inline void put_band(const SpectralPlan& plan, const SpectralRow& row, int band, int e0, V value) {
  typename E::T* dst = static_cast<typename E::T*>(row.dst[band]) + e0;
  if (plan.scale_pattern) {
    const int64_t at = int64_t(band) * plan.pattern_floats + e0 % row.channels;
    value = fma(value, load(F32(), plan.scale_pattern + at), load(F32(), plan.shift_pattern + at));
  }
  if (e0 + VL <= row.n) return store(E(), dst, value);
  typename E::T lane[VL];
  store(E(), lane, value);
  for (int t = 0; t < row.n - e0; ++t) dst[t] = lane[t];
}

// Four bands at a time over the folded phases of one symmetry class.
template <class E>
inline void put_class(const SpectralPlan& plan, const SpectralRow& row, const V* folded, int n, int num_bands,
                      const float*& coefficient, int& band, int e0) {
  for (int done = 0; done < num_bands; done += 4) {
    V acc[4] = {zero(), zero(), zero(), zero()};
    for (int p = 0; p < n; ++p, coefficient += 4) {
      for (int q = 0; q < 4; ++q) acc[q] = fma(folded[p], set1(coefficient[q]), acc[q]);
    }
    for (int q = 0; q < 4 && done + q < num_bands; ++q) put_band<E>(plan, row, band++, e0, acc[q]);
  }
}

template <class E>
inline void spectral_block(const SpectralPlan& plan, const SpectralRow& row, int e0) {
  V x[kMaxPhases], sums[kMaxPhases / 2], differences[kMaxPhases / 2];
  load_block(plan, row, e0, x);
  const int half = plan.s / 2, quarter = plan.s / 4;
  for (int p = 0; p < half; ++p) {
    sums[p] = add(x[p], x[plan.s - 1 - p]);
    differences[p] = sub(x[p], x[plan.s - 1 - p]);
  }
  V even[kMaxPhases / 4], odd[kMaxPhases / 4];
  for (int p = 0; p < quarter; ++p) {
    even[p] = add(sums[p], sums[half - 1 - p]);
    odd[p] = sub(sums[p], sums[half - 1 - p]);
  }
  const float* coefficient = plan.coefficient;
  int band = 0;
  put_class<E>(plan, row, even, quarter, plan.num_bands[0], coefficient, band, e0);
  put_class<E>(plan, row, odd, quarter, plan.num_bands[1], coefficient, band, e0);
  put_class<E>(plan, row, differences, half, plan.num_bands[2], coefficient, band, e0);
}

template <class E>
inline void spectral_blocks(const SpectralPlan& plan, const SpectralRow& row) {
  int e0 = 0;
  for (; e0 + VL <= row.n; e0 += VL) spectral_block<E>(plan, row, e0);
  if (e0 == row.n) return;
  spectral_block<E>(plan, row, row.n >= VL ? row.n - VL : e0);  // overlapping: the same values twice
}

void spectral_row(const SpectralPlan& plan, const SpectralRow& row) {
  if (row.out_dtype == kF32) {
    spectral_blocks<F32>(plan, row);
  } else if (row.out_dtype == kBF16) {
    spectral_blocks<BF16>(plan, row);
  } else {
    spectral_blocks<F16>(plan, row);
  }
}
