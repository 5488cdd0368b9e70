// Reading and writing 16-bit parameters where more than rounding to nearest is asked for, n <= TILE elements
// at a time: rounded at random, or with what is lost kept beside them. The rules are those of torch_rounding.py.
//
// Writing has two implementations: vectors (rounding_lanes.h), and plain loops that any compiler vectorises.
#pragma once

#include <optgen/convert.h>
#include <optgen/dtypes.h>
#include <optgen/lanes.h>
#include <optgen/scales.h>
#include <stdint.h>

namespace optgen {

inline bool is_finite(uint32_t bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

// yes ? a : b, never as a branch, which would keep compilers from vectorising.
inline uint32_t pick(bool yes, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & -uint32_t(yes)); }

// Rounded down or up in magnitude: up where 16 random bits are below the fraction of the last place, in 2^-16.
inline void store_at_random(bf16& x, float value, uint32_t random) {
  const uint32_t bits = float_bits(value);
  bf16 nearest;
  store(nearest, value);
  x.bits = is_finite(bits) ? uint16_t((bits + random) >> 16) : nearest.bits;
}

inline void store_at_random(fp16& x, float value, uint32_t random) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const uint32_t sum = ((magnitude + (random >> 3)) >> 13) - (112u << 10);
  const uint32_t normal = sum < 0x7c00u ? sum : 0x7c00u;
  // Below 2^-14 the last place is 2^-24. A subnormal float, which the caller may have set the processor to flush, is
  // rounded as the smallest normal one is.
  const uint32_t at_least = magnitude > 0x00800000u ? magnitude : 0x00800000u;
  const float places = bits_float(pick((magnitude < 0x38800000u) & (magnitude > 0u), at_least, 0u)) * 0x1p24f;
  const int32_t down = int32_t(places);
  const uint32_t subnormal = uint32_t(down) + uint32_t(float(int32_t(random)) < (places - float(down)) * 0x1p16f);
  const uint32_t finite = pick(magnitude < 0x38800000u, subnormal, normal);
  const uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x1ffu);
  const uint32_t special = pick(magnitude > 0x7f800000u, nan, 0x7c00u);
  x.bits = uint16_t(sign | pick(magnitude < 0x7f800000u, finite, special));
}

namespace rounding_plain {

template <class T> inline void round_at_random(const float* values, const uint16_t* random, T* out, int n) {
  for (int i = 0; i < n; ++i) store_at_random(out[i], values[i], random[i]);
}

}  // namespace rounding_plain

// Kahan summation: what rounding to nearest took away is kept in the parameter's own format.
template <class T> inline void join_kahan(const T* param, const T* rest, float* out, int n) {
  alignas(64) float rests[TILE];
  to_floats(param, out, n);
  to_floats(rest, rests, n);
  for (int i = 0; i < n; ++i) out[i] += rests[i];
}

inline void join_kahan(const bf16* param, const bf16* rest, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = load(param[i]) + load(rest[i]);
}

namespace rounding_plain {

template <class T> inline void split_kahan(const float* values, T* param, T* rest, int n) {
  alignas(64) float rests[TILE];
  from_floats(values, param, n);
  to_floats(param, rests, n);
  for (int i = 0; i < n; ++i) {
    const bool exact = is_finite(float_bits(values[i])) && is_finite(float_bits(rests[i]));
    rests[i] = bits_float(exact ? float_bits(values[i] - rests[i]) : 0u);
  }
  from_floats(rests, rest, n);
}

}  // namespace rounding_plain

// Split weights: the parameter is the upper half of a float, rounded half up; beside it the signed difference, in units
// of 2^cut in the last place.
template <class Beside> constexpr int cut_of = 16 - 8 * int(sizeof(Beside));

template <class Beside> inline void join_split(const bf16* param, const Beside* beside, float* out, int n) {
  for (int i = 0; i < n; ++i)
    out[i] = bits_float((uint32_t(param[i].bits) << 16) + (uint32_t(int32_t(beside[i])) << cut_of<Beside>));
}

// To nearest even, without the last bits that no place is for.
template <class Beside> inline uint32_t cut_bits(uint32_t bits) {
  constexpr int cut = cut_of<Beside>;
  if (cut == 0) return bits;
  const uint32_t rounded = (bits + (1u << cut >> 1) - 1u + (bits >> cut & 1u)) & ~((1u << cut) - 1u);
  return is_finite(bits) ? rounded : bits;
}

namespace rounding_plain {

template <class Beside> inline void split(const float* values, bf16* param, Beside* beside, int n) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = cut_bits<Beside>(float_bits(values[i]));
    const uint32_t half_up = (bits + 0x8000u) & 0xffff0000u;
    bf16 nearest;
    store(nearest, bits_float(bits));
    param[i].bits = is_finite(bits) ? uint16_t(half_up >> 16) : nearest.bits;
    const bool exact = is_finite(bits) && is_finite(half_up);
    beside[i] = Beside(exact ? int32_t(bits - half_up) >> cut_of<Beside> : 0);
  }
}

}  // namespace rounding_plain
}  // namespace optgen

#if defined(OPTGEN_LANES)
#include <optgen/rounding_lanes.h>
#else
namespace optgen {
using namespace rounding_plain;
}
#endif
