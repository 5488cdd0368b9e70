// The random numbers of a whole tile.
//
// Implementations: vectors (philox_lanes.h), and a plain loop. OPTGEN_GENERIC forces the plain one.
#pragma once

#include <optgen/lanes.h>
#include <optgen/philox.h>
#include <optgen/scales.h>
#include <string.h>

#if defined(OPTGEN_LANES)
#include <optgen/philox_lanes.h>
#endif

namespace optgen {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word comes first");

namespace philox_plain {

inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
  constexpr int blocks = TILE / 8;
  alignas(64) uint32_t words[4 * blocks];
  for (int i = 0; i < blocks; ++i) {
    const Words drawn = draw_words(draw, uint64_t(at) / 8 + uint64_t(i));
    for (int k = 0; k < 4; ++k) words[4 * i + k] = drawn.word[k];
  }
  memcpy(random, words, sizeof words);
}

}  // namespace philox_plain

// 16 random bits for each of the TILE elements from `at` on, a multiple of 8.
inline void draw_tile(const Draw& draw, int64_t at, uint16_t* random) {
#if defined(OPTGEN_LANES)
  const uint64_t blocks = uint64_t(at) / 8;
  if (blocks >> 32 == (blocks + TILE / 8 - 1) >> 32) return philox_lanes::draw_tile(draw, at, random);
#endif
  philox_plain::draw_tile(draw, at, random);
}

// 16 random bits for each of the 8 elements from `at` on, a multiple of 8.
inline void draw_eight(const Draw& draw, int64_t at, uint16_t* random) {
  const Words words = draw_words(draw, uint64_t(at) / 8);
  memcpy(random, words.word, sizeof words.word);
}

}  // namespace optgen
