// Vectors of four with NEON. Included by lanes.h.
#pragma once

#include <arm_neon.h>
#include <optgen/lanes.h>

namespace optgen {
namespace lanes {

// Eight numbers, and table[index % 8].
typedef uint8x16x2_t Table;
OPTGEN_INLINE Table table(const uint8_t* bytes) { return {{vld1q_u8(bytes), vld1q_u8(bytes + width)}}; }
OPTGEN_INLINE Table table(const float* from) { return table(reinterpret_cast<const uint8_t*>(from)); }
OPTGEN_INLINE Table table(const int32_t* from) { return table(reinterpret_cast<const uint8_t*>(from)); }
OPTGEN_INLINE Floats pick(Table table, Ints index) {
  const Ints bytes = (index & 7) * 0x04040404 + 0x03020100;  // the places of a number's four bytes
  return (Floats)vqtbl2q_u8(table, (uint8x16_t)bytes);
}

// Sixteen numbers, and table[the upper four bits of an index].
typedef uint8x16x4_t Sixteen;
OPTGEN_INLINE Sixteen sixteen(const float* from) {
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(from);
  return {{vld1q_u8(bytes), vld1q_u8(bytes + width), vld1q_u8(bytes + 2 * width), vld1q_u8(bytes + 3 * width)}};
}
OPTGEN_INLINE Floats pick(const Sixteen& table, Ints index) {
  const Ints bytes = shifted_right(index, 28) * 0x04040404 + 0x03020100;
  return (Floats)vqtbl4q_u8(table, (uint8x16_t)bytes);
}

// a * b + c with one rounding.
OPTGEN_INLINE Floats fused(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

// Numbers rounded up to whole ones.
OPTGEN_INLINE Ints rounded_up(Floats x) { return (Ints)vcvtpq_s32_f32((float32x4_t)x); }

// Four bytes as numbers.
OPTGEN_INLINE Ints load_bytes(const uint8_t* from) {
  uint32_t four;
  memcpy(&four, from, sizeof four);
  return (Ints)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

// Codes of four bits, the first in the upper half of a byte, as the upper bits of numbers.
OPTGEN_INLINE Ints load_nibbles(const uint8_t* from) {
  uint16_t two;
  memcpy(&two, from, sizeof two);
  return all(int32_t(two)) << Ints{24, 28, 16, 20};
}

// Four numbers of 16 bits, without a sign.
OPTGEN_INLINE Ints load_halves(const void* from) {
  uint16x4_t halves;
  memcpy(&halves, from, sizeof halves);
  return (Ints)vmovl_u16(halves);
}

// The lower or upper halves of eight numbers.
OPTGEN_INLINE uint16x8_t lower_halves(Ints first, Ints second) {
  return vcombine_u16(vmovn_u32((uint32x4_t)first), vmovn_u32((uint32x4_t)second));
}
OPTGEN_INLINE void store_lower_halves(void* to, Ints first, Ints second) {
  const uint16x8_t halves = lower_halves(first, second);
  memcpy(to, &halves, sizeof halves);
}
OPTGEN_INLINE void store_halves(void* to, Ints first, Ints second) { store_lower_halves(to, first, second); }
OPTGEN_INLINE void store_upper_halves(void* to, Ints first, Ints second) {
  store_halves(to, shifted_right(first, 16), shifted_right(second, 16));
}

// Two vectors as 16 bits each; what is larger or smaller than these hold becomes the largest or smallest of them.
OPTGEN_INLINE int16x8_t to_shorts(Ints first, Ints second) {
  return vcombine_s16(vqmovn_s32((int32x4_t)first), vqmovn_s32((int32x4_t)second));
}

// The second lowest bytes of eight numbers.
OPTGEN_INLINE void store_second_bytes(void* to, Ints first, Ints second) {
  vst1_u8(static_cast<uint8_t*>(to), vshrn_n_u16(lower_halves(first, second), 8));
}

// x with the sign that `sign` has as a number; x is 0 where that is 0.
OPTGEN_INLINE Ints with_sign(Ints x, Ints sign) { return (x ^ sign >> 31) - (sign >> 31); }

// x, less one where y <= edge.
OPTGEN_INLINE Ints one_less_up_to(Floats edge, Floats y, Ints x) { return x + (y <= edge); }

OPTGEN_INLINE bool any(Ints mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }

// The 16 numbers x + shift as bytes, at least 0 and at most 255, for x and sums of 16 bits.
OPTGEN_INLINE Bytes to_bytes(const Ints (&x)[4], int16_t shift) {
  const int16x8_t first = to_shorts(x[0], x[1]) + shift, second = to_shorts(x[2], x[3]) + shift;
  return (Bytes)vcombine_u8(vqmovun_s16(first), vqmovun_s16(second));
}

// The lower four bits of 16 bytes, two to a byte, the first in the upper half.
OPTGEN_INLINE void store_nibbles(uint8_t* to, Bytes x) {
  const Halves pairs = (Halves)x;
  vst1_u8(to, vmovn_u16((uint16x8_t)(pairs << 4 | pairs >> 8)));
}

// The product of the lower halves.
OPTGEN_INLINE Wide product(Wide a, uint32_t b) {
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
}

// The lower 64 bits of each 128 of `a`, each before those of `b`; then the upper ones.
OPTGEN_INLINE void store_pairs(void* to, Wide a, Wide b) {
  vst1q_u64(static_cast<uint64_t*>(to), vzip1q_u64((uint64x2_t)a, (uint64x2_t)b));
  vst1q_u64(static_cast<uint64_t*>(to) + 2, vzip2q_u64((uint64x2_t)a, (uint64x2_t)b));
}

}  // namespace lanes
}  // namespace optgen
