#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "families.h"
#include "kernels.h"
#include "pool.h"

namespace imnet {
namespace {

constexpr int64_t kPieceElements = 1 << 17;

int symmetry_class(int k) { return k % 2 ? 2 : (k % 4 == 0 ? 0 : 1); }

// The plan and the memory that it points to; the plan's band i is the caller's band order[i].
struct Plan {
  SpectralPlan plan{};
  std::vector<int> order;
  std::vector<float> coefficients, scale, shift;
  std::vector<uint8_t> shuffle;
};

// 2 cos(pi m / (2 s)) for m = 0 .. 4 s - 1, computed once for each s.
const std::vector<double>& cosines(int s) {
  auto make = [](int size) {
    std::vector<double> table(4 * size_t(size));
    for (size_t m = 0; m < table.size(); ++m) table[m] = 2.0 * std::cos(M_PI * double(m) / (2.0 * size));
    return table;
  };
  static const std::vector<double> four = make(4), sixteen = make(16), thirty_six = make(36);
  return s == 4 ? four : (s == 16 ? sixteen : thirty_six);
}

void add_coefficients(Plan& p, const std::vector<int32_t>& bands, float unit) {
  const int s = p.plan.s;
  const std::vector<double>& table = cosines(s);
  for (int kind = 0; kind < 3; ++kind) {
    const int folded = kind == 2 ? s / 2 : s / 4;
    for (int i = 0; i < int(bands.size()); ++i) {
      if (symmetry_class(bands[i]) != kind) continue;
      ++p.plan.num_bands[kind];
      p.order.push_back(i);
      for (int phase = 0; phase < folded; ++phase) {
        p.coefficients.push_back(unit * float(table[bands[i] * (2 * phase + 1) % (4 * s)]));
      }
    }
  }
}

void add_patterns(Plan& p, const SpectralCall& call, int period) {
  p.plan.pattern_floats = period + kMaxVector;
  const int planes = call.channels_last ? 1 : call.channels;  // planar: one pattern per (channel, band)
  for (int c = 0; c < planes; ++c) {
    for (int band : p.order) {
      for (int i = 0; i < p.plan.pattern_floats; ++i) {
        const size_t at = size_t(band) * call.channels + (call.channels_last ? i % call.channels : c);
        p.scale.push_back(call.scale[at]);
        p.shift.push_back(call.shift[at]);
      }
    }
  }
}

// Builds the byte offsets by which the 16-bit lanes 2 t and 2 t + 1 get two neighbouring phases of element c0 + t; false if
// these do not fit in a window.
bool add_shuffle(Plan& p, int channels) {
  const int r = p.plan.r, limit = r == 2 ? 64 : 128;
  p.shuffle.assign(size_t(channels) * r * 64, 0);
  for (int c0 = 0; c0 < channels; ++c0) {
    for (int lane = 0; lane < r * 32; ++lane) {
      const int pair = lane / 32, t = lane / 2 % 16, j = pair / 2 * 2 + (pair + lane) % 2;
      const int offset = ((c0 + t) / channels * r + j) * channels + (c0 + t) % channels;
      if (offset >= limit) return false;
      p.shuffle[size_t(c0 * r * 32 + lane) * 2] = uint8_t(offset);
    }
  }
  return true;
}

bool finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

Plan make_plan(const SpectralCall& call, int period, bool has_pairs) {
  const int64_t out_row = int64_t(call.width) / call.r * period;
  Plan p;
  p.plan.r = call.r;
  p.plan.s = call.r * call.r;
  const bool shaped = call.in_dtype == kU8 && period <= 4 && out_row >= kMaxVector;
  const bool pairs = has_pairs && shaped && finite(call.scale) && finite(call.shift) && add_shuffle(p, period);
  if (pairs) p.plan.shuffle = p.shuffle.data();
  add_coefficients(p, call.bands, pairs ? 1.0f / 65536 : 1.0f);
  if (!call.scale.empty()) add_patterns(p, call, period);
  p.plan.coefficient = p.coefficients.data();
  return p;
}

void check(const SpectralCall& call) {
  const bool r_ok = call.r == 2 || call.r == 4 || call.r == 6;
  if (!r_ok || call.channels <= 0 || call.height <= 0 || call.width <= 0 || call.height % call.r || call.width % call.r) {
    throw std::invalid_argument("spectral: sizes out of range");
  }
  if (int64_t(call.width) * call.channels > (1 << 24)) throw std::invalid_argument("spectral: rows are too long");
  const size_t pairs = call.bands.size() * size_t(call.channels);
  if (!call.scale.empty() && (call.scale.size() != pairs || call.shift.size() != pairs)) {
    throw std::invalid_argument("spectral: scale and shift need one number per band and channel");
  }
  for (int k : call.bands) {
    if (k < 0 || k >= call.r * call.r) throw std::invalid_argument("spectral: bands out of range");
  }
}

int bytes_of(int32_t dtype) { return dtype == kU8 ? 1 : (dtype == kF32 ? 4 : 2); }

}  // namespace

void spectral(const SpectralCall& call, int num_threads) {
  check(call);
  const int period = call.channels_last ? call.channels : 1;
  const Kernels& isa = kernels();
  const Plan p = make_plan(call, period, isa.phase_pairs);
  const int num_bands = int(call.bands.size()), planes = call.channels_last ? 1 : call.channels;
  const int64_t in_row = int64_t(call.width) * period, out_row = in_row / call.r;
  const int64_t rows = call.height / call.r, lines = call.batch * planes * rows;
  const int64_t band_bytes = lines * out_row * bytes_of(call.out_dtype);
  const uint8_t* images = reinterpret_cast<const uint8_t*>(call.images);
  const uint8_t* end = images + call.batch * planes * call.height * in_row * bytes_of(call.in_dtype);
  auto body = [&](int64_t first, int64_t last) {
    std::vector<void*> dst(num_bands);
    SpectralPlan plan = p.plan;
    for (int64_t line = first; line < last; ++line) {
      const int64_t plane = line / rows % planes, floats = plane * num_bands * plan.pattern_floats;
      plan.scale_pattern = p.scale.empty() ? nullptr : p.scale.data() + floats;
      plan.shift_pattern = p.scale.empty() ? nullptr : p.shift.data() + floats;
      for (int i = 0; i < num_bands; ++i) {
        dst[i] = reinterpret_cast<uint8_t*>(call.out) + p.order[i] * band_bytes + line * out_row * bytes_of(call.out_dtype);
      }
      SpectralRow row{images + line * call.r * in_row * bytes_of(call.in_dtype), end, in_row, dst.data(),
                      int32_t(out_row), period, call.in_dtype, call.out_dtype};
      isa.spectral_row(plan, row);
    }
  };
  parallel_for(lines, std::max<int64_t>(1, kPieceElements / (in_row * call.r)), num_threads, body);
}

}  // namespace imnet
