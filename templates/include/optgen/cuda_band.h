// Sums of rows and columns on a GPU.
//
// A pass that makes them walks bands: up to 32 whole rows of one matrix, which a block has for itself. A thread has a
// column and goes down its rows, so that a column's sum stays with it; a row's sum is made lane by lane, warp by warp.
// Every order is fixed.
#pragma once

#include <optgen/call.h>
#include <optgen/cuda_param.h>

namespace optgen {

constexpr int BAND_ROWS = 32;  // mirrored in optgen/runtime/engines/kernel_engine.py

// Place of an element: its row through all matrices, its column through all matrices.
struct Line {
  int64_t row, col, matrix;
};

__device__ inline Line line_at(const Tensor& t, int64_t index) {
  const int64_t cols = t.at(COLS), row = index / cols, matrix = row / t.at(ROWS);
  return {row, matrix * cols + (index - row * cols), matrix};
}

// One element of a stored tensor; `aside` is what lies beside its numbers.
template <class Codec> struct Element;
template <> struct Element<Absent> {
  template <class Books> static __device__ float read(const void*, const void*, int64_t, const Books&) { return 0.0f; }
};
template <class T> struct Element<Plain<T>> {
  template <class Books> static __device__ float read(const void* data, const void*, int64_t at, const Books&) {
    return load(static_cast<const T*>(data)[at]);
  }
};
template <class T> struct Element<Stochastic<T>> : Element<Plain<T>> {};
template <class T> struct Element<Kahan<T>> {
  template <class Books> static __device__ float read(const void* data, const void* aside, int64_t at, const Books&) {
    return KahanPairing<T>::join(static_cast<const T*>(data)[at].bits, static_cast<const T*>(aside)[at].bits);
  }
};
template <class B> struct Element<Split<B>> {
  template <class Books> static __device__ float read(const void* data, const void* aside, int64_t at, const Books&) {
    const B rest = static_cast<const B*>(aside)[at];
    return SplitPairing<8 * sizeof(B)>::join(static_cast<const bf16*>(data)[at].bits, uint32_t(rest));
  }
};

template <class Book, class Books>
__device__ inline float decoded(const void* data, float absmax, int64_t at, const Books& books) {
  constexpr int bits = Coding<Book>::bits;
  const uint32_t byte = static_cast<const uint8_t*>(data)[at * bits / 8];
  Packed<bits, 4> codes;  // of which the first is looked at
  codes.words[0] = bits == 4 && at % 2 ? byte << 4 : byte;
  float values[4];
  Coding<Book>::decode(codes, absmax, values, books);
  return values[0];
}

template <class Book, int block> struct Element<Blocked<Book, block>> {
  template <class Books>
  static __device__ float read(const void* data, const void* scales, int64_t at, const Books& books) {
    return decoded<Book>(data, static_cast<const float*>(scales)[at / block], at, books);
  }
};
template <class Book> struct Element<Tensorwise<Book>> {
  template <class Books>
  static __device__ float read(const void* data, const void* scale, int64_t at, const Books& books) {
    return decoded<Book>(data, *static_cast<const float*>(scale), at, books);
  }
};

template <class Codec, class Books>
__device__ inline float read(const void* data, const void* aside, int64_t at, const Books& books) {
  return Element<Codec>::read(data, aside, at, books);
}

// The sums of a band's rows, as each warp of the block has them.
template <int sums, int warps> struct RowSums {
  double parts[sums][warps][BAND_ROWS];
};
template <int warps> struct RowSums<0, warps> {};

struct Band {
  int64_t first_row, matrix, first_col;
  int rows;

  template <int sums, int warps> __device__ Band(const Tensor& t, const Chunk& c, RowSums<sums, warps>& shared) {
    const int64_t cols = t.at(COLS);
    first_row = c.begin / cols;
    matrix = first_row / t.at(ROWS);
    first_col = matrix * cols;
    rows = int((c.end - c.begin) / cols);
    if constexpr (sums > 0) {
      for (unsigned i = threadIdx.x; i < sums * warps * BAND_ROWS; i += blockDim.x) (&shared.parts[0][0][0])[i] = 0.0;
    }
    __syncthreads();
  }

  __device__ Line line(int row, int64_t col) const { return {first_row + row, first_col + col, matrix}; }

  template <class How = Added, int sums, int warps>
  __device__ void add_row(int k, int row, double value, RowSums<sums, warps>& shared) const {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value = How::join(value, __shfl_xor_sync(EVERY_LANE, value, step));
    double& part = shared.parts[k][threadIdx.x / WARP][row];
    if (threadIdx.x % WARP == 0) part = How::join(part, value);
  }

  template <class How = Added, int sums, int warps>
  __device__ void store_rows(int k, float* out, const RowSums<sums, warps>& shared) const {
    __syncthreads();
    for (unsigned row = threadIdx.x; row < unsigned(rows); row += blockDim.x) {
      double sum = 0.0;
      for (int w = 0; w < warps; ++w) sum = How::join(sum, shared.parts[k][w][row]);
      out[first_row + row] = float(How::value(sum));
    }
    __syncthreads();
  }
};

// The sums of a tensor's columns, band by band.
template <class How = Added>
__device__ inline void finish_cols(const Call& call, const Tensor& t, int, int k, float* out) {
  const int64_t cols = t.at(COLS), bands = (t.at(ROWS) + BAND_ROWS - 1) / BAND_ROWS;
  for (int64_t i = threadIdx.x; i < t.count(false, true); i += blockDim.x) {
    const int64_t matrix = i / cols, first = t.at(FIRST_BAND) + matrix * bands;
    double sum = 0.0;
    for (int64_t b = 0; b < bands; ++b) {
      sum = How::join(sum, call.lines[chunk_of(call, first + b).line + k * cols + i % cols]);
    }
    out[i] = float(How::value(sum));
  }
  __syncthreads();
}

}  // namespace optgen
