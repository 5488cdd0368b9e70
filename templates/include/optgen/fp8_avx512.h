// The codes e4m3fn with AVX-512. Included by fp8.h, where the rule stands.
//
// Numbers are read through fp16, which has the same subnormal numbers 2^8 times smaller; its conversion to float takes
// them for what they are however the processor is set.
#pragma once

#include <immintrin.h>
#include <optgen/scales.h>
#include <stdint.h>

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace fp8_avx512 {

inline __mmask16 first(int count) {
  return count >= 16 ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1u);
}

template <int block> inline void decode(const uint8_t* codes, const float* scales, float* out, int n) {
  const PerBlock<block> scale(scales, n);
  for (int i = 0; i < n; i += 32) {
    const __mmask32 there = n - i >= 32 ? ~__mmask32(0) : (__mmask32(1) << (n - i)) - 1;
    const __m512i code = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, codes + i));
    const __m512i all_ones = _mm512_set1_epi16(0x3f80);
    const __m512i magnitude = _mm512_and_si512(_mm512_slli_epi16(code, 7), all_ones);
    const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), _mm512_set1_epi16(INT16_MIN));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, all_ones);
    const __m512i halves = _mm512_or_si512(_mm512_mask_mov_epi16(magnitude, nan, _mm512_set1_epi16(0x7e00)), sign);
    const __m512 factor = _mm512_set1_ps(0x1p8f * (1.0f / 448.0f));
    const __m512 absmax = _mm512_set1_ps(scale.at(i));
    const __m512 low = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), factor);
    const __m512 high = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), factor);
    _mm512_mask_storeu_ps(out + i, first(n - i), _mm512_mul_ps(low, absmax));
    _mm512_mask_storeu_ps(out + i + 16, first(n - i - 16), _mm512_mul_ps(high, absmax));
  }
}

// 16 codes of magnitudes up to 448.
inline __m512i codes_of(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7ffff - (120 << 23)));
  const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(half, odd), 20);
  const __m512i sum = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(0x1p14f)));  // rounds to multiples of 2^-9
  const __mmask16 small = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x3c800000));
  return _mm512_mask_sub_epi32(normal, small, sum, _mm512_set1_epi32(0x46800000));
}

template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  constexpr int nan_or_infinite = 0x99;
  const Reciprocals<block> reciprocals(scales, n);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 there = first(n - i);
    const __m512 x = _mm512_maskz_loadu_ps(there, values + i);
    const __mmask16 finite = __mmask16(~_mm512_fpclass_ps_mask(x, nan_or_infinite));
    const __m512 scaled = _mm512_maskz_mul_ps(finite, x, _mm512_set1_ps(reciprocals.at(i)));
    // A y of a little more than 1 has the code of 1.
    const __m512 y = is_signed ? _mm512_abs_ps(scaled) : _mm512_max_ps(scaled, _mm512_setzero_ps());
    __m512i code = codes_of(_mm512_mul_ps(y, _mm512_set1_ps(448.0f)));
    if (is_signed) {  // zero has no sign
      const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(x));
      const __mmask16 signed_codes = _mm512_mask_test_epi32_mask(negative, code, code);
      code = _mm512_mask_or_epi32(code, signed_codes, code, _mm512_set1_epi32(0x80));
    }
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, there, code);
  }
}

}  // namespace fp8_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
