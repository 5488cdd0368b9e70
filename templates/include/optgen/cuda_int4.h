// The 4-bit codes on a GPU: the signed books, whose few numbers a warp looks up without a conflict, and
// sixteenths.
#pragma once

#include <optgen/cuda_coding.h>

namespace optgen {

// As in optgen/codecs.py. The midpoints lie between magnitudes.
template <class Numbers> struct Table<Int4<true, Numbers>> {
  float values[16];
  float midpoints[8];
};

// A book, and two lines: the lower one, without its fraction, is the number of midpoints below a magnitude or one less.
template <class Numbers> struct SignedInt4;
template <> struct SignedInt4<DynamicMap> {
  static constexpr float fine_slope = 30.0f, fine_offset = 0.7f, coarse_slope = 4.6f, coarse_offset = 3.0f;
  static constexpr Table<Int4<true, DynamicMap>> table = {
    {-0.887499988f, -0.662500024f, -0.4375f, -0.212499991f, -0.0775000006f, -0.0325000025f, -0.00549999997f, 0.0f,
     0.00549999997f, 0.0325000025f, 0.0775000006f, 0.212499991f, 0.4375f, 0.662500024f, 0.887499988f, 1.0f},
    {0.00274999999f, 0.0190000013f, 0.0549999997f, 0.144999996f, 0.324999988f, 0.550000012f, 0.774999976f,
     0.943750024f}};
};
template <> struct SignedInt4<NormalBook> {
  static constexpr float fine_slope = 8.0f, fine_offset = 0.25f, coarse_slope = 4.0f, coarse_offset = 3.5f;
  static constexpr Table<Int4<true, NormalBook>> table = {
    {-0.907000005f, -0.700299978f, -0.544700027f, -0.415199995f, -0.300999999f, -0.1963f, -0.0969000012f, 0.0f,
     0.0969000012f, 0.1963f, 0.300999999f, 0.415199995f, 0.544700027f, 0.700299978f, 0.907000005f, 1.0f},
    {0.0484500006f, 0.146600008f, 0.248649999f, 0.358099997f, 0.479950011f, 0.622500002f, 0.803650022f, 0.953500032f}};
};

template <class Numbers> __device__ const Table<Int4<true, Numbers>> stored_int4 = SignedInt4<Numbers>::table;
template <class Numbers> __device__ inline const Table<Int4<true, Numbers>>& stored(Int4<true, Numbers>) {
  return stored_int4<Numbers>;
}

template <class Numbers> struct Coding<Int4<true, Numbers>> {
  using Book = SignedInt4<Numbers>;
  static constexpr int bits = 4;

  template <int run, class Books>
  static __device__ void decode(const Packed<4, run>& codes, float absmax, float* values, const Books& books) {
    const auto& book = books.template of<Int4<true, Numbers>>();
#pragma unroll
    for (int i = 0; i < run; ++i) values[i] = book.values[codes.at(i)] * absmax;
  }

  template <int run, class Books>
  static __device__ void encode(const float* values, float reciprocal, Packed<4, run>& codes, const Books& books) {
    const auto& book = books.template of<Int4<true, Numbers>>();
#pragma unroll
    for (int i = 0; i < run; ++i) {
      // The largest magnitude has no negative: the next one has its code, which -0.9 has as well.
      const float x = fmaxf(values[i] * reciprocal, -0.9f), y = fabsf(x);
      uint32_t k = whole_part(
          fminf(fmaf(y, Book::fine_slope, Book::fine_offset), fmaf(y, Book::coarse_slope, Book::coarse_offset)));
      k += is_above(y, book.midpoints[k]);
      codes.add(i, x < 0.0f ? 7u - k : 7u + k);
    }
  }
};

// Code k stands for (k + 1) / 16.
template <class Numbers> struct Coding<Int4<false, Numbers>> {
  static constexpr int bits = 4;

  template <int run, class Books>
  static __device__ void decode(const Packed<4, run>& codes, float absmax, float* values, const Books&) {
#pragma unroll
    for (int i = 0; i < run; ++i) {
      // 2^19 + k / 16 by its bits.
      values[i] = (bits_float(0x49000000u | codes.at(i)) - (0x1p19f - 0x1p-4f)) * absmax;
    }
  }

  // The midpoints are j + 1.5 sixteenths: there are as many below y as 16 y - 1.5 has when rounded up.
  template <int run, class Books>
  static __device__ void encode(const float* values, float reciprocal, Packed<4, run>& codes, const Books&) {
#pragma unroll
    for (int i = 0; i < run; ++i) {
      const float y = fmaxf(scaled_positive(values[i], reciprocal), 1.5f / 16.0f);
#if defined(__CUDA_ARCH__)
      codes.add(i, float_bits(__fmaf_ru(y, 16.0f, 0x1p23f - 1.5f)) - 0x4b000000u);
#else
      codes.add(i, uint32_t(ceilf(y * 16.0f - 1.5f)));
#endif
    }
  }
};

}  // namespace optgen
