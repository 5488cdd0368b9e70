// Elements of a state that is a matrix of its own, decoded and encoded beside the passes, and exact square roots.
// `OPTGEN_CODEC` is the state's codec; it has no scale for the whole tensor.
#include <optgen/cpu.h>

using namespace optgen;

namespace {

// Runs `work(first element, number of elements)` on every tile.
template <class Work> void each_tile(int64_t count, int64_t threads, const Work& work) {
  with_threads(int(threads), [&](const auto& team) {
    team.each((count + TILE - 1) / TILE, [&](int64_t tile) {
      const int64_t at = tile * TILE;
      work(at, int(count - at < TILE ? count - at : TILE));
    });
  });
}

}  // namespace

OPTGEN_EXPORT void decode(void* codes, void* scales, float* values, int64_t count, int64_t threads) {
  each_tile(count, threads, [&](int64_t at, int n) {
    Tile<OPTGEN_CODEC> tile;
    const auto* const from = tile.open(codes, scales, at, n);
    for (int i = 0; i < n; ++i) values[at + i] = load(from[i]);
  });
}

OPTGEN_EXPORT void encode(const float* values, void* codes, void* scales, int64_t count, int64_t threads) {
  each_tile(count, threads, [&](int64_t at, int n) {
    Tile<OPTGEN_CODEC> tile;
    auto* const to = tile.open_new(codes, scales, at, n);
    for (int i = 0; i < n; ++i) store(to[i], values[at + i]);
    tile.measure();
    tile.close(0.0f);
  });
}

OPTGEN_EXPORT void roots(const float* values, float* to, int64_t count, int64_t threads) {
  each_tile(count, threads, [&](int64_t at, int n) {
#pragma omp simd
    for (int i = 0; i < n; ++i) to[at + i] = optgen::sqrt(values[at + i]);
  });
}
