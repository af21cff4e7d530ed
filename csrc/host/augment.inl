// augment of one image, row by row. Included once per ISA, which defines V (VL floats), load, store, mul and add.
// Multiply and add round separately (-ffp-contract=off), as the reference defines the value.

template <class E>
inline void normalise_elements(const uint8_t* src, typename E::T* dst, int n, const float* scale, const float* shift) {
  for (int i = 0; i < n; ++i) dst[i] = E::put(float(src[i]) * scale[i] + shift[i]);
}

template <class E>
inline void normalise_at(const uint8_t* src, typename E::T* dst, const float* scale, const float* shift) {
  store(E(), dst, add(mul(load(U8(), src), load(F32(), scale)), load(F32(), shift)));
}

// n elements, the first of channel 0; with CHANNELS > 0 the patterns of scale and shift are kept in registers.
template <class E, int CHANNELS>
inline void normalise_row(const uint8_t* src, typename E::T* dst, int n, const AugmentImage& im) {
  constexpr int kPeriod = CHANNELS > 0 ? CHANNELS : 1;
  const int channels = CHANNELS > 0 ? CHANNELS : im.channels;
  int i = 0;
  if (CHANNELS > 0) {
    V scale[kPeriod], shift[kPeriod];
    for (int k = 0; k < kPeriod; ++k) {
      scale[k] = load(F32(), im.scale_pattern + k * VL);
      shift[k] = load(F32(), im.shift_pattern + k * VL);
    }
    for (; i + kPeriod * VL <= n; i += kPeriod * VL) {
      for (int k = 0; k < kPeriod; ++k) store(E(), dst + i + k * VL, add(mul(load(U8(), src + i + k * VL), scale[k]), shift[k]));
    }
  }
  for (; i + VL <= n; i += VL) {
    const int at = i % channels;
    normalise_at<E>(src + i, dst + i, im.scale_pattern + at, im.shift_pattern + at);
  }
  if (i == n) return;
  if (n >= VL) {  // the last vector overlaps the one before it and writes the same values again
    i = n - VL;
    const int at = i % channels;
    normalise_at<E>(src + i, dst + i, im.scale_pattern + at, im.shift_pattern + at);
  } else {
    normalise_elements<E>(src, dst, n, im.scale_pattern, im.shift_pattern);
  }
}

// As normalise_row, with one shift per element (a mean image) and the scale per channel.
template <class E>
inline void normalise_row_mean(const uint8_t* src, typename E::T* dst, int n, const float* shift, const AugmentImage& im) {
  int i = 0;
  for (; i + VL <= n; i += VL) normalise_at<E>(src + i, dst + i, im.scale_pattern + i % im.channels, shift + i);
  normalise_elements<E>(src + i, dst + i, n - i, im.scale_pattern + i % im.channels, shift + i);
}

template <class P>
inline void reverse_pixels_scalar(const P* src, P* dst, int num_pixels, int channels) {
  for (int x = 0; x < num_pixels; ++x) {
    for (int c = 0; c < channels; ++c) dst[(num_pixels - 1 - x) * channels + c] = src[x * channels + c];
  }
}

// Reverses the order of pixels, but not of the channels in a pixel. dst needs 16 spare bytes before and after it.
inline void reverse_pixels(const uint8_t* src, uint8_t* dst, int num_pixels, int channels) {
  int done = 0;
#if defined(IMNET_REVERSE16)
  if (channels == 1) {
    const __m128i order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; done + 16 <= num_pixels; done += 16) reverse16(src + done, dst + num_pixels - done - 16, order);
  } else if (channels == 3) {
    // Five pixels per step. Byte 0 of each store is wrong and is overwritten by the next step, whose last pixel it lies in.
    const __m128i order = _mm_set_epi8(2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9, 14, 13, 12, 15);
    for (; done + 6 <= num_pixels; done += 5) reverse16(src + 3 * done, dst + 3 * (num_pixels - done - 5) - 1, order);
  }
#endif
  reverse_pixels_scalar(src + done * channels, dst, num_pixels - done, channels);
}

template <class P>
inline void copy_pixel(const P* src, P* dst, int channels) {
  for (int c = 0; c < channels; ++c) dst[c] = src[c];
}

