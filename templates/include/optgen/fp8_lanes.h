// 8-bit floats with vectors. Included by fp8.h, where the rule stands.
#pragma once

#include <optgen/lanes.h>
#include <optgen/scales.h>

namespace optgen {
namespace fp8_lanes {

using namespace lanes;

constexpr int32_t smallest_normal = 0x3c800000;  // the bits of 2^-6

OPTGEN_INLINE Floats numbers_of(const uint8_t* codes) {
  const Ints code = load_bytes(codes) << 24;
  const Ints magnitude = code >> 4 & 0x07f00000;  // exponent and fraction stand where a float has its own
  // Exponents are 120 apart. Numbers below 8 are multiples of 2^-9: what they are with an exponent of 2^-6, less that.
  const Ints normal = magnitude + (120 << 23);
  const Floats subnormal = (Floats)(magnitude + (121 << 23)) - 0x1p-6f;
  const Ints number = choose(magnitude < 8 << 20, (Ints)subnormal, normal);
  const Ints nan = (magnitude == 0x7f << 20) & 0x7fc00000;
  return (Floats)(number | nan | (code & INT32_MIN)) * (1.0f / 448.0f);
}

template <int block> inline void decode(const uint8_t* codes, const float* scales, float* out, int n) {
  const PerBlock<block> scale(scales, n);
  int i = 0;
  for (; i + count <= n; i += count) store(out + i, numbers_of(codes + i) * scale.at(i));
  if (i < n) {
    uint8_t rest[count] = {};
    memcpy(rest, codes + i, n - i);
    const Floats x = numbers_of(rest) * scale.at(i);
    memcpy(out + i, &x, (n - i) * sizeof(float));
  }
}

template <bool is_signed> OPTGEN_INLINE Ints codes_of(Floats value, float reciprocal) {
  const Floats y = scaled_magnitude<is_signed>(value, reciprocal), x = smaller(y, all(1.0f)) * 448.0f;
  // A power of two whose last place is the code's: the sum's last bits are x in such places, to nearest even.
  const Ints binade = larger((Ints)x & 0x7f800000, all(smallest_normal));
  const Ints power = binade + (20 << 23);
  const Ints places = (Ints)(x + (Floats)power) - power;
  const Ints code = places + ((binade - smallest_normal) >> 20);
  if (!is_signed) return code;
  return code | ((-code & (Ints)value) >> 31 & 0x80);  // zero has no sign
}

template <bool is_signed> OPTGEN_INLINE void encode_group(const float* values, float reciprocal, uint8_t* codes) {
  Ints each[4];
  for (int v = 0; v < 4; ++v) each[v] = codes_of<is_signed>(load(values + count * v), reciprocal);
  store(codes, to_bytes(each, 0));
}

template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  const Reciprocals<block> reciprocals(scales, n);
  int i = 0;
  for (; i + group <= n; i += group) encode_group<is_signed>(values + i, reciprocals.at(i), codes + i);
  if (i < n) {
    float rest[group] = {};
    uint8_t codes_of_rest[group];
    memcpy(rest, values + i, (n - i) * sizeof(float));
    encode_group<is_signed>(rest, reciprocals.at(i), codes_of_rest);
    memcpy(codes + i, codes_of_rest, n - i);
  }
}

}  // namespace fp8_lanes
}  // namespace optgen
