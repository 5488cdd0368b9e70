// Floats and their bits.
//
// memcpy is the one way to look at a float's bits that is defined in C++17; compilers make a plain move of it.
#pragma once

#include <optgen/function.h>
#include <stdint.h>
#include <string.h>

namespace optgen {

OPTGEN_FUNCTION uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

OPTGEN_FUNCTION float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

OPTGEN_FUNCTION uint64_t double_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

OPTGEN_FUNCTION double bits_double(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace optgen
