// augment: one warp per image, or per part of an image's rows if the batch is small. The source rows that a warp needs are
// contiguous in the store: it copies them to shared memory as 16-byte words, a stage of rows at a time, and applies crop,
// mirror and reflection as indices into them. Lanes are split into a grid of columns (groups of V elements) and rows.
#include <cuda_pipeline.h>

#include <algorithm>

#include "elements.cuh"
#include "launch.h"

namespace imnet {
namespace {

// Chosen from the SASS of sm_90 on 2026-11-26, not measured: four images at a time per block, a 64 px image per stage.
constexpr int kThreads = 128;  // by occupancy and SASS (bench/NEGATIVES.md); not timed on a GPU
constexpr int kWarps = kThreads / 32, kStageBytes = 64 * 64 * 3;
constexpr int64_t kLeastWarps = 2048;  // a smaller batch's images are split by rows
constexpr int kMostShared = 96 * 1024;

// How a launch divides images: rows per warp and per stage, log2 of the lanes along a row, bytes per stage, parts per image.
struct Shape {
  int32_t rows_each, stage_rows, lanes_x_log2, stage_bytes, parts;
};

// -1 where i is not in first .. first + size - 1, else 0.
__device__ __forceinline__ int outside(int i, int first, int size) { return ((i - first) | (first + size - 1 - i)) >> 31; }

__device__ __forceinline__ int clamped(int i, int size) { return min(max(i, 0), size - 1); }

__device__ __forceinline__ int source(int i, int size, bool reflects) { return clamped(reflects ? reflect(i, size) : i, size); }

__device__ __forceinline__ float masked(float value, int bits) { return __int_as_float(__float_as_int(value) & bits); }

// A warp's source rows in shared memory; at(sy) points to the start of source row sy.
struct Stage {
  const uint8_t* bytes;
  int32_t first;  // offset at which source row 0 would start; it may lie outside the stage
  __device__ const uint8_t* at(int sy, int row_bytes) const { return bytes + first + sy * row_bytes; }
};

// Copies the source rows of output rows y0 .. y1 - 1 as whole aligned words. Reflection or clamping at an edge only shortens
// the range of rows.
__device__ __forceinline__ Stage load_rows(const AugmentLaunch& a, const uint8_t* image, int oy, int y0, int y1, uint8_t* bytes) {
  const int row_bytes = a.width * a.channels, from = y0 + oy, to = y1 - 1 + oy;
  int low = source(from, a.height, a.params.reflect), high = source(to, a.height, a.params.reflect);
  if (low > high) { const int other = low; low = high; high = other; }
  if (from <= 0 && to >= 0) low = 0;
  if (from < a.height && to >= a.height - 1) high = a.height - 1;
  const uint8_t* start = image + low * row_bytes;
  const int skipped = int(reinterpret_cast<uintptr_t>(start) & 15);
  const int words = (skipped + (high + 1 - low) * row_bytes + 15) / 16;
  __syncwarp();  // until all lanes have read the previous stage
  for (int i = threadIdx.x & 31; i < words; i += 32) __pipeline_memcpy_async(bytes + i * 16, start - skipped + i * 16, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncwarp();
  return {bytes, skipped - low * row_bytes};
}

// Source offsets, masks, scale and shift of a lane's V columns of elements, computed once for all of its rows.
template <int V>
struct Columns {
  int at[V], inside[V], keep[V];
  float scale[V], shift[V];
};

template <int CHANNELS, int V, bool PER_PIXEL>
__device__ __forceinline__ Columns<V> columns_of(const AugmentLaunch& a, const Choice& c, int first) {
  const int C = CHANNELS > 0 ? CHANNELS : a.channels;
  Columns<V> found;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int x = (first + j) / C, channel = first + j - x * C, sx = (c.flip ? a.width - 1 - x : x) + c.ox;
    found.at[j] = source(sx, a.width, a.params.reflect) * C + channel;
    found.inside[j] = a.params.reflect ? -1 : ~outside(sx, 0, a.width);
    found.keep[j] = a.params.cutout_px > 0 ? outside(x, c.x0, a.params.cutout_px) : -1;
    found.scale[j] = a.scale[channel];
    found.shift[j] = PER_PIXEL ? 0.0f : a.shift[channel];
  }
  return found;
}

template <class T, int V, bool PER_PIXEL>
__device__ __forceinline__ Vector<T, V> row_of(const AugmentLaunch& a, const Choice& c, const Stage& stage,
                                               const Columns<V>& columns, int y) {
  const int row_bytes = a.width * a.channels, sy = source(y + c.oy, a.height, a.params.reflect);
  const int inside = a.params.reflect ? -1 : ~outside(y + c.oy, 0, a.height);
  const int keep = a.params.cutout_px > 0 ? outside(y, c.y0, a.params.cutout_px) : -1;
  const uint8_t* row = stage.at(sy, row_bytes);
  float values[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    // The bits of the float 2^23 + pixel, minus 2^23: exact, and four times faster than the conversion instruction.
    float value = __uint_as_float(0x4B000000u | row[columns.at[j]]) - 8388608.0f;
    // Two roundings, as the reference defines the value: no fused multiply-add.
    if (PER_PIXEL) {
      value = __fadd_rn(__fmul_rn(value, columns.scale[j]), a.shift[sy * row_bytes + columns.at[j]]);
      value = masked(value, inside & columns.inside[j]);
    } else {
      value = __fadd_rn(__fmul_rn(masked(value, inside & columns.inside[j]), columns.scale[j]), columns.shift[j]);
    }
    values[j] = masked(value, keep | columns.keep[j]);
  }
  return rounded<T>(values);
}

template <class T, int CHANNELS, int V, bool PER_PIXEL>
__global__ void __launch_bounds__(kThreads) augment_kernel(const AugmentLaunch a, const Shape shape) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int lane = threadIdx.x & 31, elements = a.width * a.channels;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= a.batch) return;
  const int first = blockIdx.y * shape.rows_each, last = min(first + shape.rows_each, a.height);
  T* out = static_cast<T*>(a.out) + row * elements * a.height;
  const int64_t id = a.ids[row];
  if (id < 0 || id >= a.num_stored) {  // all NaN, since a kernel in a captured graph cannot raise an error
    for (int e = first * elements + lane; e < last * elements; e += 32) out[e] = from_float<T>(__int_as_float(0x7fc00000));
    return;
  }
  const Choice choice = choose(uint64_t(a.names[row]), a.params);
  const uint8_t* image = a.store + id * elements * a.height;
  uint8_t* bytes = shared + threadIdx.x / 32 * shape.stage_bytes;
  const bool whole = elements % V == 0 && aligned<T, V>(out);
  const int lane_x = lane & ((1 << shape.lanes_x_log2) - 1), lane_y = lane >> shape.lanes_x_log2;
  for (int y0 = first; y0 < last; y0 += shape.stage_rows) {
    const int y1 = min(y0 + shape.stage_rows, last);
    const Stage stage = load_rows(a, image, choice.oy, y0, y1, bytes);
    for (int e = lane_x * V; e < elements; e += V << shape.lanes_x_log2) {
      const Columns<V> columns = columns_of<CHANNELS, V, PER_PIXEL>(a, choice, e);
      for (int y = y0 + lane_y; y < y1; y += 32 >> shape.lanes_x_log2) {
        put(row_of<T, V, PER_PIXEL>(a, choice, stage, columns, y), out + y * elements + e, whole, elements - e);
      }
    }
  }
}

