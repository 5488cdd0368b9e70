// The scales of a tile in blocks of 32 with AVX-512, four at a time. Included by scales.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace scales_avx512 {

// The bits of the largest magnitudes of four blocks.
inline __m128i largest_of_four(const float* values) {
  const __m512i magnitude = _mm512_set1_epi32(INT32_MAX);
  __m512i m[4];
  for (int b = 0; b < 4; ++b) {
    const __m512i low = _mm512_and_si512(_mm512_loadu_si512(values + 32 * b), magnitude);
    const __m512i high = _mm512_and_si512(_mm512_loadu_si512(values + 32 * b + 16), magnitude);
    m[b] = _mm512_max_epi32(low, high);
  }
  // Every 128 bits: two of the first and the second block each, then one of each block.
  const __m512i first = _mm512_max_epi32(_mm512_unpacklo_epi32(m[0], m[1]), _mm512_unpackhi_epi32(m[0], m[1]));
  const __m512i second = _mm512_max_epi32(_mm512_unpacklo_epi32(m[2], m[3]), _mm512_unpackhi_epi32(m[2], m[3]));
  const __m512i four = _mm512_max_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
  const __m256i halves = _mm256_max_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
  return _mm_max_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

// The scales of 256 values; false, with nothing of use written, where a value is not finite.
inline bool measure_blocks_of_32(const float* values, float* scales) {
  const __m256i bits = _mm256_set_m128i(largest_of_four(values + 128), largest_of_four(values));
  const __m256i normal = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x007fffff));
  _mm256_storeu_ps(scales, _mm256_castsi256_ps(_mm256_and_si256(bits, normal)));
  return _mm256_testz_si256(_mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f7fffff)), _mm256_set1_epi32(-1));
}

}  // namespace scales_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
