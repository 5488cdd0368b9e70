// Cost of storage on the CPU: nanoseconds a tile of 256 elements on one thread, data in the cache, the best of many
// runs. Reading is open(); both is reading, finding scales and writing.
//
//   g++ -std=c++17 -O3 -march=native -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math
//     -Itemplates/include tools/bench_codecs.cpp -o bench_codecs && ./bench_codecs
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>

#include <optgen/tile.h>

using namespace optgen;

namespace {

constexpr int tiles = 16;
constexpr int count = tiles * TILE;

alignas(64) float values[count];
alignas(64) char data[4 * count];
alignas(64) char aside[4 * count];

// Hides the buffers from the compiler, which would otherwise move work out of the timed loop.
inline void touch() { asm volatile("" ::: "memory"); }

template <class Work> double best_time(Work work) {
  double best = 1e30;
  for (int run = 0; run < 300; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < 5; ++repeat)
      for (int at = 0; at < count; at += TILE) work(at);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count() / (5.0 * tiles));
  }
  return best;
}

template <class T> auto set_draw(T& tile, int) -> decltype(tile.draws(Draw{}, 0)) { tile.draws(Draw{1, 2, 3}, 0); }
template <class T> void set_draw(T&, long) {}  // of a state

template <class Codec> void measure(const char* name) {
  Tile<Codec> tile;
  set_draw(tile, 0);
  for (int at = 0; at < count; at += TILE) {
    auto* const to = tile.open_new(data, aside, at, TILE);
    for (int i = 0; i < TILE; ++i) store(to[i], values[at + i]);
    tile.measure();
    tile.close(8.0f);
  }
  const double read = best_time([&](int at) {
    tile.open(data, aside, at, TILE);
    touch();
  });
  const double both = best_time([&](int at) {
    tile.open(data, aside, at, TILE);
    touch();
    tile.measure();
    tile.close(8.0f);
  });
  printf("%-26s %8.1f %8.1f\n", name, read, both);
}

template <bool is_signed> void measure_states(const char* sign) {
  for (float& x : values) {
    const float normal = float(::sqrt(-2 * ::log((rand() + 1.0) / (RAND_MAX + 2.0))) * ::cos(6.283185 * rand() / RAND_MAX));
    x = is_signed ? normal : normal * normal;
  }
  puts(sign);
  measure<Blocked<Int8<is_signed>, 256>>("  int8, 256 a scale");
  measure<Blocked<Int8<is_signed>, 32>>("  int8, 32");
  measure<Blocked<Int4<is_signed>, 128>>("  int4, 128");
  measure<Blocked<Int4<is_signed>, 32>>("  int4, 32");
  measure<Blocked<Int4<is_signed, NormalBook>, 64>>("  normal4, 64");
  measure<Blocked<Fp8<is_signed>, 256>>("  fp8, 256");
  measure<Blocked<Companded8<is_signed>, 32>>("  companded8, 32");
}

template <class Codec> void measure_parameter(const char* name) {
  for (char& byte : aside) byte = 0;
  measure<Codec>(name);
}

}  // namespace

int main() {
  printf("%-26s %8s %8s\n", "", "reading", "both");
  measure_states<true>("states with a sign");
  measure_states<false>("states without a sign");
  puts("parameters");
  measure_parameter<Plain<fp16>>("  fp16");
  measure_parameter<Stochastic<bf16>>("  stochastic, bf16");
  measure_parameter<Stochastic<fp16>>("  stochastic, fp16");
  measure_parameter<Kahan<bf16>>("  kahan, bf16");
  measure_parameter<Kahan<fp16>>("  kahan, fp16");
  measure_parameter<Split<int8_t>>("  split8");
  measure_parameter<Split<int16_t>>("  split16");
}
