// The library imnet_kernels/_C: checks tensors, fills the launchers' structs and launches on the current stream. The caller
// passes the outputs, so that nothing is allocated here and a CUDA graph can capture the call.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "launch.h"

namespace {

using at::Tensor;
using imnet::DType;

int32_t code(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return imnet::kF32;
    case at::kBFloat16: return imnet::kBF16;
    case at::kHalf: return imnet::kF16;
    case at::kByte: return imnet::kU8;
    default: TORCH_CHECK_TYPE(false, "got ", t.scalar_type(), "; allowed float32, bfloat16, float16, uint8");
  }
}

const float* floats(const Tensor& t, const char* name, int64_t count) {
  TORCH_CHECK_TYPE(t.is_cuda() && t.scalar_type() == at::kFloat && t.is_contiguous(), name, " must be contiguous CUDA float32");
  TORCH_CHECK_VALUE(t.numel() == count, name, " has ", t.numel(), " numbers; allowed ", count);
  return t.const_data_ptr<float>();
}

const int64_t* longs(const Tensor& t, const char* name, int64_t count) {
  TORCH_CHECK_TYPE(t.is_cuda() && t.scalar_type() == at::kLong && t.is_contiguous(), name, " must be contiguous CUDA int64");
  TORCH_CHECK_VALUE(t.numel() == count, name, " has ", t.numel(), " numbers; allowed ", count);
  return t.const_data_ptr<int64_t>();
}

void finish(cudaError_t status, const char* name) {
  TORCH_CHECK(status == cudaSuccess, name, ": ", cudaGetErrorString(status));
}

void augment(const Tensor& store, const Tensor& ids, const Tensor& names, const Tensor& scale, const Tensor& shift,
             int64_t seed, int64_t epoch, int64_t pad_px, int64_t reflect, int64_t hflip, int64_t flip_threshold,
             int64_t cutout_px, at::IntArrayRef box, const Tensor& out) {
  const at::cuda::CUDAGuard guard(store.device());
  TORCH_CHECK_TYPE(store.is_cuda() && store.scalar_type() == at::kByte && store.dim() == 4 && store.is_contiguous(),
                   "store must be contiguous CUDA uint8 (N, H, W, C)");
  TORCH_CHECK_VALUE(box.size() == 4, "augment: box needs first and count per axis");
  const int64_t batch = ids.numel(), channels = store.size(3), image = store.numel() / std::max<int64_t>(store.size(0), 1);
  const bool per_pixel = shift.dim() == 3;
  TORCH_CHECK_VALUE(image < (int64_t(1) << 30) && out.numel() == batch * image, "augment: sizes do not fit");
  TORCH_CHECK_VALUE(batch == 0 || out.permute({0, 2, 3, 1}).is_contiguous(), "out must be channels_last");
  imnet::AugmentLaunch a{};
  a.store = store.const_data_ptr<uint8_t>();
  a.ids = longs(ids, "ids", batch);
  a.names = longs(names, "sample_ids", batch);
  a.scale = floats(scale, "scale", channels);
  a.shift = floats(shift, "shift", per_pixel ? image : channels);
  a.out = out.data_ptr();
  a.num_stored = store.size(0);
  a.batch = batch;
  a.height = int32_t(store.size(1));
  a.width = int32_t(store.size(2));
  a.channels = int32_t(channels);
  a.per_pixel = per_pixel;
  a.dtype = code(out);
  imnet::AugmentParams& p = a.params;
  p.seed = uint64_t(seed), p.flip_threshold = uint64_t(flip_threshold), p.epoch = uint32_t(epoch);
  p.pad_px = int32_t(pad_px), p.reflect = int32_t(reflect), p.hflip = int32_t(hflip), p.cutout_px = int32_t(cutout_px);
  p.box_first_y = int32_t(box[0]), p.box_num_y = int32_t(box[1]);
  p.box_first_x = int32_t(box[2]), p.box_num_x = int32_t(box[3]);
  finish(imnet::launch_augment(a, at::cuda::getCurrentCUDAStream()), "augment");
}

}  // namespace

TORCH_LIBRARY(imnet_cuda, m) {
  m.def("augment(Tensor store, Tensor ids, Tensor names, Tensor scale, Tensor shift, *, int seed, int epoch, "
        "int pad_px, int reflect, int hflip, int flip_threshold, int cutout_px, int[] box, Tensor(a!) out) -> ()");
}

TORCH_LIBRARY_IMPL(imnet_cuda, CUDA, m) {
  m.impl("augment", &augment);
}
