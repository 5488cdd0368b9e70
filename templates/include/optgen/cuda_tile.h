// How a stored tensor is read and written on a GPU: a warp has a tile of 256 elements, each of its lanes eight of them.
//
// A tile is also what shares one scale in the block-wise codecs, so that a warp finds it by itself. A lane's elements
// lie in runs that 16 bytes of the parameter or of the gradient hold: four float32 or eight 16-bit numbers. Full tiles
// of tensors that are aligned for it are moved run by run, all others number by number.
//
// `Tile<Codec, run>` gives a pointer to the lane's values as float32, which stay in registers: `open` reads them,
// `measure` finds the scale, `close` rounds and writes, `advance` goes to the next tile. Nothing is written twice.
#pragma once

#include <optgen/cuda_int8.h>
#include <optgen/dtypes.h>
#include <stdint.h>

namespace optgen {

constexpr int TILE = 256;
constexpr int WARP = 32;
constexpr int LANE = TILE / WARP;  // elements of a lane
constexpr unsigned EVERY_LANE = 0xffffffffu;

struct Absent {};                                // a state that this kernel does not have
template <class T> struct Plain {};              // fp32, bf16, fp16
template <bool is_signed> struct Int8 {};        // one scale for every 256 elements
template <bool is_signed> struct Int8Tensor {};  // one scale for the tensor

// Whether a state has one scale for the whole tensor.
template <class Codec> constexpr bool is_tensorwise = false;
template <bool is_signed> constexpr bool is_tensorwise<Int8Tensor<is_signed>> = true;

// Whether a codec needs a code book.
template <class Codec, bool is_signed> constexpr bool needs_book = false;
template <bool is_signed> constexpr bool needs_book<Int8<is_signed>, is_signed> = true;
template <bool is_signed> constexpr bool needs_book<Int8Tensor<is_signed>, is_signed> = true;

// The elements of a run: as many as 16 bytes hold of the smaller of the two.
template <class Codec> constexpr int run_of = 4;
template <> constexpr int run_of<Plain<bf16>> = 8;
template <> constexpr int run_of<Plain<fp16>> = 8;

// A lane's place in a tile. `whole`: the tile is full, and all that is read or written is aligned.
template <int run, bool whole> struct Place {
  int64_t first;  // the lane's first element, counted in the tensor
  int left;       // elements from there to the end of the chunk; nobody asks in a whole tile

  // Where the lane's element number i lies, counted from its first.
  static __device__ constexpr int position(int i) { return i / run * (WARP * run) + i % run; }
  __device__ bool inside(int i) const { return whole || position(i) < left; }
};

// Whether memory can be moved 16 bytes at once from all of these addresses on; null counts as well.
template <class... Data> __device__ inline bool are_aligned(const Data*... data) {
  return (reinterpret_cast<uint64_t>(data) | ... | 0) % 16 == 0;
}

// An address in a GPU's own memory: access to it takes no look at which kind of memory it is.
template <class T> __device__ inline T* global_memory(T* address) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// 4, 8 or a multiple of 16 bytes, moved at once; `address` must be aligned to them, up to 16.
template <int count> __device__ inline void read_words(const void* address, uint32_t (&words)[count]) {
  static_assert(count == 1 || count == 2 || count % 4 == 0, "bytes that a lane can move at once");
  if constexpr (count == 1) {
    words[0] = *static_cast<const uint32_t*>(address);
  } else if constexpr (count == 2) {
    const uint2 two = *static_cast<const uint2*>(address);
    words[0] = two.x;
    words[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      const uint4 four = static_cast<const uint4*>(address)[i / 4];
      words[i] = four.x;
      words[i + 1] = four.y;
      words[i + 2] = four.z;
      words[i + 3] = four.w;
    }
  }
}

template <int count> __device__ inline void write_words(void* address, const uint32_t (&words)[count]) {
  static_assert(count == 1 || count == 2 || count % 4 == 0, "bytes that a lane can move at once");
  if constexpr (count == 1) {
    *static_cast<uint32_t*>(address) = words[0];
  } else if constexpr (count == 2) {
    *static_cast<uint2*>(address) = uint2{words[0], words[1]};
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      static_cast<uint4*>(address)[i / 4] = uint4{words[i], words[i + 1], words[i + 2], words[i + 3]};
    }
  }
}

// The largest of all lanes.
__device__ inline uint32_t warp_max(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(EVERY_LANE, value);
#else
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(EVERY_LANE, value, step);
    value = other > value ? other : value;
  }
  return value;
#endif
}

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

// A run of numbers of `size` bytes each, in words.
template <int size, int run> struct Run {
  static constexpr int per_word = 4 / size, bits = 8 * size;
  uint32_t words[size * run / 4] = {};

  __device__ uint32_t at(int i) const {
    const uint32_t word = words[i / per_word] >> (i % per_word * bits);
    return size == 4 ? word : word & ((1u << (bits % 32)) - 1u);
  }
  // A sum, where shifting and adding is one instruction.
  __device__ void add(int i, uint32_t value) { words[i / per_word] += value << (i % per_word * bits); }
};

// A tensor as a lane walks through its tiles, from the lane's first element of a chunk on.
template <class Codec, int run> struct Tile;

template <int run> struct Tile<Absent, run> {
  __device__ Tile(void*, float*, int64_t) {}
  template <bool whole, class Books> __device__ float* open(Place<run, whole>, const Books&) { return nullptr; }
  __device__ float* open_new() { return nullptr; }
  template <bool whole> __device__ void measure(Place<run, whole>) {}
  template <bool whole, class Books> __device__ void close(float, Place<run, whole>, const Books&) {}
  __device__ void advance(int) {}
};

