// Proof by exhaustion that the fast encoders of the books are exact: every float from 0 to 1.0000005, both signs, 8 and
// 4 bits, against a search among the midpoints. Takes about a minute; run by hand when int8*.h, int4*.h or the books'
// lines change:
//
//   g++ -std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -Itemplates/include
//     tools/check_codes.cpp -o check_codes && ./check_codes      (again with -DOPTGEN_GENERIC)
//
// An argument of 1 or 0 checks the books with or without a sign only.
#include <stdio.h>

#include <optgen/int4.h>
#include <optgen/int8.h>

using namespace optgen;

namespace {

struct Eight {
  static constexpr int bits = 8;
  template <bool is_signed> using Book = Int8<is_signed>;
  template <bool is_signed> static float midpoint(int k) { return Int8Tables<is_signed>::midpoints[k]; }
};

template <class Numbers> struct Four {
  static constexpr int bits = 4;
  template <bool is_signed> using Book = Int4<is_signed, Numbers>;
  template <bool is_signed> static float midpoint(int k) {
    return is_signed ? Int4Tables<true, Numbers>::midpoints[k] : (float(k) + 1.5f) / 16.0f;
  }
};

template <class Books, bool is_signed>
long long check(bool negative) {
  constexpr int codes = 1 << Books::bits, zero = codes / 2 - 1;
  constexpr int midpoints = is_signed ? codes / 2 : codes - 1;
  const uint32_t last = float_bits(1.0000005f);
  const float scale = 1.0f;
  long long wrong = 0;
  int k = 0;  // magnitudes ascend: the midpoints below them only grow
  for (uint64_t first = 0; first <= last; first += TILE) {
    float values[TILE];
    uint8_t stored[TILE];
    const uint32_t sign = negative ? 0x80000000u : 0u;
    for (int i = 0; i < TILE; ++i) values[i] = bits_float(uint32_t(first + i) | sign);
    Books::template Book<is_signed>::template encode<TILE>(values, &scale, stored, TILE);
    for (int i = 0; i < TILE; ++i) {
      const float y = bits_float(uint32_t(first + i));
      while (k < midpoints && y > Books::template midpoint<is_signed>(k)) ++k;
      const int above = is_signed ? zero + k : k;
      const int below = is_signed ? zero - (k < zero ? k : zero) : 0;
      const int right = negative ? below : above;
      const int code = Books::bits == 8 ? stored[i] : i % 2 ? stored[i / 2] & 15 : stored[i / 2] >> 4;
      if (code != right && wrong++ < 10)
        printf("%d bits, %s y=%.9g: code %d, right is %d\n", Books::bits, is_signed ? "signed" : "unsigned", double(y),
               code, right);
    }
  }
  return wrong;
}

template <bool is_signed> long long check_books() {
  return check<Eight, is_signed>(false) + check<Eight, is_signed>(true) + check<Four<DynamicMap>, is_signed>(false) +
         check<Four<DynamicMap>, is_signed>(true) + check<Four<NormalBook>, is_signed>(false) +
         check<Four<NormalBook>, is_signed>(true);
}

}  // namespace

int main(int count, char** arguments) {
  const char which = count > 1 ? arguments[1][0] : 'a';
  const long long wrong = (which == '0' ? 0 : check_books<true>()) + (which == '1' ? 0 : check_books<false>());
  printf("%lld wrong codes\n", wrong);
  return wrong != 0;
}