// log2 of the lanes along a row: the most that cover the row's groups of V elements with at most 15 % excess.
int lanes_log2(int groups) {
  int found = 0;
  for (int log2 = 1; log2 <= 5; ++log2) {
    const int covered = ((groups - 1) >> log2 << log2) + (1 << log2);
    if (covered <= groups * 1.15) found = log2;
  }
  return found;
}

Shape shape_of(const AugmentLaunch& a, int vector) {
  const int row_bytes = a.width * a.channels;
  const int lanes_x = lanes_log2((row_bytes + vector - 1) / vector);
  const int least_rows = 4 * (32 >> lanes_x);  // with fewer than four rows per lane, preparing its columns costs more
  const int most_parts = (a.height + least_rows - 1) / least_rows;
  int parts = int(std::max<int64_t>(1, std::min<int64_t>(most_parts, kLeastWarps / a.batch)));
  const int rows_each = (a.height + parts - 1) / parts;
  parts = (a.height + rows_each - 1) / rows_each;
  const int stage_rows = std::max(1, std::min(rows_each, kStageBytes / row_bytes));
  return {rows_each, stage_rows, lanes_x, (stage_rows * row_bytes + 32) / 16 * 16, parts};
}

// The most shared memory that a block may ask for on the current device: 64 KB on Turing, kMostShared on newer cards.
int most_shared() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return std::min(most, kMostShared);
}

template <class T, int CHANNELS, int V, bool PER_PIXEL>
cudaError_t launch_shaped(const AugmentLaunch& a, cudaStream_t stream) {
  const Shape shape = shape_of(a, V);
  const int shared = kWarps * shape.stage_bytes, most = most_shared();
  if (shared > most) return cudaErrorInvalidValue;  // rows of more than 24 KB, on Turing of 16 KB
  const auto kernel = augment_kernel<T, CHANNELS, V, PER_PIXEL>;
  // Always the most, since another thread may set a smaller size between this call and the launch.
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status != cudaSuccess) return status;
  const dim3 grid(unsigned((a.batch + kWarps - 1) / kWarps), unsigned(shape.parts));
  kernel<<<grid, kThreads, shared, stream>>>(a, shape);
  return cudaGetLastError();
}

template <class T, int CHANNELS, int V>
cudaError_t by_shift(const AugmentLaunch& a, cudaStream_t stream) {
  return a.per_pixel ? launch_shaped<T, CHANNELS, V, true>(a, stream) : launch_shaped<T, CHANNELS, V, false>(a, stream);
}

template <class T, int V>
cudaError_t by_channels(const AugmentLaunch& a, cudaStream_t stream) {
  if (a.channels == 3) return by_shift<T, 3, V>(a, stream);
  if (a.channels == 1) return by_shift<T, 1, V>(a, stream);
  return by_shift<T, 0, V>(a, stream);
}

template <class T>
cudaError_t by_width(const AugmentLaunch& a, cudaStream_t stream) {
  return a.width * a.channels % 8 == 0 ? by_channels<T, 8>(a, stream) : by_channels<T, 4>(a, stream);
}

}  // namespace

cudaError_t launch_augment(const AugmentLaunch& a, cudaStream_t stream) {
  if (a.batch == 0 || a.width * a.height * a.channels == 0) return cudaSuccess;
  if (a.dtype == kF32) return by_width<float>(a, stream);
  if (a.dtype == kBF16) return by_width<__nv_bfloat16>(a, stream);
  return by_width<__half>(a, stream);
}

}  // namespace imnet
