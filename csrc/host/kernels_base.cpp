// The portable baseline, with vectors of four floats from the compiler's extension (SSE2 on x86-64, NEON on arm64), and the
// choice among the ISAs.
#include "../common/choices.h"
#include "kernels.h"

#include <cstdint>
#include <cstring>

namespace imnet {
namespace {
#include "simd_scalar.inl"

typedef float V __attribute__((vector_size(16)));
constexpr int VL = 4;

inline V set1(float v) { return V{v, v, v, v}; }
inline V zero() { return V{0, 0, 0, 0}; }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V fma(V a, V b, V c) { return a * b + c; }

typedef uint64_t U;  // one counter at a time: the vector extension has no 32 x 32 -> 64 bit product
constexpr int UL = 1;
inline U set1_u(uint32_t v) { return v; }
inline U load_u(const uint64_t* p) { return *p; }
inline void store_u(uint64_t* p, U v) { *p = v; }
inline U and_u(U a, U b) { return a & b; }
inline U xor_u(U a, U b) { return a ^ b; }
inline U high_u(U a) { return a >> 32; }
inline U mul32(U a, U b) { return a * b; }

inline V load(F32, const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline V load(BF16, const uint16_t* p) { return V{BF16::get(p[0]), BF16::get(p[1]), BF16::get(p[2]), BF16::get(p[3])}; }
inline V load(F16, const uint16_t* p) { return V{F16::get(p[0]), F16::get(p[1]), F16::get(p[2]), F16::get(p[3])}; }
inline V load(U8, const uint8_t* p) { return V{U8::get(p[0]), U8::get(p[1]), U8::get(p[2]), U8::get(p[3])}; }

inline void store(F32, float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(BF16, uint16_t* p, V v) {
  for (int i = 0; i < VL; ++i) p[i] = BF16::put(v[i]);
}
inline void store(F16, uint16_t* p, V v) {
  for (int i = 0; i < VL; ++i) p[i] = F16::put(v[i]);
}

#include "augment.inl"
#include "elementwise.inl"
#include "philox.inl"
#include "spectral.inl"

const Kernels table = {"base", false, augment_image, philox, spectral_row, shake, shake_backward, sgd_ema};

const Kernels* best() {
  if (const Kernels* k = kernels_avx512bf16()) return k;
  if (const Kernels* k = kernels_avx512()) return k;
  if (const Kernels* k = kernels_avx2()) return k;
  return &table;
}

const Kernels* chosen = nullptr;
}  // namespace

const Kernels* kernels_base() { return &table; }

const Kernels& kernels() {
  if (chosen == nullptr) chosen = best();
  return *chosen;
}

bool force_isa(const char* name) {
  const Kernels* const all[] = {kernels_base(), kernels_avx2(), kernels_avx512(), kernels_avx512bf16()};
  if (std::strcmp(name, "auto") == 0) chosen = best();
  for (const Kernels* k : all) {
    if (k != nullptr && std::strcmp(k->name, name) == 0) chosen = k;
  }
  return std::strcmp(name, "auto") == 0 || std::strcmp(chosen ? chosen->name : "", name) == 0;
}

}  // namespace imnet
