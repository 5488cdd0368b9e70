// The 4-bit codes with vectors. Included by int4.h, where the rule stands, after the plain loops.
#pragma once

#include <optgen/int4_books.h>
#include <optgen/lanes.h>
#include <optgen/scales.h>

namespace optgen {
namespace int4_lanes {

using namespace lanes;

// The numbers of a vector of codes.
template <bool is_signed, class Numbers> struct Decoder {
  Sixteen book = sixteen(Int4Tables<is_signed, Numbers>::book);

  OPTGEN_INLINE Floats operator()(const uint8_t* bytes) const {
    const Ints code = load_nibbles(bytes);
    if (is_signed) return pick(book, code);
    return fused(to_floats(shifted_right(code, 28)), all(0.0625f), all(0.0625f));
  }
};

template <bool is_signed, class Numbers, int block>
inline void decode(const uint8_t* bytes, const float* scales, float* out, int n) {
  const Decoder<is_signed, Numbers> decoder;
  const PerBlock<block> scale(scales, n);
  const int whole = n / count * count;
  for (int from = 0; from < whole; from += block) {
    const int end = from + block < whole ? from + block : whole;
    const float absmax = scale.at(from);
#pragma GCC unroll 4
    for (int i = from; i < end; i += count) store(out + i, decoder(bytes + i / 2) * absmax);
  }
  if (whole < n) {
    uint8_t rest[count / 2] = {};
    memcpy(rest, bytes + whole / 2, (n - whole + 1) / 2);
    const Floats x = decoder(rest) * scale.at(whole);
    memcpy(out + whole, &x, (n - whole) * sizeof(float));
  }
}

// The code of a magnitude over absmax; with a sign that, counted from zero's, or one less.
template <bool is_signed, class Numbers> OPTGEN_INLINE Ints guessed(Floats y) {
  using Tables = Int4Tables<true, Numbers>;
  if (!is_signed) return larger(rounded_up(fused(y, all(16.0f), all(-1.5f))), Ints{});
  const Floats fine = fused(y, all(Tables::fine.slope), all(Tables::fine.offset));
  const Floats coarse = fused(y, all(Tables::coarse.slope), all(Tables::coarse.offset));
  return whole_part(smaller(fine, coarse));
}

// Encodes n values, a multiple of `group`; returns whether all of them are finite, else the codes are of no use. Two loops
// instead of one: within each, the processor finds more work that does not wait for other work.
template <bool is_signed, class Numbers, int block>
OPTGEN_INLINE bool encode_groups(const float* values, const Reciprocals<block>& reciprocals, uint8_t* bytes, int n) {
  alignas(64) float magnitudes[TILE];
  alignas(64) int32_t guesses[TILE];
  Ints largest{};
  for (int from = 0; from < n; from += block) {
    const int end = from + block < n ? from + block : n;
    const float reciprocal = reciprocals.at(from);
#pragma GCC unroll 4
    for (int i = from; i < end; i += count) {
      const Ints x = (Ints)load(values + i), magnitude = is_signed ? x & INT32_MAX : larger(x, Ints{});
      const Floats y = (Floats)magnitude * reciprocal;
      largest = larger(largest, magnitude);
      if (is_signed) store(magnitudes + i, y);
      store(guesses + i, guessed<is_signed, Numbers>(y));
    }
  }
  const Table midpoints = table(Int4Tables<true, Numbers>::midpoints);
#pragma GCC unroll 1
  for (int i = 0; i < n; i += group) {
    Ints each[4];
    for (int v = 0; v < 4; ++v) {
      const int at = i + count * v;
      each[v] = load(guesses + at);
      if (!is_signed) continue;
      each[v] = with_sign(each[v] - (load(magnitudes + at) > pick(midpoints, each[v])), (Ints)load(values + at));
    }
    store_nibbles(bytes + i / 2, to_bytes(each, is_signed ? 7 : 0));
  }
  return !any(largest >= 0x7f800000);
}

template <bool is_signed, class Numbers, int block>
inline void encode(const float* values, const float* scales, uint8_t* bytes, int n) {
  const Reciprocals<block> reciprocals(scales, n);
  bool finite = true;
  if (n % group == 0) {
    finite = encode_groups<is_signed, Numbers>(values, reciprocals, bytes, n);
  } else if (n > 0) {
    float padded[TILE] = {};
    uint8_t padded_bytes[TILE / 2];
    memcpy(padded, values, n * sizeof(float));
    finite = encode_groups<is_signed, Numbers>(padded, reciprocals, padded_bytes, (n / group + 1) * group);
    if (n % 2) padded_bytes[n / 2] &= 0xf0;  // no element has the other half of the last byte
    memcpy(bytes, padded_bytes, (n + 1) / 2);
  }
  if (__builtin_expect(!finite, false)) int4_plain::encode<is_signed, Numbers, block>(values, scales, bytes, n);
}

}  // namespace int4_lanes
}  // namespace optgen
