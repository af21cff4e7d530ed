#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "families.h"
#include "kernels.h"
#include "pool.h"

namespace imnet {
namespace {

constexpr int64_t kPieceBytes = 1 << 18;  // pixels per piece: long compared with waking a thread, short compared with a batch

std::vector<float> pattern(const std::vector<float>& per_channel) {
  std::vector<float> out(per_channel.size() * (kMaxVector + 1) + kMaxVector);
  for (size_t i = 0; i < out.size(); ++i) out[i] = per_channel[i % per_channel.size()];
  return out;
}

int element_bytes(int32_t dtype) { return dtype == kF32 ? 4 : 2; }

void check(const AugmentCall& call) {
  const bool sizes_ok = call.height > 0 && call.width > 0 && call.channels > 0 && call.batch >= 0;
  const int64_t row = int64_t(call.width) * call.channels;
  if (!sizes_ok || row > (1 << 24) || call.height > (1 << 24)) throw std::invalid_argument("augment: sizes out of range");
  if (int64_t(call.scale.size()) != call.channels || call.shift.size() != call.scale.size()) {
    throw std::invalid_argument("augment: scale and shift need one number per channel");
  }
  const int64_t* ids = reinterpret_cast<const int64_t*>(call.ids);
  int64_t low = call.batch ? ids[0] : 0, high = low;
  for (int64_t i = 0; i < call.batch; ++i) {
    low = std::min(low, ids[i]);
    high = std::max(high, ids[i]);
  }
  if (call.batch == 0 || (low >= 0 && high < call.num_stored)) return;
  const std::string span = std::to_string(low) + " .. " + std::to_string(high);
  throw std::invalid_argument("ids span " + span + "; allowed 0 .. " + std::to_string(call.num_stored - 1) +
                              "; pass positions in the store");
}

void place(AugmentImage& im, const Choice& choice, const AugmentParams& p) {
  im.oy = choice.oy;
  im.ox = choice.ox;
  im.flip = choice.flip;
  im.y0 = std::max(choice.y0, 0);
  im.x0 = std::max(choice.x0, 0);
  im.y1 = std::min(choice.y0 + p.cutout_px, im.height);
  im.x1 = std::max(im.x0, std::min(choice.x0 + p.cutout_px, im.width));
}

// Whether no value is NaN, subnormal or huge. Only such values might be rounded differently by the block form.
bool ordinary(const float* values, int64_t n) {
  int64_t num_bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float size = std::fabs(values[i]);
    num_bad += !(size == 0.0f || (size > 1e-20f && size < 1e20f));
  }
  return num_bad == 0;
}

// The data that all images of a call share, computed once per call. `image` is copied by each thread, which then sets source,
// destination and choices image by image.
struct Shared {
  std::vector<float> scale, shift, mirrored;
  std::vector<int32_t> columns;
  AugmentImage image{};
};

Shared share(const AugmentCall& call) {
  Shared s{pattern(call.scale), pattern(call.shift), {}, {}, {}};
  const int64_t row = int64_t(call.width) * call.channels, stride = row + 2 * kMaxVector;
  const float* mean = reinterpret_cast<const float*>(call.mean_shift);
  s.columns.resize(2 * stride);
  for (int64_t e = 0; e < stride; ++e) {
    s.columns[e] = int32_t(e / call.channels);
    s.columns[stride + e] = int32_t(e % call.channels);
  }
  AugmentImage& im = s.image;
  im.scale_pattern = s.scale.data();
  im.shift_pattern = s.shift.data();
  im.mean_shift = mean;
  im.height = call.height;
  im.width = call.width;
  im.channels = call.channels;
  im.dtype = call.dtype;
  im.reflect = call.params.reflect;
  im.columns = s.columns.data();
  im.columns_stride = stride;
  im.plain = ordinary(s.scale.data(), call.channels) && ordinary(s.shift.data(), call.channels);
  if (mean) im.plain = im.plain && ordinary(mean, row * call.height);
  if (mean && call.params.hflip != kFlipNone) {
    s.mirrored.resize(row * call.height);
    for (int64_t y = 0; y < call.height; ++y) {
      const float* from = mean + (y + 1) * row;
      float* to = s.mirrored.data() + y * row;
      for (int64_t x = 0; x < call.width; ++x, to += call.channels) {
        from -= call.channels;
        for (int64_t c = 0; c < call.channels; ++c) to[c] = from[c];
      }
    }
    im.mean_mirrored = s.mirrored.data();
  }
  return s;
}

// Draws the choices of `count` samples, at most kPhiloxIds, at once.
void choose_some(const int64_t* names, int64_t count, const AugmentParams& p, const Kernels& isa, Choice* choices) {
  uint64_t ids[kPhiloxIds] = {}, crop[3 * kPhiloxIds], phase[3 * kPhiloxIds], box[3 * kPhiloxIds];
  for (int64_t i = 0; i < count; ++i) ids[i] = uint64_t(names[i]);
  if (draws_crop(p)) isa.philox(ids, p.epoch, kStreamCropFlip, p.seed, crop);
  if (draws_phase(p)) isa.philox(ids, 0, kStreamFlipPhase, p.seed, phase);
  if (draws_box(p)) isa.philox(ids, p.epoch, kStreamCutout, p.seed, box);
  auto words = [](const uint64_t* w, bool drawn, int64_t i) {
    return drawn ? Words{{uint32_t(w[i]), uint32_t(w[kPhiloxIds + i]), uint32_t(w[2 * kPhiloxIds + i]), 0}} : Words{};
  };
  for (int64_t i = 0; i < count; ++i) {
    choices[i] = choice_of(words(crop, draws_crop(p), i), words(phase, draws_phase(p), i), words(box, draws_box(p), i), p);
  }
}

}  // namespace

void augment(const AugmentCall& call, int num_threads) {
  check(call);
  const Shared shared = share(call);
  const int64_t image = int64_t(call.height) * call.width * call.channels;
  const int64_t scratch = 2 * int64_t(call.width) * call.channels + 192;
  const int64_t* ids = reinterpret_cast<const int64_t*>(call.ids);
  const int64_t* names = reinterpret_cast<const int64_t*>(call.sample_ids);
  const Kernels& isa = kernels();
  auto body = [&](int64_t begin, int64_t end) {
    std::unique_ptr<uint8_t[]> row_u8(new uint8_t[scratch]);
    std::unique_ptr<float[]> row_f32(new float[call.mean_shift ? scratch : 1]);
    AugmentImage im = shared.image;
    im.row_u8 = row_u8.get();
    im.row_f32 = row_f32.get();
    Choice choices[kPhiloxIds];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (i - begin) % kPhiloxIds;
      if (at == 0) choose_some(names + i, std::min<int64_t>(kPhiloxIds, end - i), call.params, isa, choices);
      im.src = reinterpret_cast<const uint8_t*>(call.store) + ids[i] * image;
      im.dst = reinterpret_cast<uint8_t*>(call.out) + i * image * element_bytes(call.dtype);
      place(im, choices[at], call.params);
      isa.augment(im);
    }
  };
  parallel_for(call.batch, std::max<int64_t>(1, kPieceBytes / image), num_threads, body);
}

}  // namespace imnet
