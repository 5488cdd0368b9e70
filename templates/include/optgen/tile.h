// How a stored tensor is read and written, a tile of up to 256 elements at a time.
//
// A codec is a type. `Tile<Codec>` gives a pointer to the tile's values, which `load` and `store` read and write as
// float32: for plain storage the memory itself, else a buffer on the stack that `open` fills and `close` writes back
// with the scale that `measure` found.
#pragma once

#include <optgen/convert.h>
#include <optgen/dtypes.h>
#include <optgen/int8.h>

namespace optgen {

constexpr int TILE = 256;

struct Absent {};                              // a state that this kernel does not have
template <class T> struct Plain {};            // fp32, bf16, fp16
template <bool is_signed> struct Int8 {};      // one scale for every 256 elements
template <bool is_signed> struct Int8Tensor {};  // one scale for the tensor

// Whether a state has one scale for the whole tensor.
template <class Codec> constexpr bool is_tensorwise = false;
template <bool is_signed> constexpr bool is_tensorwise<Int8Tensor<is_signed>> = true;

template <class Codec> struct Tile;

template <> struct Tile<Absent> {
  float* open(void*, float*, int64_t, int) { return nullptr; }
  float* open_new(void*, float*, int64_t, int) { return nullptr; }
  void measure() {}
  void close(float) {}
};

template <class T> struct Tile<Plain<T>> {
  T* open(void* data, float*, int64_t at, int) { return static_cast<T*>(data) + at; }
  T* open_new(void* data, float*, int64_t at, int) { return static_cast<T*>(data) + at; }
  void measure() {}
  void close(float) {}
};

template <> struct Tile<Plain<fp16>> {
  alignas(64) float values[TILE];
  fp16* data;
  int count;
  float* open(void* base, float*, int64_t at, int n) {
    open_new(base, nullptr, at, n);
    fp16_to_float(data, values, n);
    return values;
  }
  float* open_new(void* base, float*, int64_t at, int n) {
    data = static_cast<fp16*>(base) + at;
    count = n;
    return values;
  }
  void measure() {}
  void close(float) { float_to_fp16(values, data, count); }
};

template <bool is_signed> struct Tile<Int8<is_signed>> {
  alignas(64) float values[TILE];
  uint8_t* codes;
  float* absmax;
  int count;
  float* open(void* data, float* scales, int64_t at, int n) {
    open_new(data, scales, at, n);
    int8_decode<is_signed>(codes, *absmax, values, n);
    return values;
  }
  float* open_new(void* data, float* scales, int64_t at, int n) {
    codes = static_cast<uint8_t*>(data) + at;
    absmax = scales + at / TILE;
    count = n;
    return values;
  }
  // Apart from `close`, so that the searches of several states overlap.
  void measure() { *absmax = finite_absmax(values, count); }
  void close(float) { int8_encode<is_signed>(values, *absmax, codes, count); }
};

template <bool is_signed> struct Tile<Int8Tensor<is_signed>> {
  alignas(64) float values[TILE];
  uint8_t* codes;
  int count;
  float* open(void* data, float* scale, int64_t at, int n) {
    open_new(data, scale, at, n);
    int8_decode<is_signed>(codes, *scale, values, n);
    return values;
  }
  float* open_new(void* data, float*, int64_t at, int n) {
    codes = static_cast<uint8_t*>(data) + at;
    count = n;
    return values;
  }
  void measure() {}
  void close(float new_scale) { int8_encode<is_signed>(values, new_scale, codes, count); }
};

}  // namespace optgen
