// The random numbers of a whole tile.
#pragma once

#include <optgen/philox.h>
#include <optgen/scales.h>
#include <string.h>

namespace optgen {

// 16 random bits for each of the TILE elements from `at` on, a multiple of 8.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int blocks = TILE / 8;
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word comes first");
  alignas(64) uint32_t words[4 * blocks];
  for (int i = 0; i < blocks; ++i) {
    const Words drawn = draw_words(draw, uint64_t(at) / 8 + uint64_t(i));
    for (int k = 0; k < 4; ++k) words[4 * i + k] = drawn.word[k];
  }
  memcpy(random, words, sizeof words);
}

}  // namespace optgen
