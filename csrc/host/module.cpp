// imnet_kernels._host, without torch. Tensors are passed as addresses; the Python side has checked dtypes, devices and layouts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "families.h"
#include "kernels.h"
#include "mapped.h"

namespace py = pybind11;
using namespace imnet;

namespace {

// Fills a call's fields from Python's keyword arguments by name: with a dozen addresses and sizes passed by position, a
// mistake would make a kernel read or write wrong memory.
class Named {
 public:
  explicit Named(const py::kwargs& given) : given_(given), num_left_(given.size()) {}

  template <class T>
  Named& operator()(const char* name, T& field) {
    if (!given_.contains(name)) throw py::type_error(std::string("the argument ") + name + " is missing");
    field = given_[name].cast<T>();
    --num_left_;
    return *this;
  }

  void done() const {
    if (num_left_ != 0) throw py::type_error("there is an argument that this kernel does not take");
  }

 private:
  const py::kwargs& given_;
  size_t num_left_;
};

// Runs launch(call, num_threads) on a call that `fields` has filled, without the GIL, so that other Python threads can run.
template <class Call, class Fields, class Launch>
void run(const py::kwargs& given, const Fields& fields, const Launch& launch) {
  Call call{};
  int num_threads = 1;
  Named named(given);
  fields(named, call);
  named("num_threads", num_threads).done();
  const py::gil_scoped_release release;
  launch(call, num_threads);
}

void params_of(Named& named, AugmentParams& p) {
  std::vector<int32_t> box;
  named("seed", p.seed)("epoch", p.epoch)("pad_px", p.pad_px)("reflect", p.reflect)("hflip", p.hflip);
  named("flip_threshold", p.flip_threshold)("cutout_px", p.cutout_px)("box", box);
  if (box.size() != 4) throw py::value_error("box needs first and count per axis");
  p.box_first_y = box[0], p.box_num_y = box[1], p.box_first_x = box[2], p.box_num_x = box[3];
}

void augment_py(const py::kwargs& given) {
  run<AugmentCall>(given, [](Named& named, AugmentCall& c) {
    named("store", c.store)("ids", c.ids)("sample_ids", c.sample_ids)("out", c.out)("mean_shift", c.mean_shift);
    named("num_stored", c.num_stored)("batch", c.batch)("height", c.height)("width", c.width)("channels", c.channels);
    named("dtype", c.dtype)("scale", c.scale)("shift", c.shift);
    params_of(named, c.params);
  }, &augment);
}

void spectral_py(const py::kwargs& given) {
  run<SpectralCall>(given, [](Named& named, SpectralCall& c) {
    named("images", c.images)("out", c.out)("batch", c.batch)("channels", c.channels)("height", c.height)("width", c.width);
    named("r", c.r)("in_dtype", c.in_dtype)("out_dtype", c.out_dtype)("channels_last", c.channels_last);
    named("bands", c.bands)("scale", c.scale)("shift", c.shift);
  }, &spectral);
}

void shake_py(bool backward, const py::kwargs& given) {
  run<ShakeCall>(given, [backward](Named& named, ShakeCall& c) {
    if (backward) {
      named("grad", c.grad)("d1", c.d1)("d2", c.d2);
    } else {
      named("x1", c.x1)("x2", c.x2)("residual", c.residual)("out", c.out);
    }
    named("batch", c.batch)("image_elements", c.image_elements)("coefficient", c.coefficient)("num_coefficients", c.num_coefficients);
    named("dtype", c.dtype);
  }, backward ? &shake_backward : &shake_forward);
}

void sgd_ema_py(const py::kwargs& given) {
  run<SgdCall>(given, [](Named& named, SgdCall& c) {
    named("params", c.params)("grads", c.grads)("momenta", c.momenta)("emas", c.emas)("sizes", c.sizes)("lr", c.lr);
    named("grad_scale", c.grad_scale)("momentum", c.momentum)("weight_decay", c.weight_decay);
    named("ema_weight", c.ema_weight)("nesterov", c.nesterov);
  }, &sgd_ema);
}

std::vector<int64_t> choices_py(int64_t id, const py::kwargs& given) {
  AugmentParams params{};
  Named named(given);
  params_of(named, params);
  named.done();
  const Choice c = choose(uint64_t(id), params);
  return {c.oy + params.pad_px, c.ox + params.pad_px, c.flip, c.y0, c.x0};
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "CPU kernels of imnet_kernels; call them through the package, which checks the tensors. Mapped files.";
  m.def("augment", &augment_py);
  m.def("spectral", &spectral_py);
  m.def("shake", [](const py::kwargs& given) { shake_py(false, given); });
  m.def("shake_backward", [](const py::kwargs& given) { shake_py(true, given); });
  m.def("sgd_ema", &sgd_ema_py);
  m.def("choices", &choices_py, "The shared header's choices for one sample: (dy, dx, flip, y0, x0).");
  m.def("isa", [] { return std::string(kernels().name); }, "The instruction set in use: base, avx2, avx512 or avx512bf16.");
  py::class_<Mapped>(m, "Mapped", py::buffer_protocol(), py::dynamic_attr(), "An open file's bytes; zeros where they are lost.")
      .def(py::init<int, size_t>())
      .def_property_readonly("torn", &Mapped::torn)
      .def_buffer([](Mapped& map) {
        return py::buffer_info(static_cast<const uint8_t*>(map.data()), py::ssize_t(map.length()));
      });
  m.def("force_isa", [](const std::string& name) {
    if (!force_isa(name.c_str())) throw py::value_error("isa '" + name + "' is not on this machine; allowed auto, " + kernels().name);
  });
}
