// Quantized states as plain loops that any compiler vectorises, for any book.
//
// A book has, for one element and without branches,
//   value(code)         the number from -1 to 1 that a code stands for;
//   code(y, negative)   the code of a magnitude 0 <= y <= 1, and whether the element is negative, as an int.
#pragma once

#include <optgen/dtypes.h>
#include <optgen/scales.h>
#include <stdint.h>

namespace optgen {

// |x| * reciprocal, at most 1 (a reciprocal rounded up can give a little more); 0 where x is not finite, and where it is
// negative and the state has no sign.
template <bool is_signed> inline float scaled_magnitude(float x, float reciprocal) {
  constexpr int32_t infinity = 0x7f800000;
  const int32_t bits = int32_t(float_bits(x));
  const int32_t magnitude = is_signed ? bits & 0x7fffffff : bits > 0 ? bits : 0;
  const float y = bits_float(uint32_t(magnitude < infinity ? magnitude : 0)) * reciprocal;
  return y < 1.0f ? y : 1.0f;
}

template <class Book, int block, class Code>
inline void decode_each(const Code* codes, const float* scales, float* out, int n) {
  const PerBlock<block> scale(scales, n);
  for (int from = 0; from < n; from += block) {
    const int end = from + block < n ? from + block : n;
    const float absmax = scale.at(from);
    for (int i = from; i < end; ++i) out[i] = Book::value(codes[i]) * absmax;
  }
}

template <class Book, int block, class Code>
inline void encode_each(const float* values, const float* scales, Code* codes, int n) {
  const Reciprocals<block> reciprocals(scales, n);
  for (int from = 0; from < n; from += block) {
    const int end = from + block < n ? from + block : n;
    const float reciprocal = reciprocals.at(from);
    for (int i = from; i < end; ++i) {
      const float y = scaled_magnitude<Book::has_sign>(values[i], reciprocal);
      codes[i] = Code(Book::code(y, int32_t(float_bits(values[i])) < 0));
    }
  }
}

}  // namespace optgen
