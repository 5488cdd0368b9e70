// Vectors of eight numbers, and the operations on them that the language has no word for.
//
// Loops are plain elsewhere, and compilers make vectors of them. A loop that looks up in a small table they leave as it
// is, or gather element by element, though a processor looks up eight numbers in a register at once: such loops are
// written with these vectors. OPTGEN_LANES tells whether this processor has what they need; OPTGEN_GENERIC forbids it.
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(OPTGEN_GENERIC) && defined(__AVX2__) && defined(__FMA__)
#define OPTGEN_LANES 1

#include <optgen/function.h>

namespace optgen {
namespace lanes {

constexpr int count = 8;
constexpr int group = 4 * count;  // elements that are narrowed to bytes at once

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef char Bytes __attribute__((vector_size(32)));
typedef long long Longs __attribute__((vector_size(32)));

OPTGEN_INLINE Floats load(const float* from) {
  Floats x;
  memcpy(&x, from, sizeof x);
  return x;
}
OPTGEN_INLINE Floats all(float x) { return Floats{} + x; }
OPTGEN_INLINE Ints all(int32_t x) { return Ints{} + x; }

OPTGEN_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
OPTGEN_INLINE Ints whole_part(Floats x) { return __builtin_convertvector(x, Ints); }

// table[index % 8].
OPTGEN_INLINE Floats pick(Floats table, Ints index) { return __builtin_ia32_permvarsf256(table, index); }

// a * b + c with one rounding.
OPTGEN_INLINE Floats fused(Floats a, Floats b, Floats c) { return __builtin_ia32_vfmaddps256(a, b, c); }

// x with the sign that `sign` has as a number; 0 where that is 0.
OPTGEN_INLINE Ints with_sign(Ints x, Ints sign) { return __builtin_ia32_psignd256(x, sign); }

OPTGEN_INLINE bool any(Ints mask) { return !__builtin_ia32_ptestz256((Longs)mask, (Longs)mask); }

// x + shift as bytes, at least 0 and at most 255, for x and sums of 16 bits.
OPTGEN_INLINE void store_bytes(uint8_t* to, const Ints (&x)[4], int16_t shift) {
  const Shorts first = (Shorts)__builtin_ia32_packssdw256(x[0], x[1]) + shift;
  const Shorts second = (Shorts)__builtin_ia32_packssdw256(x[2], x[3]) + shift;
  // Packing works within 128 bits: eight groups of four bytes are left in the order 0 2 4 6 1 3 5 7.
  const Ints bytes = __builtin_ia32_permvarsi256((Ints)__builtin_ia32_packuswb256(first, second),
                                                 Ints{0, 4, 1, 5, 2, 6, 3, 7});
  memcpy(to, &bytes, sizeof bytes);
}

}  // namespace lanes
}  // namespace optgen

#endif
