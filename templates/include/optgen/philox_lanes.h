// The random numbers of a whole tile with vectors of 64-bit lanes. Included by philox_tile.h.
#pragma once

#include <optgen/lanes.h>
#include <optgen/philox.h>
#include <optgen/scales.h>

namespace optgen {
namespace philox_lanes {

using lanes::Wide;

// Words stand in the lower halves of lanes, where products are made; what is in the upper ones does not matter. Only
// the lower word of the counter differs within a tile, so that half of the first two rounds is the same for all.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int count = sizeof(Wide) / sizeof(uint64_t);
  constexpr int together = count < 8 ? 8 : 4;  // vectors, so that products do not wait for each other
  constexpr uint64_t lower = 0xffffffff;
  constexpr uint32_t of_left = 0xd2511f53u, of_right = 0xcd9e8d57u;
  Wide first[10], second[10];
  for (int round = 0; round < 10; ++round) {
    first[round] = Wide{} + uint64_t(uint32_t(draw.seed) + 0x9e3779b9u * uint32_t(round));
    second[round] = Wide{} + uint64_t(uint32_t(draw.seed >> 32) + 0xbb67ae85u * uint32_t(round));
  }
  Wide blocks{};  // such that pairs are stored in order
  for (int k = 0; k < count; ++k) blocks[k] = uint64_t(at) / 8 + uint64_t(k / 2 + k % 2 * (count / 2));
  const Wide same_b = Wide{} + uint64_t(draw.position) * of_right;
  const Wide same_a = same_b >> 32 ^ blocks >> 32 ^ first[0], same_d = lanes::product(same_a, of_left);
  const Wide same_c = second[0] ^ uint64_t(draw.step);
  const Wide to_a = same_b ^ first[1], to_c = same_d >> 32 ^ second[1];
#pragma GCC unroll 1
  for (int from = 0; from < TILE / 8; from += count * together) {
    Wide a[together], b[together], c[together], d[together];
    for (int v = 0; v < together; ++v) d[v] = lanes::product(blocks + uint64_t(from + count * v), of_left);
    for (int v = 0; v < together; ++v) {
      b[v] = lanes::product(d[v] >> 32 ^ same_c, of_right);
      a[v] = b[v] >> 32 ^ to_a;
      c[v] = d[v] ^ to_c;
      d[v] = same_d;
    }
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round) {
      for (int v = 0; v < together; ++v) {
        const Wide left = lanes::product(a[v], of_left), right = lanes::product(c[v], of_right);
        a[v] = right >> 32 ^ b[v] ^ first[round];
        c[v] = left >> 32 ^ d[v] ^ second[round];
        b[v] = right;
        d[v] = left;
      }
    }
    for (int v = 0; v < together; ++v) {
      const Wide ab = (a[v] & lower) | b[v] << 32, cd = (c[v] & lower) | d[v] << 32;
      lanes::store_pairs(random + 8 * (from + count * v), ab, cd);
    }
  }
}

}  // namespace philox_lanes
}  // namespace optgen
