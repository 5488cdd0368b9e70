// The dynamic 8-bit code books on a GPU: kept in a block's shared memory.
//
// The rule is that of int8.h, bit for bit: y = |x| * (1 / absmax), the reciprocal rounded first; the code counts the
// midpoints below y. The line of y's binade, or the shared one if that is lower, gives the code or one less, and one
// comparison with the exact midpoint tells which (see int8_books.h).
#pragma once

#include <optgen/cuda_coding.h>
#include <optgen/int8_books.h>

namespace optgen {

constexpr int BINADES = 32;
constexpr uint32_t FIRST_BINADE = 0x30000000u;  // the bits of 2^-31, below every midpoint

struct alignas(8) BinadeLine {
  float slope, offset;
};

template <bool is_signed> struct Table<Int8<is_signed>> {
  float values[256];
  float midpoints[is_signed ? 128 : 256];
  BinadeLine lines[BINADES];

  // The code nearest to value * reciprocal, for a finite value.
  __device__ uint32_t encode(float value, float reciprocal) const {
    const float y = scaled_magnitude(value, reciprocal);
    const uint32_t bits = float_bits(y);
    const BinadeLine line = lines[(bits > FIRST_BINADE ? bits : FIRST_BINADE) >> 23 & (BINADES - 1)];
    constexpr float shared_slope = Int8Tables<is_signed>::slope[Int8Tables<is_signed>::shared_line];
    constexpr float shared_offset = Int8Tables<is_signed>::offset[Int8Tables<is_signed>::shared_line];
    const float own = fmaf(y, line.slope, line.offset);
    const float shared = fmaf(y, shared_slope, shared_offset);
    int k = int(whole_part(fminf(own, shared)));
    k += is_above(y, midpoints[k]);
    const bool negative = int32_t(float_bits(value)) < 0;
    if (is_signed) return negative ? 127 - (k < 127 ? k : 127) : 127 + k;
    return negative ? 0 : k;
  }
};

// The table as the compiler computes it.
template <bool is_signed> constexpr Table<Int8<is_signed>> int8_table() {
  using Tables = Int8Tables<is_signed>;
  Table<Int8<is_signed>> book = {};
  for (int i = 0; i < 256; ++i) book.values[i] = Tables::book[i];
  for (int i = 0; i < (is_signed ? 128 : 256); ++i) book.midpoints[i] = Tables::midpoints[i];
  for (int i = 0; i < BINADES; ++i) book.lines[i] = {Tables::binade_slope[i], Tables::binade_offset[i]};
  return book;
}

template <bool is_signed> __device__ const Table<Int8<is_signed>> stored_int8 = int8_table<is_signed>();
template <bool is_signed> __device__ inline const Table<Int8<is_signed>>& stored(Int8<is_signed>) {
  return stored_int8<is_signed>;
}

template <bool is_signed> struct Coding<Int8<is_signed>> {
  static constexpr int bits = 8;

  template <int run, class Books>
  static __device__ void decode(const Packed<8, run>& codes, float absmax, float* values, const Books& books) {
    const auto& book = books.template of<Int8<is_signed>>();
#pragma unroll
    for (int i = 0; i < run; ++i) values[i] = book.values[codes.at(i)] * absmax;
  }
  template <int run, class Books>
  static __device__ void encode(const float* values, float reciprocal, Packed<8, run>& codes, const Books& books) {
    const auto& book = books.template of<Int8<is_signed>>();
#pragma unroll
    for (int i = 0; i < run; ++i) codes.add(i, book.encode(values[i], reciprocal));
  }
};

}  // namespace optgen
