// Arithmetic that CUDA has and the C++ library has not, or only by another name. The rest is <math.h>.
#pragma once

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

#define STANDIN_MIN_MAX(type)                                  \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
STANDIN_MIN_MAX(int)
STANDIN_MIN_MAX(unsigned)
STANDIN_MIN_MAX(long)
STANDIN_MIN_MAX(unsigned long)
STANDIN_MIN_MAX(long long)
STANDIN_MIN_MAX(unsigned long long)
#undef STANDIN_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// ---- Bits

inline unsigned __float_as_uint(float value) { return standin::from_bits<unsigned>(standin::to_bits(value)); }
inline int __float_as_int(float value) { return standin::from_bits<int>(standin::to_bits(value)); }
inline float __uint_as_float(unsigned value) { return standin::from_bits<float>(standin::to_bits(value)); }
inline float __int_as_float(int value) { return standin::from_bits<float>(standin::to_bits(value)); }
inline long long __double_as_longlong(double value) { return standin::from_bits<long long>(standin::to_bits(value)); }
inline double __longlong_as_double(long long value) { return standin::from_bits<double>(standin::to_bits(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (value >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Bytes of y:x chosen by the nibbles of `selector`.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

// ---- Rounding named in the function: to nearest, as C++ does

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float __ll2float_rn(long long a) { return static_cast<float>(a); }

// To integers CUDA converts what is out of range to the nearest that there is, and NaN to 0.
namespace standin {

template <class Integer>
Integer saturate(double value) {
  constexpr bool is_signed = std::is_signed_v<Integer>;
  constexpr Integer lowest = is_signed ? static_cast<Integer>(Integer{1} << (8 * sizeof(Integer) - 1)) : Integer{0};
  constexpr Integer highest = static_cast<Integer>(~lowest);
  if (value != value) return 0;
  if (value <= static_cast<double>(lowest)) return lowest;
  if (value >= static_cast<double>(highest)) return highest;
  return static_cast<Integer>(value);
}

}  // namespace standin

inline int __float2int_rn(float a) { return standin::saturate<int>(nearbyint(static_cast<double>(a))); }
inline int __float2int_rd(float a) { return standin::saturate<int>(floor(static_cast<double>(a))); }
inline int __float2int_ru(float a) { return standin::saturate<int>(ceil(static_cast<double>(a))); }
inline int __float2int_rz(float a) { return standin::saturate<int>(static_cast<double>(a)); }
inline unsigned __float2uint_rn(float a) { return standin::saturate<unsigned>(nearbyint(static_cast<double>(a))); }
inline unsigned __float2uint_rz(float a) { return standin::saturate<unsigned>(static_cast<double>(a)); }
inline float __saturatef(float a) { return a != a ? 0.0f : fminf(fmaxf(a, 0.0f), 1.0f); }

// ---- Functions that CUDA has beside <math.h>

inline float rsqrtf(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
