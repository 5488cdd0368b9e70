// Windows of past values, kept as a state of the tensor.
//
// A value that is not finite never enters; the first finite one fills all slots, later ones slot `step % N`. Neither a
// count of steps nor a percentage, whatever it is, leads outside.
#pragma once

#include <optgen/call.h>
#include <optgen/math.h>

namespace optgen {

template <int N> struct Window {
  float values[N];
};

template <int N, bool exists = true> inline Window<N> read_window(const float* stored) {
  Window<N> window{};
  if constexpr (exists) memcpy(window.values, stored, sizeof window.values);
  return window;
}

// Slot of a step's entry; a value that is not a count is taken as 0.
template <int N> inline int slot_of(double step) {
  return int(whole_steps(step) % N);
}

// An unused window holds infinities.
template <int N> inline Window<N> push(Window<N> window, double value, double step) {
  const float entry = float(value);
  if (!isfinite(entry)) return window;
  if (!isfinite(window.values[0])) {
    for (int i = 0; i < N; ++i) window.values[i] = entry;
  } else {
    window.values[slot_of<N>(step)] = entry;
  }
  return window;
}

// The entry below which `q` percent of the window lie; NaN where `q` is.
template <int N> inline double percentile(Window<N> window, double q) {
  for (int i = 1; i < N; ++i) {
    const float entry = window.values[i];
    int j = i;
    for (; j > 0 && window.values[j - 1] > entry; --j) window.values[j] = window.values[j - 1];
    window.values[j] = entry;
  }
  const double rank = floor(q * N / 100.0);
  if (!(q == q)) return q;
  return window.values[rank < 0 ? 0 : rank > N - 1 ? N - 1 : int(rank)];
}

}  // namespace optgen
