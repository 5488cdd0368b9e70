// Windows of past values on a GPU: the stored numbers, with the entry that a step adds seen over them.
//
// The rule is that of window.h. All lanes of a warp call these functions together, with the same arguments.
#pragma once

#include <optgen/call.h>
#include <optgen/cuda_tile.h>
#include <optgen/math.h>

namespace optgen {

template <int N> struct Window {
  const float* stored = nullptr;
  float entry = 0.0f;
  int slot = N;  // where the entry stands; N: everywhere, -1: nowhere

  __device__ float at(int i) const { return slot == N || slot == i ? entry : stored[i]; }
};

template <int N, bool exists = true> __device__ inline Window<N> read_window(const float* stored) {
  return exists ? Window<N>{stored, 0.0f, -1} : Window<N>{};
}

// Slot of a step's entry; a value that is not a count is taken as 0.
template <int N> __device__ inline int slot_of(double step) {
  return int(whole_steps(step) % N);
}

// An unused window holds infinities. A step adds one entry at most.
template <int N> __device__ inline Window<N> push(Window<N> window, double value, double step) {
  const float entry = float(value);
  if (!isfinite(entry)) return window;
  return {window.stored, entry, isfinite(window.stored[0]) ? slot_of<N>(step) : N};
}

// Bits that order as the numbers do.
__device__ inline uint32_t ordered_bits(float x) {
  const uint32_t bits = float_bits(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The entry below which `q` percent of the window lie, NaN where `q` is: found bit by bit, from the highest, by counting the entries
// that are not above a candidate.
template <int N> __device__ inline double percentile(Window<N> window, double q) {
  constexpr int each = (N + WARP - 1) / WARP;  // entries of a lane
  const int lane = int(threadIdx.x % WARP);
  uint32_t entries[each];
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int place = i * WARP + lane;
    entries[i] = place < N ? ordered_bits(window.at(place)) : 0xffffffffu;
  }
  const double place = floor(q * N / 100.0);
  const int rank = place < 0 ? 0 : place > N - 1 ? N - 1 : int(place);
  uint32_t found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = found | ((1u << bit) - 1u);  // the largest with this bit clear
    int below = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) below += __popc(__ballot_sync(EVERY_LANE, entries[i] <= candidate));
    if (below <= rank) found |= 1u << bit;
  }
  if (!(q == q)) return q;
  return bits_float(found & 0x80000000u ? found & 0x7fffffffu : ~found);
}

}  // namespace optgen