template <class T, int run> struct Tile<Plain<T>, run> {
  using Numbers = Run<sizeof(T), run>;
  float values[LANE];
  T* data;

  __device__ Tile(void* base, float*, int64_t first) : data(global_memory(static_cast<T*>(base)) + first) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books&) {
    if constexpr (whole) {
#pragma unroll
      for (int i = 0; i < LANE; i += run) {
        Numbers numbers;
        read_words(data + place.position(i), numbers.words);
#pragma unroll
        for (int j = 0; j < run; ++j) values[i + j] = Stored<T>::load(numbers.at(j));
      }
    } else {
#pragma unroll
      for (int i = 0; i < LANE; ++i) values[i] = place.inside(i) ? load(data[place.position(i)]) : 0.0f;
    }
    return values;
  }
  __device__ float* open_new() { return values; }
  template <bool whole> __device__ void measure(Place<run, whole>) {}
  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books&) {
    if constexpr (whole) {
#pragma unroll
      for (int i = 0; i < LANE; i += run) {
        Numbers numbers;
#pragma unroll
        for (int j = 0; j < run; ++j) numbers.add(j, Stored<T>::store(values[i + j]));
        write_words(data + place.position(i), numbers.words);
      }
    } else {
#pragma unroll
      for (int i = 0; i < LANE; ++i) {
        if (place.inside(i)) store(data[place.position(i)], values[i]);
      }
    }
  }
  __device__ void advance(int elements) { data += elements; }
};

// The codes of both 8-bit codecs.
template <bool is_signed, int run> struct Codes {
  using Numbers = Run<1, run>;
  float values[LANE];
  uint8_t* codes;

  __device__ Codes(void* base, int64_t first) : codes(global_memory(static_cast<uint8_t*>(base)) + first) {}

  template <bool whole, class Books>
  __device__ float* decode(float absmax, Place<run, whole> place, const Books& books) {
    const auto& book = books.template of<is_signed>();
    if constexpr (whole) {
#pragma unroll
      for (int i = 0; i < LANE; i += run) {
        Numbers numbers;
        read_words(codes + place.position(i), numbers.words);
#pragma unroll
        for (int j = 0; j < run; ++j) values[i + j] = book.values[numbers.at(j)] * absmax;
      }
    } else {
#pragma unroll
      for (int i = 0; i < LANE; ++i) {
        values[i] = place.inside(i) ? book.values[codes[place.position(i)]] * absmax : 0.0f;
      }
    }
    return values;
  }
  __device__ float* open_new() { return values; }

  // The values are finite.
  template <bool whole, class Books> __device__ void encode(float absmax, Place<run, whole> place, const Books& books) {
    const auto& book = books.template of<is_signed>();
    const float exact = 1.0f / (absmax >= smallest_absmax ? absmax : 1.0f);
    const float reciprocal = absmax >= smallest_absmax ? exact : 0.0f;
    if constexpr (whole) {
#pragma unroll
      for (int i = 0; i < LANE; i += run) {
        Numbers numbers;
#pragma unroll
        for (int j = 0; j < run; ++j) numbers.add(j, book.encode(values[i + j], reciprocal));
        write_words(codes + place.position(i), numbers.words);
      }
    } else {
#pragma unroll
      for (int i = 0; i < LANE; ++i) {
        const uint32_t code = book.encode(values[i], reciprocal);
        if (place.inside(i)) codes[place.position(i)] = uint8_t(code);
      }
    }
  }
};

template <bool is_signed, int run> struct Tile<Int8<is_signed>, run> : Codes<is_signed, run> {
  float* scale;
  float absmax;

  __device__ Tile(void* base, float* scales, int64_t first)
      : Codes<is_signed, run>(base, first), scale(global_memory(scales) + first / TILE) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books& books) {
    return this->decode(*scale, place, books);
  }
  // Apart from `close`, so that the searches of several states overlap.
  template <bool whole> __device__ void measure(Place<run, whole> place) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE; ++i) {
      float& value = this->values[i];
      value = place.inside(i) ? finite_or_zero(value) : 0.0f;
      largest = fmaxf(largest, fabsf(value));
    }
    absmax = bits_float(warp_max(float_bits(largest)));  // magnitudes order as their bits do
    absmax = absmax < smallest_absmax ? 0.0f : absmax;
    if (threadIdx.x % WARP == 0) *scale = absmax;
  }
  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books& books) {
    this->encode(absmax, place, books);
  }
  __device__ void advance(int elements) {
    this->codes += elements;
    scale += elements / TILE;
  }
};

template <bool is_signed, int run> struct Tile<Int8Tensor<is_signed>, run> : Codes<is_signed, run> {
  float scale;

  __device__ Tile(void* base, float* scales, int64_t first) : Codes<is_signed, run>(base, first), scale(*scales) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books& books) {
    return this->decode(scale, place, books);
  }
  template <bool whole> __device__ void measure(Place<run, whole>) {
#pragma unroll
    for (int i = 0; i < LANE; ++i) this->values[i] = finite_or_zero(this->values[i]);
  }
  template <bool whole, class Books>
  __device__ void close(float new_scale, Place<run, whole> place, const Books& books) {
    this->encode(new_scale, place, books);
  }
  __device__ void advance(int elements) { this->codes += elements; }
};

}  // namespace optgen
