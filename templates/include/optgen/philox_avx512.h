// The random numbers of a whole tile with AVX-512. Included by philox_tile.h.
#pragma once

#include <immintrin.h>
#include <optgen/philox.h>
#include <optgen/scales.h>

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace philox_avx512 {

// Words stand in the lower halves of 64-bit lanes, where products are made; what is in the upper ones does not matter.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int vectors = TILE / 64;
  constexpr int all_three = 0x96;  // a ^ b ^ c
  __m512i a[vectors], b[vectors], c[vectors], d[vectors];
  const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  for (int v = 0; v < vectors; ++v) {
    a[v] = _mm512_add_epi64(_mm512_set1_epi64(at / 8 + 8 * v), lanes);
    b[v] = _mm512_srli_epi64(a[v], 32);
    c[v] = _mm512_set1_epi64(draw.position);
    d[v] = _mm512_set1_epi64(draw.step);
  }
  uint32_t first = uint32_t(draw.seed), second = uint32_t(draw.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const __m512i key0 = _mm512_set1_epi64(first), key1 = _mm512_set1_epi64(second);
    for (int v = 0; v < vectors; ++v) {
      const __m512i left = _mm512_mul_epu32(a[v], _mm512_set1_epi64(0xd2511f53));
      const __m512i right = _mm512_mul_epu32(c[v], _mm512_set1_epi64(0xcd9e8d57));
      a[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(right, 32), b[v], key0, all_three);
      c[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(left, 32), d[v], key1, all_three);
      b[v] = right;
      d[v] = left;
    }
    first += 0x9e3779b9u;
    second += 0xbb67ae85u;
  }
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  const __mmask16 upper_halves = 0xaaaa;
  for (int v = 0; v < vectors; ++v) {
    const __m512i ab = _mm512_mask_blend_epi32(upper_halves, a[v], _mm512_slli_epi64(b[v], 32));
    const __m512i cd = _mm512_mask_blend_epi32(upper_halves, c[v], _mm512_slli_epi64(d[v], 32));
    _mm512_storeu_si512(random + 64 * v, _mm512_permutex2var_epi64(ab, low, cd));
    _mm512_storeu_si512(random + 64 * v + 32, _mm512_permutex2var_epi64(ab, high, cd));
  }
}

}  // namespace philox_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
