// exp, log, tanh, sigmoid, softplus and powers of floats, without branches or tables, so that loops with them are
// vectorised.
//
// Each product and sum is rounded by itself, so that CPUs and GPUs compute the same bits. The polynomials are minimax
// ones, computed in parts that do not wait for each other. What is not finite, zero or below the smallest normal number
// is treated as IEEE 754 and C's Annex F ask.
#pragma once

#include <optgen/bits.h>
#include <optgen/function.h>
#include <optgen/libm.h>
#include <stdint.h>

namespace optgen {

OPTGEN_FUNCTION float size_of(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }
OPTGEN_FUNCTION float with_sign_of(float x, float size) {
  return bits_float((float_bits(x) & 0x80000000u) | float_bits(size));
}
OPTGEN_FUNCTION float not_a_number() { return bits_float(0x7fc00000u); }

// 2**n for normal results.
OPTGEN_FUNCTION float two_to_the(int32_t n) { return bits_float(uint32_t(n + 127) << 23); }
OPTGEN_FUNCTION double two_to_the(int64_t n) { return bits_double(uint64_t(n + 1023) << 52); }

// A positive number as m * 2**e, sqrt(1/2) <= m < sqrt(2).
struct Scaled {
  float m;
  int32_t e;
};
OPTGEN_FUNCTION Scaled scaled(float x) {
  const bool tiny = x < 0x1p-126f;
  const int32_t bits = int32_t(float_bits(tiny ? x * 0x1p23f : x));
  const int32_t e = (bits - 0x3f3504f3) >> 23;  // the bits of sqrt(1/2)
  return {bits_float(uint32_t(bits - e * (1 << 23))), tiny ? e - 23 : e};
}

// e**x = e**r * 2**n with |r| <= ln(2) / 2; the last of two factors alone can round, below the smallest normal number.
OPTGEN_FUNCTION float exp(float x) {
  const float SHIFT = 0x1.8p23f;  // what is added to it is rounded to a whole number, in its low bits
  const float least = x > -104.0f ? x : -104.0f, within = least < 89.0f ? least : 89.0f;
  const float shifted = within * 0x1.715476p0f + SHIFT;
  const int32_t n = int32_t(float_bits(shifted) - float_bits(SHIFT));
  const float whole = shifted - SHIFT;
  const float high = within - whole * 0x1.62e4p-1f, low = whole * 0x1.7f7d1cp-20f;
  const float r = high - low, lost = (high - r) - low;
  const float square = r * r;
  const float high_terms = (0x1.55545ep-5f + r * 0x1.123bdp-7f) + square * 0x1.6db4cep-10f;
  const float rest = (0x1p-1f + r * 0x1.55548ep-3f) + square * high_terms;
  const float power = 1.0f + (r + (square * rest + lost));
  const int32_t half = n >> 1;
  const float result = power * two_to_the(half) * two_to_the(n - half);
  return x != x ? x : result;
}

// ln x = e ln(2) + ln(1 + f), and ln(1 + f) = f - f**2 / 2 + f**3 rest.
OPTGEN_FUNCTION float log(float x) {
  const Scaled of = scaled(x);
  const float f = of.m - 1.0f, e = float(of.e);
  const float square = f * f;
  const float fourth = square * square;
  const float low = (0x1.555546p-2f + f * -0x1.ffffeep-3f) + square * (0x1.99a53ap-3f + f * -0x1.5562dep-3f);
  const float high = (0x1.233378p-3f + f * -0x1.fb447p-4f) + square * (0x1.e64862p-4f + f * -0x1.e2e016p-4f);
  const float rest = low + fourth * (high + fourth * 0x1.1b48a6p-4f);
  const float result = e * 0x1.62e4p-1f + (f + (e * 0x1.7f7d1cp-20f + (square * f * rest - 0.5f * square)));
  const float of_positive = x < OPTGEN_INFINITY ? result : x;  // or NaN
  const float number = x < 0.0f ? not_a_number() : of_positive;
  return x == 0.0f ? -OPTGEN_INFINITY : number;
}

// By its series, or by e**(2 x) where that is larger.
OPTGEN_FUNCTION float tanh(float x) {
  const float size = size_of(x);
  const float square = x * x;
  const float fourth = square * square;
  const float high_terms = (-0x1.b826b8p-5f + square * 0x1.518d0ep-6f) + fourth * -0x1.7303e8p-8f;
  const float rest = (-0x1.55553p-2f + square * 0x1.110692p-3f) + fourth * high_terms;
  const float near = x + x * square * rest;
  const float far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
  return size < 0.625f ? near : with_sign_of(x, far);
}

// 1 / (1 + e**-x), and what the sum's rounding lost.
OPTGEN_FUNCTION float sigmoid(float x) {
  const float e = exp(-size_of(x));
  const float sum = 1.0f + e, lost = e - (sum - 1.0f);
  const float share = (x < 0.0f ? e : 1.0f) / sum;
  return share - share * lost * (x < 0.0f ? 1.0f - share : share);
}

// ln(1 + e**x), as the larger of x and 0, and ln(1 + e**-|x|).
OPTGEN_FUNCTION float softplus(float x) {
  const float e = exp(-size_of(x));
  const float sum = 1.0f + e, lost = e - (sum - 1.0f);
  return (x < 0.0f ? 0.0f : x) + (log(sum) + lost / sum);
}

// |x|**y = 2**(y log2 |x|) in double, and rounded once. log2 of m is 2 / ln(2) times the inverse hyperbolic tangent
// of (m - 1) / (m + 1).
OPTGEN_FUNCTION float power(float x, float y) {
  const float size = size_of(x);
  const Scaled of = scaled(size);
  const double s = (double(of.m) - 1.0) / (double(of.m) + 1.0), u = s * s;
  const double tail = (0x1.555554fd6cd7cp-2 + u * 0x1.999a7affcaca2p-3) +
                      u * u * (0x1.2438b4d32678ap-3 + u * 0x1.e2fc3aa627ca6p-4);
  const double log2 = double(of.e) + (s + s * u * tail) * 0x1.71547652b82fep1;
  const double exponent = double(y) * log2;
  const double SHIFT = 0x1.8p52;
  const double shifted = exponent + SHIFT;
  const double r = exponent - (shifted - SHIFT);
  const double r2 = r * r;
  const double low_terms = (0x1.62e42fef7b8bdp-1 + r * 0x1.ebfbe07a86687p-3) +
                           r2 * (0x1.c6b08df426310p-5 + r * 0x1.3b29f12298b0dp-7);
  const double high_terms = (0x1.5d8723d4f7d12p-10 + r * 0x1.445e51c4e1468p-13) + r2 * 0x1.00f11e0f78c47p-16;
  const double rest = low_terms + r2 * r2 * high_terms;
  const double result = (1.0 + r * rest) * two_to_the(int64_t(double_bits(shifted) - double_bits(SHIFT)));
  // Chosen among floats, since compilers turn masks of doubles into those of floats slowly.
  const float inside = float(result), about = float(exponent);
  const float finite = about > 200.0f ? OPTGEN_INFINITY : (about < -200.0f ? 0.0f : inside);
  const float of_infinity = y < 0.0f ? 0.0f : OPTGEN_INFINITY, of_zero = y < 0.0f ? OPTGEN_INFINITY : 0.0f;
  const float of_size = size == 0.0f ? of_zero : (size < OPTGEN_INFINITY ? finite : of_infinity);
  const float of_any = y != y ? not_a_number() : of_size;

  // A negative x has real powers where y is whole, and a sign where it is odd.
  const float half = 0.5f * y;
  const bool is_whole = OPTGEN_LIBM(floorf)(y) == y, is_odd = is_whole & (OPTGEN_LIBM(floorf)(half) != half);
  const float with_sign = bits_float(float_bits(of_any) | (float_bits(x) & (is_odd ? 0x80000000u : 0u)));
  const bool has_none = (x < 0.0f) & (size < OPTGEN_INFINITY) & !is_whole;
  const float of_x = has_none ? not_a_number() : with_sign;
  const bool is_one = (x == 1.0f) | (y == 0.0f) | ((x == -1.0f) & (half * half == OPTGEN_INFINITY));
  const float number = x != x ? x : of_x;
  return is_one ? 1.0f : number;
}

}  // namespace optgen
