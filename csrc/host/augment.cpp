#include <algorithm>
#include <memory>
#include <stdexcept>

#include "families.h"
#include "kernels.h"
#include "pool.h"

namespace imnet {
namespace {

constexpr int64_t kPieceBytes = 1 << 18;  // work per piece: large beside a wake-up, small beside a batch

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
  for (int64_t i = 0; i < call.batch; ++i) {
    if (ids[i] < 0 || ids[i] >= call.num_stored) throw std::invalid_argument("augment: ids out of range");
  }
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

}  // namespace

void augment(const AugmentCall& call, int num_threads) {
  check(call);
  const std::vector<float> scale = pattern(call.scale), shift = pattern(call.shift);
  const int64_t image = int64_t(call.height) * call.width * call.channels;
  const int64_t scratch = 2 * int64_t(call.width) * call.channels + 192;
  const int64_t* ids = reinterpret_cast<const int64_t*>(call.ids);
  const int64_t* names = reinterpret_cast<const int64_t*>(call.sample_ids);
  const Kernels& isa = kernels();
  auto body = [&](int64_t begin, int64_t end) {
    std::unique_ptr<uint8_t[]> row_u8(new uint8_t[scratch]);
    std::unique_ptr<float[]> row_f32(new float[call.mean_shift ? scratch : 1]);
    AugmentImage im{};
    im.scale_pattern = scale.data();
    im.shift_pattern = shift.data();
    im.mean_shift = reinterpret_cast<const float*>(call.mean_shift);
    im.row_u8 = row_u8.get();
    im.row_f32 = row_f32.get();
    im.height = call.height;
    im.width = call.width;
    im.channels = call.channels;
    im.dtype = call.dtype;
    im.reflect = call.params.reflect;
    for (int64_t i = begin; i < end; ++i) {
      im.src = reinterpret_cast<const uint8_t*>(call.store) + ids[i] * image;
      im.dst = reinterpret_cast<uint8_t*>(call.out) + i * image * element_bytes(call.dtype);
      place(im, choose(uint64_t(names[i]), call.params), call.params);
      isa.augment(im);
    }
  };
  parallel_for(call.batch, std::max<int64_t>(1, kPieceBytes / image), num_threads, body);
}

}  // namespace imnet
