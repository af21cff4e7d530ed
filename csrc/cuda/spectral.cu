// spectral: a thread holds the phases of a few neighbouring elements in registers, folded by the DCT's symmetry; the
// coefficients are a kernel argument, which the hardware keeps in its constant bank.
#include <cmath>

#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

constexpr int kThreads = 128;  // by occupancy and SASS (bench/NEGATIVES.md); not timed on a GPU

// Elements of a band a thread makes: 16, 8 and 4 bytes of bf16, as many as the phases leave registers for. Predicted from
// the registers on sm_90 on 2026-11-26, not measured.
template <int R>
constexpr int kElements = R == 2 ? 8 : (R == 4 ? 4 : 2);

// The bands of one launch by k % 4: 0 and 2 see sums of mirrored phases, which fold once more, odd ones differences.
template <int R>
struct Plan {
  static constexpr int kS = R * R, kHalf = kS / 2, kMaxBands = kS;
  float coefficient[kMaxBands][kHalf];
  int16_t position[kMaxBands];  // where the i-th band computed goes
  int32_t ends[3];              // of the bands with k % 4 == 0, == 2, and of the odd ones
};

// Where an element lies; next() is its neighbour in the output.
struct Place {
  int c, w, h;

  __device__ __forceinline__ Place(const SpectralLaunch& a, int e) {
    const int C = a.channels, W = a.out_width, H = a.out_height;
    if (a.channels_last) {
      c = e % C, w = e / C % W, h = e / C / W;
    } else {
      w = e % W, h = e / W % H, c = e / W / H;
    }
  }
  __device__ __forceinline__ void next(const SpectralLaunch& a) {
    if (a.channels_last) {
      if (++c == a.channels) c = 0, ++w;
      if (w == a.out_width) w = 0, ++h;
    } else {
      if (++w == a.out_width) w = 0, ++h;
      if (h == a.out_height) h = 0, ++c;
    }
  }
};

__device__ __forceinline__ int widened(uint8_t x) { return x; }
template <class In>
__device__ __forceinline__ float widened(In x) { return to_float(x); }

// 1.5 * 2^23 + x as bits, less 1.5 * 2^23: exact for sums of bytes, and faster than the conversion instruction.
__device__ __forceinline__ float as_float(int x) { return __int_as_float(x + 0x4B400000) - 12582912.0f; }
__device__ __forceinline__ float as_float(float x) { return x; }

// The phases of a thread's elements, folded, and their channels.
template <int R, int V = kElements<R>>
struct Folded {
  int channel[V];
  float even[V][R * R / 4], odd[V][R * R / 4], differences[V][R * R / 2];
};

// Sums and differences are of integers where the phases are bytes.
template <int R, class In>
__device__ __forceinline__ void fold(const SpectralLaunch& a, const Place& at, const In* image, int v, Folded<R>& into) {
  constexpr int kS = R * R, kHalf = kS / 2, kQuarter = kS / 4;
  using Wide = decltype(widened(In()));
  const In* base = image + at.c * a.stride_c + at.h * R * a.stride_h + at.w * R * a.stride_w;
  Wide sums[kHalf];
  into.channel[v] = at.c;
#pragma unroll
  for (int p = 0; p < kHalf; ++p) {
    const int q = kS - 1 - p;
    const Wide first = widened(base[(p / R) * a.stride_h + (p % R) * a.stride_w]);
    const Wide second = widened(base[(q / R) * a.stride_h + (q % R) * a.stride_w]);
    sums[p] = first + second;
    into.differences[v][p] = as_float(first - second);
  }
#pragma unroll
  for (int p = 0; p < kQuarter; ++p) {
    into.even[v][p] = as_float(sums[p] + sums[kHalf - 1 - p]);
    into.odd[v][p] = as_float(sums[p] - sums[kHalf - 1 - p]);
  }
}

