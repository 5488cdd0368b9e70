// Companded 8-bit codes on a GPU: the whole part of 127 * (y + y) / (1 + y) + 0.5 with the sign of x, or of
// 255 * sqrt(y) + 0.5, less 128.
//
// Quotients and roots are one step of Newton's from the GPU's approximations. They are not always rounded right, but
// the codes are those of the right ones for every y, however the approximations err within their bounds, and so are
// the numbers of all codes: tests/cuda/test_companded.py shows it.
#pragma once

#include <optgen/cuda_coding.h>

namespace optgen {

// About x / d, of `near`, which is about 1 / d.
OPTGEN_FUNCTION float quotient(float x, float d, float near) {
  const float q = x * near;
  return fmaf(fmaf(-q, d, x), near, q);
}

// About sqrt(x), of `near`, which is about 1 / sqrt(x).
OPTGEN_FUNCTION float root(float x, float near) {
  const float q = x * near;
  return fmaf(fmaf(-q, q, x), 0.5f * near, q);
}

// Distance of a magnitude's code from that of 0.
OPTGEN_FUNCTION uint32_t companded_steps(float y, float near) {
  return whole_part(quotient(y + y, 1.0f + y, near) * 127.0f + 0.5f);
}

// The same of a state without a sign; `y` from 2^-20 on, since smaller ones have the code of 0.
OPTGEN_FUNCTION uint32_t companded_root_steps(float y, float near) { return whole_part(root(y, near) * 255.0f + 0.5f); }

constexpr float smallest_rooted = 0x1p-20f;

// The number of a code of -128 to 127, of `near`, which is about 1 / (2 - |v|).
OPTGEN_FUNCTION float expanded(float v, float near) { return quotient(v, 2.0f - fabsf(v), near); }

template <bool is_signed> struct Coding<Companded8<is_signed>> {
  static constexpr int bits = 8;

  template <int run, class Books>
  static __device__ void decode(const Packed<8, run>& codes, float absmax, float* values, const Books&) {
#pragma unroll
    for (int i = 0; i < run; ++i) {
      const uint32_t from_least = codes.words[i / 4] ^ 0x80808080u;
      if (is_signed) {
        const float v = byte_plus(from_least, i % 4, -128.0f) * (1.0f / 127.0f);
        values[i] = expanded(v, about_reciprocal(2.0f - fabsf(v))) * absmax;
      } else {
        const float v = byte_plus(from_least, i % 4, 0.0f) * (1.0f / 255.0f);
        values[i] = v * v * absmax;
      }
    }
  }

  template <int run, class Books>
  static __device__ void encode(const float* values, float reciprocal, Packed<8, run>& codes, const Books&) {
#pragma unroll
    for (int i = 0; i < run; i += 4) {
      uint32_t code[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float value = values[i + j];
        if (is_signed) {
          const float y = scaled_magnitude(value, reciprocal);
          const uint32_t steps = companded_steps(y, about_reciprocal(1.0f + y));
          code[j] = value < 0.0f ? 0u - steps : steps;
        } else {
          const float y = fmaxf(scaled_positive(value, reciprocal), smallest_rooted);
          code[j] = companded_root_steps(y, about_rsqrt(y));
        }
      }
      const uint32_t word = join_bytes(code[0], code[1], code[2], code[3]);
      codes.words[i / 4] = is_signed ? word : word ^ 0x80808080u;
    }
  }
};

}  // namespace optgen
