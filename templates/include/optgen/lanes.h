// Vectors of numbers, 16 with AVX-512, eight with AVX2 and four with NEON, and the operations on them that the language has no word for.
//
// Loops are plain elsewhere, and compilers make vectors of them. A loop that looks up in a small table they leave as it
// is, or gather element by element, though a processor looks up a vector of numbers in registers at once: such loops are
// written with these vectors. OPTGEN_LANES tells whether this processor has what they need; OPTGEN_GENERIC forbids it.
//
// Here stands what compilers make of operators; what each processor has instructions for is in lanes_avx512.h,
// lanes_avx2.h and lanes_neon.h.
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(OPTGEN_GENERIC) && ((defined(__AVX2__) && defined(__FMA__)) || defined(__aarch64__))
#define OPTGEN_LANES 1

#include <optgen/function.h>

namespace optgen {
namespace lanes {

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define OPTGEN_LANES_AVX512 1
constexpr int width = 64;
#elif defined(__AVX2__)
constexpr int width = 32;
#else
constexpr int width = 16;
#endif
constexpr int count = width / 4;
constexpr int group = 4 * count;  // elements that are narrowed to bytes at once

typedef float Floats __attribute__((vector_size(width)));
typedef int32_t Ints __attribute__((vector_size(width)));
typedef uint32_t Unsigned __attribute__((vector_size(width)));
typedef int16_t Shorts __attribute__((vector_size(width)));
typedef uint16_t Halves __attribute__((vector_size(width)));
typedef char Bytes __attribute__((vector_size(width)));
typedef uint64_t Wide __attribute__((vector_size(width)));

OPTGEN_INLINE Floats load(const float* from) {
  Floats x;
  memcpy(&x, from, sizeof x);
  return x;
}
OPTGEN_INLINE Ints load(const int32_t* from) {
  Ints x;
  memcpy(&x, from, sizeof x);
  return x;
}
OPTGEN_INLINE Floats all(float x) { return Floats{} + x; }
OPTGEN_INLINE Ints all(int32_t x) { return Ints{} + x; }

OPTGEN_INLINE void store(uint8_t* to, Bytes x) { memcpy(to, &x, sizeof x); }
OPTGEN_INLINE void store(float* to, Floats x) { memcpy(to, &x, sizeof x); }
OPTGEN_INLINE void store(int32_t* to, Ints x) { memcpy(to, &x, sizeof x); }
OPTGEN_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
OPTGEN_INLINE Ints whole_part(Floats x) { return __builtin_convertvector(x, Ints); }

OPTGEN_INLINE Ints larger(Ints a, Ints b) { return a > b ? a : b; }
OPTGEN_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }  // b where either is not a number
OPTGEN_INLINE Halves smaller(Halves a, Halves b) { return a < b ? a : b; }

// yes ? a : b, for masks of all bits or none.
OPTGEN_INLINE Ints choose(Ints yes, Ints a, Ints b) { return b ^ ((a ^ b) & yes); }

// |x| * reciprocal; 0 where x is not finite, and where it is negative and the state has no sign. At most 1, or what comes
// next when the reciprocal was rounded up.
template <bool is_signed> OPTGEN_INLINE Floats scaled_magnitude(Floats x, float reciprocal) {
  const Ints bits = (Ints)x;
  const Ints magnitude = is_signed ? bits & INT32_MAX : larger(bits, Ints{});
  return (Floats)(magnitude & (magnitude < 0x7f800000)) * reciprocal;
}

OPTGEN_INLINE Ints shifted_right(Ints x, int by) { return (Ints)((Unsigned)x >> by); }  // zeros move in

}  // namespace lanes
}  // namespace optgen

#if defined(OPTGEN_LANES_AVX512)
#include <optgen/lanes_avx512.h>
#elif defined(__AVX2__)
#include <optgen/lanes_avx2.h>
#else
#include <optgen/lanes_neon.h>
#endif
#endif
