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
typedef uint32_t Unsigned __attribute__((vector_size(32)));
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

OPTGEN_INLINE void store(uint8_t* to, Bytes x) { memcpy(to, &x, sizeof x); }
OPTGEN_INLINE void store(float* to, Floats x) { memcpy(to, &x, sizeof x); }
OPTGEN_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
OPTGEN_INLINE Ints whole_part(Floats x) { return __builtin_convertvector(x, Ints); }

// table[index % 8].
OPTGEN_INLINE Floats pick(Floats table, Ints index) { return __builtin_ia32_permvarsf256(table, index); }

// a * b + c with one rounding.
OPTGEN_INLINE Floats fused(Floats a, Floats b, Floats c) { return __builtin_ia32_vfmaddps256(a, b, c); }

OPTGEN_INLINE Ints larger(Ints a, Ints b) { return a > b ? a : b; }
OPTGEN_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }  // b where either is not a number

// yes ? a : b, for masks of all bits or none.
OPTGEN_INLINE Ints choose(Ints yes, Ints a, Ints b) { return b ^ ((a ^ b) & yes); }

// |x| * reciprocal; 0 where x is not finite, and where it is negative and the state has no sign. At most 1, or what comes
// next when the reciprocal was rounded up.
template <bool is_signed> OPTGEN_INLINE Floats scaled_magnitude(Floats x, float reciprocal) {
  const Ints bits = (Ints)x;
  const Ints magnitude = is_signed ? bits & INT32_MAX : larger(bits, Ints{});
  return (Floats)(magnitude & (magnitude < 0x7f800000)) * reciprocal;
}

// Eight bytes as numbers.
OPTGEN_INLINE Ints load_bytes(const uint8_t* from) {
  long long eight;
  memcpy(&eight, from, sizeof eight);
#if defined(__clang__)
  typedef uint8_t Eight __attribute__((vector_size(8)));
  return __builtin_convertvector((Eight)eight, Ints);
#else
  typedef char Sixteen __attribute__((vector_size(16)));
  typedef long long Two __attribute__((vector_size(16)));
  return (Ints)__builtin_ia32_pmovzxbd256((Sixteen)Two{eight, 0});
#endif
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

// 16 numbers from 0 to 65535 as 16 bits each.
OPTGEN_INLINE void store_halves(void* to, Ints first, Ints second) {
  const Ints packed = (Ints)__builtin_ia32_packusdw256(first, second);
  const Ints halves = __builtin_ia32_permvarsi256(packed, Ints{0, 1, 4, 5, 2, 3, 6, 7});
  memcpy(to, &halves, sizeof halves);
}

// 16 numbers from -128 to 127 as 8 bits each, or from -32768 to 32767 as 16 bits each.
OPTGEN_INLINE void store_signed(int8_t* to, Ints first, Ints second) {
  const Shorts shorts = (Shorts)__builtin_ia32_packssdw256(first, second);
  const Ints packed = (Ints)__builtin_ia32_packsswb256(shorts, shorts);
  const Ints bytes = __builtin_ia32_permvarsi256(packed, Ints{0, 4, 1, 5, 0, 4, 1, 5});
  memcpy(to, &bytes, sizeof bytes / 2);
}
OPTGEN_INLINE void store_signed(int16_t* to, Ints first, Ints second) {
  const Ints packed = (Ints)__builtin_ia32_packssdw256(first, second);
  const Ints halves = __builtin_ia32_permvarsi256(packed, Ints{0, 1, 4, 5, 2, 3, 6, 7});
  memcpy(to, &halves, sizeof halves);
}

OPTGEN_INLINE Ints shifted_right(Ints x, int by) { return (Ints)((Unsigned)x >> by); }  // zeros move in

// x with the sign that `sign` has as a number; 0 where that is 0.
OPTGEN_INLINE Ints with_sign(Ints x, Ints sign) { return __builtin_ia32_psignd256(x, sign); }

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

}  // namespace lanes
}  // namespace optgen

#endif
