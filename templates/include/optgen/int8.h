// The 8-bit codes of dynamic maps: the nearest number of a book, whose numbers lie on one line a decade.
//
// The rule, bit for bit the same on every target: y = |x| * (1 / absmax), the reciprocal rounded first; the code counts
// the midpoints below y (ties go toward zero), 127 + k or 127 - min(k, 127) in the signed book, k in the unsigned one,
// where negative elements get 0. Elements that are not finite get the code of zero, and so does all of a block whose
// absmax is below the smallest normal float. Decoding multiplies the book's value by absmax.
//
// Encoding needs no search: the smallest of one line a decade gives the code or one less (see int8_books.h), and one
// comparison with the exact midpoint above tells which. There is no branch on an element's value.
//
// Implementations: vectors (int8_lanes.h), AVX-512 with VBMI (int8_avx512.h), and plain loops that any
// compiler takes. OPTGEN_GENERIC forces the plain ones.
#pragma once

#include <stdint.h>

#include "dtypes.h"
#include "int8_books.h"
#include "lanes.h"
#include "plain_loops.h"

#if defined(OPTGEN_LANES)
#include "int8_lanes.h"
#endif
#if defined(OPTGEN_LANES) && defined(__AVX512VBMI__)
#define OPTGEN_INT8_AVX512 1
#include "int8_avx512.h"
#endif

namespace optgen {
namespace int8_plain {

// Fused where the processor does that fast: the lines' last bits do not matter.
inline float line(float y, float slope, float offset) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(y, slope, offset);
#else
  return y * slope + offset;
#endif
}

// Two loops, since one has more constants than a processor has registers.
template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  using Tables = Int8Tables<is_signed>;
  alignas(64) float scaled[TILE];
  alignas(64) int32_t guesses[TILE];
  const Reciprocals<block> reciprocals(scales, n);
  for (int from = 0; from < n; from += block) {
    const int end = from + block < n ? from + block : n;
    const float reciprocal = reciprocals.at(from);
    for (int i = from; i < end; ++i) {
      const float y = scaled_magnitude<true>(values[i], reciprocal);
      float guess = line(y, Tables::slope[0], Tables::offset[0]);
      for (int l = 1; l < 7; ++l) {
        const float next = line(y, Tables::slope[l], Tables::offset[l]);
        guess = next < guess ? next : guess;
      }
      scaled[i] = y;
      guesses[i] = int32_t(guess);
    }
  }
  for (int i = 0; i < n; ++i) {
    const int32_t k = guesses[i] + (scaled[i] > Tables::midpoints[guesses[i]] ? 1 : 0);
    const int32_t negative = is_signed ? 127 - (k < 127 ? k : 127) : 0;
    const int32_t positive = is_signed ? 127 + k : k;
    codes[i] = uint8_t(int32_t(float_bits(values[i])) < 0 ? negative : positive);
  }
}

}  // namespace int8_plain

template <bool is_signed> struct Int8 {
  using Code = uint8_t;
  static constexpr int packed = 1;

  static float value(Code code) { return Int8Tables<is_signed>::book[code]; }

  // out[i] = the number of codes[i] times its block's scale, for n <= TILE elements.
  template <int block> static void decode(const Code* codes, const float* scales, float* out, int n) {
#if defined(OPTGEN_INT8_AVX512)
    int8_avx512::decode<is_signed, block>(codes, scales, out, n);
#elif defined(OPTGEN_LANES)
    int8_lanes::decode<is_signed, block>(codes, scales, out, n);
#else
    decode_each<Int8, block>(codes, scales, out, n);
#endif
  }

  // codes[i] = the code nearest to values[i] over its block's scale, which must be at least the largest finite magnitude
  // in the block, as finite_absmax gives it for those elements or for more.
  template <int block> static void encode(const float* values, const float* scales, Code* codes, int n) {
#if defined(OPTGEN_INT8_AVX512)
    int8_lanes::encode<int8_avx512::Encoder, is_signed, block>(values, scales, codes, n);
#elif defined(OPTGEN_LANES)
    int8_lanes::encode<int8_lanes::Encoder, is_signed, block>(values, scales, codes, n);
#else
    int8_plain::encode<is_signed, block>(values, scales, codes, n);
#endif
  }
};

}  // namespace optgen