// Bands first .. last - 1 of the plan, from the N folded phases of their class.
template <int R, int N, class Out, int V>
__device__ __forceinline__ void put_bands(const SpectralLaunch& a, const Plan<R>& plan, int first, int last,
                                          const int (&channel)[V], const float (&phases)[V][N], Out* out, bool whole, int left) {
#pragma unroll 2
  for (int i = first; i < last; ++i) {
    const int64_t at = plan.position[i];
    float values[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[v] = plan.coefficient[i][0] * phases[v][0];
#pragma unroll
      for (int p = 1; p < N; ++p) values[v] = fmaf(plan.coefficient[i][p], phases[v][p], values[v]);
      const int row = int(at) * a.channels + channel[v];
      if (a.scale != nullptr) values[v] = fmaf(values[v], a.scale[row], a.shift[row]);
    }
    put(rounded<Out>(values), out + at * a.total, whole, left);
  }
}

template <int R, class In, class Out>
__global__ void __launch_bounds__(kThreads) spectral_kernel(const __grid_constant__ SpectralLaunch a,
                                                             const __grid_constant__ Plan<R> plan) {
  constexpr int V = kElements<R>;
  const int n = a.channels * a.out_height * a.out_width;  // a band's elements of one image
  const int e = int(blockIdx.y * kThreads + threadIdx.x) * V;
  if (e >= n) return;
  Out* out = static_cast<Out*>(a.out) + int64_t(blockIdx.x) * n + e;
  const bool whole = n % V == 0 && aligned<Out, V>(out);
  const In* image = static_cast<const In*>(a.images) + blockIdx.x * a.stride_b;
  Folded<R> phases;
  Place place(a, e);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    fold<R>(a, place, image, v, phases);
    if (e + v + 1 < n) place.next(a);
  }
  put_bands(a, plan, 0, plan.ends[0], phases.channel, phases.even, out, whole, n - e);
  put_bands(a, plan, plan.ends[0], plan.ends[1], phases.channel, phases.odd, out, whole, n - e);
  put_bands(a, plan, plan.ends[1], plan.ends[2], phases.channel, phases.differences, out, whole, n - e);
}

// At most s bands a launch (duplicates may ask for more): first .. last of the caller's list.
template <int R>
Plan<R> make_plan(const SpectralLaunch& a, int first, int last) {
  constexpr int s = R * R;
  Plan<R> plan{};
  int count = 0;
  for (int part = 0; part < 3; ++part) {
    for (int i = first; i < last; ++i) {
      const int k = a.bands[i];
      if ((k % 2 == 1 ? 2 : k % 4 / 2) != part) continue;
      plan.position[count] = int16_t(i);
      for (int p = 0; p < s / 2; ++p) {
        const double turns = double(k * (2 * p + 1) % (4 * s)) / (2.0 * s);
        plan.coefficient[count][p] = float(2.0 * std::cos(3.14159265358979323846 * turns));
      }
      ++count;
    }
    plan.ends[part] = count;
  }
  return plan;
}

template <int R, class In, class Out>
void launch_all(const SpectralLaunch& a, cudaStream_t stream) {
  constexpr int kBlock = kThreads * kElements<R>;
  const int64_t n = int64_t(a.channels) * a.out_height * a.out_width;
  const dim3 grid(unsigned(a.total / n), unsigned((n + kBlock - 1) / kBlock));
  for (int first = 0; first < a.num_bands; first += R * R) {
    const int last = first + R * R < a.num_bands ? first + R * R : a.num_bands;
    spectral_kernel<R, In, Out><<<grid, kThreads, 0, stream>>>(a, make_plan<R>(a, first, last));
  }
}

template <int R, class In>
void by_output(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.out_dtype == kF32) return launch_all<R, In, float>(a, stream);
  if (a.out_dtype == kBF16) return launch_all<R, In, __nv_bfloat16>(a, stream);
  launch_all<R, In, __half>(a, stream);
}

template <int R>
void by_input(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.in_dtype == kU8) return by_output<R, uint8_t>(a, stream);
  if (a.in_dtype == kF32) return by_output<R, float>(a, stream);
  if (a.in_dtype == kBF16) return by_output<R, __nv_bfloat16>(a, stream);
  by_output<R, __half>(a, stream);
}

}  // namespace

cudaError_t launch_spectral(const SpectralLaunch& a, cudaStream_t stream) {
  if (a.total == 0 || a.num_bands == 0) return cudaSuccess;
  if (a.r == 2) by_input<2>(a, stream);
  if (a.r == 4) by_input<4>(a, stream);
  if (a.r == 6) by_input<6>(a, stream);
  return cudaGetLastError();
}

}  // namespace imnet
