// The per-ISA inner loops, one table per instruction set; plain structs so that no inline library code is shared between
// translation units built for different targets.
#pragma once
#include <cstdint>

#include "../common/choices.h"

#define IMNET_INLINE inline __attribute__((always_inline))  // where a call would send vectors through memory

namespace imnet {

constexpr int kPhiloxIds = 16;
constexpr int kMaxVector = 16;  // floats in the widest vector; constant patterns are laid out for it

// One image of augment. Patterns hold period * kMaxVector + period floats, entry i for channel i % channels.
struct AugmentImage {
  const uint8_t* src;  // (H, W, C)
  void* dst;           // (H, W, C) of dtype
  const float* scale_pattern;
  const float* shift_pattern;
  const float* mean_shift;  // (H, W, C) shift per source pixel, or null
  uint8_t* row_u8;          // scratch, W * C + 64
  float* row_f32;           // scratch, W * C + 64
  int32_t height, width, channels, dtype;
  int32_t oy, ox, flip, reflect;
  int32_t y0, y1, x0, x1;  // cutout box clipped to the image; empty where y0 >= y1
  // For AVX-512's block form, which is taken where plain: neither NaN nor subnormal nor huge numbers can come out.
  bool plain;
  const int32_t* columns;  // element e's column, and columns_stride further on its channel; a block more than a row
  int64_t columns_stride;
  const float* mean_mirrored;  // mean_shift with its columns reversed, where an image may be flipped
};

// One output row of spectral: n elements, element e of phase (i, j) at row i, offset ((e / C) * r + j) * C + e % C.
struct SpectralRow {
  const void* src;
  const void* src_end;  // nothing is read at or after this
  int64_t src_row_stride;  // elements between input rows
  void* const* dst;        // one pointer per band, in plan order
  int32_t n, channels, in_dtype, out_dtype;
};

// Bands grouped by symmetry: 0 (k % 4 == 0) folds twice by sums, 1 (k % 4 == 2) by sums then differences, 2 (odd) once.
struct SpectralPlan {
  int32_t r, s;
  int32_t num_bands[3];        // per class
  const float* coefficient;    // per class, per band, per folded phase
  const float* scale_pattern;  // (K, pattern) in plan order, or null
  const float* shift_pattern;
  int32_t pattern_floats;
  const uint8_t* shuffle;  // where the ISA has phase_pairs: [c0][r][64] byte offsets inside a window, or null
};

struct SgdParams {
  float lr, grad_scale, momentum, weight_decay, ema_weight;  // ema_weight = 1 - ema_decay
  int32_t nesterov;
};

struct Kernels {
  const char* name;
  bool phase_pairs;  // spectral_row takes a shuffle, and then coefficients times 2^-16
  void (*augment)(const AugmentImage&);
  // Words 0 .. 2 of the draws of kPhiloxIds ids, word by word, in 64-bit lanes.
  void (*philox)(const uint64_t* ids, uint32_t epoch, uint32_t stream, uint64_t seed, uint64_t* words);
  void (*spectral_row)(const SpectralPlan&, const SpectralRow&);
  void (*shake)(const void* x1, const void* x2, const void* residual, void* y, int64_t n, float a, int32_t dtype);
  void (*shake_backward)(const void* grad, void* d1, void* d2, int64_t n, float b, int32_t dtype);
  void (*sgd_ema)(float* p, const float* g, float* m, float* e, int64_t n, const SgdParams&);
};

const Kernels* kernels_base();
const Kernels* kernels_avx2();    // null where the compiler or the CPU has no AVX2, FMA and F16C
const Kernels* kernels_avx512();  // null without AVX-512 F, BW, VL, DQ and VBMI
const Kernels* kernels_avx512bf16();  // the same with the hardware's rounding to bf16 where that is equal
const Kernels& kernels();         // the best of them, or what force_isa chose
bool force_isa(const char* name);

}  // namespace imnet
