// The 16-bit number formats: how they are stored, and their conversion from and to float, one number at a time.
//
// load(x) gives the float of a stored number, store(x, v) rounds v to the nearest, ties to even; NaN stays a (quiet)
// NaN. Written without branches, so that compilers vectorise loops around them. For many fp16 numbers at once convert.h
// is faster. A GPU has instructions for them, which round alike; its NaN is the one positive NaN.
#pragma once

#include <optgen/bits.h>
#include <optgen/function.h>
#include <stdint.h>
#include <string.h>

namespace optgen {

struct bf16 {
  uint16_t bits;
};

struct fp16 {
  uint16_t bits;
};

OPTGEN_FUNCTION float load(float x) { return x; }

OPTGEN_FUNCTION void store(float& x, float value) { x = value; }

OPTGEN_FUNCTION float load(bf16 x) { return bits_float(uint32_t(x.bits) << 16); }

OPTGEN_FUNCTION void store(bf16& x, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // may carry into the exponent, up to infinity
  const uint32_t nan = (bits >> 16) | 0x40u;
  x.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
#endif
}

OPTGEN_FUNCTION float load(fp16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = 0x7f800000u | (magnitude << 13) | (magnitude > 0x7c00u ? 0x400000u : 0u);  // infinity, NaN
  // Through an integer and not by scaling a subnormal float: the caller may have set the processor to flush those.
  const uint32_t subnormal = float_bits(float(int32_t(magnitude)) * 0x1p-24f);
  const uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
  return bits_float(sign | (magnitude < 0x7c00u ? finite : special));
#endif
}

OPTGEN_FUNCTION void store(fp16& x, float value) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 puts the last bit of an fp16 subnormal (2^-24) at the last bit of the sum, rounded right.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  const uint32_t large = magnitude > 0x7f800000u ? nan : 0x7c00u;  // 65520 and above round to infinity
  x.bits = uint16_t(sign | (magnitude < 0x477ff000u ? finite : large));
#endif
}

}  // namespace optgen
