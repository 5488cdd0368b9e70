// The functions of the equation language, for float and double.
//
// minimum and maximum hand on NaN as torch does; everything else follows IEEE 754.
#pragma once

#include <optgen/bits.h>
#include <optgen/elementary.h>
#include <optgen/function.h>
#include <optgen/libm.h>
#include <stdint.h>

namespace optgen {

// The bits of a magnitude, which order as the magnitudes do, NaN above all.
OPTGEN_FUNCTION uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7fffffffu; }

OPTGEN_FUNCTION float sqrt(float x) { return OPTGEN_LIBM(sqrtf)(x); }
OPTGEN_FUNCTION double sqrt(double x) { return OPTGEN_LIBM(sqrt)(x); }
OPTGEN_FUNCTION float rsqrt(float x) { return 1.0f / OPTGEN_LIBM(sqrtf)(x); }
OPTGEN_FUNCTION double rsqrt(double x) { return 1.0 / OPTGEN_LIBM(sqrt)(x); }
OPTGEN_FUNCTION double exp(double x) { return OPTGEN_LIBM(exp)(x); }
OPTGEN_FUNCTION double log(double x) { return OPTGEN_LIBM(log)(x); }
OPTGEN_FUNCTION double tanh(double x) { return OPTGEN_LIBM(tanh)(x); }
OPTGEN_FUNCTION double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
OPTGEN_FUNCTION float floor(float x) { return OPTGEN_LIBM(floorf)(x); }
OPTGEN_FUNCTION double floor(double x) { return OPTGEN_LIBM(floor)(x); }
// By its bits, so that compilers take it once where isfinite looks at them too.
OPTGEN_FUNCTION float abs(float x) { return bits_float(magnitude_bits(x)); }
OPTGEN_FUNCTION double abs(double x) { return OPTGEN_LIBM(fabs)(x); }
OPTGEN_FUNCTION double softplus(double x) { return (x < 0.0 ? 0.0 : x) + OPTGEN_LIBM(log1p)(exp(-abs(x))); }
OPTGEN_FUNCTION double power(double x, double y) { return OPTGEN_LIBM(pow)(x, y); }
// The rest of a division whose quotient is rounded down: of the sign of `b`, as in Python.
OPTGEN_FUNCTION float remainder(float a, float b) {
  const float rest = OPTGEN_LIBM(fmodf)(a, b);
  return rest != 0.0f && (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}
OPTGEN_FUNCTION double remainder(double a, double b) {
  const double rest = OPTGEN_LIBM(fmod)(a, b);
  return rest != 0.0 && (rest < 0.0) != (b < 0.0) ? rest + b : rest;
}

template <class T> OPTGEN_FUNCTION T square(T x) { return x * x; }
template <class T> OPTGEN_FUNCTION T sign(T x) { return T(x > T(0)) - T(x < T(0)); }
// Two selections each, the outer one by `b` alone, which is mostly the same for all elements: compilers vectorise that
// as it stands, also where one is the argument of another.
template <class T> OPTGEN_FUNCTION T maximum(T a, T b) { return b != b ? b : (!(a <= b) ? a : b); }
template <class T> OPTGEN_FUNCTION T minimum(T a, T b) { return b != b ? b : (!(a >= b) ? a : b); }

template <class T> OPTGEN_FUNCTION T clamp(T x, T low, T high) { return minimum(maximum(x, low), high); }

// The largest magnitude of a tensor or a block as the scale of its codes: 0 where it is below the smallest normal float,
// whose reciprocal would be infinite.
constexpr float smallest_absmax = 0x1p-126f;
OPTGEN_FUNCTION double scale_of(double largest) { return largest >= smallest_absmax ? largest : 0.0; }

// Integer arithmetic on the bits, so that loops with it are vectorised whatever the compiler assumes of NaN.
OPTGEN_FUNCTION bool isfinite(float x) { return int32_t(magnitude_bits(x)) < 0x7f800000; }
OPTGEN_FUNCTION bool isfinite(double x) { return x - x == 0.0; }

// A number as one that orders as the numbers do, both zeros alike, NaN above all and 0 below all.
OPTGEN_FUNCTION uint32_t order_of(float x) {
  const uint32_t magnitude = magnitude_bits(x);
  const uint32_t order = float_bits(x) >> 31 ? 0x80000000u - magnitude : 0x80000000u + magnitude;
  return magnitude > 0x7f800000u ? 0xffffffffu : order;
}

// The larger of two magnitudes, by their bits; and of two numbers.
OPTGEN_FUNCTION uint32_t larger(uint32_t largest, float x) {
  return magnitude_bits(x) > largest ? magnitude_bits(x) : largest;
}
OPTGEN_FUNCTION uint32_t greater(uint32_t greatest, float x) {
  return order_of(x) > greatest ? order_of(x) : greatest;
}

// How a reduction takes its terms, brings parts of it together, and ends. A maximum is kept as bits, of which 0 are
// those of no term, so that every reduction begins with 0.
struct Added {
  OPTGEN_METHOD static double term(float x) { return x; }
  OPTGEN_METHOD static double join(double a, double b) { return a + b; }
  OPTGEN_METHOD static double value(double sum) { return sum; }
};
struct Largest {  // of magnitudes; 0 of none
  OPTGEN_METHOD static double term(float x) { return double(int32_t(magnitude_bits(x))); }
  OPTGEN_METHOD static double join(double a, double b) { return a > b ? a : b; }
  OPTGEN_METHOD static double value(double bits) { return bits_float(uint32_t(bits)); }
};
struct Greatest {  // of numbers; -inf of none
  OPTGEN_METHOD static double term(float x) { return double(int32_t(order_of(x) - 0x80000000u)) + 0x1p31; }
  OPTGEN_METHOD static double join(double a, double b) { return a > b ? a : b; }
  OPTGEN_METHOD static double value(double order) {
    const uint32_t bits = uint32_t(order);
    return bits_float(bits == 0 ? 0xff800000u : bits < 0x80000000u ? 0u - bits : bits - 0x80000000u);
  }
};

// The square of a float32 value is exact in double, so that a sum is the same with fma, which takes half the time.
OPTGEN_FUNCTION double plus_square(double sum, float x) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return OPTGEN_LIBM(fma)(double(x), double(x), sum);
#else
  return sum + double(x) * double(x);
#endif
}

// A condition that is the same for all elements of a loop, as wide as they are.
struct Mask {
  uint32_t bits;
  OPTGEN_METHOD Mask() : bits(0) {}
  OPTGEN_METHOD Mask(bool condition) : bits(condition ? 0xffffffffu : 0u) {}
  OPTGEN_METHOD operator bool() const { return bits != 0; }
};
OPTGEN_FUNCTION float where(Mask mask, float then, float other) {
  return bits_float((float_bits(then) & mask.bits) | (float_bits(other) & ~mask.bits));
}
OPTGEN_FUNCTION bool where(Mask mask, bool then, bool other) { return mask ? then : other; }
OPTGEN_FUNCTION float where(bool condition, float then, float other) { return condition ? then : other; }
OPTGEN_FUNCTION bool where(bool condition, bool then, bool other) { return condition ? then : other; }

}  // namespace optgen
