// Codes that are 8-bit floats e4m3fn on a GPU: y * 448, rounded to the nearest, ties to even.
//
// Hopper and newer GPUs have instructions for them (Ada too, for compilers since CUDA 12.1). Elsewhere it is arithmetic
// on a float's bits, with the same results.
#pragma once

#include <optgen/cuda_coding.h>

#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900 || (__CUDA_ARCH__ >= 890 && CUDART_VERSION >= 12010))
#define OPTGEN_FP8_INSTRUCTIONS 1
#endif

namespace optgen {

// The byte of a magnitude up to 448.
OPTGEN_FUNCTION uint32_t fp8_of(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t normal = (bits + 0x7ffffu + (bits >> 20 & 1u) - (120u << 23)) >> 20;
  const uint32_t subnormal = float_bits(x + 0x1p14f) - float_bits(0x1p14f);  // in steps of 2^-9, rounded by the sum
  return x < 0x1p-6f ? subnormal : normal;
}

// The number of a byte.
OPTGEN_FUNCTION float float_of_fp8(uint32_t code) {
  const float magnitude = bits_float((code & 0x7fu) << 20) * 0x1p120f;
  const float x = (code & 0x7fu) == 0x7fu ? bits_float(0x7fffffffu) : magnitude;
  return code & 0x80u ? -x : x;
}

// Four bytes with the signs of the numbers: two codes for zero where the second is negative.
__device__ inline uint32_t four_fp8(const float (&x)[4]) {
#if defined(OPTGEN_FP8_INSTRUCTIONS)
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x[1]), "f"(x[0]));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x[3]), "f"(x[2]));
  return low | uint32_t(high) << 16;
#else
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word += (fp8_of(fabsf(x[i])) | (float_bits(x[i]) >> 24 & 0x80u)) << 8 * i;
  return word;
#endif
}

__device__ inline void four_floats(uint32_t word, float (&x)[4]) {
#if defined(OPTGEN_FP8_INSTRUCTIONS)
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(uint16_t(word >> 8 * i)));
    x[i] = load(fp16{uint16_t(halves)});
    x[i + 1] = load(fp16{uint16_t(halves >> 16)});
  }
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = float_of_fp8(word >> 8 * i & 0xffu);
#endif
}

template <bool is_signed> struct Coding<Fp8<is_signed>> {
  static constexpr int bits = 8;

  template <int run, class Books>
  static __device__ void decode(const Packed<8, run>& codes, float absmax, float* values, const Books&) {
#pragma unroll
    for (int i = 0; i < run; i += 4) {
      float x[4];
      four_floats(codes.words[i / 4], x);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[i + j] = x[j] * (1.0f / 448.0f) * absmax;
    }
  }

  // A y of a little more than 1 has the code of 1.
  template <int run, class Books>
  static __device__ void encode(const float* values, float reciprocal, Packed<8, run>& codes, const Books&) {
#pragma unroll
    for (int i = 0; i < run; i += 4) {
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float y = is_signed ? values[i + j] * reciprocal : scaled_positive(values[i + j], reciprocal);
        x[j] = y * 448.0f;
      }
      uint32_t word = four_fp8(x);
      if (is_signed) {  // zero has no sign
        const uint32_t above_zero = ((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) & 0x80808080u;
        word &= above_zero | 0x7f7f7f7fu;
      }
      codes.words[i / 4] = word;
    }
  }
};

}  // namespace optgen
