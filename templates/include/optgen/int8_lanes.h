// The 8-bit codes of a vector of magnitudes at a time, in closed form. Included by int8.h, where the rule stands.
//
// A book is one line a decade: the logarithm of a magnitude, read off its bits from below, gives its level or one less,
// and one comparison with the edge of the next level tells which. The level's line then gives the code in 65536ths.
// Rounding moves that by a few of these. Where a group has a magnitude within 8 of them of the midpoint between two
// codes, which is rare, or one that is not finite, its codes are looked at again, one by one, with the exact midpoints.
#pragma once

#include <optgen/int8_books.h>
#include <optgen/lanes.h>
#include <optgen/plain_loops.h>

namespace optgen {
namespace int8_lanes {

using namespace lanes;

// How the logarithm in tens is read off a float's bits: between 2^-24 and 1 this is below it by 0.17 or 0.285 to 0.5,
// and of what is not finite the level, modulo 8, is the last one.
constexpr double slope_of_bits = 0.309 / 0x1p23;
template <bool is_signed> constexpr double offset_of_bits = 8.0 - 127.0 * 0.309 - (is_signed ? 0.285 : 0.17);

template <bool is_signed> struct Encoder {
  using Tables = Int8Tables<is_signed>;
  Table edge = table(Tables::level_edge), slope = table(Tables::fixed_slope), offset = table(Tables::fixed_offset),
        end = table(Tables::fixed_end);

  // The codes of magnitudes with the sign of x, counted from that of zero. `fraction` has in its even places the least
  // distance to a midpoint so far, in 65536ths and more by 8.
  OPTGEN_INLINE Ints operator()(Floats x, float reciprocal, Halves& fraction) const {
    constexpr int32_t lowest = 0x33c00000;  // below every midpoint, and at level 0
    const Ints bits = (Ints)x;
    const Floats y = (Floats)(is_signed ? bits & INT32_MAX : larger(bits, Ints{})) * reciprocal;
    const Floats logarithm = fused(to_floats(larger((Ints)y, all(lowest))), all(float(slope_of_bits)),
                                   all(float(offset_of_bits<is_signed>)));
    Ints level = whole_part(logarithm);
    level += y <= pick(edge, level);  // a comparison that holds is -1
    const Floats line = fused(y, pick(slope, level), pick(offset, level));
    const Ints fixed = whole_part(smaller(line, pick(end, level)));
    fraction = (Halves)fixed < fraction ? (Halves)fixed : fraction;
    return is_signed ? with_sign(fixed >> 16, bits) : fixed >> 16;
  }
};

// Codes that may be one too high or too low, made right.
template <bool is_signed>
__attribute__((noinline, cold)) void mend(const float* values, float reciprocal, uint8_t* codes) {
  using Tables = Int8Tables<is_signed>;
  constexpr int largest = 255 - Tables::zero_code;
  for (int i = 0; i < group; ++i) {
    const float y = scaled_magnitude<is_signed>(values[i], reciprocal);
    const bool negative = is_signed && int32_t(float_bits(values[i])) < 0;
    const int guess = negative ? Tables::zero_code - codes[i] : codes[i] - Tables::zero_code;
    int k = guess > 0 && y > 0.0f ? guess - 1 : 0;
    for (int more = 0; more < 2; ++more) k += k < largest && y > Tables::midpoints[k];
    codes[i] = uint8_t(negative ? Tables::zero_code - (k < 127 ? k : 127) : Tables::zero_code + k);
  }
}

template <bool is_signed>
OPTGEN_INLINE void encode_group(const Encoder<is_signed>& encoder, const float* values, float reciprocal, uint8_t* codes) {
  Halves fraction = (Halves)all(-1);
  Ints each[4];
  for (int v = 0; v < 4; ++v) each[v] = encoder(load(values + count * v), reciprocal, fraction);
  store(codes, to_bytes(each, Int8Tables<is_signed>::zero_code));
  if (__builtin_expect(any(((Ints)fraction & 0xfff0) == 0), false)) mend<is_signed>(values, reciprocal, codes);
}

template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  const Encoder<is_signed> encoder;
  const Reciprocals<block> reciprocals(scales, n);
  int i = 0;
  for (; i + group <= n; i += group) {
    const float reciprocal = reciprocals.at(i);
    if (reciprocal == 0.0f)
      memset(codes + i, Int8Tables<is_signed>::zero_code, group);
    else
      encode_group(encoder, values + i, reciprocal, codes + i);
  }
  if (i < n) {
    float rest[group] = {};
    uint8_t codes_of_rest[group];
    memcpy(rest, values + i, (n - i) * sizeof(float));
    const float reciprocal = reciprocals.at(i);
    for (float& x : rest) x = reciprocal == 0.0f ? 0.0f : x;
    encode_group(encoder, rest, reciprocal, codes_of_rest);
    memcpy(codes + i, codes_of_rest, n - i);
  }
}

}  // namespace int8_lanes
}  // namespace optgen
