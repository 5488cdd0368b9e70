// The 8-bit codecs: up to 256 elements that share one scale (absmax), from codes to floats and back.
//
// The rule, bit for bit the same on every target: y = |x| * (1 / absmax), the reciprocal rounded first; the code counts
// the midpoints below y (ties go toward zero), 127 + k or 127 - min(k, 127) in the signed book, k in the unsigned one,
// where negative elements get 0. Elements that are not finite get the code of zero, and so does all of a block whose
// absmax is below the smallest normal float. Decoding multiplies the book's value by absmax.
//
// Encoding needs no search: the smallest of one line a decade gives the code or one less (see int8_books.h), and one
// comparison with the exact midpoint above tells which. There is no branch on an element's value.
//
// Two implementations: AVX-512 with VBMI (int8_avx512.h), and plain loops that any compiler vectorises. OPTGEN_GENERIC
// forces the plain one.
#pragma once

#include <stdint.h>

#include "dtypes.h"
#include "int8_books.h"

#if !defined(OPTGEN_GENERIC) && defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define OPTGEN_INT8_AVX512 1
#include "int8_avx512.h"
#endif

namespace optgen {

constexpr int int8_block = 256;
constexpr float smallest_absmax = 0x1p-126f;

// The largest magnitude among the n finite values; 0 if there is none or if it is below the smallest normal float,
// whose reciprocal would be infinite.
inline float finite_absmax(const float* values, int n) {
  constexpr int32_t infinity = 0x7f800000;
  int32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t bits = int32_t(float_bits(values[i]) & 0x7fffffffu);  // magnitudes are ordered as their bits are
    largest = bits > largest ? bits : largest;
  }
  if (largest >= infinity) {  // rare: look again, without the values that are not finite
    largest = 0;
    for (int i = 0; i < n; ++i) {
      const int32_t bits = int32_t(float_bits(values[i]) & 0x7fffffffu);
      const int32_t finite = bits < infinity ? bits : 0;
      largest = finite > largest ? finite : largest;
    }
  }
  const float absmax = bits_float(uint32_t(largest));
  return absmax < smallest_absmax ? 0.0f : absmax;
}

namespace int8_generic {

template <bool is_signed>
inline void decode(const uint8_t* codes, float absmax, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = Int8Tables<is_signed>::book[codes[i]] * absmax;
}

// Fused where the processor does that fast: the lines' last bits do not matter.
inline float line(float y, float slope, float offset) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(y, slope, offset);
#else
  return y * slope + offset;
#endif
}

// Two loops, since one has more constants than a processor has registers.
template <bool is_signed>
inline void encode(const float* values, float reciprocal, uint8_t* codes, int n) {
  using Tables = Int8Tables<is_signed>;
  alignas(64) float scaled[int8_block];
  alignas(64) int32_t guesses[int8_block];
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = float_bits(values[i]) & 0x7fffffffu;
    float y = bits_float(magnitude < 0x7f800000u ? magnitude : 0u) * reciprocal;
    y = y < 1.0f ? y : 1.0f;  // a reciprocal rounded up can give a little more
    float guess = line(y, Tables::slope[0], Tables::offset[0]);
    for (int l = 1; l < 7; ++l) {
      const float next = line(y, Tables::slope[l], Tables::offset[l]);
      guess = next < guess ? next : guess;
    }
    scaled[i] = y;
    guesses[i] = int32_t(guess);
  }
  for (int i = 0; i < n; ++i) {
    const int32_t k = guesses[i] + (scaled[i] > Tables::midpoints[guesses[i]] ? 1 : 0);
    const int32_t negative = is_signed ? 127 - (k < 127 ? k : 127) : 0;
    const int32_t positive = is_signed ? 127 + k : k;
    codes[i] = uint8_t(int32_t(float_bits(values[i])) < 0 ? negative : positive);
  }
}

}  // namespace int8_generic

// out[i] = the value of codes[i] times absmax, for n <= 256 elements.
template <bool is_signed>
inline void int8_decode(const uint8_t* codes, float absmax, float* out, int n) {
#if defined(OPTGEN_INT8_AVX512)
  int8_avx512::decode<is_signed>(codes, absmax, out, n);
#else
  int8_generic::decode<is_signed>(codes, absmax, out, n);
#endif
}

// codes[i] = the code nearest to values[i] / absmax, for n <= 256 elements. absmax must be at least the largest finite
// magnitude among the values, as finite_absmax gives it for them or for more.
template <bool is_signed>
inline void int8_encode(const float* values, float absmax, uint8_t* codes, int n) {
  const float reciprocal = absmax >= smallest_absmax ? 1.0f / absmax : 0.0f;
#if defined(OPTGEN_INT8_AVX512)
  int8_avx512::encode<is_signed>(values, reciprocal, codes, n);
#else
  int8_generic::encode<is_signed>(values, reciprocal, codes, n);
#endif
}

}  // namespace optgen
