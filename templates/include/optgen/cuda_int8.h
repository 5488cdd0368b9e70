// The 8-bit code books on a GPU: kept in a block's shared memory, filled once when the block begins.
//
// The rule is that of int8.h, bit for bit: y = |x| * (1 / absmax), the reciprocal rounded first; the code counts the
// midpoints below y. The line of y's binade, or the shared one if that is lower, gives the code or one less, and one
// comparison with the exact midpoint tells which (see int8_books.h).
#pragma once

#include <optgen/dtypes.h>
#include <optgen/int8_books.h>
#include <math.h>
#include <stdint.h>

namespace optgen {

constexpr float smallest_absmax = 0x1p-126f;

constexpr int BINADES = 32;
constexpr uint32_t FIRST_BINADE = 0x30000000u;  // the bits of 2^-31, below every midpoint

// What has the code of zero becomes zero.
OPTGEN_FUNCTION float finite_or_zero(float x) { return fabsf(x) < HUGE_VALF ? x : 0.0f; }

// A finite x, at most 1: a reciprocal rounded up can give a little more.
OPTGEN_FUNCTION float scaled_magnitude(float x, float reciprocal) {
#if defined(__CUDA_ARCH__)
  return __saturatef(fabsf(x) * reciprocal);  // one instruction
#else
  const float y = fabsf(x) * reciprocal;
  return y < 1.0f ? y : 1.0f;
#endif
}

// x without its fraction, for 0 <= x < 2^22.
OPTGEN_FUNCTION int whole_part(float x) {
#if defined(__CUDA_ARCH__)
  return int(float_bits(__fadd_rd(x, 0x1p23f)) - 0x4b000000u);  // an addition is quicker than a conversion
#else
  return int(x);
#endif
}

struct alignas(8) BinadeLine {
  float slope, offset;
};

template <bool is_signed> struct Book {
  float values[256];
  float midpoints[is_signed ? 128 : 256];
  BinadeLine lines[BINADES];

  // The code nearest to value * reciprocal, for a finite value.
  OPTGEN_METHOD uint32_t encode(float value, float reciprocal) const {
    const float y = scaled_magnitude(value, reciprocal);
    const uint32_t bits = float_bits(y);
    const BinadeLine line = lines[(bits > FIRST_BINADE ? bits : FIRST_BINADE) >> 23 & (BINADES - 1)];
    constexpr float shared_slope = Int8Tables<is_signed>::slope[Int8Tables<is_signed>::shared_line];
    constexpr float shared_offset = Int8Tables<is_signed>::offset[Int8Tables<is_signed>::shared_line];
    const float own = fmaf(y, line.slope, line.offset);
    const float shared = fmaf(y, shared_slope, shared_offset);
    int k = whole_part(fminf(own, shared));
    k += int(float_bits(midpoints[k] - y) >> 31);  // 1 if y is above it
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
  for (int i = 0; i < BINADES; ++i) book.lines[i] = {Tables::binade_slope[i], Tables::binade_offset[i]};
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
