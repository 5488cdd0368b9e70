// Reading and writing stored tensors, a tile of up to 256 elements at a time.
//
// A codec is a type. `Tile<Codec>` gives a pointer to the tile's values, which `load` and `store` read and write as
// float32: for plain storage the memory itself, else a buffer on the stack that `open` fills and `close` writes back,
// with the scales that `measure` found. Beside the data lie a state's scales or what a parameter keeps (`aside`).
#pragma once

#include <optgen/codecs.h>
#include <optgen/companded8.h>
#include <optgen/convert.h>
#include <optgen/dtypes.h>
#include <optgen/fp8.h>
#include <optgen/int4.h>
#include <optgen/int8.h>
#include <optgen/philox_tile.h>
#include <optgen/rounding.h>
#include <optgen/scales.h>

#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
#define OPTGEN_ZEN 1
#endif

namespace optgen {

template <class Codec> struct Tile;

// Asks for a tile that will be read `ahead` bytes further on, into the second cache or (3) the first. Nothing is read
// there, so it may lie outside.
template <class T, int ahead, int cache> inline void prefetch_tile(const void* data, int64_t at) {
  const char* const first = reinterpret_cast<const char*>(static_cast<const T*>(data) + at) + ahead;
  for (int line = 0; line < TILE * int(sizeof(T)); line += 64) __builtin_prefetch(first + line, 0, cache);
}

template <> struct Tile<Absent> {
  float* open(void*, void*, int64_t, int) { return nullptr; }
  float* open_new(void*, void*, int64_t, int) { return nullptr; }
  void measure() {}
  void close(float) {}
};

template <class T> struct Tile<Plain<T>> {
  void prefetch(const void* data, int64_t at, int) { prefetch_tile<T, 16384, 2>(data, at); }
  // The next tile is asked for before this one is worked on: codes between two tiles take longer than Intel's processors
  // look ahead by themselves. AMD's take longer for being asked.
  T* open(void* data, void*, int64_t at, int) {
#if !defined(OPTGEN_ZEN)
    prefetch_tile<T, TILE * int(sizeof(T)), 3>(data, at);
#endif
    return static_cast<T*>(data) + at;
  }
  T* open_new(void* data, void*, int64_t at, int) { return static_cast<T*>(data) + at; }
  void draws(const Draw&, int64_t) {}
  void measure() {}
  void close(float) {}
};

template <> struct Tile<Plain<fp16>> {
  alignas(64) float values[TILE];
  fp16* data;
  int count;
  void prefetch(const void* from, int64_t at, int) { prefetch_tile<fp16, 16384, 2>(from, at); }
  float* open(void* base, void*, int64_t at, int n) {
    open_new(base, nullptr, at, n);
    to_floats(data, values, n);
    return values;
  }
  float* open_new(void* base, void*, int64_t at, int n) {
    data = static_cast<fp16*>(base) + at;
    count = n;
    return values;
  }
  void draws(const Draw&, int64_t) {}
  void measure() {}
  void close(float) { from_floats(values, data, count); }
};

template <class Book, int block> struct Tile<Blocked<Book, block>> {
  alignas(64) float values[TILE];
  typename Book::Code* codes;
  float* scales;
  int count;
  float* open(void* data, void* aside, int64_t at, int n) {
    open_new(data, aside, at, n);
    Book::template decode<block>(codes, scales, values, n);
    return values;
  }
  float* open_new(void* data, void* aside, int64_t at, int n) {
    codes = static_cast<typename Book::Code*>(data) + at / Book::packed;
    scales = static_cast<float*>(aside) + at / block;
    count = n;
    return values;
  }
  // Apart from `close`, so that the searches of several states overlap.
  void measure() { measure_blocks<block>(values, scales, count); }
  void close(float) { Book::template encode<block>(values, scales, codes, count); }
};

template <class Book> struct Tile<Tensorwise<Book>> {
  alignas(64) float values[TILE];
  typename Book::Code* codes;
  int count;
  float* open(void* data, void* aside, int64_t at, int n) {
    open_new(data, aside, at, n);
    Book::template decode<TILE>(codes, static_cast<const float*>(aside), values, n);
    return values;
  }
  float* open_new(void* data, void*, int64_t at, int n) {
    codes = static_cast<typename Book::Code*>(data) + at / Book::packed;
    count = n;
    return values;
  }
  void measure() {}
  void close(float new_scale) { Book::template encode<TILE>(values, &new_scale, codes, count); }
};

template <class T> struct Tile<Stochastic<T>> {
  alignas(64) float values[TILE];
  Draw draw{};
  int64_t start = 0;  // of the tensor in the one that draws are for
  T* data;
  int64_t first;
  int count;
  void prefetch(const void* from, int64_t at, int) { prefetch_tile<T, 16384, 2>(from, at); }
  float* open(void* base, void*, int64_t at, int n) {
    open_new(base, nullptr, at, n);
    to_floats(data, values, n);
    return values;
  }
  float* open_new(void* base, void*, int64_t at, int n) {
    data = static_cast<T*>(base) + at;
    first = at;
    count = n;
    return values;
  }
  void draws(const Draw& d, int64_t first_element) {
    draw = d;
    start = first_element;
  }
  void measure() {}
  void close(float) {
    alignas(64) uint16_t random[TILE + 8];
    const int64_t at = start + first, inside = at % 8;
    draw_tile(draw, at - inside, random);
    if (inside != 0) draw_eight(draw, at - inside + TILE, random + TILE);
    round_at_random(values, random + inside, data, count);
  }
};

template <class T> struct Tile<Kahan<T>> {
  alignas(64) float values[TILE];
  T *data, *rest;
  int count;
  void prefetch(const void* from, int64_t at, int) { prefetch_tile<T, 16384, 2>(from, at); }
  float* open(void* base, void* aside, int64_t at, int n) {
    open_new(base, aside, at, n);
    join_kahan(data, rest, values, n);
    return values;
  }
  float* open_new(void* base, void* aside, int64_t at, int n) {
    data = static_cast<T*>(base) + at;
    rest = static_cast<T*>(aside) + at;
    count = n;
    return values;
  }
  void draws(const Draw&, int64_t) {}
  void measure() {}
  void close(float) { split_kahan(values, data, rest, count); }
};

template <class Beside> struct Tile<Split<Beside>> {
  alignas(64) float values[TILE];
  bf16* data;
  Beside* beside;
  int count;
  void prefetch(const void* from, int64_t at, int) { prefetch_tile<bf16, 16384, 2>(from, at); }
  float* open(void* base, void* aside, int64_t at, int n) {
    open_new(base, aside, at, n);
    join_split(data, beside, values, n);
    return values;
  }
  float* open_new(void* base, void* aside, int64_t at, int n) {
    data = static_cast<bf16*>(base) + at;
    beside = static_cast<Beside*>(aside) + at;
    count = n;
    return values;
  }
  void draws(const Draw&, int64_t) {}
  void measure() {}
  void close(float) { split(values, data, beside, count); }
};

}  // namespace optgen
