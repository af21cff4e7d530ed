// JPEG -> BOX-resized pixels, byte for byte what Pillow makes of it (libjpeg-turbo's slow integer transform, smooth chroma
// upsampling, then Pillow's 8-bit two-pass resize). Baseline pictures of the usual kind only: for any other, and for every
// damaged one, the answer is "not mine" and Pillow decides.
#pragma once
#include <cstddef>
#include <cstdint>

namespace imnet {

enum BoxAnswer : int32_t { kBoxDone = 0, kBoxNotUsual = 1, kBoxIrregular = 2 };

constexpr int kFastBits = 11;  // a code with its value takes one look-up where both together have as many bits
constexpr int kRowPadding = 64;  // bytes that a row has beyond its end: vectors read and write over it
constexpr int kScanPadding = 2048;  // zeros behind a scan: one MCU of damaged bits eats at most 1,250 bytes

// Entries of `fast`: bits 0-5 bits of code and value together, bit 7 not settled here (the code is longer: bits 0-5 are 0;
// or its value is: bits 0-5 are the code's, 16-31 the number of the value's), bits 8-15 places to advance, 16-31 the value.
constexpr uint32_t kUnsettled = 128;
constexpr uint32_t kEndOfBlock = 64, kNoSuchCode = 127;  // in place of an advance: both lead out of the block
struct JpegHuffman {
  uint32_t fast[1 << kFastBits];
  int32_t max_code[18], offset[18];  // of each length: the largest code (-1: none), and from code to place in values
  uint8_t values[256];
  bool present;
};

struct JpegComponent {
  int32_t id, h, v, table, dc, ac;
  int32_t width, height;  // samples that mean something; the plane is padded to whole MCUs
  ptrdiff_t stride;
  uint8_t* plane;
  int32_t last_dc;
};

struct JpegHead {
  int32_t width, height, num_components, h_max, v_max, mcus_x, mcus_y;
  JpegComponent component[3];
  alignas(32) int16_t quant[4][64];  // row by row, as the coefficients
  bool quant_present[4];
  const uint8_t* scan;  // entropy-coded bytes without stuffing, kScanPadding zeros behind them
  size_t scan_bytes;
};

struct JpegFrame : JpegHead {
  JpegHuffman dc[4], ac[4];

  void clear() {  // the tables' 70 kB are only marked as absent
    static_cast<JpegHead&>(*this) = JpegHead{};
    for (int i = 0; i < 4; ++i) dc[i].present = ac[i].present = false;
  }
};

// One output pixel of BOX along an axis: `count` inputs from `first`, all of the same weight in 1 / 2^22.
struct BoxSpan {
  int32_t first, count, weight;
};

// The inner loops of one instruction set.
struct BoxKernels {
  const char* name;
  BoxAnswer (*decode)(JpegFrame&);                                         // the scan into the planes
  void (*wide2)(const uint8_t* in, uint8_t* out, int32_t n);               // n samples -> 2 n, horizontally
  void (*wide2_high2)(const uint8_t* near, const uint8_t* far, uint8_t* out, int32_t n);  // the same of two rows
  void (*to_rgb)(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* const rgb[3], int32_t n);
  void (*across)(const uint8_t* const rows[], int32_t channels, const BoxSpan* spans, int32_t size, uint8_t* out);
  void (*down)(const uint8_t* rows, ptrdiff_t stride, BoxSpan span, int32_t n, uint8_t* out, uint32_t* sums);
};
const BoxKernels* box_base();
const BoxKernels* box_avx2();  // null where compiler or CPU lack AVX2 and BMI2

// Where coefficient i of the scan's order lies in its block, row by row; past 63 everything goes to place 64.
extern const uint8_t kNatural[192];

// Reads the markers of `data`; planes and scan are left to the caller. `unstuffed` takes `bytes` + kScanPadding bytes.
BoxAnswer jpeg_header(const uint8_t* data, size_t bytes, uint8_t* unstuffed, JpegFrame& frame);

// uint8 (size, size, channels) to out; channels 3, or 1 for grey pictures. `tall_first`: tall pictures go down before they
// go across, as Pillow 13 does it; older ones always go across first. It shows in the rounding.
BoxAnswer box_jpeg(const uint8_t* data, size_t bytes, int32_t size, int32_t channels, bool tall_first, uint8_t* out);

}  // namespace imnet
