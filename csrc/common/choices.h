// Shared by the host and the CUDA tier: dtype codes, and augment's random choices, which equal the reference's integers.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define IMNET_HD __host__ __device__ __forceinline__
#else
#define IMNET_HD inline
#endif

namespace imnet {

enum DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kU8 = 3 };  // native.py's CODES

struct Words {
  uint32_t w[4];
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u, kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

IMNET_HD Words philox4x32(Words counter, uint32_t k0, uint32_t k1) {
  uint32_t c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c0) * kPhiloxM0, p1 = uint64_t(c2) * kPhiloxM1;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return Words{{c0, c1, c2, c3}};
}

IMNET_HD int32_t uniform_below(uint32_t word, int32_t n) { return int32_t((uint64_t(word) * uint32_t(n)) >> 32); }

enum HFlip : int32_t { kFlipNone = 0, kFlipRandom = 1, kFlipAlternating = 2 };

// Philox streams, numbered as in philox.py. Each kind of choice has its own stream, so that switching one on does not
// change the draws of the others.
constexpr uint32_t kStreamCropFlip = 0, kStreamCutout = 1, kStreamFlipPhase = 2;

struct AugmentParams {
  uint64_t seed;
  uint64_t flip_threshold;  // 0 .. 2^32; an image is mirrored if its random word is below this
  uint32_t epoch;
  int32_t pad_px, reflect, hflip;
  int32_t cutout_px, box_first_y, box_num_y, box_first_x, box_num_x;
};

struct Choice {
  int32_t oy, ox;  // crop offset minus pad_px: source row = y + oy
  int32_t flip;
  int32_t y0, x0;  // the cutout box's start, before clipping to the image
};

IMNET_HD Words draw(uint64_t id, const AugmentParams& p, uint32_t epoch, uint32_t stream) {
  return philox4x32(Words{{uint32_t(id), uint32_t(id >> 32), epoch, stream}}, uint32_t(p.seed), uint32_t(p.seed >> 32));
}

// Whether a call needs draws from each stream. Unneeded draws are skipped, since one costs ten rounds of multiplications.
IMNET_HD bool draws_crop(const AugmentParams& p) { return p.pad_px > 0 || p.hflip == kFlipRandom; }
IMNET_HD bool draws_phase(const AugmentParams& p) { return p.hflip == kFlipAlternating; }
IMNET_HD bool draws_box(const AugmentParams& p) { return p.cutout_px > 0; }

// Converts a sample's draws to its choices. Words of a stream that the call does not need are not read.
IMNET_HD Choice choice_of(const Words& crop, const Words& phase, const Words& box, const AugmentParams& p) {
  Choice c{-p.pad_px, -p.pad_px, 0, 0, 0};
  if (draws_crop(p)) {
    c.oy += uniform_below(crop.w[0], 2 * p.pad_px + 1);
    c.ox += uniform_below(crop.w[1], 2 * p.pad_px + 1);
    c.flip = p.hflip == kFlipRandom && uint64_t(crop.w[2]) < p.flip_threshold;
  }
  if (draws_phase(p)) c.flip = int32_t((phase.w[0] + p.epoch) & 1u);
  if (draws_box(p)) {
    c.y0 = uniform_below(box.w[0], p.box_num_y) + p.box_first_y;
    c.x0 = uniform_below(box.w[1], p.box_num_x) + p.box_first_x;
  }
  return c;
}

IMNET_HD Choice choose(uint64_t id, const AugmentParams& p) {
  Words crop{}, phase{}, box{};
  if (draws_crop(p)) crop = draw(id, p, p.epoch, kStreamCropFlip);
  if (draws_phase(p)) phase = draw(id, p, 0, kStreamFlipPhase);
  if (draws_box(p)) box = draw(id, p, p.epoch, kStreamCutout);
  return choice_of(crop, phase, box, p);
}

// Reflection that does not repeat the edge, for indices in -(size - 1) .. 2 (size - 1).
IMNET_HD int32_t reflect(int32_t i, int32_t size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * (size - 1) - i;
}

}  // namespace imnet
