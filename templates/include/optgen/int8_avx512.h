// Reading and writing 8-bit codes with AVX-512 and VBMI, 64 elements at a time. Included by int8.h, where the rule stands.
//
// Reading: VBMI looks up 64 bytes at once in a table of 128 (vpermi2b). So the tables are kept as four planes of bytes, and the
// looked-up planes are woven into floats: 64 exact lookups cost less than four gathers of 16.
//
// Order of elements. Weaving works within 128-bit lanes. So that it gives four vectors as they stand in memory, lane i
// of the planes must hold four bytes of vector 0, four of vector 1, and so on ("lane order"). One permutation of 32-bit
// words, its own inverse, leads from lane order to the order in memory.
//
// Writing is as in int8_lanes.h, with tables of 16 numbers in place of 8. They have room for an entry every two binades, so
// that an exponent is the index. The sign of all 64
// elements is one mask.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "int8_books.h"
#include "int8_lanes.h"
#include "scales.h"

// g++ 12 takes its own intrinsics' undefined pass-through operand, which their full mask never reads, for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace optgen {
namespace int8_avx512 {

constexpr int chunk = 64;

inline __m512i lane_order() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

// `size` floats as four planes of bytes, looked up 64 at a time.
template <int size>
struct Planes {
  static_assert(size == 128 || size == 256, "one or two tables of 128 bytes a plane");
  __m512i parts[4][size / 64];

  explicit Planes(const uint8_t (&bytes)[4][size]) {
    for (int plane = 0; plane < 4; ++plane)
      for (int part = 0; part < size / 64; ++part)
        parts[plane][part] = _mm512_loadu_si512(bytes[plane] + 64 * part);
  }

  __m512i lookup(int plane, __m512i index, __mmask64 upper) const {
    const __m512i low = _mm512_permutex2var_epi8(parts[plane][0], index, parts[plane][1]);
    if constexpr (size == 128) {
      (void)upper;
      return low;
    } else {
      return _mm512_mask_blend_epi8(
          upper, low, _mm512_permutex2var_epi8(parts[plane][size / 64 - 2], index, parts[plane][size / 64 - 1]));
    }
  }
};

// Four planes of bytes in lane order woven into four vectors of floats.
inline void weave(const __m512i (&plane)[4], __m512 (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(plane[0], plane[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(plane[0], plane[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(plane[2], plane[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(plane[2], plane[3]);
  out[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23));
  out[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23));
  out[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23));
  out[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23));
}

inline __mmask16 first(int count) {
  return count >= 16 ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1u);
}

template <bool is_signed>
struct Decoder;

template <>
struct Decoder<false> {
  Planes<256> book{Int8Tables<false>::book_bytes};

  void operator()(__m512i codes, __m512 (&out)[4]) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    const __m512i planes[4] = {book.lookup(0, codes, upper), book.lookup(1, codes, upper),
                               book.lookup(2, codes, upper), book.lookup(3, codes, upper)};
    weave(planes, out);
  }
};

// The planes hold magnitudes 1 to 128. Code 127 + k is magnitude k, 127 - k its negative; 127 itself is zero.
template <>
struct Decoder<true> {
  Planes<128> magnitudes{Int8Tables<true>::magnitude_bytes};

  void operator()(__m512i codes, __m512 (&out)[4]) const {
    const __mmask64 positive = _mm512_movepi8_mask(codes);  // codes 128 to 255
    const __mmask64 nonzero = _mm512_cmpneq_epi8_mask(codes, _mm512_set1_epi8(127));
    // The index counts from magnitude 1; only its lower 7 bits are looked at, so that a positive code is its own.
    const __m512i index = _mm512_mask_sub_epi8(codes, ~positive, _mm512_set1_epi8(126), codes);
    const __m512i sign = _mm512_maskz_mov_epi8(nonzero & ~positive, _mm512_set1_epi8(char(0x80)));
    __m512i planes[4];
    for (int plane = 0; plane < 4; ++plane)
      planes[plane] = _mm512_maskz_permutex2var_epi8(nonzero, magnitudes.parts[plane][0], index,
                                                     magnitudes.parts[plane][1]);
    planes[3] = _mm512_or_si512(planes[3], sign);
    weave(planes, out);
  }
};

template <bool is_signed, int block>
inline void decode(const uint8_t* codes, const float* scales, float* out, int n) {
  const Decoder<is_signed> decoder;
  const PerBlock<block> scale(scales, n);
  __m512 values[4];
  int i = 0;
  for (; i + chunk <= n; i += chunk) {
    decoder(_mm512_permutexvar_epi32(lane_order(), _mm512_loadu_si512(codes + i)), values);
    for (int v = 0; v < 4; ++v) {
      const __m512 absmax = _mm512_set1_ps(scale.at(i + 16 * v));
      _mm512_storeu_ps(out + i + 16 * v, _mm512_mul_ps(values[v], absmax));
    }
  }
  if (i < n) {
    const __mmask64 rest = (__mmask64(1) << (n - i)) - 1;
    decoder(_mm512_permutexvar_epi32(lane_order(), _mm512_maskz_loadu_epi8(rest, codes + i)), values);
    for (int v = 0; v < 4; ++v) {
      const __m512 absmax = _mm512_set1_ps(scale.at(i + 16 * v));
      _mm512_mask_storeu_ps(out + i + 16 * v, first(n - i - 16 * v), _mm512_mul_ps(values[v], absmax));
    }
  }
}

// The numbers of a level's line by the upper seven bits of an exponent, of which permutations look at the lower four: an
// entry serves numbers from a power of 4 to the next one, 2^-31 to 2 in all. Above its edge, at most one, the next serves.
template <bool is_signed> struct Entries {
  float edge[16], slope[16], offset[16], end[16];

  constexpr Entries() : edge{}, slope{}, offset{}, end{} {
    using Tables = Int8Tables<is_signed>;
    float least = 0x1p-31f;
    for (int i = 0; i <= 16; ++i, least *= 4.0f) {
      int level = 0;
      while (level < 7 && Tables::level_edge[level + 1] < least) ++level;
      if (i < 16) edge[i] = level < 7 ? Tables::level_edge[level + 1] : __builtin_inff();
      slope[i % 16] = Tables::fixed_slope[level];
      offset[i % 16] = Tables::fixed_offset[level];
      end[i % 16] = Tables::fixed_end[level];
    }
  }
};

// Byte `place` of the words of two vectors, one vector after the other.
template <int place> struct BytesOfTwo {
  alignas(64) uint8_t at[chunk];

  constexpr BytesOfTwo() : at{} {
    for (int i = 0; i < 32; ++i) at[i] = uint8_t(64 * (i / 16) + 4 * (i % 16) + place);
  }
};
template <int place> constexpr BytesOfTwo<place> bytes_of_two;

// Byte `place` of the words of four vectors.
template <int place> inline __m512i bytes_of(const __m512i (&x)[4]) {
  const __m512i at = _mm512_load_si512(bytes_of_two<place>.at);
  const __m512i first = _mm512_permutex2var_epi8(x[0], at, x[1]), second = _mm512_permutex2var_epi8(x[2], at, x[3]);
  return _mm512_inserti64x4(first, _mm512_castsi512_si256(second), 1);
}

template <bool is_signed> struct Encoder {
  static constexpr Entries<is_signed> entries{};
  __m512 edge = _mm512_loadu_ps(entries.edge), slope = _mm512_loadu_ps(entries.slope),
         offset = _mm512_loadu_ps(entries.offset), end = _mm512_loadu_ps(entries.end);

  // Magnitudes over absmax, at least a number below every midpoint, which also stands for what is not a number.
  static __m512 magnitude(__m512i x, float reciprocal) {
    const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(x), _mm512_set1_ps(reciprocal));
    const __m512 lowest = _mm512_set1_ps(0x1.8p-24f);
    constexpr int larger_magnitude = 0b1011;  // without a sign
    return is_signed ? _mm512_range_ps(scaled, lowest, larger_magnitude) : _mm512_max_ps(scaled, lowest);
  }

  __m512i level(__m512 y) const {
    const __m512i entry = _mm512_srli_epi32(_mm512_castps_si512(y), 24);
    const __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_permutexvar_ps(entry, edge), _CMP_GT_OQ);
    return _mm512_mask_add_epi32(entry, above, entry, _mm512_set1_epi32(1));
  }

