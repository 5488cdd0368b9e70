// Vectors of 16 with AVX-512. Included by lanes.h.
#pragma once

#include <immintrin.h>
#include <optgen/lanes.h>

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace lanes {

// Eight numbers, and table[index % 8].
typedef Floats Table;
OPTGEN_INLINE Table table(const float* from) { return (Table)_mm512_broadcast_f32x8(_mm256_loadu_ps(from)); }
OPTGEN_INLINE Table table(const int32_t* from) { return table(reinterpret_cast<const float*>(from)); }
OPTGEN_INLINE Floats pick(Table table, Ints index) {
  return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
}

// Sixteen numbers, and table[the upper four bits of an index].
struct Sixteen {
  __m512 numbers;
};
OPTGEN_INLINE Sixteen sixteen(const float* from) { return {_mm512_loadu_ps(from)}; }
OPTGEN_INLINE Floats pick(const Sixteen& table, Ints index) {
  return (Floats)_mm512_permutexvar_ps((__m512i)shifted_right(index, 28), table.numbers);
}

// a * b + c with one rounding.
OPTGEN_INLINE Floats fused(Floats a, Floats b, Floats c) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

// Numbers rounded up to whole ones.
OPTGEN_INLINE Ints rounded_up(Floats x) {
  return (Ints)_mm512_cvt_roundps_epi32((__m512)x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
}

// 16 bytes as numbers.
OPTGEN_INLINE Ints load_bytes(const uint8_t* from) {
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Codes of four bits, the first in the upper half of a byte, as the upper bits of numbers.
OPTGEN_INLINE Ints load_nibbles(const uint8_t* from) {
  uint64_t eight;
  memcpy(&eight, from, sizeof eight);
  const __m512i halves = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                                  _mm512_set1_epi64(int64_t(eight)));
  return (Ints)halves << Ints{24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4};
}

// 16 numbers of 16 bits, without a sign.
OPTGEN_INLINE Ints load_halves(const void* from) {
  return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}

// The lower (0) or upper (1) halves of 32 numbers.
template <int upper> OPTGEN_INLINE __m512i halves_of(Ints first, Ints second) {
  const __m512i number = _mm512_cvtepu8_epi16(
      _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
                       27, 28, 29, 30, 31));
  const __m512i at = _mm512_add_epi16(_mm512_add_epi16(number, number), _mm512_set1_epi16(upper));
  return _mm512_permutex2var_epi16((__m512i)first, at, (__m512i)second);
}

// 32 numbers from 0 to 65535 as 16 bits each, or the upper or lower halves of 32 numbers.
OPTGEN_INLINE void store_halves(void* to, Ints first, Ints second) {
  _mm512_storeu_si512(to, halves_of<0>(first, second));
}
OPTGEN_INLINE void store_upper_halves(void* to, Ints first, Ints second) {
  _mm512_storeu_si512(to, halves_of<1>(first, second));
}
OPTGEN_INLINE void store_lower_halves(void* to, Ints first, Ints second) { store_halves(to, first, second); }

// The second lowest bytes of 32 numbers.
OPTGEN_INLINE void store_second_bytes(void* to, Ints first, Ints second) {
  const __m512i halves = _mm512_srli_epi16(halves_of<0>(first, second), 8);
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi16_epi8(halves));
}

// x with the sign that `sign` has as a number; x is 0 where that is 0.
OPTGEN_INLINE Ints with_sign(Ints x, Ints sign) { return sign < 0 ? -x : x; }

// x, less one where y <= edge.
OPTGEN_INLINE Ints one_less_up_to(Floats edge, Floats y, Ints x) {
  const __mmask16 up_to = _mm512_cmp_ps_mask((__m512)y, (__m512)edge, _CMP_LE_OQ);
  return (Ints)_mm512_mask_sub_epi32((__m512i)x, up_to, (__m512i)x, _mm512_set1_epi32(1));
}

OPTGEN_INLINE bool any(Ints mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }

// The 64 numbers x + shift as bytes, at least 0 and at most 255, for x and sums of 16 bits.
OPTGEN_INLINE Bytes to_bytes(const Ints (&x)[4], int16_t shift) {
  const Shorts first = (Shorts)_mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]) + shift;
  const Shorts second = (Shorts)_mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]) + shift;
  // Packing works within 128 bits, where it leaves four bytes of each vector.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Bytes)_mm512_permutexvar_epi32(order, _mm512_packus_epi16((__m512i)first, (__m512i)second));
}

// The lower four bits of 64 bytes, two to a byte, the first in the upper half.
OPTGEN_INLINE void store_nibbles(uint8_t* to, Bytes x) {
  const Halves pairs = (Halves)x;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi16_epi8((__m512i)(pairs << 4 | pairs >> 8)));
}

// The product of the lower halves.
OPTGEN_INLINE Wide product(Wide a, uint32_t b) { return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b)); }

// The lower 64 bits of each 128 of `a`, each before those of `b`; then the upper ones.
OPTGEN_INLINE void store_pairs(void* to, Wide a, Wide b) {
  _mm512_storeu_si512(to, _mm512_unpacklo_epi64((__m512i)a, (__m512i)b));
  _mm512_storeu_si512(static_cast<__m512i*>(to) + 1, _mm512_unpackhi_epi64((__m512i)a, (__m512i)b));
}

}  // namespace lanes
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
