// One JPEG to a small square: planes, then rows to RGB and across at once, then down; every step rounds as Pillow's does.
#include "box.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace imnet {
namespace {

constexpr int64_t kMaxPixels = 120'000'000;
constexpr size_t kKeepBytes = size_t(32) << 20;

const BoxKernels& box_kernels() {
  const BoxKernels* fast = std::strcmp(kernels().name, "base") == 0 ? nullptr : box_avx2();
  return fast != nullptr ? *fast : *box_base();
}

// A thread's memory between calls: fresh pages for every picture would cost as much as its transform.
class Scratch {
 public:
  uint8_t* at_least(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(new uint8_t[bytes]);
      size_ = bytes;
    }
    return memory_.get();
  }
  void trim() {
    if (size_ > kKeepBytes) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0;
};

// Pillow's weights of the BOX filter from `in` to `out` pixels: for each output equal ones, in 1 / 2^22, and zeros.
std::vector<BoxSpan> spans(int32_t in, int32_t out) {
  const double scale = double(in) / out, filter = std::max(scale, 1.0), support = 0.5 * filter, inverse = 1.0 / filter;
  std::vector<BoxSpan> all(size_t(out), BoxSpan{});
  for (int32_t i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int32_t first = std::max(int32_t(centre - support + 0.5), 0);
    const int32_t end = std::min(int32_t(centre + support + 0.5), in);
    BoxSpan& span = all[size_t(i)];
    for (int32_t x = first; x < end; ++x) {
      const double at = ((x - first) + first - centre + 0.5) * inverse;
      if (at > -0.5 && at <= 0.5) {
        if (span.count == 0) span.first = x;
        span.count = x + 1 - span.first;
      }
    }
    if (span.count > 0) span.weight = int32_t(0.5 + (1.0 / span.count) * (1 << 22));
  }
  return all;
}

int64_t padded(int64_t n) { return (n + kRowPadding - 1) / kRowPadding * kRowPadding + kRowPadding; }

// One picture on its way: where everything lies in the scratch memory, and in which order it shrinks.
struct Work {
  JpegFrame& frame;
  const BoxKernels& with;
  std::vector<BoxSpan> wide, high;
  int32_t size, channels;
  bool down_first;
  int64_t row_bytes;  // of a row of one colour at full width
  uint8_t *rows, *large, *small;
  uint32_t* sums;
};

// Sizes of the planes, and the bytes that everything takes; called with null once, then with memory of that size.
size_t lay_out(Work& work, uint8_t* memory) {
  JpegFrame& frame = work.frame;
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    uint8_t* start = memory == nullptr ? nullptr : memory + at;
    at += size_t(padded(int64_t(bytes)));
    return start;
  };
  frame.mcus_x = (frame.width + 8 * frame.h_max - 1) / (8 * frame.h_max);
  frame.mcus_y = (frame.height + 8 * frame.v_max - 1) / (8 * frame.v_max);
  for (int32_t i = 0; i < frame.num_components; ++i) {
    JpegComponent& part = frame.component[i];
    part.width = (frame.width * part.h + frame.h_max - 1) / frame.h_max;
    part.height = (frame.height * part.v + frame.v_max - 1) / frame.v_max;
    part.stride = padded(int64_t(frame.mcus_x) * part.h * 8);
    part.plane = take(size_t(part.stride) * size_t(frame.mcus_y * part.v * 8));
  }
  const size_t colours = size_t(work.channels), size = size_t(work.size);
  work.row_bytes = padded(2 * int64_t(frame.width) + 2);
  work.rows = take(5 * size_t(work.row_bytes));
  // Going across first leaves rows of `size` pixels; going down first needs all colours at full size, then `size` rows.
  const size_t row = work.down_first ? size_t(work.row_bytes) : size;
  work.large = take(colours * row * size_t(frame.height));
  work.small = take(work.down_first ? colours * size_t(work.row_bytes) * size : size * colours);
  work.sums = reinterpret_cast<uint32_t*>(take(4 * std::max(size_t(work.row_bytes), size * colours)));
  return at;
}

// Chroma of row y at full width: the plane's own row, or made from one or two of them in `made`.
const uint8_t* chroma(const JpegFrame& frame, int32_t i, int32_t y, uint8_t* made, const BoxKernels& with) {
  const JpegComponent& part = frame.component[i];
  if (frame.h_max == 1) return part.plane + y * part.stride;
  const int32_t near = y / frame.v_max;
  if (frame.v_max == 1) {
    with.wide2(part.plane + near * part.stride, made, part.width);
  } else {
    const int32_t far = std::clamp(near + (y % 2 ? 1 : -1), 0, part.height - 1);
    with.wide2_high2(part.plane + near * part.stride, part.plane + far * part.stride, made, part.width);
  }
  return made;
}

