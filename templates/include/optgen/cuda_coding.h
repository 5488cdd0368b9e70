// Common parts of the codings of quantized states on a GPU.
//
// The rule of torch_codecs.py, bit for bit: y = |x| * (1 / absmax), the reciprocal rounded first, at most 1; x is
// finite, what is not having been set to zero. A `Coding` turns a run of numbers into codes and back.
#pragma once

#include <math.h>
#include <optgen/cuda_codecs.h>
#include <optgen/cuda_memory.h>
#include <optgen/math.h>

namespace optgen {

// Codes of so many bits: decode(codes, absmax, values, books), encode(values, reciprocal, codes, books).
template <class Book> struct Coding;

// Table that a coding looks up in shared memory; `stored(Book())` is the same in the GPU's memory.
template <class Book> struct Table;

// Infinities and NaN, which get the code of zero, become zero.
OPTGEN_FUNCTION float finite_or_zero(float x) { return fabsf(x) < OPTGEN_INFINITY ? x : 0.0f; }

// The y of a finite x; a reciprocal rounded up can give a little more than 1.
OPTGEN_FUNCTION float scaled_magnitude(float x, float reciprocal) {
#if defined(__CUDA_ARCH__)
  return __saturatef(fabsf(x) * reciprocal);  // one instruction
#else
  const float y = fabsf(x) * reciprocal;
  return y < 1.0f ? y : 1.0f;
#endif
}

// The same of a state without a sign: 0 for negative x.
OPTGEN_FUNCTION float scaled_positive(float x, float reciprocal) {
#if defined(__CUDA_ARCH__)
  return __saturatef(x * reciprocal);
#else
  const float y = x * reciprocal;
  return y > 0.0f ? (y < 1.0f ? y : 1.0f) : 0.0f;
#endif
}

// x without its fraction, for 0 <= x < 2^22.
OPTGEN_FUNCTION uint32_t whole_part(float x) {
#if defined(__CUDA_ARCH__)
  return float_bits(__fadd_rd(x, 0x1p23f)) - 0x4b000000u;  // an addition is quicker than a conversion
#else
  return uint32_t(x);
#endif
}

// 1 if y is above a threshold, else 0: without a predicate.
OPTGEN_FUNCTION uint32_t is_above(float y, float threshold) { return float_bits(threshold - y) >> 31; }

// About 1 / x, and about 1 / sqrt(x): within 3 units in the last place.
OPTGEN_FUNCTION float about_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

OPTGEN_FUNCTION float about_rsqrt(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / ::sqrtf(x);
#endif
}

}  // namespace optgen
