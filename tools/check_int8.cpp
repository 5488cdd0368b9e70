// Proof by exhaustion that the fast 8-bit encoder is exact: every float from 0 to 1.0000005, both books, both signs,
// against a search among the midpoints. Takes about a minute; run by hand when int8.h or the books' lines change:
//
//   g++ -std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -Itemplates/include
//     tools/check_int8.cpp -o check_int8 && ./check_int8      (again with -DOPTGEN_GENERIC)
#include <stdio.h>

#include <optgen/int8.h>

namespace {

template <bool is_signed>
long long check(bool negative) {
  const uint32_t last = optgen::float_bits(1.0000005f);
  const int midpoints = is_signed ? 128 : 255;
  long long wrong = 0;
  int k = 0;  // magnitudes ascend: the midpoints below them only grow
  for (uint64_t first = 0; first <= last; first += optgen::int8_block) {
    float values[optgen::int8_block];
    uint8_t codes[optgen::int8_block];
    const uint32_t sign = negative ? 0x80000000u : 0u;
    for (int i = 0; i < optgen::int8_block; ++i) values[i] = optgen::bits_float(uint32_t(first + i) | sign);
    optgen::int8_encode<is_signed>(values, 1.0f, codes, optgen::int8_block);
    for (int i = 0; i < optgen::int8_block; ++i) {
      const float y = optgen::bits_float(uint32_t(first + i));
      while (k < midpoints && y > optgen::Int8Tables<is_signed>::midpoints[k]) ++k;
      const int above = is_signed ? 127 + k : k;
      const int below = is_signed ? 127 - (k < 127 ? k : 127) : 0;
      const int right = negative ? below : above;
      if (codes[i] != right && wrong++ < 10)
        printf("%s y=%.9g: code %d, right is %d\n", is_signed ? "signed" : "unsigned", double(y), codes[i], right);
    }
  }
  return wrong;
}

}  // namespace

int main() {
  const long long wrong = check<true>(false) + check<true>(true) + check<false>(false) + check<false>(true);
  printf("%lld wrong codes\n", wrong);
  return wrong != 0;
}
