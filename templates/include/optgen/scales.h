// The scales of quantized states (absmax), one for every `block` elements of a tile.
#pragma once

#include <optgen/dtypes.h>
#include <optgen/math.h>
#include <stdint.h>

#if !defined(OPTGEN_GENERIC) && defined(__AVX512F__)
#define OPTGEN_SCALES_AVX512 1
#include <optgen/scales_avx512.h>
#endif

namespace optgen {

constexpr int TILE = 256;  // elements that are read and written at once: a multiple of every block

// The largest magnitude among the n finite values; 0 if there is none or if it is below the smallest normal float,
// whose reciprocal would be infinite.
inline float finite_absmax(const float* values, int n) {
  constexpr int32_t infinity = 0x7f800000;
  int32_t largest = 0;
#pragma GCC unroll 4
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

// The scales of n <= TILE values.
template <int block> inline void measure_blocks(const float* values, float* scales, int n) {
#if defined(OPTGEN_SCALES_AVX512)
  if (block == 32 && n == TILE && scales_avx512::measure_blocks_of_32(values, scales)) return;
#endif
  int whole = 0;
  for (; (whole + 1) * block <= n; ++whole) scales[whole] = finite_absmax(values + whole * block, block);
  if (whole * block < n) scales[whole] = finite_absmax(values + whole * block, n - whole * block);
}

// A number for every block of a tile, where a compiler sees that nothing else changes it.
template <int block> struct PerBlock {
  float numbers[TILE / block];

  PerBlock(const float* scales, int n) {
    if (n > TILE - block) {  // the usual case: a number of copies that is known
      for (int b = 0; b < TILE / block; ++b) numbers[b] = scales[b];
    } else {
      for (int b = 0; b < TILE / block; ++b) numbers[b] = b * block < n ? scales[b] : 0.0f;
    }
  }

  float at(int element) const { return numbers[block == TILE ? 0u : unsigned(element) / unsigned(block)]; }
};

// Factors of values when they are encoded.
template <int block> struct Reciprocals : PerBlock<block> {
  Reciprocals(const float* scales, int n) : PerBlock<block>(scales, n) {
    for (float& x : this->numbers) x = x >= smallest_absmax ? 1.0f / x : 0.0f;
  }
};

}  // namespace optgen
