// The 4-bit codes with AVX-512, whose registers hold a whole book. Included by int4.h, where the rule stands.
#pragma once

#include <immintrin.h>
#include <optgen/int4_books.h>
#include <optgen/scales.h>
#include <stdint.h>

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace int4_avx512 {

constexpr int chunk = 64;

inline __mmask16 first(int count) {
  return count >= 16 ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1u);
}

template <bool is_signed, int block>
inline void decode(const uint8_t* codes, const float* scales, float* out, int n) {
  const __m512 book = _mm512_load_ps(Int4Tables<is_signed>::book);
  const PerBlock<block> scale(scales, n);
  for (int i = 0; i < n; i += chunk) {
    const int bytes = (n - i + 1) / 2;
    const __mmask32 there = bytes >= 32 ? ~__mmask32(0) : (__mmask32(1) << bytes) - 1;
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, codes + i / 2));
    const __m512i second = _mm512_slli_epi16(_mm512_and_si512(pairs, _mm512_set1_epi16(15)), 8);
    alignas(64) uint8_t each[chunk];
    _mm512_store_si512(each, _mm512_or_si512(_mm512_srli_epi16(pairs, 4), second));
    for (int v = 0; v < chunk && i + v < n; v += 16) {
      const __m512i index = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(each + v)));
      const __m512 x = _mm512_mul_ps(_mm512_permutexvar_ps(index, book), _mm512_set1_ps(scale.at(i + v)));
      _mm512_mask_storeu_ps(out + i + v, first(n - i - v), x);
    }
  }
}

// 16 codes. `scaled` is x over absmax, 0 where x is not finite.
template <bool is_signed> inline __m512i codes_of(__m512 scaled) {
  if (!is_signed) {
    const __m512 above = _mm512_fmadd_ps(scaled, _mm512_set1_ps(16.0f), _mm512_set1_ps(-1.5f));
    const __m512i code = _mm512_cvt_roundps_epi32(above, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    return _mm512_max_epi32(code, _mm512_setzero_si512());
  }
  // The lower of two lines, without its fraction, is the number of midpoints below y or one less.
  const __m512 y = _mm512_abs_ps(scaled);
  const __m512 fine = _mm512_fmadd_ps(y, _mm512_set1_ps(30.0f), _mm512_set1_ps(0.7f));
  const __m512 coarse = _mm512_fmadd_ps(y, _mm512_set1_ps(4.6f), _mm512_set1_ps(3.0f));
  const __m512i guess = _mm512_cvttps_epi32(_mm512_min_ps(fine, coarse));
  const __m512 midpoint = _mm512_permutexvar_ps(guess, _mm512_load_ps(Int4Tables<true>::midpoints));
  const __mmask16 above = _mm512_cmp_ps_mask(y, midpoint, _CMP_GT_OQ);
  const __m512i k = _mm512_mask_sub_epi32(guess, above, guess, _mm512_set1_epi32(-1));
  const __m512i zero = _mm512_set1_epi32(7);
  const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(scaled));
  // The largest magnitude, 8, has no negative.
  return _mm512_max_epi32(_mm512_mask_sub_epi32(_mm512_add_epi32(zero, k), negative, zero, k), _mm512_setzero_si512());
}

template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  constexpr int nan_or_infinite = 0x99;
  const Reciprocals<block> reciprocals(scales, n);
  alignas(64) uint8_t each[TILE];
  for (int i = 0; i < n; i += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(first(n - i), values + i);
    const __mmask16 finite = __mmask16(~_mm512_fpclass_ps_mask(x, nan_or_infinite));
    const __m512 scaled = _mm512_maskz_mul_ps(finite, x, _mm512_set1_ps(reciprocals.at(i)));
    _mm_store_si128(reinterpret_cast<__m128i*>(each + i), _mm512_cvtepi32_epi8(codes_of<is_signed>(scaled)));
  }
  if (n % 2) each[n] = 0;  // no element has the other half of the last byte
  for (int i = 0; i < n; i += chunk) {
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_load_si512(each + i), _mm512_set1_epi16(0x0110));  // 16 a + b
    const int bytes = (n - i + 1) / 2;
    const __mmask32 there = bytes >= 32 ? ~__mmask32(0) : (__mmask32(1) << bytes) - 1;
    _mm256_mask_storeu_epi8(codes + i / 2, there, _mm512_cvtepi16_epi8(pairs));
  }
}

}  // namespace int4_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
