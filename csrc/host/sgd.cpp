#include <algorithm>
#include <stdexcept>
#include <vector>

#include "families.h"
#include "kernels.h"
#include "pool.h"

namespace imnet {
namespace {

constexpr int64_t kPieceElements = 1 << 15;

struct Piece {
  size_t tensor;
  int64_t begin, count;
};

}  // namespace

void sgd_ema(const SgdCall& call, int num_threads) {
  const size_t n = call.params.size();
  const bool momenta = !call.momenta.empty(), emas = !call.emas.empty();
  if (call.grads.size() != n || call.sizes.size() != n || (momenta && call.momenta.size() != n) ||
      (emas && call.emas.size() != n)) {
    throw std::invalid_argument("sgd_ema: the lists differ in length");
  }
  std::vector<Piece> pieces;
  for (size_t t = 0; t < n; ++t) {
    for (int64_t b = 0; b < call.sizes[t]; b += kPieceElements) {
      pieces.push_back({t, b, std::min(kPieceElements, call.sizes[t] - b)});
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
