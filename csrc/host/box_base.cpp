// Any machine: the same integers as box_avx2.cpp, as plain loops.
#include "box.h"

namespace imnet {
namespace {

// One pass of the transform along `step`: constants are those of libjpeg's slow integer method times 2^13, summed up.
inline void pass(const int32_t* in, int32_t* out, int32_t step, int32_t shift) {
  const int32_t x0 = in[0], x1 = in[step], x2 = in[2 * step], x3 = in[3 * step];
  const int32_t x4 = in[4 * step], x5 = in[5 * step], x6 = in[6 * step], x7 = in[7 * step];
  const int32_t sum = (x0 + x4) * 8192, difference = (x0 - x4) * 8192;
  const int32_t low = 10703 * x2 + 4433 * x6, high = 4433 * x2 - 10704 * x6;
  const int32_t even[4] = {sum + low, difference + high, difference - high, sum - low};
  const int32_t odd[4] = {11363 * x1 + 9633 * x3 + 6437 * x5 + 2260 * x7, 9633 * x1 - 2259 * x3 - 11362 * x5 - 6436 * x7,
                          6437 * x1 - 11362 * x3 + 2261 * x5 + 9633 * x7, 2260 * x1 - 6436 * x3 + 9633 * x5 - 11363 * x7};
  const int32_t half = 1 << (shift - 1);
  for (int i = 0; i < 4; ++i) {
    out[i * step] = (even[i] + odd[i] + half) >> shift;
    out[(7 - i) * step] = (even[i] - odd[i] + half) >> shift;
  }
}

inline uint8_t clamped(int32_t value) { return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value); }

void idct8x8(const int16_t* block, uint8_t* out, ptrdiff_t stride) {
  int32_t wide[64], columns[64];
  for (int i = 0; i < 64; ++i) wide[i] = block[i];
  for (int i = 0; i < 8; ++i) pass(wide + i, columns + i, 8, 11);
  for (int i = 0; i < 8; ++i) {
    int32_t row[8];
    pass(columns + 8 * i, row, 1, 18);
    for (int j = 0; j < 8; ++j) out[i * stride + j] = clamped(row[j] + 128);
  }
}

void to_rgb(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* const rgb[3], int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    const int32_t b = cb[i] - 128, r = cr[i] - 128;
    rgb[0][i] = clamped(y[i] + ((91881 * r + 32768) >> 16));
    rgb[1][i] = clamped(y[i] + ((-22554 * b - 46802 * r + 32768) >> 16));
    rgb[2][i] = clamped(y[i] + ((116130 * b + 32768) >> 16));
  }
}

int32_t dequantised(int16_t* block, const int16_t* quant) {
  int32_t sum = 0;
  for (int i = 0; i < 64; ++i) {
    const int32_t value = block[i] * quant[i];
    sum += value < 0 ? -value : value;
    block[i] = int16_t(value);
  }
  return sum;
}

void across(const uint8_t* const rows[], int32_t channels, const BoxSpan* spans, int32_t size, uint8_t* out) {
  for (int32_t i = 0; i < size; ++i) {
    for (int32_t c = 0; c < channels; ++c, ++out) {
      uint32_t sum = 0;
      for (int32_t k = 0; k < spans[i].count; ++k) sum += rows[c][spans[i].first + k];
      *out = uint8_t((sum * uint32_t(spans[i].weight) + (1u << 21)) >> 22);
    }
  }
}

#include "box_pixels.inl"

const BoxKernels table = {"base", decode, wide2, wide2_high2, to_rgb, across, down};
}  // namespace

const BoxKernels* box_base() { return &table; }

}  // namespace imnet
