#include <algorithm>
#include <stdexcept>
#include <vector>

#include "families.h"
#include "kernels.h"
#include "pool.h"

namespace imnet {
namespace {

constexpr int64_t kPieceElements = 1 << 16;

int bytes_of(int32_t dtype) { return dtype == kF32 ? 4 : 2; }

float at(uintptr_t coefficient, int64_t count, int64_t image) {
  return reinterpret_cast<const float*>(coefficient)[count == 1 ? 0 : image];
}

void check_count(int64_t count, int64_t batch) {
  if (count != 1 && count != batch) throw std::invalid_argument("shake_shake: coefficients must be 1 or one per image");
}

// Pieces of an image, so that a batch of one large image also spreads over the threads.
template <class F>
void over_pieces(const ShakeCall& call, int num_threads, const F& piece) {
  check_count(call.num_coefficients, call.batch);
  const int64_t size = std::max<int64_t>(1, std::min(call.image_elements, kPieceElements));
  const int64_t per_image = (call.image_elements + size - 1) / size;
  parallel_for(call.batch * per_image, std::max<int64_t>(1, kPieceElements / size), num_threads, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t image = i / per_image, begin = i % per_image * size;
      const int64_t n = std::min(size, call.image_elements - begin);
      const int64_t offset = (image * call.image_elements + begin) * bytes_of(call.dtype);
      piece(offset, n, at(call.coefficient, call.num_coefficients, image));
    }
  });
}

// Per-image weights w1 = a s1, w2 = (1 - a) s2, w0 = a t1 + (1 - a) t2.
void fold(const ShakeBnCall& call, float a, float* w1, float* w2, float* w0) {
  const float *s1 = reinterpret_cast<const float*>(call.scale1), *t1 = reinterpret_cast<const float*>(call.shift1);
  const float *s2 = reinterpret_cast<const float*>(call.scale2), *t2 = reinterpret_cast<const float*>(call.shift2);
  for (int64_t c = 0; c < call.channels; ++c) {
    w1[c] = a * s1[c];
    w2[c] = (1 - a) * s2[c];
    if (w0 != nullptr) w0[c] = a * t1[c] + (1 - a) * t2[c];
  }
}

template <class F>
void over_images(const ShakeBnCall& call, int num_threads, const F& one) {
  check_count(call.num_coefficients, call.batch);
  const int64_t image = call.channels * call.plane;
  const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, image));
  parallel_for(call.batch, grain, num_threads, [&](int64_t begin, int64_t end) {
    std::vector<float> weights(3 * call.channels);
    for (int64_t i = begin; i < end; ++i) one(i, i * image * bytes_of(call.dtype), weights.data());
  });
}

}  // namespace

void shake_forward(const ShakeCall& call, int num_threads) {
  const Kernels& isa = kernels();
  over_pieces(call, num_threads, [&](int64_t offset, int64_t n, float a) {
    auto in = [&](uintptr_t p) { return reinterpret_cast<const void*>(p + offset); };
    isa.shake(in(call.x1), in(call.x2), in(call.residual), reinterpret_cast<void*>(call.out + offset), n, a, call.dtype);
  });
}

void shake_backward(const ShakeCall& call, int num_threads) {
  const Kernels& isa = kernels();
  over_pieces(call, num_threads, [&](int64_t offset, int64_t n, float b) {
    auto out = [&](uintptr_t p) { return reinterpret_cast<void*>(p + offset); };
    isa.shake_backward(reinterpret_cast<const void*>(call.x1 + offset), out(call.x2), out(call.residual), n, b, call.dtype);
  });
}

void shake_bn_forward(const ShakeBnCall& call, int num_threads) {
  const Kernels& isa = kernels();
  over_images(call, num_threads, [&](int64_t image, int64_t offset, float* w) {
    float *w1 = w, *w2 = w + call.channels, *w0 = w + 2 * call.channels;
    fold(call, at(call.coefficient, call.num_coefficients, image), w1, w2, w0);
    const int64_t runs = call.channels_last ? 1 : call.channels, n = call.channels * call.plane / runs;
    const int32_t period = call.channels_last ? int32_t(call.channels) : 1;
    for (int64_t c = 0; c < runs; ++c) {
      const int64_t o = offset + c * n * bytes_of(call.dtype);
      auto in = [&](uintptr_t p) { return reinterpret_cast<const void*>(p + o); };
      isa.shake_bn(in(call.x1), in(call.x2), in(call.residual_or_grad), reinterpret_cast<void*>(call.out1 + o), n, period,
                   w1 + c, w2 + c, w0 + c, call.dtype);
    }
  });
}

void shake_bn_backward(const ShakeBnCall& call, int num_threads) {
  const Kernels& isa = kernels();
  const int64_t C = call.channels;
  std::vector<float> partial(size_t(call.batch) * 3 * C, 0.0f);  // per image: deterministic on any number of threads
  over_images(call, num_threads, [&](int64_t image, int64_t offset, float* w) {
    fold(call, at(call.coefficient, call.num_coefficients, image), w, w + C, nullptr);
    float* sums = partial.data() + image * 3 * C;
    const int64_t runs = call.channels_last ? 1 : C, n = C * call.plane / runs;
    for (int64_t c = 0; c < runs; ++c) {
      const int64_t o = offset + c * n * bytes_of(call.dtype);
      float plane_sums[3] = {0, 0, 0};
      auto in = [&](uintptr_t p) { return reinterpret_cast<const void*>(p + o); };
      isa.shake_bn_backward(in(call.residual_or_grad), in(call.x1), in(call.x2), reinterpret_cast<void*>(call.out1 + o),
                            reinterpret_cast<void*>(call.out2 + o), n, call.channels_last ? int32_t(C) : 1, w + c, w + C + c,
                            call.channels_last ? sums : plane_sums, call.dtype);
      for (int k = 0; k < 3 && !call.channels_last; ++k) sums[k * C + c] = plane_sums[k];
    }
  });
  float* out = reinterpret_cast<float*>(call.sums);
  for (int64_t c = 0; c < C; ++c) {
    double total[4] = {0, 0, 0, 0};
    for (int64_t image = 0; image < call.batch; ++image) {
      const float* sums = partial.data() + image * 3 * C;
      const double b = at(call.coefficient, call.num_coefficients, image);
      total[0] += b * sums[C + c];
      total[1] += b * sums[c];
      total[2] += (1 - b) * sums[2 * C + c];
      total[3] += (1 - b) * sums[c];
    }
    for (int k = 0; k < 4; ++k) out[k * C + c] = float(total[k]);
  }
}

}  // namespace imnet
