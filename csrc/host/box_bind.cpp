// box_jpeg for Python: encoded bytes in, the small picture out, without torch.
#include <pybind11/pybind11.h>

#include <string_view>

#include "box.h"

namespace py = pybind11;

namespace imnet {

// True when `out`, uint8 of size * size * channels bytes, was filled; False when the picture is for Pillow.
static bool box_jpeg_py(const py::bytes& data, int32_t size, int32_t channels, bool tall_first, const py::buffer& out) {
  const auto view = std::string_view(data);
  const py::buffer_info info = out.request(true);
  const bool packed = info.itemsize == 1 && PyBuffer_IsContiguous(info.view(), 'C');
  const bool whole = packed && info.size == int64_t(size) * size * channels;
  if (size < 1 || size > 4096 || (channels != 1 && channels != 3) || !whole) {
    throw py::value_error("box_jpeg: size 1..4096, 1 or 3 channels, and a contiguous uint8 buffer for them needed");
  }
  auto* target = static_cast<uint8_t*>(info.ptr);
  const py::gil_scoped_release release;
  return box_jpeg(reinterpret_cast<const uint8_t*>(view.data()), view.size(), size, channels, tall_first, target) == kBoxDone;
}

void bind_box(py::module_& m) {
  m.def("box_jpeg", &box_jpeg_py, py::arg("data"), py::arg("size"), py::arg("channels"), py::arg("tall_first"), py::arg("out"),
        "A usual JPEG, BOX-resized to (size, size, channels) as Pillow does it; False where Pillow has to.");
}

}  // namespace imnet