template <class P>
inline void reflect_pixels(const P* src, P* dst, int width, int channels, int ox) {
  const int begin = ox < 0 ? -ox : 0, end = ox > 0 ? width - ox : width;
  for (int x = 0; x < begin; ++x) copy_pixel(src + (begin - x) * channels, dst + x * channels, channels);
  __builtin_memcpy(dst + begin * channels, src + (begin + ox) * channels, size_t(end - begin) * channels * sizeof(P));
  for (int x = end; x < width; ++x) copy_pixel(src + (2 * (width - 1) - x - ox) * channels, dst + x * channels, channels);
}

// Writes the value of padding to elements begin .. end of a row of n. It stores whole vectors, which may reach into the part
// between the borders: the caller writes that part afterwards.
template <class E>
inline void fill_border(typename E::T* row, int n, int begin, int end, const AugmentImage& im) {
  const int backwards = end == n && begin > 0;  // a right border is written from the row's end
  for (int left = end - begin; left > 0; left -= VL) {
    int at = backwards ? begin + left - VL : end - left;
    if (n < VL) {
      for (int i = begin; i < end; ++i) row[i] = E::put(im.mean_shift ? 0.0f : im.shift_pattern[i % im.channels]);
      return;
    }
    at = at < 0 ? 0 : (at + VL > n ? n - VL : at);
    store(E(), row + at, im.mean_shift ? zero() : load(F32(), im.shift_pattern + at % im.channels));
  }
}

template <class E>
inline void augment_row(const AugmentImage& im, int source_y, typename E::T* dst) {
  const int W = im.width, C = im.channels;
  const int begin = im.reflect ? 0 : (im.ox < 0 ? -im.ox : 0);
  const int end = im.reflect ? W : (im.ox > 0 ? W - im.ox : W);
  const int64_t row = int64_t(source_y) * W * C;
  const uint8_t* src = im.src + row + (im.reflect ? 0 : (begin + im.ox) * C);
  const float* shift = im.mean_shift ? im.mean_shift + row + (im.reflect ? 0 : (begin + im.ox) * C) : nullptr;
  uint8_t* spare_u8 = im.row_u8 + 32;
  float* spare_f32 = im.row_f32 + 32;
  if (im.reflect && im.ox != 0) {
    reflect_pixels(src, spare_u8, W, C, im.ox);
    src = spare_u8;
    if (shift) reflect_pixels(shift, spare_f32, W, C, im.ox);
    if (shift) shift = spare_f32;
    spare_u8 += W * C + 32;
    spare_f32 += W * C + 32;
  }
  if (im.flip) {
    reverse_pixels(src, spare_u8, end - begin, C);
    src = spare_u8;
    if (shift) reverse_pixels_scalar(shift, spare_f32, end - begin, C);
    if (shift) shift = spare_f32;
  }
  const int first = im.flip ? W - end : begin, n = (end - begin) * C;
  fill_border<E>(dst, W * C, 0, first * C, im);
  fill_border<E>(dst, W * C, first * C + n, W * C, im);
  typename E::T* middle = dst + first * C;
  if (shift) {
    normalise_row_mean<E>(src, middle, n, shift, im);
  } else if (C == 1) {
    normalise_row<E, 1>(src, middle, n, im);
  } else if (C == 3) {
    normalise_row<E, 3>(src, middle, n, im);
  } else {
    normalise_row<E, 0>(src, middle, n, im);
  }
}

template <class E>
inline void augment_rows(const AugmentImage& im) {
  typedef typename E::T T;
  const int H = im.height, W = im.width, C = im.channels;
  T* dst = static_cast<T*>(im.dst);
  for (int y = 0; y < H; ++y, dst += int64_t(W) * C) {
    int sy = y + im.oy;
    if (im.reflect) {
      sy = sy < 0 ? -sy : sy;
      sy = sy < H ? sy : 2 * (H - 1) - sy;
    }
    if (sy < 0 || sy >= H) {
      fill_border<E>(dst, W * C, 0, W * C, im);
    } else {
      augment_row<E>(im, sy, dst);
    }
    if (y >= im.y0 && y < im.y1) __builtin_memset(dst + im.x0 * C, 0, size_t(im.x1 - im.x0) * C * sizeof(T));
  }
}

void augment_image(const AugmentImage& im) {
  if (im.dtype == kF32) {
    augment_rows<F32>(im);
  } else if (im.dtype == kBF16) {
    augment_rows<BF16>(im);
  } else {
    augment_rows<F16>(im);
  }
}
