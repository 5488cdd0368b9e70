// The 4-bit codes, two to a byte, the first in the upper half: the nearest number of a book.
//
// Signed: a dynamic map or a normal book, the code 7 + k or 7 - min(k, 7) where k of its 8 midpoints are below y. Unsigned: code k stands
// for (k + 1) / 16, so that the midpoints are j + 1.5 sixteenths, and as many are below y as 16 y - 1.5 has when it is
// rounded up. That is exact: 16 y is, and so is the difference from 1.5 on; before, it is negative.
//
// Implementations: vectors (int4_lanes.h), and plain loops that any compiler vectorises. OPTGEN_GENERIC forces the plain
// one.
#pragma once

#include <optgen/int4_books.h>
#include <optgen/lanes.h>
#include <optgen/plain_loops.h>

namespace optgen {

namespace int4_plain {

// One code at a time, as plain_loops.h has it.
template <bool is_signed, class Numbers> struct Codes {
  using Tables = Int4Tables<true, Numbers>;
  static constexpr bool has_sign = is_signed;

  // The bits of magnitude m where k is m, else 0.
  template <int m> static uint32_t only(int32_t k) {
    return -uint32_t(k == m) & float_bits(Tables::book[7 + m]);
  }

  // Comparisons, since compilers make slow gathers of a table.
  static float value(uint8_t code) {
    if (!is_signed) return float(int32_t(code) + 1) * 0.0625f;
    const int32_t above = int32_t(code) - 7, k = above < 0 ? -above : above;
    const uint32_t bits = only<1>(k) | only<2>(k) | only<3>(k) | only<4>(k) | only<5>(k) | only<6>(k) | only<7>(k) |
                          only<8>(k);
    return bits_float(bits | (uint32_t(above) & 0x80000000u));
  }

  static int32_t code(float y, bool negative) {
    if (!is_signed) {
      const float above = y * 16.0f - 1.5f > 0.0f ? y * 16.0f - 1.5f : 0.0f;
      const int32_t whole = int32_t(above);
      return whole + (above > float(whole) ? 1 : 0);
    }
    int32_t k = 0;
    for (int j = 0; j < 8; ++j) k += y > Tables::midpoints[j] ? 1 : 0;
    return negative ? 7 - (k < 7 ? k : 7) : 7 + k;
  }
};

template <bool is_signed, class Numbers, int block>
inline void decode(const uint8_t* bytes, const float* scales, float* out, int n) {
  alignas(64) uint8_t codes[TILE];
  for (int i = 0; i < n / 2; ++i) {
    codes[2 * i] = uint8_t(bytes[i] >> 4);
    codes[2 * i + 1] = bytes[i] & 15;
  }
  if (n % 2) codes[n - 1] = uint8_t(bytes[n / 2] >> 4);
  decode_each<Codes<is_signed, Numbers>, block>(codes, scales, out, n);
}

template <bool is_signed, class Numbers, int block>
inline void encode(const float* values, const float* scales, uint8_t* bytes, int n) {
  alignas(64) uint8_t codes[TILE];
  encode_each<Codes<is_signed, Numbers>, block>(values, scales, codes, n);
  for (int i = 0; i < n / 2; ++i) bytes[i] = uint8_t(codes[2 * i] << 4 | codes[2 * i + 1]);
  if (n % 2) bytes[n / 2] = uint8_t(codes[n - 1] << 4);
}

}  // namespace int4_plain
}  // namespace optgen

#if defined(OPTGEN_LANES)
#include <optgen/int4_lanes.h>
#endif

namespace optgen {

template <bool is_signed, class Numbers = DynamicMap> struct Int4 {
  using Code = uint8_t;
  static constexpr int packed = 2;

  template <int block> static void decode(const Code* codes, const float* scales, float* out, int n) {
#if defined(OPTGEN_LANES)
    int4_lanes::decode<is_signed, Numbers, block>(codes, scales, out, n);
#else
    int4_plain::decode<is_signed, Numbers, block>(codes, scales, out, n);
#endif
  }
  template <int block> static void encode(const float* values, const float* scales, Code* codes, int n) {
#if defined(OPTGEN_LANES)
    int4_lanes::encode<is_signed, Numbers, block>(values, scales, codes, n);
#else
    int4_plain::encode<is_signed, Numbers, block>(values, scales, codes, n);
#endif
  }
};

}  // namespace optgen
