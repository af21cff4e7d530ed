// Conversions of one element, for the ends of rows and for ISAs without conversion instructions. Included once per ISA.

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline uint16_t bf16_of(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);  // NaN stays NaN
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Rounds to nearest even, also to subnormals and to infinity, as the instruction cvtps2ph does.
static inline uint16_t f16_of(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa so that the FPU rounds at the right bit
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

static inline float f32_of_f16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  const float value = float(int32_t(magnitude)) * 5.9604644775390625e-08f;  // 2^-24
  return sign ? -value : value;
}

struct F32 {
  typedef float T;
  static float get(T v) { return v; }
  static T put(float v) { return v; }
};
struct BF16 {
  typedef uint16_t T;
  static float get(T v) { return float_of(uint32_t(v) << 16); }
  static T put(float v) { return bf16_of(v); }
};
struct F16 {
  typedef uint16_t T;
  static float get(T v) { return f32_of_f16(v); }
  static T put(float v) { return f16_of(v); }
};
struct U8 {
  typedef uint8_t T;
  static float get(T v) { return float(v); }
};
