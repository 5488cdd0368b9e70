// The 8-bit codecs with AVX-512 and VBMI, 64 elements at a time. Included by int8.h, where the rule stands.
//
// VBMI looks up 64 bytes at once in a table of 128 (vpermi2b). So the tables are kept as four planes of bytes, and the
// looked-up planes are woven into floats: 64 exact lookups cost less than four gathers of 16.
//
// Order of elements. Weaving works within 128-bit lanes. So that it gives four vectors as they stand in memory, lane i
// of the planes must hold four bytes of vector 0, four of vector 1, and so on ("lane order"). One permutation of 32-bit
// words, its own inverse, leads from lane order to the order in memory.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "int8_books.h"
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

// Bytes of two vectors of 32-bit numbers that vpermi2b takes to collect byte number `byte` of four vectors; the same
// for the first and the second pair.
struct Collect {
  alignas(64) uint8_t index[64] = {};

  constexpr Collect(bool in_lane_order, int byte) {
    for (int vector = 0; vector < 4; ++vector)
      for (int element = 0; element < 16; ++element) {
        const int lane = element / 4;
        const int at = in_lane_order ? 16 * lane + 4 * vector + element % 4 : 16 * vector + element;
        index[at] = uint8_t(64 * (vector % 2) + 4 * element + byte);
      }
  }
};

inline constexpr Collect byte1_in_lanes{true, 1};
inline constexpr Collect byte3_in_order{false, 3};

