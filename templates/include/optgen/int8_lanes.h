// The 8-bit codes of a vector of numbers at a time, in closed form. Included by int8.h, where the rule stands.
//
// Reading: a book's values lie on one line a decade.
//
// Writing: a book is one line a decade: the logarithm of a magnitude, read off its bits from below, gives its level or one less,
// and one comparison with the edge of the next level tells which. The level's line then gives the code in 65536ths.
// Rounding moves that by a few of these. Codes of magnitudes within 4 of them of the midpoint between two codes, which is
// rare, or of what is not finite, are looked at again, one by one, with the exact midpoints.
#pragma once

#include <optgen/int8_books.h>
#include <optgen/lanes.h>
#include <optgen/plain_loops.h>

namespace optgen {
namespace int8_lanes {

using namespace lanes;

// The book's numbers of a vector of codes.
template <bool is_signed> struct Values {
  using Tables = Int8Tables<is_signed>;
  Table slope = table(Tables::value_slope), offset = table(Tables::value_offset);

  OPTGEN_INLINE Floats operator()(Ints code) const {
    const Ints above = code - Tables::zero_code;
    const Floats x = to_floats(is_signed ? with_sign(above, above) : code) + Tables::value_shift;
    const Ints level = shifted_right((Ints)x, 23);
    const Floats value = fused(x, pick(slope, level), pick(offset, level));
    return is_signed ? (Floats)((Ints)value | (above & INT32_MIN)) : value;
  }
};

template <bool is_signed, int block>
inline void decode(const uint8_t* codes, const float* scales, float* out, int n) {
  const Values<is_signed> values;
  const PerBlock<block> scale(scales, n);
  int i = 0;
#pragma GCC unroll 2
  for (; i + count <= n; i += count) store(out + i, values(load_bytes(codes + i)) * scale.at(i));
  if (i < n) {
    uint8_t rest[count] = {};
    memcpy(rest, codes + i, n - i);
    const Floats x = values(load_bytes(rest)) * scale.at(i);
    memcpy(out + i, &x, (n - i) * sizeof(float));
  }
}

// How the logarithm in tens is read off a float's bits: between 2^-24 and 1 this is below it by 0.17 or 0.285 to 0.5,
// and of what is not finite the level, modulo 8, is the last one. The number that is added rounds it to a whole one, in
// its low bits.
constexpr float to_whole = 0x1.8p23f;
constexpr float slope_of_bits = 0.309 / 0x1p23;
template <bool is_signed> constexpr float offset_of_bits = 7.5 - 127.0 * 0.309 - (is_signed ? 0.285 : 0.17);

// Magnitudes over absmax, and their levels, modulo 8.
template <bool is_signed> struct Levels {
  Table edge = table(Int8Tables<is_signed>::level_edge);

  OPTGEN_INLINE void operator()(const float* values, float reciprocal, float* magnitudes, int32_t* levels) const {
    constexpr int32_t lowest = 0x33c00000;  // below every midpoint, and at level 0
    const Ints scaled = (Ints)(load(values) * reciprocal);
    const Ints y = larger(is_signed ? scaled & INT32_MAX : scaled, all(lowest));
    const Ints level =
        (Ints)fused(to_floats(y), all(slope_of_bits), all(offset_of_bits<is_signed> + to_whole));
    store(magnitudes, (Floats)y);
    store(levels, one_less_up_to(pick(edge, level), (Floats)y, level));
  }
};

// Codes in 65536ths, more by 4.
template <bool is_signed> struct Lines {
  using Tables = Int8Tables<is_signed>;
  Table slope = table(Tables::fixed_slope), offset = table(Tables::fixed_offset), end = table(Tables::fixed_end);

  OPTGEN_INLINE Ints operator()(const float* magnitudes, const int32_t* levels) const {
    const Ints level = load(levels);
    const Floats line = fused(load(magnitudes), pick(slope, level), pick(offset, level));
    return whole_part(smaller(line, pick(end, level)));
  }
};

// True where a midpoint is near.
OPTGEN_INLINE Ints is_doubtful(Ints fixed) { return (fixed & 0xfff8) == 0; }

// The encoder of vectors of any width.
template <bool is_signed> struct Encoder {
  // Two loops instead of one: within each, the processor finds more work that does not wait for other work. Returns, in
  // the even halves, what is nearest to a midpoint.
  template <int block>
  OPTGEN_INLINE static Ints encode(const float* values, const Reciprocals<block>& reciprocals, uint8_t* codes, int n) {
    alignas(64) float magnitudes[TILE];
    alignas(64) int32_t levels[TILE];
    const Levels<is_signed> to_levels;
#pragma GCC unroll 4
    for (int i = 0; i < n; i += count) to_levels(values + i, reciprocals.at(i), magnitudes + i, levels + i);
    const Lines<is_signed> lines;
    Halves least = (Halves)all(-1);
#pragma GCC unroll 1
    for (int i = 0; i < n; i += group) {
      Ints each[4];
      for (int v = 0; v < 4; ++v) {
        const int at = i + count * v;
        const Ints fixed = lines(magnitudes + at, levels + at);
        least = smaller(least, (Halves)fixed);
        each[v] = is_signed ? with_sign(fixed >> 16, (Ints)load(values + at)) : fixed >> 16;
      }
      store(codes + i, to_bytes(each, Int8Tables<is_signed>::zero_code));
    }
    return (Ints)least;
  }

  static Ints fixed(const float* values, float reciprocal) {
    float magnitudes[count];
    int32_t levels[count];
    Levels<is_signed>()(values, reciprocal, magnitudes, levels);
    return Lines<is_signed>()(magnitudes, levels);
  }
};

// A code that may be one too high or too low, made right.
template <bool is_signed> inline uint8_t mended(uint8_t code, float value, float reciprocal) {
  using Tables = Int8Tables<is_signed>;
  constexpr int largest = 255 - Tables::zero_code;
  const float y = scaled_magnitude<is_signed>(value, reciprocal);
  const bool negative = is_signed && int32_t(float_bits(value)) < 0;
  const int guess = negative ? Tables::zero_code - code : code - Tables::zero_code;
  int k = guess > 0 && y > 0.0f ? guess - 1 : 0;
  for (int more = 0; more < 2; ++more) k += k < largest && y > Tables::midpoints[k];
  return uint8_t(negative ? Tables::zero_code - (k < 127 ? k : 127) : Tables::zero_code + k);
}

// The doubtful ones of n codes, a multiple of `count`, made right.
template <template <bool> class Encoder, bool is_signed, int block>
__attribute__((noinline)) void mend(const float* values, const Reciprocals<block>& reciprocals, uint8_t* codes, int n) {
  for (int at = 0; at < n; at += count) {
    const Ints doubtful = is_doubtful(Encoder<is_signed>::fixed(values + at, reciprocals.at(at)));
    if (!any(doubtful)) continue;
    for (int i = at; i < at + count; ++i)
      if (doubtful[i - at] != 0) codes[i] = mended<is_signed>(codes[i], values[i], reciprocals.at(i));
  }
}

template <template <bool> class Encoder, bool is_signed, int block>
OPTGEN_INLINE void encode_groups(const float* values, const Reciprocals<block>& reciprocals, uint8_t* codes, int n) {
  const Ints nearest = Encoder<is_signed>::encode(values, reciprocals, codes, n);
  if (__builtin_expect(any(is_doubtful(nearest)), false)) mend<Encoder, is_signed>(values, reciprocals, codes, n);
}

template <template <bool> class Encoder, bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  const Reciprocals<block> reciprocals(scales, n);
  if (n % group == 0) {
    encode_groups<Encoder, is_signed>(values, reciprocals, codes, n);
  } else if (n > 0) {
    float padded[TILE] = {};
    uint8_t padded_codes[TILE];
    memcpy(padded, values, n * sizeof(float));
    encode_groups<Encoder, is_signed>(padded, reciprocals, padded_codes, (n / group + 1) * group);
    memcpy(codes, padded_codes, n);
  }
}

}  // namespace int8_lanes
}  // namespace optgen
