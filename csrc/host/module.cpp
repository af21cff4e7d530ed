// imnet_kernels._host: torch-free. Tensors come as addresses; the Python side has checked dtypes, devices and layouts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "families.h"
#include "kernels.h"

namespace py = pybind11;
using namespace imnet;

namespace imnet {
void bind_box(py::module_& m);
}

namespace {

using Release = py::call_guard<py::gil_scoped_release>;

void augment_py(uintptr_t store, uintptr_t ids, uintptr_t sample_ids, uintptr_t out, uintptr_t mean_shift,
                int64_t num_stored, int64_t batch, int32_t height, int32_t width, int32_t channels, int32_t dtype,
                std::vector<float> scale, std::vector<float> shift, uint64_t seed, uint32_t epoch, int32_t pad_px,
                bool reflected, int32_t hflip, uint64_t flip_threshold, int32_t cutout_px, std::vector<int32_t> box,
                int num_threads) {
  if (box.size() != 4) throw py::value_error("augment: box needs first and count per axis");
  const AugmentParams params{seed, flip_threshold, epoch, pad_px, reflected, hflip, cutout_px, box[0], box[1], box[2], box[3]};
  augment({store, ids, sample_ids, out, mean_shift, num_stored, batch, height, width, channels, dtype, std::move(scale),
           std::move(shift), params}, num_threads);
}

void spectral_py(uintptr_t images, uintptr_t out, int64_t batch, int32_t channels, int32_t height, int32_t width, int32_t r,
                 int32_t in_dtype, int32_t out_dtype, bool channels_last, std::vector<int32_t> bands,
                 std::vector<float> scale, std::vector<float> shift, int num_threads) {
  spectral({images, out, batch, channels, height, width, r, in_dtype, out_dtype, channels_last, std::move(bands),
            std::move(scale), std::move(shift)}, num_threads);
}

void shake_py(bool backward, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t out, int64_t batch, int64_t image_elements,
              uintptr_t coefficient, int64_t num_coefficients, int32_t dtype, int num_threads) {
  const ShakeCall call{a, b, c, out, batch, image_elements, coefficient, num_coefficients, dtype};
  (backward ? shake_backward : shake_forward)(call, num_threads);
}

void sgd_ema_py(std::vector<uintptr_t> params, std::vector<uintptr_t> grads, std::vector<uintptr_t> momenta,
                std::vector<uintptr_t> emas, std::vector<int64_t> sizes, float lr, float grad_scale, float momentum,
                float weight_decay, float ema_weight, bool nesterov, int num_threads) {
  sgd_ema({std::move(params), std::move(grads), std::move(momenta), std::move(emas), std::move(sizes), lr, grad_scale,
           momentum, weight_decay, ema_weight, nesterov}, num_threads);
}

std::vector<int64_t> choices_py(int64_t id, uint64_t seed, uint32_t epoch, int32_t pad_px, int32_t hflip,
                                uint64_t flip_threshold, int32_t cutout_px, std::vector<int32_t> box) {
  if (box.size() != 4) throw py::value_error("choices: box needs first and count per axis");
  const AugmentParams params{seed, flip_threshold, epoch, pad_px, 0, hflip, cutout_px, box[0], box[1], box[2], box[3]};
  const Choice c = choose(uint64_t(id), params);
  return {c.oy + pad_px, c.ox + pad_px, c.flip, c.y0, c.x0};
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "CPU kernels of imnet_kernels; call them through the package, which checks the tensors.";
  m.def("augment", &augment_py, Release());
  m.def("spectral", &spectral_py, Release());
  m.def("shake", &shake_py, Release());
  m.def("sgd_ema", &sgd_ema_py, Release());
  bind_box(m);
  m.def("choices", &choices_py, "The shared header's choices for one sample: (dy, dx, flip, y0, x0).");
  m.def("isa", [] { return std::string(kernels().name); }, "The instruction set in use: base, avx2, avx512 or avx512bf16.");
  m.def("force_isa", [](const std::string& name) {
    if (!force_isa(name.c_str())) throw py::value_error("isa '" + name + "' is not on this machine; allowed auto, " + kernels().name);
  });
}