  // Codes in 65536ths, more by 4.
  __m512i line(__m512 y, __m512i level) const {
    const __m512 at = _mm512_fmadd_ps(y, _mm512_permutexvar_ps(level, slope), _mm512_permutexvar_ps(level, offset));
    return _mm512_cvttps_epi32(_mm512_min_ps(at, _mm512_permutexvar_ps(level, end)));
  }

  static lanes::Ints fixed(const float* values, float reciprocal) {
    const Encoder encoder;
    const __m512 y = magnitude(_mm512_loadu_si512(values), reciprocal);
    return (lanes::Ints)encoder.line(y, encoder.level(y));
  }

  // Returns, in the even halves, what is nearest to a midpoint. Four vectors take each stage together: what waits for
  // another operation then stands far from it.
  template <int block>
  static lanes::Ints encode(const float* values, const Reciprocals<block>& reciprocals, uint8_t* codes, int n) {
    const Encoder encoder;
    __m512i least = _mm512_set1_epi32(-1);
#pragma GCC unroll 2
    for (int i = 0; i < n; i += chunk) {
      __m512i x[4], levels[4], fixed[4];
      __m512 y[4];
      for (int v = 0; v < 4; ++v) x[v] = _mm512_loadu_si512(values + i + 16 * v);
      for (int v = 0; v < 4; ++v) y[v] = magnitude(x[v], reciprocals.at(i + 16 * v));
      for (int v = 0; v < 4; ++v) levels[v] = encoder.level(y[v]);
      for (int v = 0; v < 4; ++v) fixed[v] = encoder.line(y[v], levels[v]);
      for (int v = 0; v < 4; ++v) least = _mm512_min_epu16(least, fixed[v]);
      __m512i code = bytes_of<2>(fixed);
      if (is_signed) {
        const __m512i zero = _mm512_set1_epi8(Int8Tables<true>::zero_code);
        const __mmask64 negative = _mm512_movepi8_mask(bytes_of<3>(x));
        code = _mm512_mask_subs_epu8(_mm512_add_epi8(code, zero), negative, zero, code);
      }
      _mm512_storeu_si512(codes + i, code);
    }
    return (lanes::Ints)least;
  }
};

}  // namespace int8_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
