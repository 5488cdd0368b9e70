// How a stored tensor is read and written on a GPU: a warp has a tile of 256 elements, each of its lanes eight of them.
//
// A tile is also what shares one scale in the block-wise codecs, so that a warp finds it by itself. A lane's elements
// lie in runs that 16 bytes of the parameter or of the gradient hold: four float32 or eight 16-bit numbers. Full tiles
// of tensors that are aligned for it are moved run by run, all others number by number.
//
// `Tile<Codec, run>` gives a pointer to the lane's values as float32, which stay in registers: `open` reads them,
// `measure` finds the scale, `close` rounds and writes. Nothing is written twice.
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

// A tile of a tensor as one lane sees it.
template <int run> struct Place {
  int64_t at;  // the tile's first element
  int n;       // its elements
  int lane;

  // Where the lane's element number i lies in the tile.
  __device__ int position(int i) const { return i / run * (WARP * run) + lane * run + i % run; }
  __device__ bool inside(int i) const { return position(i) < n; }
  __device__ bool full() const { return n == TILE; }
};

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
  __device__ void add(int i, uint32_t value) { words[i / per_word] |= value << (i % per_word * bits); }
  __device__ static bool is_aligned(const void* address) {
    constexpr int bytes = size * run < 16 ? size * run : 16;
    return reinterpret_cast<uint64_t>(address) % bytes == 0;
  }
};

template <class Codec, int run> struct Tile;

template <int run> struct Tile<Absent, run> {
  template <class Books> __device__ float* open(void*, float*, const Place<run>&, const Books&) { return nullptr; }
  template <class Books> __device__ float* open_new(void*, float*, const Place<run>&, const Books&) { return nullptr; }
  __device__ void measure(const Place<run>&) {}
  template <class Books> __device__ void close(float, const Place<run>&, const Books&) {}
};

template <class T, int run> struct Tile<Plain<T>, run> {
  using Numbers = Run<sizeof(T), run>;
  float values[LANE];
  T* data;

  template <class Books> __device__ float* open(void* base, float*, const Place<run>& place, const Books& books) {
    open_new(base, nullptr, place, books);
    if (place.full() && Numbers::is_aligned(data)) {
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
  template <class Books> __device__ float* open_new(void* base, float*, const Place<run>& place, const Books&) {
    data = static_cast<T*>(base) + place.at;
    return values;
  }
  __device__ void measure(const Place<run>&) {}
  template <class Books> __device__ void close(float, const Place<run>& place, const Books&) {
    if (place.full() && Numbers::is_aligned(data)) {
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
};

// The codes of both 8-bit codecs.
template <bool is_signed, int run> struct Codes {
  using Numbers = Run<1, run>;
  float values[LANE];
  uint8_t* codes;

  __device__ void begin(void* data, const Place<run>& place) { codes = static_cast<uint8_t*>(data) + place.at; }

  template <class Books> __device__ void decode(float absmax, const Place<run>& place, const Books& books) {
    const auto& book = books.template of<is_signed>();
    if (place.full() && Numbers::is_aligned(codes)) {
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
  }

  template <class Books> __device__ void encode(float absmax, const Place<run>& place, const Books& books) {
    const auto& book = books.template of<is_signed>();
    const float reciprocal = absmax >= smallest_absmax ? 1.0f / absmax : 0.0f;
    if (place.full() && Numbers::is_aligned(codes)) {
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
        if (place.inside(i)) codes[place.position(i)] = uint8_t(book.encode(values[i], reciprocal));
      }
    }
  }
};

template <bool is_signed, int run> struct Tile<Int8<is_signed>, run> : Codes<is_signed, run> {
  float* scale;
  float absmax;

  template <class Books> __device__ float* open(void* data, float* scales, const Place<run>& place, const Books& books) {
    open_new(data, scales, place, books);
    this->decode(*scale, place, books);
    return this->values;
  }
  template <class Books> __device__ float* open_new(void* data, float* scales, const Place<run>& place, const Books&) {
    this->begin(data, place);
    scale = scales + place.at / TILE;
    return this->values;
  }
  // Apart from `close`, so that the searches of several states overlap.
  __device__ void measure(const Place<run>& place) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < LANE; ++i) {
      const uint32_t bits = place.inside(i) ? finite_magnitude(this->values[i]) : 0u;
      largest = bits > largest ? bits : largest;
    }
    absmax = bits_float(warp_max(largest));
    absmax = absmax < smallest_absmax ? 0.0f : absmax;
    if (place.lane == 0) *scale = absmax;
  }
  template <class Books> __device__ void close(float, const Place<run>& place, const Books& books) {
    this->encode(absmax, place, books);
  }
};

template <bool is_signed, int run> struct Tile<Int8Tensor<is_signed>, run> : Codes<is_signed, run> {
  template <class Books> __device__ float* open(void* data, float* scale, const Place<run>& place, const Books& books) {
    open_new(data, scale, place, books);
    this->decode(*scale, place, books);
    return this->values;
  }
  template <class Books> __device__ float* open_new(void* data, float*, const Place<run>& place, const Books&) {
    this->begin(data, place);
    return this->values;
  }
  __device__ void measure(const Place<run>&) {}
  template <class Books> __device__ void close(float new_scale, const Place<run>& place, const Books& books) {
    this->encode(new_scale, place, books);
  }
};

}  // namespace optgen
