// Reading and writing stored tensors on a GPU: a warp has a tile of 256 elements, each of its lanes eight of them.
//
// In the block-wise codecs a tile holds whole blocks, so that a warp finds their scales by itself, in groups of lanes.
//
// `Tile<Codec, run>` gives a pointer to the lane's values as float32, which stay in registers: `open` reads them,
// `measure` finds the scale, `close` rounds and writes, `advance` goes to the next tile. Nothing is written twice.
#pragma once

#include <optgen/cuda_books.h>
#include <optgen/cuda_codecs.h>
#include <optgen/cuda_memory.h>
#include <optgen/philox.h>

namespace optgen {

// Stored numbers of type T, with the bits that a word holds of each.
template <class T> struct Stored;
template <> struct Stored<float> {
  static __device__ float load(uint32_t bits) { return bits_float(bits); }
  static __device__ uint32_t store(float value) { return float_bits(value); }
};
template <> struct Stored<bf16> {
  static __device__ float load(uint32_t bits) { return optgen::load(bf16{uint16_t(bits)}); }
  static __device__ uint32_t store(float value) {
    bf16 x;
    optgen::store(x, value);
    return x.bits;
  }
};
template <> struct Stored<fp16> {
  static __device__ float load(uint32_t bits) { return optgen::load(fp16{uint16_t(bits)}); }
  static __device__ uint32_t store(float value) {
    fp16 x;
    optgen::store(x, value);
    return x.bits;
  }
};

// A tensor as a lane walks through its tiles, from the lane's first element of a chunk on.
template <class Codec, int run> struct Tile;

template <int run> struct Tile<Absent, run> {
  __device__ Tile(void*, void*, int64_t) {}
  template <bool whole, class Books> __device__ float* open(Place<run, whole>, const Books&) { return nullptr; }
  __device__ float* open_new() { return nullptr; }
  template <bool whole> __device__ void measure(Place<run, whole>) {}
  template <bool whole, class Books> __device__ void close(float, Place<run, whole>, const Books&) {}
  __device__ void advance(int) {}
};

template <class T, int run> struct Tile<Plain<T>, run> {
  using Numbers = Packed<8 * sizeof(T), run>;
  float values[LANE];
  T* data;

  __device__ Tile(void* base, void*, int64_t first) : data(global_memory(static_cast<T*>(base)) + first) {}
  __device__ void draws(const Draw&) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books&) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Numbers numbers;
      numbers.template read<whole>(data + place.position(i), place.count(i));
#pragma unroll
      for (int j = 0; j < run; ++j) values[i + j] = Stored<T>::load(numbers.at(j));
    }
    return values;
  }
  __device__ float* open_new() { return values; }
  template <bool whole> __device__ void measure(Place<run, whole>) {}
  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books&) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Numbers numbers;
#pragma unroll
      for (int j = 0; j < run; ++j) numbers.add(j, Stored<T>::store(values[i + j]));
      numbers.template write<whole>(data + place.position(i), place.count(i));
    }
  }
  __device__ void advance(int elements) { data += elements; }
};

// The codes of a quantized state, whose lane has as many scales as `parts`.
template <class Book, int run> struct Codes {
  static constexpr int bits = Coding<Book>::bits;
  float values[LANE];
  uint8_t* codes;

  __device__ Codes(void* base, int64_t first) : codes(global_memory(static_cast<uint8_t*>(base)) + first * bits / 8) {}

  template <int parts, bool whole, class Books>
  __device__ float* decode(const float (&absmax)[parts], Place<run, whole> place, const Books& books) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Packed<bits, run> packed;
      packed.template read<whole>(codes + place.position(i) * bits / 8, place.count(i));
      Coding<Book>::decode(packed, absmax[parts == 1 ? 0 : i / run], values + i, books);
    }
    return values;
  }
  __device__ float* open_new() { return values; }

  // The values are finite.
  template <int parts, bool whole, class Books>
  __device__ void encode(const float (&absmax)[parts], Place<run, whole> place, const Books& books) {
    float reciprocals[parts];
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      const float exact = 1.0f / (absmax[p] >= smallest_absmax ? absmax[p] : 1.0f);
      reciprocals[p] = absmax[p] >= smallest_absmax ? exact : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Packed<bits, run> packed;
      Coding<Book>::encode(values + i, reciprocals[parts == 1 ? 0 : i / run], packed, books);
      packed.template write<whole>(codes + place.position(i) * bits / 8, place.count(i));
    }
  }
  __device__ void advance(int elements) { codes += elements * bits / 8; }
};

template <class Book, int block, int run> struct Tile<Blocked<Book, block>, run> : Codes<Book, run> {
  static_assert(block == 32 || block == 64 || block == 128 || block == TILE, "a tile holds whole blocks");
  static constexpr int parts = block == TILE ? 1 : LANE / run;      // blocks that a lane has elements of
  static constexpr int lanes = block == TILE ? WARP : block / run;  // lanes that have elements of a block
  static constexpr int apart = WARP * run / block;                  // blocks from one part to the next
  float* scales;
  float absmax[parts];

  __device__ Tile(void* base, void* aside, int64_t first)
      : Codes<Book, run>(base, first), scales(global_memory(static_cast<float*>(aside)) + first / block) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books& books) {
    float old[parts];
#pragma unroll
    for (int p = 0; p < parts; ++p) old[p] = place.inside(p * run) ? scales[p * apart] : 0.0f;
    return this->decode(old, place, books);
  }
  // Apart from `close`, so that the searches of several states overlap.
  template <bool whole> __device__ void measure(Place<run, whole> place) {
    uint32_t largest[parts];
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      float most = 0.0f;
#pragma unroll
      for (int i = p * (LANE / parts); i < (p + 1) * (LANE / parts); ++i) {
        float& value = this->values[i];
        value = place.inside(i) ? finite_or_zero(value) : 0.0f;
        most = fmaxf(most, fabsf(value));
      }
      largest[p] = float_bits(most);  // magnitudes order as their bits do
    }
    group_max<lanes>(largest);
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      const float most = bits_float(largest[p]);
      absmax[p] = most < smallest_absmax ? 0.0f : most;
      if (threadIdx.x % lanes == 0 && place.inside(p * run)) scales[p * apart] = absmax[p];
    }
  }
  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books& books) {
    this->encode(absmax, place, books);
  }
  __device__ void advance(int elements) {
    Codes<Book, run>::advance(elements);
    scales += elements / block;
  }
};

template <class Book, int run> struct Tile<Tensorwise<Book>, run> : Codes<Book, run> {
  float scale[1];

  __device__ Tile(void* base, void* aside, int64_t first)
      : Codes<Book, run>(base, first), scale{*static_cast<const float*>(aside)} {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books& books) {
    return this->decode(scale, place, books);
  }
  template <bool whole> __device__ void measure(Place<run, whole>) {
#pragma unroll
    for (int i = 0; i < LANE; ++i) this->values[i] = finite_or_zero(this->values[i]);
  }
  template <bool whole, class Books>
  __device__ void close(float new_scale, Place<run, whole> place, const Books& books) {
    const float scales[1] = {new_scale};
    this->encode(scales, place, books);
  }
};

}  // namespace optgen
