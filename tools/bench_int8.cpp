// What the 8-bit codecs cost: nanoseconds an element on one thread, data in the cache, the best of many runs.
//
//   g++ -std=c++17 -O3 -march=native -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math
//     -Itemplates/include tools/bench_int8.cpp -o bench_int8 && ./bench_int8
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>

#include <optgen/convert.h>
#include <optgen/int8.h>

namespace {

constexpr int blocks = 16;
constexpr int count = blocks * optgen::int8_block;

alignas(64) float values[count];
alignas(64) float results[count];
alignas(64) uint8_t codes[count];
alignas(64) optgen::fp16 halves[count];
float absmax[blocks];

// Hides the buffers from the compiler, which would otherwise move work out of the timed loop.
inline void touch() { asm volatile("" ::: "memory"); }

template <typename Work>
void measure(const char* name, Work work) {
  double best = 1e30;
  for (int run = 0; run < 300; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < 20; ++repeat) {
      for (int b = 0; b < blocks; ++b) work(b, b * optgen::int8_block);
      touch();
    }
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count() / (20.0 * count));
  }
  printf("%-28s %7.4f ns an element, %6.2f ns for 16\n", name, best, 16 * best);
}

template <bool is_signed>
void measure_codec() {
  using namespace optgen;
  for (int i = 0; i < count; ++i) {
    const float normal = float(sqrt(-2 * log((rand() + 1.0) / (RAND_MAX + 2.0))) * cos(6.283185 * rand() / RAND_MAX));
    values[i] = is_signed ? normal : normal * normal;
  }
  for (int b = 0; b < blocks; ++b) absmax[b] = finite_absmax(values + b * int8_block, int8_block);
  printf("%s book\n", is_signed ? "signed" : "unsigned");
  measure("  encode, plain", [](int b, int at) {
    int8_generic::encode<is_signed>(values + at, 1.0f / absmax[b], codes + at, int8_block);
  });
  measure("  encode", [](int b, int at) { int8_encode<is_signed>(values + at, absmax[b], codes + at, int8_block); });
  measure("  decode, plain", [](int b, int at) {
    int8_generic::decode<is_signed>(codes + at, absmax[b], results + at, int8_block);
  });
  measure("  decode", [](int b, int at) { int8_decode<is_signed>(codes + at, absmax[b], results + at, int8_block); });
  measure("  decode, absmax, encode", [](int b, int at) {
    int8_decode<is_signed>(codes + at, absmax[b], results + at, int8_block);
    touch();
    absmax[b] = finite_absmax(results + at, int8_block);
    int8_encode<is_signed>(results + at, absmax[b], codes + at, int8_block);
  });
}

}  // namespace

int main() {
  using namespace optgen;
  measure_codec<true>();
  measure_codec<false>();
  puts("others");
  measure("  finite_absmax", [](int b, int at) { absmax[b] = finite_absmax(values + at, int8_block); });
  measure("  float_to_fp16", [](int, int at) { float_to_fp16(values + at, halves + at, int8_block); });
  measure("  fp16_to_float", [](int, int at) { fp16_to_float(halves + at, results + at, int8_block); });
}
