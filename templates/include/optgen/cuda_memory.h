// Division of a tile of 256 elements among a warp's lanes, and their moves of memory.
//
// A lane has eight elements, in runs that 16 bytes of the parameter or of the gradient hold: four float32 or eight
// 16-bit numbers. Full tiles of tensors that are aligned for it are moved run by run, all others number by number.
#pragma once

#include <optgen/dtypes.h>
#include <stdint.h>

namespace optgen {

constexpr int TILE = 256;
constexpr int WARP = 32;
constexpr int LANE = TILE / WARP;  // elements of a lane
constexpr unsigned EVERY_LANE = 0xffffffffu;

// A lane's place in a tile. `whole`: the tile is full, and all that is read or written is aligned.
template <int run, bool whole> struct Place {
  int64_t first;  // the lane's first element, counted in the tensor
  int left;       // elements from there to the end of the chunk; nobody asks in a whole tile

  // Position of the lane's element number i, counted from its first.
  static __device__ constexpr int position(int i) { return i / run * (WARP * run) + i % run; }
  __device__ bool inside(int i) const { return whole || position(i) < left; }
  // Number of elements inside the tensor in the run from number i on, or more.
  __device__ int count(int i) const { return whole ? run : left - position(i); }
};

// True if memory can be moved 16 bytes at once from all of these addresses on; null counts as well.
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

// 2, 4, 8 or a multiple of 16 bytes, moved at once; `address` must be aligned to them, up to 16.
template <int bytes, int count> __device__ inline void read_words(const void* address, uint32_t (&words)[count]) {
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes % 16 == 0, "bytes that a lane can move at once");
  if constexpr (bytes == 2) {
    words[0] = *static_cast<const uint16_t*>(address);
  } else if constexpr (bytes == 4) {
    words[0] = *static_cast<const uint32_t*>(address);
  } else if constexpr (bytes == 8) {
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

template <int bytes, int count> __device__ inline void write_words(void* address, const uint32_t (&words)[count]) {
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes % 16 == 0, "bytes that a lane can move at once");
  if constexpr (bytes == 2) {
    *static_cast<uint16_t*>(address) = uint16_t(words[0]);
  } else if constexpr (bytes == 4) {
    *static_cast<uint32_t*>(address) = words[0];
  } else if constexpr (bytes == 8) {
    *static_cast<uint2*>(address) = uint2{words[0], words[1]};
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      static_cast<uint4*>(address)[i / 4] = uint4{words[i], words[i + 1], words[i + 2], words[i + 3]};
    }
  }
}

// The integer that a stored number is moved as by itself: two codes of 4 bits make one.
template <int bits> struct UnitOf;
template <> struct UnitOf<4> { using type = uint8_t; };
template <> struct UnitOf<8> { using type = uint8_t; };
template <> struct UnitOf<16> { using type = uint16_t; };
template <> struct UnitOf<32> { using type = uint32_t; };

// A run of numbers of so many bits each, in words. Of two codes in a byte the first is in the upper half.
template <int bits, int run> struct Packed {
  using Unit = typename UnitOf<bits>::type;
  static constexpr int bytes = bits * run / 8, per_word = 32 / bits;
  static constexpr int units = bytes / sizeof(Unit), per_unit = run / units, units_per_word = 4 / sizeof(Unit);
  uint32_t words[bytes < 4 ? 1 : bytes / 4] = {};

  static __device__ constexpr int shift(int i) { return (i % per_word ^ (bits == 4)) * bits; }
  __device__ uint32_t at(int i) const {
    const uint32_t word = words[i / per_word] >> shift(i);
    return bits == 32 ? word : word & ((1u << (bits % 32)) - 1u);
  }
  // A sum, where shifting and adding is one instruction. What a sum of all numbers has above its bits is lost.
  __device__ void add(int i, uint32_t value) { words[i / per_word] += value << shift(i); }

  // The first `count` numbers of those at an address; all that are missing are 0.
  template <bool whole> __device__ void read(const void* address, int count) {
    if constexpr (whole) {
      read_words<bytes>(address, words);
    } else {
#pragma unroll
      for (int i = 0; i < units; ++i) {
        if (i * per_unit >= count) continue;
        words[i / units_per_word] |= uint32_t(static_cast<const Unit*>(address)[i])
                                     << i % units_per_word * 8 * sizeof(Unit);
      }
    }
  }
  template <bool whole> __device__ void write(void* address, int count) const {
    if constexpr (whole) {
      write_words<bytes>(address, words);
    } else {
#pragma unroll
      for (int i = 0; i < units; ++i) {
        if (i * per_unit >= count) continue;
        Unit unit = Unit(words[i / units_per_word] >> i % units_per_word * 8 * sizeof(Unit));
        if (per_unit == 2 && i * per_unit + 1 >= count) unit &= Unit(0xf0);
        static_cast<Unit*>(address)[i] = unit;
      }
    }
  }
};

// A word of the lowest bytes of four numbers, or of the lower halves of two.
__device__ inline uint32_t join_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ inline uint32_t join_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }

// Byte number i of a word as a float from 0 to 255, plus `added`: by its bits, since conversions are slow.
__device__ inline float byte_plus(uint32_t word, int i, float added) {
  return bits_float(__byte_perm(word, 0x4b000000u, 0x7650 | i)) - (0x1p23f - added);
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

// The largest of every `lanes` neighbouring lanes, of one number or of two.
template <int lanes> __device__ inline void group_max(uint32_t (&values)[1]) {
  if constexpr (lanes == WARP) {
    values[0] = warp_max(values[0]);
  } else {
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(EVERY_LANE, values[0], step);
      values[0] = other > values[0] ? other : values[0];
    }
  }
}

// Each half of a group finds one of the two, so that most exchanges serve both.
template <int lanes> __device__ inline void group_max(uint32_t (&values)[2]) {
  if constexpr (lanes == WARP) {
    values[0] = warp_max(values[0]);
    values[1] = warp_max(values[1]);
  } else {
    const bool upper = (threadIdx.x & (lanes / 2)) != 0;
    uint32_t own = upper ? values[1] : values[0];
    uint32_t other = __shfl_xor_sync(EVERY_LANE, upper ? values[0] : values[1], lanes / 2);
    own = other > own ? other : own;
#pragma unroll
    for (int step = lanes / 4; step > 0; step /= 2) {
      other = __shfl_xor_sync(EVERY_LANE, own, step);
      own = other > own ? other : own;
    }
    other = __shfl_xor_sync(EVERY_LANE, own, lanes / 2);
    values[0] = upper ? other : own;
    values[1] = upper ? own : other;
  }
}

}  // namespace optgen
