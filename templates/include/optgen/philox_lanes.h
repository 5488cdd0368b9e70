// The random numbers of a whole tile with vectors of four 64-bit lanes. Included by philox_tile.h.
#pragma once

#include <optgen/lanes.h>
#include <optgen/philox.h>
#include <optgen/scales.h>

namespace optgen {
namespace philox_lanes {

typedef uint64_t Wide __attribute__((vector_size(32)));

// The product of the lower halves.
OPTGEN_INLINE Wide product(Wide a, uint32_t b) {
  return (Wide)__builtin_ia32_pmuludq256((lanes::Ints)a, (lanes::Ints)(Wide{} + b));
}

// Words stand in the lower halves of lanes, where products are made; what is in the upper ones does not matter.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int together = 4;  // vectors, so that products do not wait for each other
  constexpr uint64_t lower = 0xffffffff;
  for (int from = 0; from < TILE / 8; from += 4 * together) {
    Wide a[together], b[together], c[together], d[together];
    for (int v = 0; v < together; ++v) {
      a[v] = Wide{0, 1, 2, 3} + uint64_t(at / 8 + from + 4 * v);
      b[v] = a[v] >> 32;
      c[v] = Wide{} + draw.position;
      d[v] = Wide{} + draw.step;
    }
    uint32_t first = uint32_t(draw.seed), second = uint32_t(draw.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < together; ++v) {
        const Wide left = product(a[v], 0xd2511f53u), right = product(c[v], 0xcd9e8d57u);
        a[v] = right >> 32 ^ b[v] ^ uint64_t(first);
        c[v] = left >> 32 ^ d[v] ^ uint64_t(second);
        b[v] = right;
        d[v] = left;
      }
      first += 0x9e3779b9u;
      second += 0xbb67ae85u;
    }
    for (int v = 0; v < together; ++v) {
      const Wide ab = (a[v] & lower) | b[v] << 32, cd = (c[v] & lower) | d[v] << 32;
      for (int k = 0; k < 4; ++k) {
        const uint64_t words[] = {ab[k], cd[k]};
        memcpy(random + 8 * (from + 4 * v + k), words, sizeof words);
      }
    }
  }
}

}  // namespace philox_lanes
}  // namespace optgen
