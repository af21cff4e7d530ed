// The inner loops per instruction set (ISA), one table of functions for each. The structs are plain so that translation units
// built for different targets share no inline library code: the linker might keep a copy that the CPU cannot run.
#pragma once
#include <cstdint>

#include "../common/choices.h"

#define IMNET_INLINE inline __attribute__((always_inline))  // for functions whose call would pass vectors through memory

namespace imnet {

constexpr int kPhiloxIds = 16;
constexpr int kMaxVector = 16;  // floats in the widest vector; repeating patterns are sized for it

// One image of augment. Patterns repeat the channels' values, entry i for channel i % channels, so that vectors can be loaded
// from any channel on; they hold (channels + 1) * kMaxVector + channels floats.
struct AugmentImage {
  const uint8_t* src;  // (H, W, C)
  void* dst;           // (H, W, C) of dtype
  const float* scale_pattern;
  const float* shift_pattern;
  const float* mean_shift;  // (H, W, C) shift of each source pixel for a mean image, or null
  uint8_t* row_u8;          // scratch, W * C + 64
  float* row_f32;           // scratch, W * C + 64
  int32_t height, width, channels, dtype;
  int32_t oy, ox, flip, reflect;
  int32_t y0, y1, x0, x1;  // cutout box clipped to the image; empty if y0 >= y1
  // For the block form on AVX-512, which requires `plain`: no result can be NaN, subnormal or huge.
  bool plain;
  const int32_t* columns;  // [e]: the column of element e; [columns_stride + e]: its channel. A block longer than a row
  int64_t columns_stride;
  const float* mean_mirrored;  // mean_shift with its columns reversed, if an image may be flipped
};

// One output row of spectral: n elements, element e of phase (i, j) at row i, offset ((e / C) * r + j) * C + e % C.
struct SpectralRow {
  const void* src;
  const void* src_end;  // end of the readable input
  int64_t src_row_stride;  // elements between input rows
  void* const* dst;        // one pointer per band, in plan order
  int32_t n, channels, in_dtype, out_dtype;
};

// Bands in three symmetry classes, which need the phases folded: 0 (k % 4 == 0) twice to sums, 1 (k % 4 == 2) to sums and
// then to differences, 2 (odd k) once to differences. "Plan order" is class by class.
struct SpectralPlan {
  int32_t r, s;
  int32_t num_bands[3];        // per class
  const float* coefficient;    // per class, per band, per folded phase
  const float* scale_pattern;  // (K, pattern) in plan order, or null
  const float* shift_pattern;
  int32_t pattern_floats;
  const uint8_t* shuffle;  // for an ISA with phase_pairs: [c0][r][64] byte offsets inside a window; else null
};

struct SgdParams {
  float lr, grad_scale, momentum, weight_decay, ema_weight;  // ema_weight = 1 - ema_decay
  int32_t nesterov;
};

struct Kernels {
  const char* name;
  bool phase_pairs;  // spectral_row accepts a shuffle; the coefficients must then be multiplied by 2^-16
  void (*augment)(const AugmentImage&);
  // Words 0 .. 2 of the draws of kPhiloxIds ids: words[i * kPhiloxIds + k] is word i of ids[k], as a 64-bit number.
  void (*philox)(const uint64_t* ids, uint32_t epoch, uint32_t stream, uint64_t seed, uint64_t* words);
  void (*spectral_row)(const SpectralPlan&, const SpectralRow&);
  void (*shake)(const void* x1, const void* x2, const void* residual, void* y, int64_t n, float a, int32_t dtype);
  void (*shake_backward)(const void* grad, void* d1, void* d2, int64_t n, float b, int32_t dtype);
  void (*sgd_ema)(float* p, const float* g, float* m, float* e, int64_t n, const SgdParams&);
};

const Kernels* kernels_base();
const Kernels* kernels_avx2();    // null if the compiler or the CPU lacks AVX2, FMA or F16C
const Kernels* kernels_avx512();  // null without AVX-512 F, BW, VL, DQ and VBMI
const Kernels* kernels_avx512bf16();  // the same with the hardware's rounding to bf16 where its results are equal
const Kernels& kernels();         // the best that this CPU supports, or the one that force_isa chose
bool force_isa(const char* name);

}  // namespace imnet
