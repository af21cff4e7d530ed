// imnet_kernels._C: checks tensors, fills the launchers' structs, launches on the current stream. Outputs are given, so that
// nothing is allocated here and a CUDA graph can hold the call.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <vector>

#include "launch.h"

namespace {

using at::Tensor;
using imnet::DType;
using OptionalTensor = std::optional<Tensor>;

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

void check_alike(const Tensor& t, const Tensor& like, const char* name) {
  const bool same = t.is_cuda() && t.scalar_type() == like.scalar_type() && t.sizes() == like.sizes() &&
                    t.strides() == like.strides() && t.device() == like.device();
  TORCH_CHECK_VALUE(same, name, " must be alike the first tensor in dtype, sizes, strides and device");
}

void check_dense(const Tensor& t, const char* name) {
  const bool dense = t.is_cuda() && (t.is_contiguous() || t.is_contiguous(at::MemoryFormat::ChannelsLast));
  TORCH_CHECK_VALUE(dense, name, " must be a dense CUDA tensor, contiguous or channels_last");
}

void finish(cudaError_t status, const char* name) {
  TORCH_CHECK(status == cudaSuccess, name, ": ", cudaGetErrorString(status));
}

int32_t one_or(const Tensor& coefficient, int64_t batch) {
  TORCH_CHECK_VALUE(coefficient.numel() == 1 || coefficient.numel() == batch, "coefficients: 1 or one per image");
  return coefficient.numel() > 1 ? 1 : 0;
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

void spectral(const Tensor& images, int64_t r, std::vector<int64_t> bands, const OptionalTensor& scale,
              const OptionalTensor& shift, bool channels_last, const Tensor& out) {
  const at::cuda::CUDAGuard guard(images.device());
  TORCH_CHECK_VALUE(images.dim() == 4 && images.is_cuda() && out.is_cuda() && (r == 2 || r == 4 || r == 6), "spectral: bad call");
  const std::vector<int32_t> wanted(bands.begin(), bands.end());
  for (int32_t k : wanted) TORCH_CHECK_VALUE(k >= 0 && k < r * r, "bands: got ", k, "; allowed 0 .. ", r * r - 1);
  const int64_t num_bands = int64_t(wanted.size()), channels = images.size(1);
  TORCH_CHECK_VALUE(out.numel() == images.numel() / (r * r) * num_bands, "spectral: out does not fit");
  imnet::SpectralLaunch a{};
  a.images = images.const_data_ptr();
  a.out = out.data_ptr();
  if (scale.has_value() && shift.has_value()) {
    a.scale = floats(*scale, "scale", num_bands * channels);
    a.shift = floats(*shift, "shift", num_bands * channels);
  }
  a.bands = wanted.data();
  a.total = images.numel() / (r * r);
  a.stride_b = images.stride(0);
  a.stride_c = images.stride(1);
  a.stride_h = images.stride(2);
  a.stride_w = images.stride(3);
  a.num_bands = int32_t(num_bands);
  a.r = int32_t(r);
  a.channels = int32_t(channels);
  a.out_height = int32_t(images.size(2) / r);
  a.out_width = int32_t(images.size(3) / r);
  a.channels_last = channels_last;
  a.in_dtype = code(images);
  a.out_dtype = code(out);
  finish(imnet::launch_spectral(a, at::cuda::getCurrentCUDAStream()), "spectral");
}

// What both directions tell the launcher.
imnet::ShakeLaunch shake_launch(const Tensor& like, const Tensor& coefficient) {
  imnet::ShakeLaunch a{};
  a.coefficient = floats(coefficient, "the coefficient", coefficient.numel());
  a.batch = like.size(0);
  a.image = like.numel() / std::max<int64_t>(a.batch, 1);
  a.per_image = one_or(coefficient, a.batch);
  a.dtype = code(like);
  return a;
}

void shake(const Tensor& x1, const Tensor& x2, const Tensor& residual, const Tensor& alpha, const Tensor& out) {
  const at::cuda::CUDAGuard guard(x1.device());
  check_dense(x1, "x1");
  check_alike(x2, x1, "x2");
  check_alike(residual, x1, "residual");
  check_alike(out, x1, "out");
  imnet::ShakeLaunch a = shake_launch(x1, alpha);
  a.x1 = x1.const_data_ptr();
  a.x2 = x2.const_data_ptr();
  a.residual = residual.const_data_ptr();
  a.y1 = out.data_ptr();
  finish(imnet::launch_shake(a, at::cuda::getCurrentCUDAStream()), "shake_shake");
}

void shake_backward(const Tensor& grad, const Tensor& beta, const Tensor& d1, const Tensor& d2) {
  const at::cuda::CUDAGuard guard(grad.device());
  check_dense(grad, "grad");
  check_alike(d1, grad, "d1");
  check_alike(d2, grad, "d2");
  imnet::ShakeLaunch a = shake_launch(grad, beta);
  a.x1 = grad.const_data_ptr();
  a.y1 = d1.data_ptr();
  a.y2 = d2.data_ptr();
  finish(imnet::launch_shake_backward(a, at::cuda::getCurrentCUDAStream()), "shake_shake backward");
}

// The table holds addresses: the caller keeps those tensors alive and has checked them.
void sgd_ema(const Tensor& table, const Tensor& chunks, const Tensor& lr, const Tensor& grad_scale, const Tensor& skip,
             int64_t chunk, bool has_momenta, bool has_emas, double momentum, double weight_decay, double ema_weight,
             bool nesterov) {
  const at::cuda::CUDAGuard guard(table.device());
  TORCH_CHECK_VALUE(table.dim() == 2 && table.size(0) == 5 && chunk > 0, "sgd_ema: the table is (5, tensors)");
  imnet::SgdLaunch a{};
  a.table = longs(table, "table", table.numel());
  a.chunks = longs(chunks, "chunks", chunks.numel());
  a.lr = floats(lr, "lr", 1);
  a.grad_scale = floats(grad_scale, "grad_scale", 1);
  a.skip = floats(skip, "skip", 1);
  a.num_chunks = chunks.numel() / 2;
  a.num_tensors = table.size(1);
  a.chunk = int32_t(chunk);
  a.has_momenta = has_momenta;
  a.has_emas = has_emas;
  a.nesterov = nesterov;
  a.momentum = float(momentum);
  a.weight_decay = float(weight_decay);
  a.ema_weight = float(ema_weight);
  finish(imnet::launch_sgd_ema(a, at::cuda::getCurrentCUDAStream()), "sgd_ema");
}

}  // namespace

TORCH_LIBRARY(imnet_cuda, m) {
  m.def("augment(Tensor store, Tensor ids, Tensor names, Tensor scale, Tensor shift, *, int seed, int epoch, "
        "int pad_px, int reflect, int hflip, int flip_threshold, int cutout_px, int[] box, Tensor(a!) out) -> ()");
  m.def("spectral(Tensor images, int r, int[] bands, Tensor? scale, Tensor? shift, bool channels_last, Tensor(a!) out) -> ()");
  m.def("shake(Tensor x1, Tensor x2, Tensor residual, Tensor alpha, Tensor(a!) out) -> ()");
  m.def("shake_backward(Tensor grad, Tensor beta, Tensor(a!) d1, Tensor(b!) d2) -> ()");
  m.def("sgd_ema(Tensor table, Tensor chunks, Tensor lr, Tensor grad_scale, Tensor skip, *, int chunk, "
        "bool has_momenta, bool has_emas, float momentum, float weight_decay, float ema_weight, bool nesterov) -> ()");
}

TORCH_LIBRARY_IMPL(imnet_cuda, CUDA, m) {
  m.impl("augment", &augment);
  m.impl("spectral", &spectral);
  m.impl("shake", &shake);
  m.impl("shake_backward", &shake_backward);
  m.impl("sgd_ema", &sgd_ema);
}
