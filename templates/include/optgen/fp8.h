// Codes that are 8-bit floats e4m3fn: y * 448, their largest, rounded to the nearest, ties to even.
//
// Arithmetic on bits and with normal floats only: the caller may have set the processor to flush subnormal ones.
//
// Implementations: AVX-512 (fp8_avx512.h), vectors (fp8_lanes.h), and plain loops that any compiler vectorises.
// OPTGEN_GENERIC forces the plain one.
#pragma once

#include <optgen/lanes.h>
#include <optgen/plain_loops.h>

#if !defined(OPTGEN_GENERIC) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define OPTGEN_FP8_AVX512 1
#include <optgen/fp8_avx512.h>
#elif defined(OPTGEN_LANES)
#include <optgen/fp8_lanes.h>
#endif

namespace optgen {

template <bool is_signed> struct Fp8 {
  using Code = uint8_t;
  static constexpr int packed = 1;
  static constexpr bool has_sign = is_signed;

  static float value(uint8_t code) {
    const uint32_t magnitude = code & 0x7fu, sign = uint32_t(code & 0x80u) << 24;
    // Exponents are 120 apart; below 8 are multiples of 2^-9.
    const uint32_t normal = (magnitude << 20) + (120u << 23);
    const uint32_t subnormal = float_bits(float(int32_t(magnitude)) * 0x1p-9f);
    const uint32_t number = magnitude < 8u ? subnormal : normal;
    return bits_float((magnitude == 0x7fu ? 0x7fc00000u : number) | sign) * (1.0f / 448.0f);
  }

  static int32_t code(float y, bool negative) {
    const float x = y * 448.0f;
    const uint32_t bits = float_bits(x);
    const uint32_t normal = (bits + 0x7ffffu + (bits >> 20 & 1u) - (120u << 23)) >> 20;
    const uint32_t subnormal = float_bits(x + 0x1p14f) - float_bits(0x1p14f);  // the sum rounds to multiples of 2^-9
    const int32_t code = int32_t(x < 0x1p-6f ? subnormal : normal);
    const int32_t sign = is_signed && negative ? 0x80 : 0;
    return code + (code > 0 ? sign : 0);  // zero has no sign
  }

  template <int block> static void decode(const Code* codes, const float* scales, float* out, int n) {
#if defined(OPTGEN_FP8_AVX512)
    fp8_avx512::decode<block>(codes, scales, out, n);
#elif defined(OPTGEN_LANES)
    fp8_lanes::decode<block>(codes, scales, out, n);
#else
    decode_each<Fp8, block>(codes, scales, out, n);
#endif
  }
  template <int block> static void encode(const float* values, const float* scales, Code* codes, int n) {
#if defined(OPTGEN_FP8_AVX512)
    fp8_avx512::encode<is_signed, block>(values, scales, codes, n);
#elif defined(OPTGEN_LANES)
    fp8_lanes::encode<is_signed, block>(values, scales, codes, n);
#else
    encode_each<Fp8, block>(values, scales, codes, n);
#endif
  }
};

}  // namespace optgen
