// Vectors of eight with AVX2. Included by lanes.h.
//
// The compilers' own names, since a header of intrinsics takes longer to read than all others together.
#pragma once

#include <optgen/lanes.h>

namespace optgen {
namespace lanes {

typedef long long Longs __attribute__((vector_size(width)));

// Eight numbers, and table[index % 8].
typedef Floats Table;
OPTGEN_INLINE Table table(const float* from) { return load(from); }
OPTGEN_INLINE Table table(const int32_t* from) { return (Table)load(from); }
OPTGEN_INLINE Floats pick(Table table, Ints index) { return __builtin_ia32_permvarsf256(table, index); }

// Sixteen numbers, and table[the upper four bits of an index].
struct Sixteen {
  Floats lower, upper;
};
OPTGEN_INLINE Sixteen sixteen(const float* from) { return {load(from), load(from + count)}; }
OPTGEN_INLINE Floats pick(const Sixteen& table, Ints index) {
  const Ints place = index >> 28;
  return __builtin_ia32_blendvps256(pick(table.lower, place), pick(table.upper, place), (Floats)index);
}

// a * b + c with one rounding.
OPTGEN_INLINE Floats fused(Floats a, Floats b, Floats c) { return __builtin_ia32_vfmaddps256(a, b, c); }

// Numbers rounded up to whole ones.
OPTGEN_INLINE Ints rounded_up(Floats x) { return whole_part(__builtin_ia32_roundps256(x, 2)); }

// Eight bytes as numbers.
OPTGEN_INLINE Ints load_bytes(const uint8_t* from) {
  long long eight;
  memcpy(&eight, from, sizeof eight);
#if defined(__clang__)
  typedef uint8_t Eight __attribute__((vector_size(8)));
  return __builtin_convertvector((Eight)eight, Ints);
#else
  typedef char SixteenBytes __attribute__((vector_size(16)));
  typedef long long Two __attribute__((vector_size(16)));
  return (Ints)__builtin_ia32_pmovzxbd256((SixteenBytes)Two{eight, 0});
#endif
}

// Codes of four bits, the first in the upper half of a byte, as the upper bits of numbers.
OPTGEN_INLINE Ints load_nibbles(const uint8_t* from) {
  int32_t four;
  memcpy(&four, from, sizeof four);
  return all(four) << Ints{24, 28, 16, 20, 8, 12, 0, 4};
}

// Eight numbers of 16 bits, without a sign.
OPTGEN_INLINE Ints load_halves(const void* from) {
  typedef uint16_t Eight __attribute__((vector_size(16)));
  Eight halves;
  memcpy(&halves, from, sizeof halves);
#if defined(__clang__)
  return __builtin_convertvector(halves, Ints);
#else
  typedef short EightShorts __attribute__((vector_size(16)));
  return (Ints)__builtin_ia32_pmovzxwd256((EightShorts)halves);
#endif
}

// 16 numbers from 0 to 65535 as 16 bits each, or the upper or lower halves of 16 numbers.
OPTGEN_INLINE void store_halves(void* to, Ints first, Ints second) {
  const Ints packed = (Ints)__builtin_ia32_packusdw256(first, second);
  const Ints halves = __builtin_ia32_permvarsi256(packed, Ints{0, 1, 4, 5, 2, 3, 6, 7});
  memcpy(to, &halves, sizeof halves);
}
OPTGEN_INLINE void store_upper_halves(void* to, Ints first, Ints second) {
  store_halves(to, shifted_right(first, 16), shifted_right(second, 16));
}
OPTGEN_INLINE void store_lower_halves(void* to, Ints first, Ints second) {
  store_halves(to, first & 0xffff, second & 0xffff);
}

// The second lowest bytes of 16 numbers.
OPTGEN_INLINE void store_second_bytes(void* to, Ints first, Ints second) {
  const Halves halves = (Halves)__builtin_ia32_packusdw256(first & 0xffff, second & 0xffff) >> 8;
  const Ints packed = (Ints)__builtin_ia32_packuswb256((Shorts)halves, (Shorts)halves);
  const Ints bytes = __builtin_ia32_permvarsi256(packed, Ints{0, 4, 1, 5, 0, 4, 1, 5});
  memcpy(to, &bytes, sizeof bytes / 2);
}

// x with the sign that `sign` has as a number; x is 0 where that is 0.
OPTGEN_INLINE Ints with_sign(Ints x, Ints sign) { return __builtin_ia32_psignd256(x, sign); }

// x, less one where y <= edge.
OPTGEN_INLINE Ints one_less_up_to(Floats edge, Floats y, Ints x) { return x + (y <= edge); }

OPTGEN_INLINE bool any(Ints mask) { return !__builtin_ia32_ptestz256((Longs)mask, (Longs)mask); }

// The 32 numbers x + shift as bytes, at least 0 and at most 255, for x and sums of 16 bits.
OPTGEN_INLINE Bytes to_bytes(const Ints (&x)[4], int16_t shift) {
  const Shorts first = (Shorts)__builtin_ia32_packssdw256(x[0], x[1]) + shift;
  const Shorts second = (Shorts)__builtin_ia32_packssdw256(x[2], x[3]) + shift;
  // Packing works within 128 bits: eight groups of four bytes are left in the order 0 2 4 6 1 3 5 7.
  return (Bytes)__builtin_ia32_permvarsi256((Ints)__builtin_ia32_packuswb256(first, second),
                                            Ints{0, 4, 1, 5, 2, 6, 3, 7});
}

// The lower four bits of 32 bytes, two to a byte, the first in the upper half.
OPTGEN_INLINE void store_nibbles(uint8_t* to, Bytes x) {
  const Halves pairs = (Halves)x, joined = (pairs << 4 | pairs >> 8) & 0xff;
  const Longs bytes = (Longs)__builtin_ia32_packuswb256((Shorts)joined, (Shorts)joined);
  const long long both[] = {bytes[0], bytes[2]};
  memcpy(to, both, sizeof both);
}

// The product of the lower halves.
OPTGEN_INLINE Wide product(Wide a, uint32_t b) {
  return (Wide)__builtin_ia32_pmuludq256((Ints)a, (Ints)(Wide{} + b));
}

// The lower 64 bits of each 128 of `a`, each before those of `b`; then the upper ones.
OPTGEN_INLINE void store_pairs(void* to, Wide a, Wide b) {
#if defined(__clang__)
  const Wide lower = __builtin_shufflevector(a, b, 0, 4, 2, 6), upper = __builtin_shufflevector(a, b, 1, 5, 3, 7);
#else
  const Wide lower = __builtin_shuffle(a, b, Wide{0, 4, 2, 6}), upper = __builtin_shuffle(a, b, Wide{1, 5, 3, 7});
#endif
  memcpy(to, &lower, width);
  memcpy(static_cast<char*>(to) + width, &upper, width);
}

}  // namespace lanes
}  // namespace optgen
