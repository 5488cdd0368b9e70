// Companded 8-bit codes: the whole part of 127 * (y + y) / (1 + y) + 0.5 with the sign of x, or of 255 * sqrt(y) + 0.5,
// less 128.
#pragma once

#include <optgen/math.h>
#include <optgen/plain_loops.h>

namespace optgen {

template <bool is_signed> struct Companded8 {
  using Code = int8_t;
  static constexpr int packed = 1;
  static constexpr bool has_sign = is_signed;

  static float value(int8_t code) {
    if (is_signed) {
      const float v = float(int32_t(code)) * (1.0f / 127.0f);
      return v / (2.0f - optgen::abs(v));
    }
    const float root = (float(int32_t(code)) + 128.0f) * (1.0f / 255.0f);
    return root * root;
  }

  static int32_t code(float y, bool negative) {
    if (!is_signed) return int32_t(optgen::sqrt(y) * 255.0f + 0.5f) - 128;
    const int32_t steps = int32_t((y + y) / (1.0f + y) * 127.0f + 0.5f);
    return negative ? -steps : steps;
  }

  template <int block> static void decode(const Code* codes, const float* scales, float* out, int n) {
    decode_each<Companded8, block>(codes, scales, out, n);
  }
  template <int block> static void encode(const float* values, const float* scales, Code* codes, int n) {
    encode_each<Companded8, block>(values, scales, codes, n);
  }
};

}  // namespace optgen
