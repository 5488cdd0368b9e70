// The random numbers of a whole tile with vectors of 64-bit lanes. Included by philox_tile.h.
#pragma once

#include <optgen/lanes.h>
#include <optgen/philox.h>
#include <optgen/scales.h>

namespace optgen {
namespace philox_lanes {

using lanes::Wide;

// Words stand in the lower halves of lanes, where products are made; what is in the upper ones does not matter.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int together = 4;  // vectors, so that products do not wait for each other
  constexpr int count = sizeof(Wide) / sizeof(uint64_t);
  constexpr uint64_t lower = 0xffffffff;
  Wide ascending{};
  for (int k = 0; k < count; ++k) ascending[k] = uint64_t(k);
  for (int from = 0; from < TILE / 8; from += count * together) {
    Wide a[together], b[together], c[together], d[together];
    for (int v = 0; v < together; ++v) {
      a[v] = ascending + uint64_t(at / 8 + from + count * v);
      b[v] = a[v] >> 32;
      c[v] = Wide{} + draw.position;
      d[v] = Wide{} + draw.step;
    }
    uint32_t first = uint32_t(draw.seed), second = uint32_t(draw.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < together; ++v) {
        const Wide left = lanes::product(a[v], 0xd2511f53u), right = lanes::product(c[v], 0xcd9e8d57u);
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
      for (int k = 0; k < count; ++k) {
        const uint64_t words[] = {ab[k], cd[k]};
        memcpy(random + 8 * (from + count * v + k), words, sizeof words);
      }
    }
  }
}

}  // namespace philox_lanes
}  // namespace optgen
