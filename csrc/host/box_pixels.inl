// The loops of box.h for one instruction set, included by box_base.cpp and box_avx2.cpp. The including file has defined
// dequantised, which multiplies a block and gives the sum of its magnitudes, idct8x8, to_rgb and across. No library code.

// Beyond this sum of |coefficient| the 16-bit steps of libjpeg's transform could overflow: such a block is no picture's.
constexpr int32_t kMaxBlockSum = 5800;

struct BitReader {
  uint64_t bits;   // the next bits, from the top
  uint32_t count;  // how many of them are sure, modulo 64: entries are subtracted whole
  const uint8_t* at;

  inline void refill() {
    uint64_t next;
    __builtin_memcpy(&next, at, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    next = __builtin_bswap64(next);
#endif
    bits |= next >> (count & 63);
    at += (63 - (count & 63)) >> 3;
    count |= 56;
  }
};

// The settled entry of a code that is longer than kFastBits or whose value is.
__attribute__((noinline)) uint32_t long_entry(uint64_t bits, const JpegHuffman& table, uint32_t entry, bool ac) {
  uint32_t length = entry & 63, size = entry >> 16, advance = (entry >> 8) & 255;
  for (uint32_t longer = kFastBits + 1; length == 0; ++longer) {
    if (longer > 16) return kNoSuchCode << 8;
    const int32_t code = int32_t(bits >> (64 - longer));
    if (code > table.max_code[longer]) continue;
    const uint32_t symbol = table.values[(code + table.offset[longer]) & 255];
    length = longer;
    size = ac ? symbol & 15 : symbol;
    advance = ac && symbol == 0 ? kEndOfBlock : ac ? (symbol >> 4) + 1 : 1;
  }
  const uint64_t rest = bits << length;
  uint32_t value = size == 0 ? 0 : uint32_t(rest >> (64 - size));
  if (int64_t(rest) >= 0 && size != 0) value += 1 - (1u << size);
  return (length + size) | advance << 8 | value << 16;
}

// The entry of the next code, its value included; at least 27 bits are at hand.
inline uint32_t next_entry(BitReader& in, const uint32_t* fast, const JpegHuffman& table, bool ac) {
  uint32_t entry = fast[in.bits >> (64 - kFastBits)];
  if (__builtin_expect(int8_t(entry) < 0, 0)) entry = long_entry(in.bits, table, entry, ac);
  in.bits <<= entry & 63;
  in.count -= entry;
  return entry;
}

// Coefficients of one block to `block` (zero before, place 64 is waste): 0 where there is only the first, 1 where there
// are more, -1 where the bits are bad.
inline int32_t read_block(BitReader& in, JpegFrame& frame, JpegComponent& part, int16_t* block) {
  const JpegHuffman& dc_table = frame.dc[part.dc];
  in.refill();
  uint32_t entry = next_entry(in, dc_table.fast, dc_table, false);
  const int32_t dc = part.last_dc + (int32_t(entry) >> 16);
  if (uint8_t(entry >> 8) == kNoSuchCode || dc < -32768 || dc > 32767) return -1;
  part.last_dc = dc;
  block[0] = int16_t(dc);
  const JpegHuffman& table = frame.ac[part.ac];
  const uint32_t* const fast = table.fast;
  uint64_t place = 0;
  do {  // two codes with their values take at most 52 of the 56 bits
    in.refill();
    entry = next_entry(in, fast, table, true);
    place += uint8_t(entry >> 8);
    block[kNatural[place]] = int16_t(entry >> 16);
    if (place >= 63) break;
    entry = next_entry(in, fast, table, true);
    place += uint8_t(entry >> 8);
    block[kNatural[place]] = int16_t(entry >> 16);
  } while (place < 63);
  if (uint8_t(entry >> 8) == kEndOfBlock) return place == kEndOfBlock ? 0 : 1;
  return place == 63 ? 1 : -1;
}

inline void fill_block(int32_t dc, uint8_t* out, ptrdiff_t stride) {
  int32_t level = ((dc * 4 + 16) >> 5) + 128;
  level = level < 0 ? 0 : level > 255 ? 255 : level;
  const uint64_t eight = uint64_t(level) * 0x0101010101010101u;
  for (int i = 0; i < 8; ++i) __builtin_memcpy(out + i * stride, &eight, 8);
}

inline bool read_mcu(BitReader& in, JpegFrame& frame, int32_t x, int32_t y) {
  alignas(32) int16_t block[64 + 16];
  for (int32_t i = 0; i < frame.num_components; ++i) {
    JpegComponent& part = frame.component[i];
    for (int32_t v = 0; v < part.v; ++v) {
      for (int32_t h = 0; h < part.h; ++h) {
        __builtin_memset(block, 0, 128);
        const int32_t more = read_block(in, frame, part, block);
        if (more < 0) return false;
        uint8_t* out = part.plane + (int64_t(y) * part.v + v) * 8 * part.stride + (int64_t(x) * part.h + h) * 8;
        const int16_t* quant = frame.quant[part.table];
        const int32_t dc = block[0] * quant[0];
        if (dc < -kMaxBlockSum || dc > kMaxBlockSum) return false;
        if (more == 0) {
          fill_block(dc, out, part.stride);
        } else {
          if (dequantised(block, quant) > kMaxBlockSum) return false;
          idct8x8(block, out, part.stride);
        }
      }
    }
  }
  return true;
}

BoxAnswer decode(JpegFrame& frame) {
  BitReader in{0, 0, frame.scan};
  const uint8_t* const end = frame.scan + frame.scan_bytes;
  for (int32_t y = 0; y < frame.mcus_y; ++y) {
    for (int32_t x = 0; x < frame.mcus_x; ++x) {
      if (in.at > end + 8 || !read_mcu(in, frame, x, y)) return kBoxIrregular;
    }
  }
  const int64_t left = int64_t(frame.scan_bytes) * 8 - ((in.at - frame.scan) * 8 - int64_t(in.count & 63));
  return left >= 0 && left < 8 ? kBoxDone : kBoxIrregular;
}

void wide2(const uint8_t* in, uint8_t* out, int32_t n) {
  out[0] = in[0];
  for (int32_t i = 0; i < n - 1; ++i) {
    const int32_t left = in[i], right = in[i + 1];
    out[2 * i + 1] = uint8_t((3 * left + right + 2) >> 2);
    out[2 * i + 2] = uint8_t((3 * right + left + 1) >> 2);
  }
  out[2 * n - 1] = in[n - 1];
}

void wide2_high2(const uint8_t* near, const uint8_t* far, uint8_t* out, int32_t n) {
  const int32_t first = 3 * near[0] + far[0], last = 3 * near[n - 1] + far[n - 1];
  out[0] = uint8_t((4 * first + 8) >> 4);
  for (int32_t i = 0; i < n - 1; ++i) {
    const int32_t left = 3 * near[i] + far[i], right = 3 * near[i + 1] + far[i + 1];
    out[2 * i + 1] = uint8_t((3 * left + right + 7) >> 4);
    out[2 * i + 2] = uint8_t((3 * right + left + 8) >> 4);
  }
  out[2 * n - 1] = uint8_t((4 * last + 7) >> 4);
}

void down(const uint8_t* rows, ptrdiff_t stride, BoxSpan span, int32_t n, uint8_t* out, uint32_t* sums) {
  for (int32_t i = 0; i < n; ++i) sums[i] = 0;
  for (int32_t k = 0; k < span.count; ++k) {
    const uint8_t* row = rows + (span.first + k) * stride;
    for (int32_t i = 0; i < n; ++i) sums[i] += row[i];
  }
  for (int32_t i = 0; i < n; ++i) out[i] = uint8_t((sums[i] * uint32_t(span.weight) + (1u << 21)) >> 22);
}
