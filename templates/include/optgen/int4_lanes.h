// The 4-bit codes with vectors. Included by int4.h, where the rule stands.
#pragma once

#include <optgen/int4_books.h>
#include <optgen/lanes.h>
#include <optgen/scales.h>

namespace optgen {
namespace int4_lanes {

using namespace lanes;

// The numbers of a vector of codes.
template <bool is_signed, class Numbers> struct Decoder {
  using Tables = Int4Tables<is_signed, Numbers>;
  Table low = table(Tables::book);
  Table change = exclusive_or(low, table(Tables::book + 8));  // from the book's lower half to the upper one

  OPTGEN_INLINE Floats operator()(const uint8_t* bytes) const {
    const Ints code = load_nibbles(bytes);
    if (!is_signed) return fused(to_floats(shifted_right(code, 28)), all(0.0625f), all(0.0625f));
    const Ints upper = (Ints)pick(change, code >> 28) & code >> 31;
    return (Floats)((Ints)pick(low, code >> 28) ^ upper);
  }
};

template <bool is_signed, class Numbers, int block>
inline void decode(const uint8_t* bytes, const float* scales, float* out, int n) {
  const Decoder<is_signed, Numbers> decoder;
  const PerBlock<block> scale(scales, n);
  int i = 0;
#pragma GCC unroll 4
  for (; i + count <= n; i += count) store(out + i, decoder(bytes + i / 2) * scale.at(i));
  if (i < n) {
    uint8_t rest[count / 2] = {};
    memcpy(rest, bytes + i / 2, (n - i + 1) / 2);
    const Floats x = decoder(rest) * scale.at(i);
    memcpy(out + i, &x, (n - i) * sizeof(float));
  }
}

// A vector of codes; signed ones counted from that of zero.
template <bool is_signed, class Numbers> OPTGEN_INLINE Ints codes_of(Floats x, float reciprocal) {
  using Tables = Int4Tables<true, Numbers>;
  const Floats y = scaled_magnitude<is_signed>(x, reciprocal);
  if (!is_signed) return larger(rounded_up(fused(y, all(16.0f), all(-1.5f))), Ints{});
  const Floats fine = fused(y, all(Tables::fine.slope), all(Tables::fine.offset));
  const Floats coarse = fused(y, all(Tables::coarse.slope), all(Tables::coarse.offset));
  const Ints guess = whole_part(smaller(fine, coarse));
  return with_sign(guess - (y > pick(table(Tables::midpoints), guess)), (Ints)x);
}

// A group of elements, two to a byte; it is the one from number `from` on of those that the reciprocals are for.
template <bool is_signed, class Numbers, int block>
OPTGEN_INLINE void encode_group(const float* values, const Reciprocals<block>& reciprocals, int from, uint8_t* bytes) {
  Ints each[4];
  for (int v = 0; v < 4; ++v)
    each[v] = codes_of<is_signed, Numbers>(load(values + count * v), reciprocals.at(from + count * v));
  store_nibbles(bytes, to_bytes(each, is_signed ? 7 : 0));
}

template <bool is_signed, class Numbers, int block>
inline void encode(const float* values, const float* scales, uint8_t* bytes, int n) {
  const Reciprocals<block> reciprocals(scales, n);
  int i = 0;
  for (; i + group <= n; i += group) encode_group<is_signed, Numbers>(values + i, reciprocals, i, bytes + i / 2);
  if (i < n) {
    float rest[group] = {};
    uint8_t bytes_of_rest[group / 2];
    memcpy(rest, values + i, (n - i) * sizeof(float));
    encode_group<is_signed, Numbers>(rest, reciprocals, i, bytes_of_rest);
    if (n % 2) bytes_of_rest[(n - i) / 2] &= 0xf0;  // no element has the other half of the last byte
    memcpy(bytes + i / 2, bytes_of_rest, (n - i + 1) / 2);
  }
}

}  // namespace int4_lanes
}  // namespace optgen
