// Parameters of 16 bits, two vectors at a time. Included by rounding.h, where the rules stand.
//
// Vectors serve numbers that are finite, also when they have been rounded. Where any other is among the values, which is
// rare, the plain loops do all of it again.
#pragma once

#include <optgen/dtypes.h>
#include <optgen/lanes.h>

namespace optgen {
namespace rounding_lanes {

using namespace lanes;

constexpr int together = 2 * count;

OPTGEN_INLINE Ints magnitude(Ints bits) { return bits & INT32_MAX; }
OPTGEN_INLINE Ints larger_magnitude(Ints a, Ints b) { return larger(magnitude(a), magnitude(b)); }

// The float of 16 upper bits that is nearest to a finite one, ties to even.
OPTGEN_INLINE Ints nearest_bf16(Ints bits) {
  return (bits + 0x7fff + (shifted_right(bits, 16) & 1)) & int32_t(0xffff0000u);
}

constexpr int32_t rounds_to_infinity = 0x7f7f7f80;  // the least magnitude that does, in any of the ways below

// Runs `group`, which gives the larger magnitudes of its values, from one multiple of `together` to the next; `plain`
// on the rest, or on all values where `group` does not serve one of them.
template <class Group, class Plain> OPTGEN_INLINE void in_groups(int n, const Group& group, const Plain& plain) {
  const int whole = n / together * together;
  Ints largest{};
  for (int i = 0; i < whole; i += together) largest = larger(largest, group(i));
  const int from = __builtin_expect(any(largest >= rounds_to_infinity), false) ? 0 : whole;
  if (from < n) plain(from, n - from);
}

OPTGEN_INLINE Ints at_random(const float* values, const uint16_t* random, bf16* to) {
  const Ints a = (Ints)load(values), b = (Ints)load(values + count);
  store_upper_halves(to, a + load_halves(random), b + load_halves(random + count));
  return larger_magnitude(a, b);
}

OPTGEN_INLINE Ints fp16_at_random(Ints bits, Ints random) {
  const Ints m = magnitude(bits), sum = shifted_right(m + (random >> 3), 13) - (112 << 10);
  const Ints normal = sum < 0x7c00 ? sum : all(0x7c00);
  // Below 2^-14 the last place is 2^-24. A subnormal float, which the caller may have set the processor to flush, is
  // rounded as the smallest normal one is.
  const Floats places = (Floats)(larger(m, all(0x00800000)) & (m > 0)) * 0x1p24f;
  const Ints down = whole_part((Floats)((Ints)places & (m < 0x38800000)));
  const Ints subnormal = down - (to_floats(random) < (places - to_floats(down)) * 0x1p16f);
  return choose(m < 0x38800000, subnormal, normal) | (shifted_right(bits, 16) & 0x8000);
}

OPTGEN_INLINE Ints at_random(const float* values, const uint16_t* random, fp16* to) {
  const Ints a = (Ints)load(values), b = (Ints)load(values + count);
  store_halves(to, fp16_at_random(a, load_halves(random)), fp16_at_random(b, load_halves(random + count)));
  return larger_magnitude(a, b);
}

// What rounding to nearest took away is stored beside the parameter.
OPTGEN_INLINE Ints split_kahan(const float* values, bf16* param, bf16* rest) {
  const Floats a = load(values), b = load(values + count);
  const Ints near_a = nearest_bf16((Ints)a), near_b = nearest_bf16((Ints)b);
  store_upper_halves(param, near_a, near_b);
  store_upper_halves(rest, nearest_bf16((Ints)(a - (Floats)near_a)), nearest_bf16((Ints)(b - (Floats)near_b)));
  return larger_magnitude((Ints)a, (Ints)b);
}

template <int cut> OPTGEN_INLINE Ints cut_bits(Ints bits) {
  if (cut == 0) return bits;
  return (bits + ((1 << cut >> 1) - 1) + (shifted_right(bits, cut) & 1)) & int32_t(~((1u << cut) - 1u));
}

OPTGEN_INLINE void store_beside(int16_t* to, Ints a, Ints b) { store_lower_halves(to, a, b); }
OPTGEN_INLINE void store_beside(int8_t* to, Ints a, Ints b) { store_second_bytes(to, a, b); }

// The parameter is the upper half, rounded half up; the difference, which is stored beside it, is the lower half or the
// upper byte of that, read as a number with a sign.
template <class Beside> OPTGEN_INLINE Ints split(const float* values, bf16* param, Beside* beside) {
  const Ints x = (Ints)load(values), y = (Ints)load(values + count);
  const Ints a = cut_bits<cut_of<Beside>>(x), b = cut_bits<cut_of<Beside>>(y);
  store_upper_halves(param, a + 0x8000, b + 0x8000);
  store_beside(beside, a, b);
  return larger_magnitude(x, y);
}

}  // namespace rounding_lanes

template <class T> inline void round_at_random(const float* values, const uint16_t* random, T* out, int n) {
  rounding_lanes::in_groups(
      n, [&](int i) { return rounding_lanes::at_random(values + i, random + i, out + i); },
      [&](int i, int m) { rounding_plain::round_at_random(values + i, random + i, out + i, m); });
}

inline void split_kahan(const float* values, bf16* param, bf16* rest, int n) {
  rounding_lanes::in_groups(
      n, [&](int i) { return rounding_lanes::split_kahan(values + i, param + i, rest + i); },
      [&](int i, int m) { rounding_plain::split_kahan(values + i, param + i, rest + i, m); });
}
inline void split_kahan(const float* values, fp16* param, fp16* rest, int n) {
  rounding_plain::split_kahan(values, param, rest, n);
}

template <class Beside> inline void split(const float* values, bf16* param, Beside* beside, int n) {
  rounding_lanes::in_groups(
      n, [&](int i) { return rounding_lanes::split(values + i, param + i, beside + i); },
      [&](int i, int m) { rounding_plain::split(values + i, param + i, beside + i, m); });
}

}  // namespace optgen
