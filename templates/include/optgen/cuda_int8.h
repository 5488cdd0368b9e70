// The 8-bit code books on a GPU: kept in a block's shared memory, filled once when the block begins.
//
// The rule is that of int8.h, bit for bit: y = |x| * (1 / absmax), the reciprocal rounded first; the code counts the
// midpoints below y. The line of y's binade, or the shared one if that is lower, gives the code or one less, and one
// comparison with the exact midpoint tells which (see int8_books.h).
#pragma once

#include <optgen/dtypes.h>
#include <optgen/int8_books.h>
#include <stdint.h>

namespace optgen {

constexpr float smallest_absmax = 0x1p-126f;

// The bits of a magnitude, which order as the magnitudes do; 0 for what is not finite.
OPTGEN_FUNCTION uint32_t finite_magnitude(float x) {
  const uint32_t bits = float_bits(x) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0u;
}

constexpr int BINADES = 32;
constexpr uint32_t FIRST_BINADE = 0x30000000u;  // the bits of 2^-31, below every midpoint

template <bool is_signed> struct Book {
  float values[256];
  float midpoints[is_signed ? 128 : 256];
  float slope[BINADES], offset[BINADES];  // a line for each binade

  // The code nearest to value * reciprocal.
  OPTGEN_METHOD uint32_t encode(float value, float reciprocal) const {
    float y = bits_float(finite_magnitude(value)) * reciprocal;
    y = y < 1.0f ? y : 1.0f;  // a reciprocal rounded up can give a little more
    const uint32_t bits = float_bits(y);
    const uint32_t binade = (bits > FIRST_BINADE ? bits : FIRST_BINADE) >> 23 & (BINADES - 1);
    constexpr float shared_slope = Int8Tables<is_signed>::slope[Int8Tables<is_signed>::shared_line];
    constexpr float shared_offset = Int8Tables<is_signed>::offset[Int8Tables<is_signed>::shared_line];
    const float own = fmaf(y, slope[binade], offset[binade]);
    const float shared = fmaf(y, shared_slope, shared_offset);
    int k = int(own < shared ? own : shared);
    k += y > midpoints[k] ? 1 : 0;
    const bool negative = int32_t(float_bits(value)) < 0;
    if (is_signed) return negative ? 127 - (k < 127 ? k : 127) : 127 + k;
    return negative ? 0 : k;
  }
};

// A book as the compiler computes it.
template <bool is_signed> constexpr Book<is_signed> book_of() {
  using Tables = Int8Tables<is_signed>;
  Book<is_signed> book = {};
  for (int i = 0; i < 256; ++i) book.values[i] = Tables::book[i];
  for (int i = 0; i < (is_signed ? 128 : 256); ++i) book.midpoints[i] = Tables::midpoints[i];
  for (int i = 0; i < BINADES; ++i) book.slope[i] = Tables::binade_slope[i];
  for (int i = 0; i < BINADES; ++i) book.offset[i] = Tables::binade_offset[i];
  return book;
}

template <bool is_signed> __device__ const Book<is_signed> stored_book = book_of<is_signed>();

// The books that a kernel needs, of those two.
template <bool needed, bool is_signed> struct SharedBook {
  Book<is_signed> book;
  __device__ void fill() {
    const auto* from = reinterpret_cast<const uint32_t*>(&stored_book<is_signed>);
    auto* to = reinterpret_cast<uint32_t*>(&book);
    for (unsigned i = threadIdx.x; i < sizeof book / 4; i += blockDim.x) to[i] = from[i];
  }
};
template <bool is_signed> struct SharedBook<false, is_signed> {
  __device__ void fill() {}
};

template <bool with_signed, bool with_unsigned> struct Books {
  SharedBook<with_signed, true> signed_book;
  SharedBook<with_unsigned, false> unsigned_book;

  // To be called by all threads of a block, before anything is read.
  __device__ void fill() {
    signed_book.fill();
    unsigned_book.fill();
    if (with_signed || with_unsigned) __syncthreads();
  }
  template <bool is_signed> __device__ const Book<is_signed>& of() const {
    if constexpr (is_signed) {
      return signed_book.book;
    } else {
      return unsigned_book.book;
    }
  }
};

}  // namespace optgen