template <bool in_lane_order>
inline __m512i collect(const Collect& from, const __m512i (&words)[4]) {
  const __m512i index = _mm512_load_si512(from.index);
  const __mmask16 second_pair = in_lane_order ? 0xcccc : 0xff00;
  return _mm512_mask_blend_epi32(second_pair, _mm512_permutex2var_epi8(words[0], index, words[1]),
                                 _mm512_permutex2var_epi8(words[2], index, words[3]));
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

// Magnitudes are positive floats, which are ordered as their bits are: integer instructions compare them, since those
// are cheaper than the ones for floats.
template <bool is_signed, int block>
struct Encoder {
  using Tables = Int8Tables<is_signed>;
  static constexpr float shift = 0x1p15f;

  Planes<is_signed ? 128 : 256> midpoints{Tables::midpoint_bytes};
  __m512 slope[2] = {_mm512_load_ps(Tables::binade_slope), _mm512_load_ps(Tables::binade_slope + 16)};
  // A sum from 2^15 to 2^16 has its whole part in byte 1 and 1/256ths in byte 0: the guess is read off byte 1.
  __m512 offset[2] = {_mm512_add_ps(_mm512_load_ps(Tables::binade_offset), _mm512_set1_ps(shift)),
                      _mm512_add_ps(_mm512_load_ps(Tables::binade_offset + 16), _mm512_set1_ps(shift))};
  __m512 shared_slope = _mm512_set1_ps(Tables::slope[Tables::shared_line]);
  __m512 shared_offset = _mm512_set1_ps(Tables::offset[Tables::shared_line] + shift);
  const Reciprocals<block> reciprocals;

  Encoder(const float* scales, int n) : reciprocals(scales, n) {}

  // First half: the guesses for the 64 values from number `at` on, as bytes in lane order; their magnitudes over absmax
  // go to y[0..63].
  __m512i guess(const __m512 (&x)[4], int at, float* y) const {
    constexpr int nan_or_infinite = 0x99;
    const __m512i tiny = _mm512_castps_si512(_mm512_set1_ps(0x1p-31f));  // below every midpoint, and the first binade
    __m512i guesses[4];
    for (int v = 0; v < 4; ++v) {
      const __mmask16 finite = __mmask16(~_mm512_fpclass_ps_mask(x[v], nan_or_infinite));
      const __m512 reciprocal = _mm512_set1_ps(reciprocals.at(at + 16 * v));
      const __m512i scaled = _mm512_castps_si512(_mm512_maskz_mul_ps(finite, x[v], reciprocal));
      // Negative floats are negative integers: smaller than `tiny`.
      const __m512i bits =
          _mm512_max_epi32(is_signed ? _mm512_andnot_si512(_mm512_set1_epi32(INT32_MIN), scaled) : scaled, tiny);
      const __m512 magnitude = _mm512_castsi512_ps(bits);
      _mm512_store_ps(y + 16 * v, magnitude);
      const __m512i binade = _mm512_srli_epi32(bits, 23);  // its lower 5 bits are looked at
      const __m512 line = _mm512_fmadd_ps(magnitude, _mm512_permutex2var_ps(slope[0], binade, slope[1]),
                                          _mm512_permutex2var_ps(offset[0], binade, offset[1]));
      const __m512 shared = _mm512_fmadd_ps(magnitude, shared_slope, shared_offset);
      guesses[v] = _mm512_min_epi32(_mm512_castps_si512(line), _mm512_castps_si512(shared));
    }
    return collect<true>(byte1_in_lanes, guesses);
  }

  // Second half: the codes of 64 values, in the order of memory.
  __m512i codes(const __m512 (&x)[4], __m512i k, const float* y) const {
    const __mmask64 upper = is_signed ? 0 : _mm512_movepi8_mask(k);
    const __m512i planes[4] = {midpoints.lookup(0, k, upper), midpoints.lookup(1, k, upper),
                               midpoints.lookup(2, k, upper), midpoints.lookup(3, k, upper)};
    __m512 midpoint[4];
    weave(planes, midpoint);
    __m512i marks[4];
    for (int v = 0; v < 4; ++v) {
      // Bits of numbers up to about 1 differ by less than 2^30: bits 31 and 30 both tell whether y is above the
      // midpoint, and bit 31 is free for the sign of x.
      marks[v] = _mm512_sub_epi32(_mm512_castps_si512(midpoint[v]), _mm512_load_si512(y + 16 * v));
      if (is_signed)  // sign ? x : mark
        marks[v] = _mm512_ternarylogic_epi32(marks[v], _mm512_castps_si512(x[v]), _mm512_set1_epi32(INT32_MIN), 0xd8);
    }
    const __m512i mark = collect<false>(byte3_in_order, marks);
    const __mmask64 above = _mm512_test_epi8_mask(mark, _mm512_set1_epi8(0x40));
    const __m512i in_order = _mm512_permutexvar_epi32(lane_order(), k);
    const __m512i nearest = _mm512_mask_sub_epi8(in_order, above, in_order, _mm512_set1_epi8(-1));
    if constexpr (!is_signed) return nearest;
    const __mmask64 negative = _mm512_movepi8_mask(mark);
    const __m512i middle = _mm512_set1_epi8(127);
    // With saturation, since the largest magnitude, 128, has no negative: 127 - 128 stays 0.
    return _mm512_mask_subs_epu8(_mm512_add_epi8(middle, nearest), negative, middle, nearest);
  }
};

// Two loops instead of one: within each, the processor finds more work that does not wait for other work.
template <bool is_signed, int block>
inline void encode(const float* values, const float* scales, uint8_t* codes, int n) {
  const Encoder<is_signed, block> encoder(scales, n);
  alignas(64) float y[256];
  __m512i guesses[4];
  __m512 x[4];
  const int rest = n % chunk;
  const int whole = n - rest;
  for (int i = 0; i < whole; i += chunk) {
    for (int v = 0; v < 4; ++v) x[v] = _mm512_loadu_ps(values + i + 16 * v);
    guesses[i / chunk] = encoder.guess(x, i, y + i);
  }
  for (int i = 0; i < whole; i += chunk) {
    for (int v = 0; v < 4; ++v) x[v] = _mm512_loadu_ps(values + i + 16 * v);
    _mm512_storeu_si512(codes + i, encoder.codes(x, guesses[i / chunk], y + i));
  }
  if (rest) {
    for (int v = 0; v < 4; ++v) x[v] = _mm512_maskz_loadu_ps(first(rest - 16 * v), values + whole + 16 * v);
    _mm512_mask_storeu_epi8(codes + whole, (__mmask64(1) << rest) - 1, encoder.codes(x, encoder.guess(x, whole, y), y));
  }
}

}  // namespace int8_avx512
}  // namespace optgen

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
