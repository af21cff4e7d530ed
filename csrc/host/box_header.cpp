// JPEG markers, strictly: what is unusual or odd is left to Pillow, so nothing here has to guess.
#include <algorithm>
#include <cstring>

#include "box.h"

namespace imnet {
namespace {

struct Bytes {
  const uint8_t* at;
  const uint8_t* end;
  size_t left() const { return size_t(end - at); }
};

int32_t pair(const uint8_t* p) { return p[0] << 8 | p[1]; }

// The value that `size` bits mean: the upper half of the range is itself, the lower half is negative.
uint32_t extended(uint32_t bits, uint32_t size) { return bits >> (size - 1) ? bits : bits + 1 - (1u << size); }

void fill_fast(JpegHuffman& table, int32_t code, int32_t length, uint8_t symbol, bool ac) {
  const uint32_t run = ac ? symbol >> 4 : 0, size = ac ? symbol & 15 : symbol, spare = uint32_t(kFastBits - length);
  const uint32_t advance = (ac && symbol == 0 ? kEndOfBlock : run + 1) << 8;
  uint32_t* entries = table.fast + (uint32_t(code) << spare);
  if (size > spare) {
    std::fill_n(entries, 1u << spare, uint32_t(length) | kUnsettled | advance | size << 16);
    return;
  }
  const uint32_t rest = spare - size, entry = (uint32_t(length) + size) | advance;
  for (uint32_t bits = 0; bits < 1u << size; ++bits) {
    std::fill_n(entries + (bits << rest), 1u << rest, entry | (size == 0 ? 0 : extended(bits, size) << 16));
  }
}

// A symbol that a baseline picture of 8 bits may have: at most 10 bits follow (DC: 11), and run lengths alone are 0 or 15.
bool usual(uint8_t symbol, bool ac) {
  if (!ac) return symbol <= 11;
  return (symbol & 15) <= 10 && ((symbol & 15) != 0 || symbol == 0 || symbol == 0xF0);
}

bool huffman(Bytes body, JpegFrame& frame) {
  while (body.left() != 0) {
    if (body.left() < 17 || (body.at[0] & 0xEC) != 0) return false;
    const bool ac = body.at[0] >> 4;
    JpegHuffman& table = (ac ? frame.ac : frame.dc)[body.at[0] & 3];
    const uint8_t* counts = body.at + 1;
    int32_t total = 0;
    for (int i = 0; i < 16; ++i) total += counts[i];
    if (total == 0 || total > 256 || body.left() < size_t(17 + total)) return false;
    std::fill_n(table.fast, 1 << kFastBits, kUnsettled);
    std::memcpy(table.values, counts + 16, size_t(total));
    int32_t code = 0, next = 0;
    for (int32_t length = 1; length <= 16; ++length, code <<= 1) {
      table.offset[length] = next - code;
      table.max_code[length] = -1;
      if (code + counts[length - 1] > 1 << length) return false;
      for (int i = 0; i < counts[length - 1]; ++i, ++code, ++next) {
        if (!usual(table.values[next], ac)) return false;
        if (length <= kFastBits) fill_fast(table, code, length, table.values[next], ac);
        table.max_code[length] = code;
      }
    }
    table.present = true;
    body.at += 17 + total;
  }
  return true;
}

bool quantisation(Bytes body, JpegFrame& frame) {
  while (body.left() != 0) {
    if (body.left() < 65 || body.at[0] > 3) return false;
    for (int i = 0; i < 64; ++i) frame.quant[body.at[0]][kNatural[i]] = body.at[1 + i];
    frame.quant_present[body.at[0]] = true;
    body.at += 65;
  }
  return true;
}

bool start_of_frame(Bytes body, JpegFrame& frame) {
  if (body.left() < 6 || frame.num_components != 0 || body.at[0] != 8) return false;
  frame.height = pair(body.at + 1);
  frame.width = pair(body.at + 3);
  const int count = body.at[5];
  if ((count != 1 && count != 3) || body.left() != size_t(6 + 3 * count) || frame.width == 0 || frame.height == 0) return false;
  frame.num_components = count;
  for (int i = 0; i < count; ++i) {
    const uint8_t* p = body.at + 6 + 3 * i;
    frame.component[i] = {p[0], p[1] >> 4, p[1] & 15, p[2], 0, 0, 0, 0, 0, nullptr, 0};
    if (p[2] > 3) return false;
  }
  if (count == 1) frame.component[0].h = frame.component[0].v = 1;  // one component is never interleaved
  frame.h_max = frame.component[0].h;
  frame.v_max = frame.component[0].v;
  const bool known = (frame.h_max == 1 && frame.v_max == 1) || (frame.h_max == 2 && frame.v_max <= 2 && frame.v_max >= 1);
  for (int i = 1; i < count; ++i) {
    if (frame.component[i].h != 1 || frame.component[i].v != 1) return false;
  }
  return known;
}

bool start_of_scan(Bytes body, JpegFrame& frame) {
  const int count = frame.num_components;
  if (count == 0 || body.left() != size_t(4 + 2 * count) || body.at[0] != count) return false;
  for (int i = 0; i < count; ++i) {
    JpegComponent& part = frame.component[i];
    const uint8_t* p = body.at + 1 + 2 * i;
    part.dc = p[1] >> 4;
    part.ac = p[1] & 15;
    if (p[0] != part.id || part.dc > 3 || part.ac > 3) return false;
    if (!frame.dc[part.dc].present || !frame.ac[part.ac].present || !frame.quant_present[part.table]) return false;
  }
  const uint8_t* spectral = body.at + 1 + 2 * count;
  return spectral[0] == 0 && spectral[1] == 63 && spectral[2] == 0;
}

// Copies the scan without the zero bytes after FF; it has to end with the end mark: no restarts, no second scan.
bool unstuff(Bytes rest, uint8_t* out, JpegFrame& frame) {
  frame.scan = out;
  while (rest.left() >= 2) {
    const auto* mark = static_cast<const uint8_t*>(std::memchr(rest.at, 0xFF, rest.left() - 1));
    if (mark == nullptr) return false;
    std::memcpy(out, rest.at, size_t(mark - rest.at));
    out += mark - rest.at;
    rest.at = mark + 2;
    if (mark[1] != 0) {
      frame.scan_bytes = size_t(out - frame.scan);
      std::memset(out, 0, kScanPadding);
      return mark[1] == 0xD9;
    }
    *out++ = 0xFF;
  }
  return false;
}

struct Colour {
  bool jfif = false, other = false;
};

void application(int marker, Bytes body, Colour& colour) {
  if (marker == 0xE0 && body.left() >= 14 && std::memcmp(body.at, "JFIF", 5) == 0) colour.jfif = true;
  if (marker == 0xEE && body.left() >= 12 && std::memcmp(body.at, "Adobe", 5) == 0) colour.other |= body.at[11] != 1;
}

// Whether libjpeg takes three components for YCbCr without doubt.
bool is_ycc(const JpegFrame& frame, const Colour& colour) {
  const JpegComponent* c = frame.component;
  return !colour.other && (colour.jfif || (c[0].id == 1 && c[1].id == 2 && c[2].id == 3));
}

}  // namespace

const uint8_t kNatural[192] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
    7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46,
    53, 60, 61, 54, 47, 55, 62, 63, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64};