// Row y of each colour: in `into`, or where it lies already.
void colours_of(const Work& work, int32_t y, uint8_t* const into[3], const uint8_t* found[3]) {
  const JpegFrame& frame = work.frame;
  found[0] = frame.component[0].plane + y * frame.component[0].stride;
  if (frame.num_components == 1) {
    found[1] = found[2] = found[0];
    return;
  }
  const uint8_t* cb = chroma(frame, 1, y, work.rows + 3 * work.row_bytes, work.with);
  const uint8_t* cr = chroma(frame, 2, y, work.rows + 4 * work.row_bytes, work.with);
  work.with.to_rgb(found[0], cb, cr, into, frame.width);
  for (int c = 0; c < 3; ++c) found[c] = into[c];
}

void across_then_down(const Work& work, uint8_t* out) {
  const int32_t row = work.size * work.channels;
  uint8_t* const into[3] = {work.rows, work.rows + work.row_bytes, work.rows + 2 * work.row_bytes};
  for (int32_t y = 0; y < work.frame.height; ++y) {
    const uint8_t* found[3];
    colours_of(work, y, into, found);
    work.with.across(found, work.channels, work.wide.data(), work.size, work.large + int64_t(y) * row);
  }
  for (int32_t y = 0; y < work.size; ++y) {
    work.with.down(work.large, row, work.high[size_t(y)], row, out + int64_t(y) * row, work.sums);
  }
}

void down_then_across(const Work& work, uint8_t* out) {
  const int64_t full = work.channels * work.row_bytes;
  for (int32_t y = 0; y < work.frame.height; ++y) {
    uint8_t* row = work.large + y * full;
    uint8_t* const into[3] = {row, row + work.row_bytes, row + 2 * work.row_bytes};
    const uint8_t* found[3];
    colours_of(work, y, into, found);
    for (int32_t c = 0; c < work.channels; ++c) {
      if (found[c] != into[c]) std::memcpy(into[c], found[c], size_t(work.frame.width));
    }
  }
  std::vector<uint8_t> line(size_t(work.size * work.channels) + 1);  // across writes one byte more
  for (int32_t y = 0; y < work.size; ++y, out += work.size * work.channels) {
    const uint8_t* found[3];
    for (int32_t c = 0; c < work.channels; ++c) {
      uint8_t* small = work.small + c * work.row_bytes;
      work.with.down(work.large + c * work.row_bytes, full, work.high[size_t(y)], work.frame.width, small, work.sums);
      found[c] = small;
    }
    work.with.across(found, work.channels, work.wide.data(), work.size, line.data());
    std::memcpy(out, line.data(), line.size() - 1);
  }
}

// Smooth upsampling is for planes of more than 2 samples; libjpeg repeats samples of narrower ones.
bool usual_shape(const JpegFrame& frame, int32_t channels) {
  if (frame.num_components == 3 && channels != 3) return false;
  if (int64_t(frame.width) * frame.height > kMaxPixels) return false;
  return frame.h_max == 1 || frame.width > 4;
}

BoxAnswer boxed(const uint8_t* data, size_t bytes, int32_t size, int32_t channels, bool tall_first, uint8_t* out,
                Scratch& scan, Scratch& scratch) {
  thread_local std::unique_ptr<JpegFrame> kept(new JpegFrame);
  JpegFrame& frame = *kept;
  frame.clear();
  const BoxAnswer header = jpeg_header(data, bytes, scan.at_least(bytes + kScanPadding), frame);
  if (header != kBoxDone) return header;
  if (!usual_shape(frame, channels)) return kBoxNotUsual;
  // Pillow 13's rule, found by asking it: down first where the height shrinks by more than twice what the width does.
  const bool down_first = tall_first && frame.height - size > 2 * (frame.width - size);
  Work work{frame, box_kernels(), spans(frame.width, size), spans(frame.height, size), size, channels, down_first,
            0,     nullptr,       nullptr,                  nullptr,                   nullptr};
  lay_out(work, scratch.at_least(lay_out(work, nullptr)));
  const BoxAnswer answer = work.with.decode(frame);
  if (answer == kBoxDone) (down_first ? down_then_across : across_then_down)(work, out);
  return answer;
}

}  // namespace

BoxAnswer box_jpeg(const uint8_t* data, size_t bytes, int32_t size, int32_t channels, bool tall_first, uint8_t* out) {
  thread_local Scratch scan, scratch;
  try {
    const BoxAnswer answer = boxed(data, bytes, size, channels, tall_first, out, scan, scratch);
    scan.trim();
    scratch.trim();
    return answer;
  } catch (const std::bad_alloc&) {
    return kBoxNotUsual;
  }
}

}  // namespace imnet
