// shake_shake and sgd_ema: divides tensors into pieces for the thread pool.
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

// Calls piece(byte offset, elements, coefficient) for pieces of images, so that one large image also uses several threads.
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

constexpr int64_t kStepElements = 1 << 15;

struct Piece {
  size_t tensor;
  int64_t begin, count;
};

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
    isa.shake_backward(reinterpret_cast<const void*>(call.grad + offset), out(call.d1), out(call.d2), n, b, call.dtype);
  });
}

void sgd_ema(const SgdCall& call, int num_threads) {
  const size_t n = call.params.size();
  const bool momenta = !call.momenta.empty(), emas = !call.emas.empty();
  if (call.grads.size() != n || call.sizes.size() != n || (momenta && call.momenta.size() != n) ||
      (emas && call.emas.size() != n)) {
    throw std::invalid_argument("sgd_ema: the lists differ in length");
  }
  std::vector<Piece> pieces;
  for (size_t t = 0; t < n; ++t) {
    for (int64_t b = 0; b < call.sizes[t]; b += kStepElements) {
      pieces.push_back({t, b, std::min(kStepElements, call.sizes[t] - b)});
    }
  }
  const SgdParams options{call.lr, call.grad_scale, call.momentum, call.weight_decay, call.ema_weight, call.nesterov};
  const Kernels& isa = kernels();
  parallel_for(int64_t(pieces.size()), 8, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      auto pointer = [&](const std::vector<uintptr_t>& list) {
        return list.empty() ? nullptr : reinterpret_cast<float*>(list[piece.tensor]) + piece.begin;
      };
      isa.sgd_ema(pointer(call.params), pointer(call.grads), pointer(call.momenta), pointer(call.emas), piece.count, options);
    }
  });
}

}  // namespace imnet
