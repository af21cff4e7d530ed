// augment of one image on AVX-512: an output row is made of blocks of 32 elements, each a byte shuffle of one 64-byte window
// of the source row. The shuffle, which all rows of an image share, does crop, mirror and reflection; masks do padding and
// cutout. Multiply and add round separately, as in augment.inl.

constexpr int kBlock = 2 * VL;
constexpr int kMostBlocks = 48;

struct BlockPlan {
  __m512i index[2];     // byte 4 t of vector k: the position in the window that element e0 + 16 k + t comes from
  uint64_t window;      // mask of the window's bytes that lie in the row; the others are read as 0, which is padding
  int32_t offset;       // of the window from the start of the source row
  int32_t e0, mean_at;  // the block's first element; the offset of its shifts in the mean image's row
  int32_t channel;      // of the first element
  // One bit per element: whether its source lies in the image, and whether it lies outside the cutout box's columns.
  uint32_t inside, outside_box;
};

struct Columns {
  int32_t first, last;
};

// The range of source columns that output columns x0 .. x1 read.
inline Columns source_columns(const AugmentImage& im, int x0, int x1) {
  int a = im.flip ? im.width - 1 + im.ox - x1 : x0 + im.ox;
  int b = a + x1 - x0;
  if (!im.reflect || (a >= 0 && b < im.width)) return {a, b};
  const int edge = im.width - 1;
  const int ra = a < 0 ? -a : (a > edge ? 2 * edge - a : a), rb = b < 0 ? -b : (b > edge ? 2 * edge - b : b);
  return {a < 0 && b >= 0 ? 0 : (ra < rb ? ra : rb), a <= edge && b > edge ? edge : (ra > rb ? ra : rb)};
}

inline uint64_t bits_between(int begin, int end) {  // a 64-bit mask with bits begin .. end - 1 set
  begin = begin < 0 ? 0 : begin;
  end = end > 64 ? 64 : end;
  return end <= begin ? 0 : (~0ull >> (64 - (end - begin))) << begin;
}

inline void plan_half(const AugmentImage& im, BlockPlan& p, int half) {
  const int edge = im.width - 1, e = p.e0 + half * VL;
  const __m512i x = _mm512_loadu_si512(im.columns + e), c = _mm512_loadu_si512(im.columns + im.columns_stride + e);
  const __m512i shifted = _mm512_add_epi32(x, _mm512_set1_epi32(im.ox));
  __m512i s = im.flip ? _mm512_sub_epi32(_mm512_set1_epi32(edge + im.ox), x) : shifted;
  if (im.reflect) {
    s = _mm512_abs_epi32(s);
    s = _mm512_min_epi32(s, _mm512_sub_epi32(_mm512_set1_epi32(2 * edge), s));
  }
  const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(s, _mm512_set1_epi32(im.channels)), c);
  p.index[half] = _mm512_sub_epi32(at, _mm512_set1_epi32(p.offset));
  const __mmask16 inside = _mm512_cmplt_epu32_mask(s, _mm512_set1_epi32(im.width));
  const __m512i from_box = _mm512_sub_epi32(x, _mm512_set1_epi32(im.x0));
  const __mmask16 outside_box = _mm512_cmpge_epu32_mask(from_box, _mm512_set1_epi32(im.x1 - im.x0));
  p.inside |= uint32_t(inside) << (half * VL);
  p.outside_box |= uint32_t(outside_box) << (half * VL);
}

// Fills the plans; false if the source of a block does not fit in a window (wide reflection, many channels).
inline bool plan_blocks(const AugmentImage& im, BlockPlan* plans, int num_blocks) {
  const int C = im.channels, n = im.width * C;
  for (int b = 0; b < num_blocks; ++b) {
    BlockPlan& p = plans[b];
    p.e0 = n >= kBlock && (b + 1) * kBlock > n ? n - kBlock : b * kBlock;  // the last block overlaps: same values
    const int last = p.e0 + kBlock - 1 < n ? p.e0 + kBlock - 1 : n - 1;
    const Columns source = source_columns(im, im.columns[p.e0], im.columns[last]);
    if ((source.last - source.first + 1) * C > 64) return false;
    p.offset = source.first * C;
    p.window = bits_between(-p.offset, n - p.offset);
    p.mean_at = p.e0 + (im.flip ? -im.ox : im.ox) * C;
    p.channel = im.columns[im.columns_stride + p.e0];
    p.inside = p.outside_box = 0;
    plan_half(im, p, 0);
    plan_half(im, p, 1);
  }
  return true;
}