BoxAnswer jpeg_header(const uint8_t* data, size_t bytes, uint8_t* unstuffed, JpegFrame& frame) {
  Bytes all{data, data + bytes};
  Colour colour;
  if (bytes < 4 || pair(data) != 0xFFD8) return kBoxNotUsual;
  all.at += 2;
  while (all.left() >= 4) {
    const int marker = all.at[1], length = pair(all.at + 2);
    if (all.at[0] != 0xFF || length < 2 || all.left() < size_t(2 + length)) return kBoxIrregular;
    const Bytes body{all.at + 4, all.at + 2 + length};
    all.at += 2 + length;
    bool good = true;
    if (marker == 0xC4) good = huffman(body, frame);
    else if (marker == 0xDB) good = quantisation(body, frame);
    else if (marker == 0xC0) good = start_of_frame(body, frame);
    else if (marker >= 0xE0 && marker <= 0xEF) application(marker, body, colour);
    else if (marker == 0xDA) {
      if (!start_of_scan(body, frame) || (frame.num_components == 3 && !is_ycc(frame, colour))) return kBoxNotUsual;
      return unstuff(all, unstuffed, frame) ? kBoxDone : kBoxNotUsual;
    } else good = marker == 0xFE;  // comments; restarts, progressive and arithmetic coding are not for this reader
    if (!good) return kBoxNotUsual;
  }
  return kBoxIrregular;
}

}  // namespace imnet
