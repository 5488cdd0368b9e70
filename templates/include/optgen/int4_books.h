// The tables of the 4-bit codes, as in optgen/codecs.py: the numbers of the 16 codes, and the midpoints between
// neighbouring magnitudes, infinite from where there are none on; and two lines: the lower one, without its fraction, is
// the number of midpoints below a magnitude or one less.
#pragma once

#include <optgen/codecs.h>
#include <optgen/function.h>
#include <optgen/libm.h>

namespace optgen {

struct Line {
  float slope, offset;
};

template <bool is_signed, class Numbers> struct Int4Tables;

template <> struct Int4Tables<true, DynamicMap> {
  static constexpr float none = OPTGEN_INFINITY;
  static constexpr Line fine{30.0f, 0.7f}, coarse{4.6f, 3.0f};
  OPTGEN_ALIGNED(64) static constexpr float book[16] = {
      -0.887499988f,  -0.662500024f, -0.4375f,       -0.212499991f, -0.0775000006f, -0.0325000025f,
      -0.00549999997f, 0.0f,         0.00549999997f, 0.0325000025f, 0.0775000006f,  0.212499991f,
      0.4375f,        0.662500024f,  0.887499988f,   1.0f};
  OPTGEN_ALIGNED(64) static constexpr float midpoints[16] = {
      0.00274999999f, 0.0190000013f, 0.0549999997f, 0.144999996f, 0.324999988f, 0.550000012f, 0.774999976f, 0.943750024f,
      none,           none,          none,          none,         none,         none,         none,         none};
};

template <> struct Int4Tables<true, NormalBook> {
  static constexpr float none = OPTGEN_INFINITY;
  static constexpr Line fine{8.0f, 0.25f}, coarse{4.0f, 3.5f};
  OPTGEN_ALIGNED(64) static constexpr float book[16] = {
      -0.907000005f, -0.700299978f, -0.544700027f, -0.415199995f, -0.300999999f, -0.1963f,
      -0.0969000012f, 0.0f,         0.0969000012f, 0.1963f,       0.300999999f,  0.415199995f,
      0.544700027f,  0.700299978f,  0.907000005f,  1.0f};
  OPTGEN_ALIGNED(64) static constexpr float midpoints[16] = {
      0.0484500006f, 0.146600008f, 0.248649999f, 0.358099997f, 0.479950011f, 0.622500002f, 0.803650022f, 0.953500032f,
      none,          none,         none,         none,         none,         none,         none,         none};
};

template <class Numbers> struct Int4Tables<false, Numbers> {
  OPTGEN_ALIGNED(64) static constexpr float book[16] = {0.0625f, 0.125f, 0.1875f, 0.25f, 0.3125f, 0.375f, 0.4375f, 0.5f,
                                                 0.5625f, 0.625f, 0.6875f, 0.75f, 0.8125f, 0.875f, 0.9375f, 1.0f};
};

}  // namespace optgen
