// Random numbers that follow from where they are used: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As
// Easy as 1, 2, 3", section 3.3), a function of a key and a counter.
//
// The key is the seed, the counter (element / 8, position of the parameter, number of the step): the four words are
// eight numbers of 16 bits, the lower half of each word first, for eight neighbouring elements. As in
// optgen/runtime/states/philox.py.
#pragma once

#include <optgen/call.h>
#include <optgen/function.h>
#include <stdint.h>

namespace optgen {

// Source of the draws of a parameter in a step.
struct alignas(16) Draw {
  uint64_t seed;
  uint32_t position;  // the parameter's among all of the optimizer
  uint32_t step;      // from 1
};

OPTGEN_FUNCTION Draw draw_of(const Tensor& t) {
  return {uint64_t(t.at(SEED)), uint32_t(t.at(POSITION)), uint32_t(whole_steps(steps_of(t))) + 1u};
}

struct Words {
  uint32_t word[4];
};

OPTGEN_FUNCTION Words philox(Words counter, uint64_t key) {
  uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  uint32_t first = uint32_t(key), second = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t(a) * 0xd2511f53u, right = uint64_t(c) * 0xcd9e8d57u;
    a = uint32_t(right >> 32) ^ b ^ first;
    b = uint32_t(right);
    c = uint32_t(left >> 32) ^ d ^ second;
    d = uint32_t(left);
    first += 0x9e3779b9u;
    second += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

// The words of eight neighbouring elements, `block` being any of theirs over 8.
OPTGEN_FUNCTION Words draw_words(const Draw& draw, uint64_t block) {
  return philox({{uint32_t(block), uint32_t(block >> 32), draw.position, draw.step}}, draw.seed);
}

}  // namespace optgen
