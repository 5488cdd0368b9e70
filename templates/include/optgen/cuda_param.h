// Parameters that are rounded in other ways than to nearest, as torch_rounding.py says, bit for bit.
//
// A value that is not finite has nothing beside it, and neither has one that overflows when it is rounded.
#pragma once

#include <optgen/cuda_tile.h>
#include <type_traits>

namespace optgen {

constexpr int MOST_WARPS = 1024 / WARP;  // of a block

OPTGEN_FUNCTION bool is_finite(float x) { return fabsf(x) < OPTGEN_INFINITY; }

// The bits of NaN as a float32, whose upper half is NaN too.
constexpr uint32_t NAN_BITS = 0x7fff0000u;

// Rounded up in magnitude where 16 random bits are below the fraction of the last place, in 2^-16. An infinity, whose
// fraction is 0, stays what it is.
template <class T> struct AtRandom;
template <> struct AtRandom<bf16> {
  static __device__ uint32_t store(float value, uint32_t random) {
    return (value == value ? float_bits(value) + random : NAN_BITS) >> 16;
  }
};
template <> struct AtRandom<fp16> {
  static __device__ uint32_t store(float value, uint32_t random) {
    const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + (random >> 3) - (112u << 23)) >> 13;
    // Below 2^-14 the last place of fp16 is 2^-24.
    const float places = bits_float(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
    const uint32_t down = whole_part(places);
    const float fraction = places - (bits_float(0x4b000000u + down) - 0x1p23f);
    const float drawn = bits_float(0x4b000000u | random) - 0x1p23f;
    const uint32_t subnormal = down + (drawn < fraction * 0x1p16f ? 1u : 0u);
    const uint32_t large = normal < 0x7c00u ? normal : 0x7c00u;
    const uint32_t result = (magnitude < 0x38800000u ? subnormal : large) | (bits >> 16 & 0x8000u);
    return value == value ? result : 0x7fffu;
  }
};

template <class T, int run> struct Tile<Stochastic<T>, run> : Tile<Plain<T>, run> {
  __device__ Tile(void* base, void* aside, int64_t first) : Tile<Plain<T>, run>(base, aside, first) {}

  // A warp's own, in shared memory: it is looked at once a tile, and registers are few.
  static __device__ Draw& draw() {
    __shared__ Draw of_warp[MOST_WARPS];
    return of_warp[threadIdx.x / WARP];
  }
  // All lanes of a warp call it together.
  __device__ void draws(const Draw& from) {
    __syncwarp();  // of the draw before, all have read
    if (threadIdx.x % WARP == 0) draw() = from;
    __syncwarp();
  }

  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books&) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      const int64_t at = place.first + place.position(i);
      const Words words = draw_words(draw(), uint64_t(at) / 8);
      typename Tile<Plain<T>, run>::Numbers numbers;
#pragma unroll
      for (int j = 0; j < run; ++j) {
        // Half a block of words where a run has four elements.
        const uint32_t word = run == 8 || at % 8 == 0 ? words.word[j / 2] : words.word[(j + 4) / 2 % 4];
        numbers.add(j, AtRandom<T>::store(this->values[i + j], j % 2 ? word >> 16 : word & 0xffffu));
      }
      numbers.template write<whole>(this->data + place.position(i), place.count(i));
    }
  }
};

// A parameter and what is kept beside it, of type B: `Pairing` puts them together and takes them apart.
template <class T, class B, class Pairing, int run> struct PairedTile {
  float values[LANE];
  T* data;
  B* beside;

  __device__ PairedTile(void* base, void* aside, int64_t first)
      : data(global_memory(static_cast<T*>(base)) + first), beside(global_memory(static_cast<B*>(aside)) + first) {}
  __device__ void draws(const Draw&) {}

  template <bool whole, class Books> __device__ float* open(Place<run, whole> place, const Books&) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Packed<8 * sizeof(T), run> numbers;
      Packed<8 * sizeof(B), run> rests;
      numbers.template read<whole>(data + place.position(i), place.count(i));
      rests.template read<whole>(beside + place.position(i), place.count(i));
#pragma unroll
      for (int j = 0; j < run; ++j) values[i + j] = Pairing::join(numbers.at(j), rests.at(j));
    }
    return values;
  }
  __device__ float* open_new() { return values; }
  template <bool whole> __device__ void measure(Place<run, whole>) {}
  template <bool whole, class Books> __device__ void close(float, Place<run, whole> place, const Books&) {
#pragma unroll
    for (int i = 0; i < LANE; i += run) {
      Packed<8 * sizeof(T), run> numbers;
      Packed<8 * sizeof(B), run> rests;
#pragma unroll
      for (int j = 0; j < run; ++j) {
        uint32_t number, rest;
        Pairing::split(values[i + j], number, rest);
        numbers.add(j, number);
        rests.add(j, rest);
      }
      numbers.template write<whole>(data + place.position(i), place.count(i));
      rests.template write<whole>(beside + place.position(i), place.count(i));
    }
  }
  __device__ void advance(int elements) {
    data += elements;
    beside += elements;
  }
};

// The bits of one number by itself: the instruction for two at once, which is quicker than that for one.
template <class T> __device__ inline uint32_t store_alone(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
    return pair;
  }
#endif
  return Stored<T>::store(value);
}

// To nearest, and the rest to nearest.
template <class T> struct KahanPairing {
  static __device__ float join(uint32_t number, uint32_t rest) {
    return Stored<T>::load(number) + Stored<T>::load(rest);
  }
  static __device__ void split(float value, uint32_t& number, uint32_t& rest) {
    number = store_alone<T>(value);
    const float stored = Stored<T>::load(number);
    rest = Stored<T>::store(is_finite(value) && is_finite(stored) ? value - stored : 0.0f);
  }
};

// The upper half of a float32, rounded half up, and the difference to it: all 16 bits of it, or 8 of a float32 that has
// been rounded to 24 bits.
template <int bits> struct SplitPairing {
  static constexpr int left_out = 16 - bits;

  static __device__ float join(uint32_t number, uint32_t rest) {
    const uint32_t difference = bits == 16 ? uint32_t(int32_t(int16_t(rest))) : uint32_t(int32_t(int8_t(rest)));
    return bits_float((number << 16) + (difference << left_out));
  }
  static __device__ void split(float value, uint32_t& number, uint32_t& rest) {
    uint32_t cut = float_bits(value);
    if (bits == 8) cut = (cut + 0x7fu + (cut >> 8 & 1u)) & ~0xffu;
    const uint32_t half_up = value == value ? cut + 0x8000u : NAN_BITS;
    number = half_up >> 16;
    const bool is_exact = is_finite(bits_float(half_up));  // else the value is not, or it overflowed
    rest = is_exact ? uint32_t(int32_t(cut - (half_up & 0xffff0000u)) >> left_out) & ((1u << bits) - 1u) : 0u;
  }
};

template <class T, int run>
struct Tile<Kahan<T>, run> : PairedTile<T, T, KahanPairing<T>, run> {
  using PairedTile<T, T, KahanPairing<T>, run>::PairedTile;
};
template <class B, int run>
struct Tile<Split<B>, run> : PairedTile<bf16, B, SplitPairing<8 * sizeof(B)>, run> {
  using PairedTile<bf16, B, SplitPairing<8 * sizeof(B)>, run>::PairedTile;
};

}  // namespace optgen