// One output row: its source, and the masks that apply to all of its blocks.
struct BlockRow {
  const uint8_t* src;
  const float* mean;       // the mean image's shifts of that source row, mirrored if the image is; or null
  uint64_t window_mask;    // 0 for a row of padding, else all ones
  uint32_t inside_mask;    // the same, used with a mean image, whose padding is 0 after normalisation
  bool in_box;
  int64_t room;            // elements from the row's start to the image's end
};

IMNET_INLINE V block_values(__m512i window, __m512i index) {
  return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x1111111111111111ull, index, window));
}

template <class E>
IMNET_INLINE void store_block(typename E::T* dst, int64_t room, V low, V high) {
  if (room >= kBlock) return store_wide(E(), dst, low, high);
  typename E::T lanes[kBlock];
  store_wide(E(), lanes, low, high);
  for (int t = 0; t < room; ++t) dst[t] = lanes[t];
}

template <class E, bool MASKED, bool MEAN>
IMNET_INLINE void block_row(const AugmentImage& im, const BlockPlan* plans, int num_blocks, const BlockRow& row,
                      typename E::T* dst) {
  for (int b = 0; b < num_blocks; ++b) {
    const BlockPlan& p = plans[b];
    const float* scale = im.scale_pattern + p.channel;
    const float* shift = im.shift_pattern + p.channel;
    const __m512i window = _mm512_maskz_loadu_epi8(p.window & row.window_mask, row.src + p.offset);
    V low = mul(block_values(window, p.index[0]), load(F32(), scale));
    V high = mul(block_values(window, p.index[1]), load(F32(), scale + VL));
    if (MASKED) {
      const uint32_t kept = (MEAN ? p.inside & row.inside_mask : ~0u) & (row.in_box ? p.outside_box : ~0u);
      const __mmask16 first = __mmask16(kept), second = __mmask16(kept >> VL);
      const float* at = MEAN ? row.mean + p.mean_at : shift;
      low = _mm512_maskz_add_ps(first, low, _mm512_maskz_loadu_ps(first, at));
      high = _mm512_maskz_add_ps(second, high, _mm512_maskz_loadu_ps(second, at + VL));
    } else {
      low = add(low, load(F32(), shift));
      high = add(high, load(F32(), shift + VL));
    }
    store_block<E>(dst + p.e0, row.room - p.e0, low, high);
  }
}

template <class E>
IMNET_INLINE void block_rows(const AugmentImage& im, const BlockPlan* plans, int num_blocks) {
  const int H = im.height;
  const int64_t n = int64_t(im.width) * im.channels;
  typename E::T* dst = static_cast<typename E::T*>(im.dst);
  const float* mean = im.mean_shift && im.flip ? im.mean_mirrored : im.mean_shift;
  for (int y = 0; y < H; ++y, dst += n) {
    int sy = y + im.oy;
    if (im.reflect) {
      sy = sy < 0 ? -sy : sy;
      sy = sy < H ? sy : 2 * (H - 1) - sy;
    }
    const bool inside = sy >= 0 && sy < H, in_box = y >= im.y0 && y < im.y1;
    sy = inside ? sy : 0;
    const BlockRow row{im.src + sy * n,       mean ? mean + sy * n : nullptr, inside ? ~0ull : 0,
                       inside ? ~0u : 0, in_box,                        (H - y) * n};
    if (mean) {
      block_row<E, true, true>(im, plans, num_blocks, row, dst);
    } else if (in_box) {
      block_row<E, true, false>(im, plans, num_blocks, row, dst);
    } else {
      block_row<E, false, false>(im, plans, num_blocks, row, dst);
    }
  }
}

void augment_blocks(const AugmentImage& im) {
  const int num_blocks = (im.width * im.channels + kBlock - 1) / kBlock;
  BlockPlan plans[kMostBlocks];
  const bool fits = im.plain && num_blocks <= kMostBlocks && !(im.mean_shift && im.reflect);
  if (!fits || !plan_blocks(im, plans, num_blocks)) return augment_image(im);
  if (im.dtype == kF32) {
    block_rows<F32>(im, plans, num_blocks);
  } else if (im.dtype == kBF16) {
    block_rows<BF16>(im, plans, num_blocks);
  } else {
    block_rows<F16>(im, plans, num_blocks);
  }
}
